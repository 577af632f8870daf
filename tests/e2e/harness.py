"""Two hosts on one machine, a page server on one of them, and a process that moves between them.

A host is a network namespace (and, where asked, a mount namespace with empty /tmp, /dev/shm and
/run), kept by a process that sleeps in it. Nothing here has a name on the machine: when the
keeper ends, its namespaces and cables go with it. Whatever runs in a host's network namespace is
ended with the host, by pid.

Files of a test lie below /var/tmp, which both hosts see, because a process that moves finds its
files at the target under the same names (both hosts would have them from a shared or replicated
file system).
"""
import contextlib
import ctypes
import datetime
import json
import mmap
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PREDUMP_BUILD_DIR", ROOT / "build"))
PREDUMP = str(BUILD / "bin" / "predump")
WORKLOADS = BUILD / "workloads"
PYTHON = "/usr/bin/python3"

# Published exit codes (src/predump/report.h).
COMPLETED, FAILED, USAGE, REFUSED, CANCELLED, PARKED, TARGET_GONE = range(7)

# A look at memory shared with a running process has no event to wait for.
LOOK_AGAIN_S = 0.001

NOBODY = 65534


class HarnessError(Exception):
    """The test could not be set up or watched; no verdict on the program."""


def wait_until(condition, seconds, what):
    """Looks until `condition()` is true, and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise HarnessError(f"waited {seconds} s in vain for {what() if callable(what) else what}")
        time.sleep(LOOK_AGAIN_S)


def pidfd_ended(pidfd, seconds):
    """Whether the process ends within that time. Works for processes that are not our children."""
    return bool(select.select([pidfd], [], [], seconds)[0])


def end_process(pid, number=signal.SIGKILL):
    """Ends one process, whoever its parent is, and waits for it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, number)
        pidfd_ended(pidfd, 10)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def read_file(path):
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def process_state(pid):
    """The letter of /proc/PID/stat, or None."""
    try:
        return read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


class LineReader:
    """Collects a stream line by line, so that a test can wait for one."""

    def __init__(self, stream):
        self._stream = stream
        self._lines = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        for line in self._stream:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        self._stream.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern, seconds=30, start=0):
        """The match of the first line, from number `start`, that fits."""
        expression = re.compile(pattern)
        end = time.monotonic() + seconds
        at = start
        with self._changed:
            while True:
                while at < len(self._lines):
                    match = expression.search(self._lines[at])
                    if match:
                        return match
                    at += 1
                if self._ended or not self._changed.wait(max(0, end - time.monotonic())):
                    raise HarnessError(
                        f"no line like {pattern!r}; there were:\n" + "\n".join(self._lines))

    def count(self):
        with self._changed:
            return len(self._lines)

    def text(self):
        """All of it, once the stream has ended (or a while after its writer has)."""
        self._thread.join(5)
        with self._changed:
            return "\n".join(self._lines)


class Host:
    """A network namespace with one address, and perhaps its own mounts."""

    def __init__(self, own_mounts=False):
        self.address = None
        self.own_mounts = own_mounts
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net"]
        if own_mounts:
            # A real second host has none of the first one's temporary files.
            # A checkout in one of these stays to be seen, or there would be no program to run.
            script = (f"cd {shlex.quote(str(ROOT))} || exit 1; for at in /tmp /dev/shm /run; do "
                      "mount -t tmpfs -o mode=1777 predump-test $at || exit 1; done; "
                      'if [ ! -e "$PWD" ]; then mkdir -p "$PWD" && '
                      'mount --no-canonicalize --bind /proc/self/cwd "$PWD" || exit 1; fi; ')
            command += ["--mount", "--propagation", "private"]
        else:
            script = ""
        # A process that waits for the end of its input needs no name and no time limit.
        script += "ip link set lo up && echo ready && exec cat"
        self.net_namespace = None
        self._keeper = subprocess.Popen(command + ["sh", "-c", script], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.pid = self._keeper.pid
        try:
            if self._keeper.stdout.readline() != "ready\n":
                raise HarnessError("a host's namespaces could not be made; this needs root")
            self.net_namespace = os.readlink(f"/proc/{self.pid}/ns/net")
        except BaseException:
            self.close()
            raise

    def command(self, arguments, uid=None, dies_with_us=False):
        """The command line that runs `arguments` here. Its pid is that of the program itself."""
        inside = ["nsenter", "--target", str(self.pid), "--net"]
        if self.own_mounts:
            inside += ["--mount", "--wdns=/"]
        inside.append("--")
        if uid is not None or dies_with_us:
            inside.append("setpriv")
            if dies_with_us:
                inside += ["--pdeathsig", "KILL"]
            if uid is not None:
                inside += [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            inside.append("--")
        return inside + [str(argument) for argument in arguments]

    def run(self, arguments, **options):
        options.setdefault("timeout", 60)
        return subprocess.run(self.command(arguments), capture_output=True, text=True, **options)

    def popen(self, arguments, uid=None, dies_with_us=False, **options):
        return subprocess.Popen(self.command(arguments, uid, dies_with_us), **options)

    def processes(self):
        """Pids of all that runs in this network namespace, the keeper apart."""
        pids = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == self.pid:
                continue
            try:
                if os.readlink(f"/proc/{name}/ns/net") == self.net_namespace:
                    pids.append(int(name))
            except OSError:
                pass
        return pids

    def close(self):
        if self.net_namespace is None:  # it is not known to have one of its own
            self._keeper.kill()
        else:
            for pid in self.processes():
                end_process(pid)
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()


def connect_hosts(first, second, subnet=213):
    """A cable between two hosts; they are 10.SUBNET.0.1 and 10.SUBNET.0.2 on it."""
    name = f"pt{os.getpid() % 0x1000000:x}{subnet:x}"
    subprocess.run(["ip", "link", "add", name + "a", "type", "veth", "peer", "name", name + "b"],
                   check=True)
    try:
        for host, end in ((first, "a"), (second, "b")):
            subprocess.run(["ip", "link", "set", name + end, "netns", str(host.pid)], check=True)
    except BaseException:
        # Its other end goes with it, wherever that is; both in place, it goes with the hosts.
        subprocess.run(["ip", "link", "delete", name + "b"], check=False)
        raise
    for host, end, number in ((first, "a", 1), (second, "b", 2)):
        address = f"10.{subnet}.0.{number}"
        result = host.run(["sh", "-c", f"ip link set {name}{end} name eth{subnet} && "
                                       f"ip address add {address}/24 dev eth{subnet} && "
                                       f"ip link set eth{subnet} up"])
        if result.returncode != 0:
            raise HarnessError(result.stderr)
        if host.address is None:
            host.address = address
            host.interface = f"eth{subnet}"


class Server:
    """A page server that is ready."""

    def __init__(self, lab, host, *options, state=None, port=0, new_pidns=True, address=None,
                 stdin=subprocess.DEVNULL, **popen_options):
        self.host = host
        self.state = state or lab.state_directory(host, f"server-{len(lab.servers)}")
        self.options = options
        command = [PREDUMP, "page-server", "--listen", f"{address or host.address}:{port}",
                   "--insecure-no-auth", "--state-dir", self.state, *options]
        if new_pidns:
            command.append("--new-pidns")
        self.process = host.popen(command, dies_with_us=True, stdin=stdin, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, errors="replace",
                                  **popen_options)
        self.log = LineReader(self.process.stderr)
        self.output = LineReader(self.process.stdout)
        lab.servers.append(self)
        try:
            self.address = self.output.wait_for(r"^listening on (\S+)$", 20).group(1)
        except HarnessError as error:
            raise HarnessError(f"{error}\n{self.log.text()}") from None
        self.port = int(self.address.rpartition(":")[2])

    def sessions(self):
        """Pids of its session processes."""
        try:
            return [int(pid) for pid in
                    read_file(f"/proc/{self.process.pid}/task/{self.process.pid}/children").split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def kill(self):
        """The listener only, as an out-of-memory killer would."""
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Engine:
    """`predump --pid N --to ...`, running or ended."""

    def __init__(self, lab, host, pid, to, *options, json_output=True, state=None, die_at=None,
                 stdin=subprocess.DEVNULL, **popen_options):
        # `die_at`: an instant of tests/e2e/die_at.c.
        preload = ["env", f"LD_PRELOAD={BUILD}/tests/die_at.so", f"PREDUMP_DIE_AT={die_at}"]
        command = [*(preload if die_at else []), PREDUMP, "--pid", str(pid), "--to", to,
                   "--state-dir", state or lab.source_state(host), *options]
        if json_output:
            command.append("--json")
        self.process = host.popen(command, dies_with_us=True, stdin=stdin,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  errors="replace", **popen_options)
        self.log = LineReader(self.process.stderr)
        self._output = LineReader(self.process.stdout)
        lab.engines.append(self)

    @property
    def pid(self):
        return self.process.pid

    def wait_for_round(self, number, seconds=60):
        """Until that round has been acknowledged."""
        return self.log.wait_for(rf"round {number}: ", seconds)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def result(self, seconds=120):
        """Waits for the end. The JSON object, with `exit` and `stderr` added."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise HarnessError(f"predump did not end within {seconds} s:\n{self.log.text()}") from None
        text = self._output.text()
        # With --rounds - each round has a line before it.
        result = json.loads(text.splitlines()[-1]) if text.strip() else {}
        result["exit"] = self.process.returncode
        result["stderr"] = self.log.text()
        return result


def wall_clock_ns(text):
    """Nanoseconds of CLOCK_REALTIME of a time as the JSON object has it."""
    moment = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ")
    epoch = datetime.datetime(1970, 1, 1)
    return (moment - epoch) // datetime.timedelta(microseconds=1) * 1000


class Report:
    """The page a workload reports through (tests/workloads/report.h), mapped."""

    MAGIC, SIZE = 0x54524F5045524450, 4096
    OFFSETS = {"pid": 16, "progress": 24, "errors": 32, "eintr": 40, "longest_gap_ns": 48,
               "longest_gap_reset_ns": 56, "gap_reset_request": 64, "gap_reset_done": 72,
               "restarts": 80, "finished": 88, "exit_code": 96, "stray_signals": 112,
               "counter_count": 672, "gap_count": 680}
    NOTABLE_GAPS, NOTABLE_GAP_SLOTS = 3264, 16

    def __init__(self, path, seconds=20, while_alive=None):
        self.path = path
        wait_until(lambda: self._ready(while_alive), seconds, f"a report in {path}")
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), self.SIZE)

    def _ready(self, while_alive):
        try:
            with open(self.path, "rb") as file:
                data = file.read(8)
        except FileNotFoundError:
            data = b""
        if len(data) == 8 and struct.unpack("<Q", data)[0] == self.MAGIC:
            return True
        if while_alive is not None and while_alive() is not None:
            raise HarnessError(f"the workload ended with {while_alive()} before it reported")
        return False

    def __getattr__(self, name):
        try:
            offset = Report.OFFSETS[name]
        except KeyError:
            raise AttributeError(name) from None
        return struct.unpack_from("<Q", self._page, offset)[0]

    def text(self, offset):
        return self._page[offset:offset + 256].split(b"\0")[0].decode(errors="replace")

    @property
    def first_error(self):
        return self.text(384)

    @property
    def last_error(self):
        return self.text(128)

    def counter(self, name):
        for index in range(self.counter_count):
            at = 704 + 40 * index
            if self._page[at:at + 32].split(b"\0")[0].decode() == name:
                return struct.unpack_from("<Q", self._page, at + 32)[0]
        raise KeyError(name)

    def wait_progress(self, steps=1, seconds=30):
        goal = self.progress + steps
        wait_until(lambda: self.progress >= goal, seconds,
                   lambda: f"progress of {steps} in {self.path} (at {self.progress}, errors "
                           f"{self.errors}, {self.last_error})")

    def reset_gap(self, seconds=30):
        request = self.gap_reset_request + 1
        struct.pack_into("<Q", self._page, self.OFFSETS["gap_reset_request"], request)
        wait_until(lambda: self.gap_reset_done == request, seconds, "the gap to be reset")

    def longest_gap_ms(self):
        """Since the last reset."""
        return self.longest_gap_reset_ns / 1e6

    def gap_at(self, moment_ns):
        """Milliseconds of the notable gap in which that moment of CLOCK_REALTIME lies."""
        for slot in range(self.NOTABLE_GAP_SLOTS):
            end, length = struct.unpack_from("<QQ", self._page, self.NOTABLE_GAPS + 16 * slot)
            if end - length <= moment_ns <= end:
                return length / 1e6
        raise HarnessError(f"no notable gap in {self.path} around {moment_ns}")

    def trouble(self):
        """What the workload has seen go wrong; empty while all is well."""
        if not (self.errors or self.eintr or self.restarts or self.stray_signals):
            return ""
        return (f"errors {self.errors}, EINTR {self.eintr}, restarts {self.restarts}, "
                f"stray signals {self.stray_signals}; first: {self.first_error}")


class Workload:
    """A program that judges itself, wherever it runs now."""

    def __init__(self, lab, host, name, *options, uid=None, wait=True, command=None, owner=None,
                 max_seconds=600, **popen_options):
        self.lab = lab
        self.name = name
        self.directory = lab.directory(f"{name}-{len(lab.workloads)}")
        owner = uid if owner is None else owner  # of its files, where the command gives up root
        if owner is not None:
            os.chown(self.directory, owner, owner)
        self.report_path = os.path.join(self.directory, "report")
        self.output_path = os.path.join(self.directory, "output")
        if command is None:
            command = ([PYTHON, WORKLOADS / "python-counter.py"] if name == "python-counter"
                       else [WORKLOADS / name])
        command = [*command, "--report", self.report_path, "--max-seconds", str(max_seconds),
                   *options]
        self.child, self.pidfd = None, -1
        lab.workloads.append(self)
        with open(self.output_path, "ab") as output:
            # Session leader of its own, as a service is; errors and output share a description.
            self.child = host.popen(command, uid=uid, stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=subprocess.STDOUT, start_new_session=True,
                                    cwd=self.directory, **popen_options)
        self.host, self.pid = host, self.child.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.report = Report(self.report_path, 30, self.child.poll)
        if wait:
            wait_until(lambda: self.report.progress > 0 or self.child.poll() is not None, 120,
                       f"{name} to begin")
            if self.child.poll() is not None:
                raise HarnessError(f"{name} ended: {self.output()}")

    def output(self):
        return read_file(self.output_path)

    def moved_to(self, host, pid):
        """The process goes on as `pid` in `host`; the original has ended."""
        if not pidfd_ended(self.pidfd, 20):
            raise AssertionError(f"the original of {self.name}, process {self.pid}, did not end")
        if self.child is not None:
            self.child.wait()
            self.child = None
        os.close(self.pidfd)
        self.pidfd = -1
        self.host, self.pid = host, pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise AssertionError(f"{self.name} ended right after the move: {self.report.trouble()} "
                                 f"{self.output()}") from None

    def alive(self):
        return not pidfd_ended(self.pidfd, 0)

    def gap_of_move(self, result):
        """Milliseconds between its two heartbeats around the freeze of that move."""
        halfway = result["downtime-ms"] * 1e6 / 2  # it may still beat as the freeze begins
        return self.report.gap_at(wall_clock_ns(result["frozen-at"]) + halfway)

    def finish(self, seconds=60):
        """Has it check everything once more and end; the trouble it saw, or an empty text."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        if self.child is not None:
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                return f"{self.name} did not end within {seconds} s"
        elif not pidfd_ended(self.pidfd, seconds):
            return f"{self.name} did not end within {seconds} s"
        trouble = self.report.trouble()
        if trouble:
            return trouble
        if not self.report.finished:
            return f"{self.name} ended without its last check: {self.output()}"
        if self.report.exit_code != 0:
            return f"{self.name} found fault: {self.output()}"
        return ""


class Lab:
    """The hosts, servers and processes of one test. close() ends and removes all of them."""

    def __init__(self, target_mounts=False, source_mounts=False):
        self.servers, self.engines, self.workloads, self._children = [], [], [], []
        self._hosts = []
        self._server_of = {}
        self.root = tempfile.mkdtemp(prefix="predump-e2e-", dir="/var/tmp")
        os.chmod(self.root, 0o755)
        try:
            self.source = self._add_host(source_mounts)
            self.target = self._add_host(target_mounts)
            connect_hosts(self.source, self.target)
        except BaseException:
            self.close()
            raise

    def _add_host(self, own_mounts):
        host = Host(own_mounts)
        self._hosts.append(host)
        return host

    def directory(self, name):
        path = os.path.join(self.root, name)
        os.makedirs(path, exist_ok=True)
        return path

    def state_directory(self, host, name):
        """In memory, as /run/predump is; to be seen in that host only if it has its own mounts."""
        path = f"/run/{os.path.basename(self.root)}/{name}"
        host.run(["mkdir", "-p", "-m", "0700", path])
        return path

    def source_state(self, host):
        return self.state_directory(host, f"journal-{self._hosts.index(host)}")

    def other(self, host):
        return self.target if host is self.source else self.source

    def server(self, host=None, *options, **keywords):
        return Server(self, host or self.target, *options, **keywords)

    def server_at(self, host):
        """The server of that host, started when first asked for."""
        if host not in self._server_of or self._server_of[host].process.poll() is not None:
            self._server_of[host] = Server(self, host)
        return self._server_of[host]

    def workload(self, name, *options, **keywords):
        return Workload(self, self.source, name, *options, **keywords)

    def engine(self, pid, to, *options, host=None, **keywords):
        return Engine(self, host or self.source, pid, to, *options, **keywords)

    def move(self, workload, *options, seconds=120):
        """Moves a workload to the other host; the engine's result. Fails unless it arrives."""
        target = self.other(workload.host)
        server = self.server_at(target)
        result = self.engine(workload.pid, server.address, *options,
                             host=workload.host).result(seconds)
        if result["exit"] != COMPLETED:
            raise AssertionError(f"moving {workload.name} ended with {result['exit']}:\n"
                                 f"{result['stderr']}\nserver:\n{self.log_of(server)}\n"
                                 f"workload: {workload.report.trouble()}")
        workload.moved_to(target, result["restored-pid"])
        return result

    @staticmethod
    def log_of(server):
        return "\n".join(server.log._lines)  # the server may still be writing

    def cut_cable(self):
        self.target.run(["ip", "link", "set", self.target.interface, "down"])

    def mend_cable(self):
        """Returns once packets get through again: a host remembers for a while who was silent."""
        self.target.run(["ip", "link", "set", self.target.interface, "up"])
        for host in (self.source, self.target):
            host.run(["ip", "neighbour", "flush", "all"])
        probe = ("import socket, sys\ns = socket.socket()\ns.settimeout(1)\n"
                 f"sys.exit(s.connect_ex(('{self.target.address}', 1)) != 111)")  # refused
        wait_until(lambda: self.source.run([PYTHON, "-c", probe]).returncode == 0, 20,
                   "the cable to work again")

    def adopt(self, process):
        """A child of ours in one of the hosts: reaped when they have ended it."""
        self._children.append(process)
        return process

    def close(self):
        """Ends and removes everything; what fails keeps nothing else from being removed."""
        with contextlib.ExitStack() as stack:  # the last one first
            for path in (self.root, f"/run/{os.path.basename(self.root)}"):
                stack.callback(shutil.rmtree, path, ignore_errors=True)
            for workload in self.workloads:
                if workload.pidfd != -1:
                    stack.callback(os.close, workload.pidfd)
                if workload.child is not None:
                    stack.callback(workload.child.wait)
                    stack.callback(workload.child.kill)
            for child in self._children:
                if child.stdin is not None:
                    stack.callback(child.stdin.close)
                stack.callback(child.wait)
                # A host overlooks one that has not entered it yet.
                stack.callback(child.kill)
            for host in self._hosts:
                stack.callback(host.close)
            for one in (*self.servers, *self.engines):
                stack.callback(one.process.wait)
                stack.callback(one.process.kill)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()


def parked(state):
    """Journal entries of handovers that wait to be settled, in a source's state directory."""
    journal = os.path.join(state, "source")
    if not os.path.isdir(journal):
        return []
    return [name for name in os.listdir(journal) if name.endswith(".json")]


class Proxy:
    """tests/e2e/proxy.py before a page server, at the source's host."""

    def __init__(self, lab, to, hold=None, host=None):
        command = [PYTHON, ROOT / "tests/e2e/proxy.py", to] + ([hold] if hold else [])
        self.hold = hold
        self.process = lab.adopt((host or lab.source).popen(
            command, dies_with_us=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        self._output = LineReader(self.process.stdout)
        self.address = self._output.wait_for(r"^listening on (\S+)$", 20).group(1)

    def wait_until_holding(self, seconds=60):
        self._output.wait_for(f"^holding {self.hold}$", seconds)

    def tell(self, order):
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()


# ---------------------------------------------------------------------------------------------
# What /proc says of a process, before and after.

# Of /proc/PID/status; sizes, counts and the run state differ from one look to the next. SigQ counts
# over all processes of a user.
_STATUS_SKIPPED = re.compile(r"Vm|Rss|Hugetlb|State|.*ctxt_switches|SigQ|Speculation|x86_Thread|"
                             r"untag_mask|FDSize|KernelMemory")
# Of /proc/PID/fdinfo: what moves on while the process runs.
_FDINFO_RUNNING = re.compile(r"pos|it_value|ticks|eventfd-count|SigPnd|clockid.*remaining")


def _fields(text):
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), []).append(" ".join(value.split()))
    return {name: "; ".join(sorted(values)) for name, values in fields.items()}


def _status_entries(prefix, path):
    return {f"{prefix}{name}": value for name, value in _fields(read_file(path)).items()
            if not _STATUS_SKIPPED.match(name)}


def _mappings(pid):
    """{range: (what /proc/PID/maps says, VmFlags)}"""
    mappings, current = {}, None
    header = re.compile(r"^([0-9a-f]+-[0-9a-f]+) (\S+ \S+ \S+ \d+)\s*(.*)$")
    for line in read_file(f"/proc/{pid}/smaps").splitlines():
        match = header.match(line)
        if match:
            current = match.group(1)
            mappings[current] = (f"{match.group(2)} {match.group(3)}".strip(), "")
        elif line.startswith("VmFlags:"):
            # Whoever looks for soft-dirty pages, as we and CRIU do, takes the mappings' mark away.
            flags = [flag for flag in line.split()[1:] if flag != "sd"]
            mappings[current] = (mappings[current][0], " ".join(flags))
    return mappings


def snapshot(pid):
    """All that must be the same after a move that did not happen, by key."""
    base = f"/proc/{pid}"
    entries = _status_entries("status/", f"{base}/status")
    for where, (what, flags) in _mappings(pid).items():
        entries[f"maps/{where}"] = what
        entries[f"vmflags/{where}"] = flags
    for number in os.listdir(f"{base}/fd"):
        try:
            entries[f"fd/{number}"] = os.readlink(f"{base}/fd/{number}")
            for name, value in _fields(read_file(f"{base}/fdinfo/{number}")).items():
                if not _FDINFO_RUNNING.match(name):
                    entries[f"fdinfo/{number}/{name}"] = value
        except FileNotFoundError:
            pass
    for tid in os.listdir(f"{base}/task"):
        try:
            entries.update(_status_entries(f"task/{tid}/status/", f"{base}/task/{tid}/status"))
            entries[f"task/{tid}/children"] = read_file(f"{base}/task/{tid}/children")
            entries[f"task/{tid}/comm"] = read_file(f"{base}/task/{tid}/comm")
        except (FileNotFoundError, ProcessLookupError):
            pass
    for name in ("exe", "cwd", "root", *(f"ns/{space}" for space in os.listdir(f"{base}/ns"))):
        entries[f"link/{name}"] = os.readlink(f"{base}/{name}")
    for name in ("timers", "oom_score_adj", "limits", "cgroup", "cmdline", "coredump_filter",
                 "timerslack_ns", "personality"):
        entries[name] = read_file(f"{base}/{name}")
    return entries


def settled_snapshot(workload, steps=20):
    """Once two looks, with progress in between, show the same: it has all its threads and memory."""
    before = snapshot(workload.pid)
    for _ in range(50):
        workload.report.wait_progress(steps)
        after = snapshot(workload.pid)
        if not difference(before, after):
            return after
        before = after
    raise HarnessError(f"{workload.name} never stays the same")


def difference(before, after, ignored=()):
    """Lines `key: before -> after`; keys beginning with one of `ignored` are left out.

    Pending signals come and go in a process that runs, and its heap and stack may grow: [heap] and
    [stack] are compared by where they begin and end respectively.
    """
    def settle(entries):
        settled = {}
        for key, value in entries.items():
            if re.search(r"status/(SigPnd|ShdPnd)$", key) or key.startswith(tuple(ignored)):
                continue
            settled[key] = value
        for key, value in entries.items():
            if not key.startswith("maps/") or not value.endswith(("[heap]", "[stack]")):
                continue
            start, _, end = key[len("maps/"):].partition("-")
            fixed = f"{start}-" if value.endswith("[heap]") else f"-{end}"
            settled[f"maps/{fixed}"] = settled.pop(key)
            flags = f"vmflags/{start}-{end}"
            if flags in settled:
                settled[f"vmflags/{fixed}"] = settled.pop(flags)
        return settled

    before, after = settle(before), settle(after)
    return [f"{key}: {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
            for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]


# ---------------------------------------------------------------------------------------------

class E2eTest(unittest.TestCase):
    """One lab per test, and what the tests ask of it."""

    TARGET_MOUNTS = False
    SOURCE_MOUNTS = False

    def setUp(self):
        if not os.access(PREDUMP, os.X_OK):
            self.fail(f"{PREDUMP} is not there: build first (./run build)")
        if os.geteuid() != 0:
            self.fail("these tests make namespaces and trace processes: run them as root")
        self.lab = Lab(self.TARGET_MOUNTS, self.SOURCE_MOUNTS)
        self.addCleanup(self.lab.close)

    def assert_well(self, workload):
        self.assertEqual(workload.report.trouble(), "", f"{workload.name} found fault")
        self.assertTrue(workload.alive(), f"{workload.name} has ended: {workload.output()}")

    def assert_goes_on(self, workload, steps=3, seconds=30):
        """It makes progress, and saw nothing wrong."""
        workload.report.wait_progress(steps, seconds)
        self.assert_well(workload)

    def assert_finishes_well(self, workload):
        self.assertEqual(workload.finish(), "")

    def assert_unchanged(self, before, workload, ignored=()):
        """At the latest once its threads have had their turn: a thread that is about to repeat
        sigtimedwait(2) blocks what the call, while it waits, does not."""
        end = time.monotonic() + 10
        while True:
            left = difference(before, snapshot(workload.pid), ignored)
            if not left or time.monotonic() >= end:
                break
            time.sleep(LOOK_AGAIN_S)
        self.assertEqual(left, [], "the process is not as it was before")

    def assert_exit(self, result, code):
        self.assertEqual(result["exit"], code, f"{result['stderr']}\n" + "\n".join(
            f"server:\n{Lab.log_of(server)}" for server in self.lab.servers))


def wait_for_free_number(workload):
    """After a process was stored: until it may come back here, under its own number."""
    if workload.child is not None:
        workload.child.wait()
        workload.child = None

    def group_exists():
        try:
            os.killpg(workload.pid, 0)
        except ProcessLookupError:
            return False
        return True

    # The helper that had its memory was of its group; an init may take its time to collect it.
    wait_until(lambda: not group_exists(), 30, "the number of the process to be free")


def free_port(host):
    """A TCP port nobody uses in that host right now."""
    script = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"
    return int(host.run([PYTHON, "-c", script]).stdout)


def main():
    # A driver that is told to end takes its processes with it.
    signal.signal(signal.SIGTERM, lambda *unused: (_ for _ in ()).throw(SystemExit(1)))
    unittest.main(module="__main__", verbosity=2)
