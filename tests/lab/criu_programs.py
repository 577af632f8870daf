"""Programs that are captured and restored, and judge for themselves whether anything was lost."""
import contextlib
import os
import pathlib
import signal
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import harness  # noqa: E402
import kv_client  # noqa: E402

# Seconds that a program waits for something in an emulated machine, and that its timers may be
# late by: it lies on disk for a while.
SECONDS = 60
LATE_MS = "600000"


class Judge:
    """A program on this machine: before it is captured, and after each time it was restored."""

    def __init__(self, place):
        self.place = place
        self.child = self._start()
        self.pid = self.child.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._kept = os.path.join(place.root, "kept")

    def work(self):
        """Returns once it has done more of what it does."""
        raise NotImplementedError

    def judge(self, eintr_allowed):
        """Has it check everything and end: what it has seen go wrong, or an empty text."""
        raise NotImplementedError

    def goes_on(self):
        """Whether it runs, after a capture that was refused."""
        return not harness.pidfd_ended(self._pidfd, 0)

    def captured(self):
        """It has ended here. What its files hold now is what it will find after each restore."""
        if not harness.pidfd_ended(self._pidfd, SECONDS):
            raise AssertionError("it was captured and still runs")
        self.child.wait()
        harness.wait_until(self._pid_is_free, SECONDS, "init to reap what shared its memory")
        subprocess.run(["cp", "-a", self.directory, self._kept], check=True)

    def _pid_is_free(self):
        """Whether nobody is left in its process group: the number is taken as long."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def put_back(self):
        """Its files, as they were when it was captured, and the same files: it knows their inodes."""
        for path in sorted(pathlib.Path(self.directory).rglob("*"), reverse=True):
            kept = pathlib.Path(self._kept, path.relative_to(self.directory))
            if path.is_dir() and not path.is_symlink():
                if not kept.is_dir():
                    path.rmdir()
            elif path.is_symlink() or not path.is_file() or not kept.is_file():
                path.unlink()  # sockets, too, which a restore makes anew
        subprocess.run(["cp", "-a", f"{self._kept}/.", self.directory], check=True)

    def restored(self, pid):
        """It runs again."""
        os.close(self._pidfd)
        self._pidfd = os.pidfd_open(pid)
        self.pid = pid

    def end(self):
        """Of whatever is left."""
        if not harness.pidfd_ended(self._pidfd, 0):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            harness.pidfd_ended(self._pidfd, SECONDS)

    def _ended(self):
        if harness.pidfd_ended(self._pidfd, SECONDS):
            return True
        self.end()
        return False


class Reporting(Judge):
    """A program of tests/workloads."""

    NAME, OPTIONS, STEPS = None, (), 20

    def _start(self):
        self._workload = harness.Workload(self.place, self.place.source, self.NAME, *self.OPTIONS,
                                          max_seconds=3600)
        self.directory = self._workload.directory
        return self._workload.child

    @property
    def report(self):
        return self._workload.report

    def work(self):
        self.report.wait_progress(self.STEPS, SECONDS)

    def restored(self, pid):
        super().restored(pid)
        # Another file of the same name, once the files have been put back.
        self._workload.report = harness.Report(self._workload.report_path)

    def judge(self, eintr_allowed):
        try:
            self.work()
        except harness.HarnessError as error:
            return f"it does not go on: {error}; it is {self._state()}"
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        if not self._ended():
            return f"it does not end; {self.report.trouble()}"
        report = self.report
        if not report.finished:
            return f"it ended without its last check: {self._workload.output()}"
        if report.errors or report.restarts or report.stray_signals:
            return f"{report.trouble()}; last: {report.last_error}"
        if report.eintr and not eintr_allowed:
            return report.trouble()
        if report.exit_code != 0 and not report.eintr:
            return f"it found fault: {self._workload.output()}"
        return ""

    def _state(self):
        return harness.process_state(self.pid) or f"gone: {self._workload.output()[-300:]}"

    def eintr(self):
        return self.report.eintr


class Threads(Reporting):
    NAME = "threads"
    # Small; what is late or early by the time on disk is no fault.
    OPTIONS = ("--threads", "2", "--memory-kib", "1024", "--rseq-threads", "2", "--spins", "20000",
               "--late-ms", LATE_MS, "--early-us", "600000000")


class AllHoldings(Reporting):
    """Everything a process can hold and predump carries."""

    NAME = "files"
    OPTIONS = ("--late-ms", LATE_MS, "--max-jump-ms", LATE_MS)


class Files(AllHoldings):
    """Every kind of descriptor, but for details that CRIU 3.17.1 loses from its own dump to its own
    restore, and senders' credentials in queues, which it refuses to dump."""

    OPTIONS = (*AllHoldings.OPTIONS, "--skip",
               "semaphore,affinity,timerslack,protocol-options,directory-flag,credentials")


class Python(Reporting):
    NAME, STEPS = "python-counter", 2000


class Redis(Judge):
    KEYS, VALUE_BYTES = 2048, 512

    def _start(self):
        self.directory = self.place.directory("redis")
        self._port = harness.free_port(self.place.source)
        self._address = f"{self.place.source.address}:{self._port}"
        self._keys = 0
        child = self.place.adopt(self.place.source.popen(
            ["redis-server", "--bind", self.place.source.address, "--port", self._port, "--save",
             "", "--appendonly", "no", "--dir", self.directory, "--logfile", "/dev/null"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd=self.directory))
        harness.wait_until(lambda: child.poll() is not None or self._answers(), SECONDS,
                           "redis to answer")
        self.child = child
        self.work()
        return child

    def _answers(self):
        try:
            kv_client.connect(self._address).close()
        except OSError:
            return False
        return True

    def work(self):
        """More keys, and all older ones anew."""
        self._keys += self.KEYS
        filled = kv_client.fill(kv_client.Redis, self._address, self._keys, self.VALUE_BYTES)
        if filled["keys"] != self._keys:
            raise harness.HarnessError(f"redis holds {filled['keys']} keys of {self._keys}")
        self._leave()

    def _leave(self):
        """Returns once it has noticed that the client has gone: it holds its listener only."""
        def sockets():
            count = 0
            for number in os.listdir(f"/proc/{self.child.pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # it has just closed that one
                    link = os.readlink(f"/proc/{self.child.pid}/fd/{number}")
                    count += link.startswith("socket:")
            return count
        if self.child.poll() is None:
            harness.wait_until(lambda: sockets() <= 1, SECONDS, "redis to close its connection")

    def judge(self, eintr_allowed):
        try:
            trouble = self._compare()
        except OSError as error:
            return (f"it does not answer: {error}; it is {harness.process_state(self.pid)}, in "
                    f"{harness.read_file(f'/proc/{self.pid}/wchan')}")
        if trouble:
            return trouble
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        return "" if self._ended() else "it does not end at SIGTERM"

    def _compare(self):
        """Every key, byte by byte; the first that differs is enough."""
        redis = kv_client.Redis
        with kv_client.connect(self._address, SECONDS) as connection:
            for number in range(self._keys):
                names = [b"key:%d" % number]
                expected = redis.got(names, [kv_client.value_of(number, self.VALUE_BYTES)])
                connection.sendall(redis.get(names))
                if kv_client.receive(connection, len(expected)) != expected:
                    return f"key {number} of {self._keys} has another value"
            connection.sendall(redis.COUNT)
            found = redis.count(connection)
        return "" if found == self._keys else f"{found} keys, and {self._keys} were stored"

    def eintr(self):
        return 0


PROGRAMS = {"threads": Threads, "python": Python, "redis": Redis, "files": Files,
            "holdings": AllHoldings}
