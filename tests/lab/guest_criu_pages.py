"""What page servers store, CRIU's and ours, of the same pages.

Either both are sent the same stream, by one client, and have to answer and to store the same; or a
process that writes to no page meanwhile is sent twice, and has to be the same twice.
"""
import os
import select
import socket
import subprocess
import sys
import threading
import traceback

import criu_pages
import criu_programs
import criu_tools
import harness

# Writes to its memory only when told to, and stays on one processor, whose number the kernel
# otherwise notes in its memory (rseq). Of its private pages some are never written, some lie in a
# file, and some go again.
QUIET = """
import mmap, os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
file = open(sys.argv[1], 'w+b')
file.write(bytes(range(256)) * 16 * 64)
file.flush()
private = mmap.mmap(file.fileno(), 64 * 4096, flags=mmap.MAP_PRIVATE)
memory = mmap.mmap(-1, 1536 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 16 * 4096)
for page in range(0, 1536, 3):
    memory[page * 4096:page * 4096 + 8] = b'%08d' % page
step = 0
for line in sys.stdin:
    step += 1
    for page in range(step, 1536, 97):
        memory[page * 4096 + 16:page * 4096 + 24] = b'%08d' % (1000 * step + page)
    private[step * 4096:step * 4096 + 8] = shared[step * 4096:step * 4096 + 8] = b'%08d' % step
    memory.madvise(mmap.MADV_DONTNEED, (1200 + 8 * step) * 4096, 4 * 4096)
    print(step, flush=True)
"""


class Different(Exception):
    """What two servers do not agree on."""


class QuietProcess:
    def __init__(self, place):
        self._child = place.adopt(subprocess.Popen(
            [harness.PYTHON, "-c", QUIET, os.path.join(place.root, "file")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True, text=True))
        self.pid = self._child.pid
        self.work()

    def work(self):
        """It writes to some pages, and is quiet again."""
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        if not self._child.stdout.readline():
            raise harness.HarnessError("the quiet process has ended")
        harness.wait_until(lambda: harness.process_state(self.pid) == "S", 60, "it to be quiet")

    def end(self):
        self._child.kill()
        self._child.stdout.close()


class Tee:
    """A page server to its clients, two behind it: each gets every byte, and they have to give the
    same answers. One connection after the other; `before(number)` is called ahead of each."""

    def __init__(self, ports, before):
        self._ports, self._before = ports, before
        self._listening = socket.create_server((criu_tools.LOOPBACK, 0))
        self.port = self._listening.getsockname()[1]
        self.bytes, self.connections, self._trouble = 0, 0, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def to_criu(self):
        return ["--page-server", "--address", criu_tools.LOOPBACK, "--port", self.port]

    def close(self):
        """Raises what went wrong."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        if self._trouble is not None:
            raise self._trouble

    def _run(self):
        try:
            while True:
                try:
                    client, _ = self._listening.accept()
                except OSError:  # shut down
                    return
                with client:
                    self._before(self.connections)
                    self.connections += 1
                    servers = [socket.create_connection((criu_tools.LOOPBACK, port))
                               for port in self._ports]
                    try:
                        self._serve(client, servers)
                    finally:
                        for server in servers:
                            server.close()
        except Exception as error:  # for close()
            self._trouble = error

    def _serve(self, client, servers):
        answers, ended, open_sockets = [b"", b""], [False, False], {client, *servers}
        while open_sockets:
            for ready in select.select(list(open_sockets), [], [])[0]:
                data = ready.recv(1 << 20)
                if not data:
                    open_sockets.discard(ready)
                if ready is client:
                    self.bytes += len(data)
                    if data and any(ended):
                        raise Different(f"{'ours' if ended[1] else 'CRIU'} hangs up too early, "
                                        f"after {self.bytes} bytes of connection "
                                        f"{self.connections}")
                    for server in servers:
                        if data:
                            server.sendall(data)
                        else:
                            server.shutdown(socket.SHUT_WR)
                    continue
                number = servers.index(ready)
                answers[number] += data
                ended[number] |= not data
            same = len(os.path.commonprefix(answers))
            if same < min(map(len, answers)):
                raise Different(f"CRIU's server answers {answers[0].hex()}, ours "
                                f"{answers[1].hex()}, after {self.bytes} bytes of connection "
                                f"{self.connections}")
            client.sendall(answers[0][:same])
            answers = [answer[same:] for answer in answers]


class BothServers:
    """CRIU's page server, a new one for each connection, and ours, behind a Tee."""

    def __init__(self, place):
        self._place, self.theirs = place, []
        self._port = harness.free_port(place.source)
        self.ours = criu_tools.ImageServer(place)
        self.tee = Tee([self._port, self.ours.port], self._start)

    def _start(self, number):
        parent = None
        if self.theirs:
            self.theirs[-1].finish()
            parent = self.theirs[-1].directory
        self.theirs.append(criu_tools.CriuServer(
            self._place, os.path.join(self._place.root, f"theirs-{number}"), self._port, parent))

    def compare(self):
        """All that both have stored: connections, pages sent, pages said to be in a parent."""
        self.tee.close()
        self.theirs[-1].finish()
        ours = self.ours.directories()
        if len(ours) != len(self.theirs):
            raise Different(f"{len(self.theirs)} connections, and ours stored {ours}")
        sent = holes = 0
        for one, server in zip(ours, self.theirs):
            pages, parents = compare_directories(one, server.directory)
            sent, holes = sent + pages, holes + parents
        return (f"{len(ours)} connections, {self.tee.bytes} bytes to each: the same answers, "
                f"{sent} pages byte for byte, {holes} left to the parents")


def compare_directories(ours, theirs):
    names = criu_pages.pagemap_names(theirs)
    if criu_pages.pagemap_names(ours) != names or not names:
        raise Different(f"{ours} has {criu_pages.pagemap_names(ours)}, CRIU's has {names}")
    if criu_pages.depth(ours) != criu_pages.depth(theirs):
        raise Different(f"{ours} has {criu_pages.depth(ours)} levels, CRIU's "
                        f"{criu_pages.depth(theirs)}")
    sent = holes = 0
    for name in names:
        one, other = criu_pages.Pagemap(ours, name), criu_pages.Pagemap(theirs, name)
        for flag in (criu_pages.PRESENT, criu_pages.PARENT, criu_pages.LAZY):
            if one.ranges(flag) != other.ranges(flag):
                raise Different(f"{ours}/{name}: flag {flag}: other ranges than CRIU's")
        difference = criu_pages.difference(one.present(), other.present())
        if difference:
            raise Different(f"{ours}/{name}: {difference}")
        sent, holes = sent + one.count(criu_pages.PRESENT), holes + one.count(criu_pages.PARENT)
    return sent, holes


# ---------------------------------------------------------------------------------------------
# The comparisons; each says what it has seen.

def criu_to_both(place):
    """`criu pre-dump` twice and `criu dump`, of threads at work."""
    program = criu_programs.Threads(place)
    try:
        program.work()
        both, last = BothServers(place), None
        for action in ("pre-dump", "pre-dump", "dump"):
            here = os.path.join(place.root, f"local-{len(both.theirs)}")
            parent = ["--prev-images-dir", os.path.relpath(last, here)] if last else []
            criu_tools.criu(action, here, "-t", program.pid, "--track-mem", *parent,
                            *both.tee.to_criu())
            if action == "pre-dump":
                program.work()
            last = here
        said = both.compare()
        program.captured()
        # And so either restores what the other stored.
        criu_tools.copy_beside(last, both.theirs[-1].directory)
        program.restored(criu_tools.criu_restore(both.theirs[-1].directory))
        trouble = program.judge(eintr_allowed=True)
        if trouble:
            raise Different(trouble)
        return said
    finally:
        program.end()


def predump_to_both(place):
    """Our rounds as CRIU's server takes them, of threads at work."""
    program = criu_programs.Threads(place)
    try:
        program.work()
        both = BothServers(place)
        rounds_to_criu(place, program.pid, both.tee.port, 4)
        said = both.compare()
        trouble = program.judge(eintr_allowed=False)
        if trouble:
            raise Different(trouble)
        return said
    finally:
        program.end()


def rounds_to_criu(place, pid, port, rounds):
    criu_tools.send(place, pid, f"criu://{criu_tools.LOOPBACK}:{port}", "--rounds", rounds,
                    "--leave-running", "--tracker", "soft-dirty")


def criu_to_each(place):
    """`criu pre-dump` of a quiet process, to CRIU's server and again to ours."""
    quiet = QuietProcess(place)
    try:
        theirs = criu_tools.CriuServer(place, os.path.join(place.root, "theirs"),
                                       harness.free_port(place.source))
        ours = criu_tools.ImageServer(place)
        return both_memories(
            quiet, theirs, ours,
            lambda: criu_tools.criu("pre-dump", os.path.join(place.root, "local-1"), "-t",
                                    quiet.pid, "--page-server", "--address", criu_tools.LOOPBACK,
                                    "--port", theirs.port),
            lambda: criu_tools.criu("pre-dump", os.path.join(place.root, "local-2"), "-t",
                                    quiet.pid, *ours.to_criu()))
    finally:
        quiet.end()


def both_memories(quiet, theirs, ours, send_theirs, send_ours):
    send_theirs()
    if theirs.process.poll() is None:
        theirs.finish()
    send_ours()
    name = f"pagemap-{quiet.pid}.img"
    one = criu_pages.Pagemap(ours.latest(), name).memory()
    other = criu_pages.Pagemap(theirs.directory, name).memory()
    difference = criu_pages.difference(one, other)
    if difference:
        raise Different(f"ours against CRIU's: {difference}")
    return (f"{len(one)} pages byte for byte, in {criu_pages.depth(theirs.directory)} directories "
            f"of CRIU's server and {criu_pages.depth(ours.latest())} of ours")


COMPARISONS = {
    "criu pre-dump, pre-dump, dump to both servers at once": criu_to_both,
    "predump's rounds to both servers at once": predump_to_both,
    "criu pre-dump to each server": criu_to_each,
}


def run(work, expression, say):
    """Those whose names fit; whether each went well."""
    outcomes = []
    for number, (name, compare) in enumerate(COMPARISONS.items()):
        if not expression.search(name):
            continue
        try:
            with criu_tools.Place(work / f"pages-{number}") as place:
                said = compare(place)
            outcomes.append(True)
        except Exception as error:  # whatever it is, the others are to be seen
            traceback.print_exc(file=sys.stdout)
            said = criu_tools.one_line(f"FAILED {type(error).__name__}: {error}")
            outcomes.append(False)
        say(f"{name}: {said}")
    return outcomes
