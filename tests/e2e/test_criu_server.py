#!/usr/bin/python3
"""Rounds to page servers of CRIU's: the images that `criu page-server` makes of them hold the memory
of the process, and a server that fails harms nobody. Where CRIU does not start on this kernel, a
stand-in takes its place; tests named after CRIU are for kernels on which it does."""
import json
import os
import signal
import subprocess
import tempfile

import harness

PAGE = 4096
PARENT, PRESENT = 1, 4
SYS_PAUSE = 34

# Stands still but for what each SIGUSR1 has it do, and then stands still again.
STEPPER = r"""
import ctypes, mmap, os, signal, sys
done = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)
memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 1024, 2):
    memory[page * 4096:page * 4096 + 8] = b"first%03d" % (page % 1000)
more = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
more[:] = b"m" * (1 << 20)
libc = ctypes.CDLL(None, use_errno=True)
steps = 0

def step(*unused):
    global steps, more
    steps += 1
    for page in range(steps, 1024, 97):
        memory[page * 4096 + 100:page * 4096 + 108] = b"step%04d" % steps
    memory.madvise(mmap.MADV_DONTNEED, steps * 64 * 4096, 16 * 4096)
    if steps == 1:
        more.close()
    if steps == 2:
        more = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        more[:4096] = b"n" * 4096
    done[:8] = steps.to_bytes(8, "little")

signal.signal(signal.SIGUSR1, step)
done[8:16] = (1).to_bytes(8, "little")
while True:
    libc.pause()
"""


class CriuServer:
    """One `criu page-server`: one connection, one directory."""

    def __init__(self, lab, directory, port, parent=None):
        self.log = os.path.join(directory, "page-server.log")
        read_end, write_end = os.pipe()
        command = ["criu", "page-server", "-D", directory, "--address", lab.target.address,
                   "--port", str(port), "--status-fd", str(write_end), "-v4", "-o", self.log]
        if parent:
            command += ["--prev-images-dir", os.path.relpath(parent, directory)]
        self.process = lab.adopt(lab.target.popen(
            command, dies_with_us=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, pass_fds=[write_end]))
        os.close(write_end)
        with os.fdopen(read_end, "rb") as ready:
            if ready.read(1) != b"\0":
                raise harness.HarnessError(f"criu page-server does not start: {self.text()}")

    def text(self):
        return harness.read_file(self.log) if os.path.exists(self.log) else ""

    @staticmethod
    def pages_name(directory):
        return os.path.join(directory, "pages-65537.img")  # its first one

    @staticmethod
    def entries(directory, pid):
        """[[page, count, flags]] of a task's pagemap, and the name of its pages file."""
        head, *rest = crit(os.path.join(directory, f"pagemap-{pid}.img"))
        return ([[entry["vaddr"] // PAGE, entry["nr_pages"], entry["flags"]] for entry in rest],
                os.path.join(directory, f"pages-{head['pages_id']}.img"))

    @staticmethod
    def parent(directory):
        return os.path.join(directory, "parent")


class StandIn:
    """The same, on kernels that CRIU does not know."""

    def __init__(self, lab, directory, port, parent=None):
        self.directory = directory
        command = [harness.PYTHON, harness.ROOT / "tests/e2e/criu_stand_in.py", directory,
                   lab.target.address, str(port)]
        if parent:
            command.append(parent)
            os.symlink(parent, self.parent(directory))
        self.process = lab.adopt(lab.target.popen(
            command, dies_with_us=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True))
        self.log = harness.LineReader(self.process.stderr)
        harness.LineReader(self.process.stdout).wait_for("^ready$", 20)

    def text(self):
        return self.log.text()

    @staticmethod
    def pages_name(directory):
        return os.path.join(directory, "pages")

    @staticmethod
    def entries(directory, pid):
        with open(os.path.join(directory, "entries.json"), encoding="ascii") as file:
            stored = json.load(file)
        if stored["pid"] != pid:
            raise AssertionError(f"the memory of {stored['pid']} instead of {pid}")
        return stored["entries"], StandIn.pages_name(directory)

    @staticmethod
    def parent(directory):
        return os.path.join(directory, "parent")


def crit(path):
    """The entries of an image, as Debian's crit reads them."""
    decoded = subprocess.run(["crit", "decode", "-i", path], capture_output=True, text=True,
                             check=True)
    return json.loads(decoded.stdout)["entries"]


def restored(kind, directory, pid):
    """{page: its bytes}, by following `parent` as restore does."""
    memory, parent = {}, None
    found, name = kind.entries(directory, pid)
    with open(name, "rb") as pages:
        for first, count, flags in found:
            if flags not in (PARENT, PRESENT):
                raise AssertionError(f"an entry with flags {flags}")
            for page in range(first, first + count):
                if page in memory:
                    raise AssertionError(f"page {page:x} is listed twice")
                if flags == PRESENT:
                    memory[page] = pages.read(PAGE)
                    continue
                if parent is None:
                    parent = restored(kind, kind.parent(directory), pid)
                memory[page] = parent[page]
        if pages.read(1):
            raise AssertionError("the pages file has more than its pagemap says")
    if [first for first, _, _ in found] != sorted(first for first, _, _ in found):
        raise AssertionError("the entries do not ascend")
    return memory


class CriuRounds(harness.E2eTest):
    KIND = StandIn

    def setUp(self):
        super().setUp()
        self.port = harness.free_port(self.lab.target)
        self.to = f"criu://{self.lab.target.address}:{self.port}"

    def directory(self, number):
        return self.lab.directory(f"images-{number}")

    def server(self, number, parent=None):
        return self.KIND(self.lab, self.directory(number), self.port, parent)

    def engine(self, pid, *options, rounds=1, **keywords):
        return self.lab.engine(pid, self.to, "--rounds", str(rounds), "--leave-running", *options,
                               **keywords)


class Stepper:
    def __init__(self, lab):
        self.done = os.path.join(lab.root, "done")
        with open(self.done, "wb") as file:
            file.write(bytes(PAGE))
        self.process = lab.adopt(lab.source.popen(
            [harness.PYTHON, "-c", STEPPER, self.done], dies_with_us=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True))
        self.pid = self.process.pid
        self._wait(lambda: self._word(8) == 1)

    def _word(self, offset):
        with open(self.done, "rb") as file:
            return int.from_bytes(file.read()[offset:offset + 8], "little")

    def _wait(self, condition):
        harness.wait_until(lambda: condition() and self._pauses(), 30, "the process to stand still")

    def _pauses(self):
        return harness.read_file(f"/proc/{self.pid}/syscall").split()[0] == str(SYS_PAUSE)

    def step(self):
        number = self._word(0) + 1
        os.kill(self.pid, signal.SIGUSR1)
        self._wait(lambda: self._word(0) == number)

    def snapshot(self):
        """Without its mappings, some of which each step changes."""
        return {key: value for key, value in harness.snapshot(self.pid).items()
                if not key.startswith(("maps/", "vmflags/"))}

    def mappings(self):
        """(first page, pages, what a page is that is nowhere stored) of each private mapping."""
        for line in harness.read_file(f"/proc/{self.pid}/maps").splitlines():
            words = line.split(None, 5)
            start, _, end = words[0].partition("-")
            path = words[5] if len(words) > 5 else ""
            if words[1][3] != "p" or path in ("[vvar]", "[vvar_vclock]", "[vsyscall]"):
                continue
            first, count = int(start, 16) // PAGE, (int(end, 16) - int(start, 16)) // PAGE
            content = b""
            if path.startswith("/"):
                with open(path, "rb") as file:
                    file.seek(int(words[2], 16))
                    content = file.read(count * PAGE)
            yield first, count, path, content.ljust(count * PAGE, b"\0")

    def differences(self, memory):
        """Where what is restored from the images would differ from the memory as it is now."""
        wrong, seen = [], set()
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as now:
            for first, count, path, content in self.mappings():
                for number in range(count):
                    page = first + number
                    seen.add(page)
                    stored = memory.get(page)
                    if path == "[vdso]" and stored is None:
                        wrong.append(f"{page:x} of the vDSO is not stored")
                    try:
                        is_now = os.pread(now.fileno(), PAGE, page * PAGE)
                    except OSError:
                        continue  # past the end of its file
                    expected = stored
                    if expected is None:
                        expected = content[number * PAGE:(number + 1) * PAGE]
                    if is_now != expected:
                        wrong.append(f"{page:x} of {path or 'anonymous memory'}")
        wrong += [f"{page:x} is mapped nowhere" for page in memory if page not in seen]
        return wrong


class Images(CriuRounds):
    """The memory in the images is the memory of the process, page by page."""

    def rounds(self, *options, parents):
        stepper = Stepper(self.lab)
        before = stepper.snapshot()
        servers = [self.server(0)]
        engine = self.engine(stepper.pid, *options, rounds=4)
        for number in range(1, 4):
            engine.wait_for_round(number - 1)
            servers[-1].process.wait(20)
            stepper.step()
            servers.append(self.server(number, self.directory(number - 1) if parents else None))
        result = engine.result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertIn("4 rounds stored at criu://", result["message"])
        self.assertEqual([record["round"] for record in result["rounds"]], [0, 1, 2, 3])
        for server in servers:
            self.assertEqual(server.process.wait(20), 0, server.text())
        self.assertEqual(stepper.differences(restored(self.KIND, self.directory(3), stepper.pid)), [])
        self.assertEqual(harness.difference(before, stepper.snapshot()), [])
        return result, stepper.pid

    def test_each_round_builds_on_the_one_before(self):
        result, pid = self.rounds(parents=True)
        self.assertLess(max(record["pages"] for record in result["rounds"][1:]),
                        result["rounds"][0]["pages"] // 2)
        for number in range(4):
            flags = {flags for _, _, flags in self.KIND.entries(self.directory(number), pid)[0]}
            self.assertEqual(flags, {PRESENT} if number == 0 else {PARENT, PRESENT})

    def test_pages_that_are_copied_are_the_same(self):
        result, _ = self.rounds("--source", "readv", parents=True)
        self.assertEqual(result["source"], "readv")

    def test_without_parents_everything_is_sent_again_and_that_is_said(self):
        result, _ = self.rounds(parents=False)
        self.assertEqual(result["stderr"].count("--prev-images-dir"), 1, result["stderr"])
        self.assertGreater(min(record["pages"] for record in result["rounds"]),
                           result["rounds"][0]["pages"] // 2)

    def test_the_inventory_on_this_host_tells_when(self):
        stepper = Stepper(self.lab)
        self.server(0)
        inventory = os.path.join(self.lab.root, "local")
        result = self.engine(stepper.pid, "--images-dir", inventory).result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertEqual(os.listdir(inventory), ["inventory.img"])
        entry, = crit(os.path.join(inventory, "inventory.img"))
        now = float(harness.read_file("/proc/uptime").split()[0])
        uptime = int(entry["dump_uptime"]) / 1e6
        self.assertLess(now - 30, uptime)
        self.assertLessEqual(uptime, now + 0.01)
        # What `criu dump` compares with: the process is older than that.
        started = int(harness.read_file(f"/proc/{stepper.pid}/stat").rpartition(")")[2].split()[19])
        self.assertLess(started / os.sysconf("SC_CLK_TCK"), uptime)
        self.assertEqual(entry["img_version"], 0)


class OurStores(CriuRounds):
    """The same where the images are stored by predump itself, whatever it is spoken to."""

    def assert_stored(self, to, store):
        stepper = Stepper(self.lab)
        engine = self.lab.engine(stepper.pid, to, "--rounds", "-", "--leave-running",
                                 stdin=subprocess.PIPE)
        self.addCleanup(engine.process.stdin.close)
        for number in range(3):
            engine.wait_for_round(number)
            stepper.step()
            engine.process.stdin.write("round\n")
            engine.process.stdin.flush()
        engine.wait_for_round(3)
        engine.process.stdin.close()
        result = engine.result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertIn(f"4 rounds stored at {to}", result["message"])
        self.assertEqual(os.readlink(os.path.join(store, "latest")), "4")
        memory = restored(CriuServer, os.path.join(store, "latest"), stepper.pid)
        self.assertEqual(stepper.differences(memory), [])

    def server_at(self, store):
        return self.lab.server(None, "--images-dir", store, new_pidns=False).address

    def test_a_native_session(self):
        store = self.lab.directory("store")
        self.assert_stored(self.server_at(store), store)

    def test_crius_protocol(self):
        store = self.lab.directory("store")
        self.assert_stored(f"criu://{self.server_at(store)}", store)

    def test_a_directory_here(self):
        store = self.lab.directory("store")
        self.assert_stored(f"file:{store}", store)


class Trouble(CriuRounds):
    """A server that fails: one message, and a process that is as it was."""

    def setUp(self):
        super().setUp()
        self.workload = self.lab.workload("heart", "--size-mib", "16")
        self.before = harness.settled_snapshot(self.workload)

    def assert_failed(self, result, expected, code=harness.FAILED):
        self.assert_exit(result, code)
        self.assertRegex(result["message"], expected)
        self.assertNotIn("\n", result["message"])
        self.assert_unchanged(self.before, self.workload)
        self.assert_goes_on(self.workload)
        self.assert_finishes_well(self.workload)

    def test_nobody_listens(self):
        result = self.engine(self.workload.pid).result()
        self.assertEqual(result["stops"], [], "it was touched")
        self.assert_failed(result, "Connection refused; process [0-9]+ runs on here, unchanged$")

    def test_a_header_of_another_version(self):
        server = self.server(0)
        result = self.engine(self.workload.pid, "--criu-header", "32").result()
        self.assertNotEqual(server.process.wait(20), 0)
        self.assertEqual(result["stops"], [], "it was touched")
        self.assert_failed(result, "ended the connection.*--criu-header 24")

    def test_no_second_server(self):
        self.server(0)
        result = self.engine(self.workload.pid, "--timeout", "2", rounds=2).result()
        self.assert_failed(result, "the time limit of 2s", harness.CANCELLED)

    def test_waiting_for_the_second_server_is_interrupted(self):
        server = self.server(0)
        engine = self.engine(self.workload.pid, rounds=2)
        engine.wait_for_round(0)
        server.process.wait(20)
        engine.interrupt()
        self.assert_failed(engine.result(20), "SIGINT|interrupt", harness.CANCELLED)

    def test_the_server_is_killed_in_the_midst_of_a_round(self):
        server = self.server(0)
        engine = self.engine(self.workload.pid, "--bandwidth", "1M")
        pages = self.KIND.pages_name(self.directory(0))
        harness.wait_until(lambda: os.path.exists(pages) and os.path.getsize(pages) > 0, 60,
                           "pages to arrive")
        server.process.kill()
        self.assert_failed(engine.result(), "ended the connection")

    def test_the_parent_does_not_hold_what_it_should(self):
        """A directory of another process's rounds with the same number in its name."""
        self.server(0)
        engine = self.engine(self.workload.pid, rounds=2)
        engine.wait_for_round(0)
        other = self.lab.workload("heart", "--size-mib", "1")
        port, self.port = self.port, harness.free_port(self.lab.target)
        self.to = f"criu://{self.lab.target.address}:{self.port}"
        self.server(1)
        self.assert_exit(self.engine(other.pid).result(), harness.COMPLETED)
        if self.KIND is CriuServer:
            names = [os.path.join(self.directory(1), f"pagemap-{pid}.img")
                     for pid in (other.pid, self.workload.pid)]
            os.rename(*names)
        self.port = port
        self.server(2, self.directory(1))
        self.assert_failed(engine.result(), "round 1|ended the connection")

    def test_a_server_that_says_it_could_not_store(self):
        script = (
            "import socket, struct\ns = socket.create_server(('', 0))\n"
            "print(s.getsockname()[1], flush=True)\nc, _ = s.accept()\n"
            "def take(n):\n  data = b''\n  while len(data) < n:\n"
            "    piece = c.recv(min(n - len(data), 1 << 20))\n    assert piece\n"
            "    data += piece\n  return data\n"
            "while True:\n  command, pages, _, _ = struct.unpack('<IIQQ', take(24))\n"
            "  if command == 4: c.sendall(b'\\0')\n"
            "  elif command == 0x1023: break\n"
            "  elif command >> 16 & 4: take(pages * 4096)\n"
            "c.sendall(struct.pack('<i', -28))\nc.recv(1)\n")
        process = self.lab.adopt(self.lab.target.popen(
            [harness.PYTHON, "-c", script], dies_with_us=True, stdout=subprocess.PIPE, text=True))
        self.addCleanup(process.stdout.close)
        self.to = f"criu://{self.lab.target.address}:{process.stdout.readline().strip()}"
        self.assert_failed(self.engine(self.workload.pid).result(), r"could not store.*status -28")


class Usage(CriuRounds):
    def assert_usage(self, expected, *options, to=None):
        workload = self.lab.workload("heart", "--size-mib", "1")
        result = self.lab.engine(workload.pid, to or self.to, *options).result()
        self.assertEqual(result["exit"], harness.USAGE, result["stderr"])
        self.assertRegex(result["stderr"], expected)
        self.assert_finishes_well(workload)

    def test_a_whole_process_cannot_go_to_crius_server(self):
        for options in ([], ["--rounds", "2"], ["--leave-running"]):
            with self.subTest(options=options):
                self.assert_usage("takes memory, not processes.*--rounds K --leave-running",
                                  *options)

    def test_options_without_a_meaning_are_refused(self):
        server = self.lab.server()
        self.assert_usage("--criu-header is for", "--criu-header", "32", to=server.address)
        self.assert_usage("--images-dir is for", "--images-dir", self.lab.root, to=server.address)
        self.assert_usage("--images-dir is for", "--images-dir", self.lab.root, "--rounds", "2",
                          to=server.address)
        self.assert_usage("--verify compares", "--verify", "--rounds", "2", "--leave-running")
        self.assert_usage("nothing is known by that scheme", to="http://host:1")

    def test_an_images_directory_that_cannot_be_made(self):
        workload = self.lab.workload("heart", "--size-mib", "1")
        result = self.engine(workload.pid, "--images-dir", "/proc/nowhere/at-all").result()
        self.assert_exit(result, harness.FAILED)
        self.assertIn("--images-dir: make /proc/nowhere/at-all", result["message"])
        self.assertEqual(result["stops"], [], "it was touched")
        self.assert_finishes_well(workload)

    def test_an_inventory_of_rounds_that_nobody_keeps(self):
        workload = self.lab.workload("heart", "--size-mib", "1")
        local = os.path.join(self.lab.root, "local")
        result = self.lab.engine(workload.pid, self.lab.server().address, "--rounds", "1",
                                 "--leave-running", "--images-dir", local).result()
        self.assert_exit(result, harness.FAILED)
        self.assertIn("stores no images", result["message"])
        self.assertEqual(result["stops"], [], "it was touched")
        self.assertEqual(os.listdir(local), [])
        self.assert_finishes_well(workload)

    def test_questions_cannot_be_asked_there(self):
        for command in (["check", "--pid", str(os.getpid()), "--to", self.to],):
            asked = subprocess.run([harness.PREDUMP, *command], capture_output=True, text=True,
                                   check=False)
            self.assertEqual(asked.returncode, harness.USAGE)
            self.assertIn("answers no questions", asked.stderr)


class NeedsCriu:
    """The same with `criu page-server` itself."""

    KIND = CriuServer

    def setUp(self):
        super().setUp()
        with tempfile.TemporaryDirectory() as directory:
            try:
                server = CriuServer(self.lab, directory, self.port)
            except harness.HarnessError as error:
                self.skipTest(next((line for line in str(error).splitlines() if "Error" in line),
                                   str(error)))
            server.process.kill()
            server.process.wait()


class CriusImages(NeedsCriu, Images):
    pass


class TroubleWithCriu(NeedsCriu, Trouble):
    pass


if __name__ == "__main__":
    harness.main()
