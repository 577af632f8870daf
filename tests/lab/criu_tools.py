"""CRIU and predump as commands on one machine, and why one of them refuses.

Nothing here knows what is to be shown; guest_criu_matrix.py and guest_criu_pages.py do.
"""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import harness  # noqa: E402

# For one command; the machine is emulated.
SECONDS = 120
LOOPBACK = "127.0.0.1"


class Refused(Exception):
    """A program ended with an error; `message` is what it told its user, on one line."""

    def __init__(self, program, message):
        super().__init__(f"{program}: {message}")
        self.program, self.message = program, message


class Machine(harness.Host):
    """All of this machine."""

    own_mounts = False

    def __init__(self, address=LOOPBACK):
        self.address = address

    def command(self, arguments, uid=None, dies_with_us=False):
        inside = ["setpriv", "--pdeathsig", "KILL", "--"] if dies_with_us else []
        return inside + [str(argument) for argument in arguments]

    def close(self):
        pass


class Place(harness.Lab):
    """A folder for one test, and what runs here for it. close() ends and removes all of it."""

    def __init__(self, path):
        self.servers, self.engines, self.workloads, self._children = [], [], [], []
        self._server_of = {}
        self.root = str(path)
        os.makedirs(self.root)
        self.source = self.target = Machine()
        self._hosts = [self.source]

    def close(self):
        for workload in self.workloads:
            if workload.pidfd != -1 and not harness.pidfd_ended(workload.pidfd, 0):
                signal.pidfd_send_signal(workload.pidfd, signal.SIGKILL)
                harness.pidfd_ended(workload.pidfd, 30)
        super().close()


def one_line(text, at_most=500):
    return " ".join(text.split())[:at_most]


def criu_errors(log):
    """What CRIU's log says went wrong first; a later line says only that it did."""
    try:
        text = harness.read_file(log)
    except FileNotFoundError:
        return "no log"
    errors = re.findall(r"^(?:\(\d+\.\d+\) )?(?: *\d+: )?(Error \(.*)$", text, re.MULTILINE)
    return one_line(" | ".join(errors[:2])) or one_line(text[-300:])


def criu(action, directory, *arguments, seconds=SECONDS):
    """Runs `criu ACTION -D DIRECTORY`; Refused with the errors of its log."""
    os.makedirs(directory, exist_ok=True)
    log = os.path.join(directory, f"{action}.log")
    done = subprocess.run(["criu", action, "-D", directory, "-o", log, *map(str, arguments)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=seconds, check=False)
    if done.returncode != 0:
        raise Refused(f"criu {action}", criu_errors(log))


def criu_restore(directory, *arguments):
    """Brings a process to life; its pid."""
    pidfile = os.path.join(directory, "restored.pid")
    pathlib.Path(pidfile).unlink(missing_ok=True)
    criu("restore", directory, "-d", "--pidfile", pidfile, *arguments)
    return int(harness.read_file(pidfile))


def send(place, pid, to, *options):
    """`predump --pid PID --to TO`."""
    return predump("--pid", pid, "--to", to, "--state-dir", place.source_state(place.source),
                   # Threads of an emulated processor stop when their turn comes.
                   "--freeze-timeout", f"{SECONDS}s", *options)


def predump(*arguments, seconds=SECONDS):
    """Runs it; Refused with its last words unless it succeeds."""
    done = subprocess.run([harness.PREDUMP, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=seconds,
                          check=False)
    if done.returncode != 0:
        name = f"predump {arguments[0]}" if arguments[0] == "restore" else "predump"
        raise Refused(name, said(done.stderr) or f"exit code {done.returncode}, and not a word")
    return done


def said(errors):
    """What predump told its user, but for its progress and log; blockers have a line each."""
    return one_line("; ".join(line.strip().removeprefix("predump: ")
                              for line in errors.splitlines()
                              if line.strip() and not re.match(r"round |\d{4}-\d\d-", line)))


def predump_restore(directory):
    """Brings a process to life; its pid."""
    pidfile = os.path.join(os.path.dirname(directory), "predump-restored.pid")
    pathlib.Path(pidfile).unlink(missing_ok=True)
    predump("restore", "--images-dir", directory, "-d", "--pidfile", pidfile)
    return int(harness.read_file(pidfile))


class ImageServer(harness.Server):
    """`predump page-server --images-dir`: its store is a folder `store` of the place."""

    def __init__(self, place, name="store", *options):
        self.store = os.path.join(place.root, name)
        super().__init__(place, place.target, "--images-dir", self.store, *options,
                         new_pidns=False)

    def latest(self):
        """The last whole image directory, by its own name."""
        return os.path.realpath(os.path.join(self.store, "latest"))

    def directories(self):
        """All whole ones, in order."""
        return [os.path.join(self.store, name) for name in
                sorted((name for name in os.listdir(self.store) if name.isdigit()), key=int)]

    def to_criu(self):
        """Options for a client of CRIU's page server."""
        return ["--page-server", "--address", self.host.address, "--port", self.port]


class CriuServer:
    """`criu page-server`, which serves one connection and ends."""

    def __init__(self, place, directory, port, parent=None):
        self.directory, self.port = str(directory), port
        os.makedirs(self.directory)
        command = ["criu", "page-server", "-D", self.directory, "--address", LOOPBACK, "--port",
                   str(port), "-o", "server.log"]
        if parent is not None:
            command += ["--prev-images-dir", os.path.relpath(parent, self.directory)]
        ready, status = os.pipe()
        with os.fdopen(ready, "rb") as ready:
            try:
                self.process = place.adopt(subprocess.Popen(
                    [*command, "--status-fd", str(status)], stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(status,)))
            finally:
                os.close(status)
            if ready.read(1) != b"\0":
                raise Refused("criu page-server", self.errors())

    def errors(self):
        return criu_errors(os.path.join(self.directory, "server.log"))

    def finish(self):
        """Once its one client has gone."""
        if self.process.wait(SECONDS) != 0:
            raise Refused("criu page-server", self.errors())


def copy_beside(source, destination):
    """The images of a final dump beside the pages that its page server stored."""
    for name in os.listdir(source):
        # The server's own directory knows its parent.
        if name.endswith((".log", ".pid")) or name == "parent":
            continue
        shutil.copy2(os.path.join(source, name), os.path.join(destination, name))
