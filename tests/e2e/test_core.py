#!/usr/bin/python3
"""`predump core`: what is in the file, that debuggers can read it, that the process does not
notice, and that whatever goes wrong leaves neither half a file nor a changed process."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios

import harness

PAGE = 4096
F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
CORE_TARGET = str(harness.BUILD / "tests" / "core_target")
THREADS = 4
# And the call of kernel-patch/, where the kernel has it.
_CHECK = subprocess.run([harness.PREDUMP, "check"], capture_output=True, text=True).stdout
SOURCES = ("helper", "readv",
           *(["process_vmsplice"] if re.search("^yes +process-vmsplice", _CHECK, re.M) else []))
# Kinds of contents, as core_target.c writes them.
SPARSE, HIDDEN, SHARED, OWN, GUARDED, LARGE, OF_FILE = 1, 2, 4, 5, 6, 7, 0xf17e


class CoreFile:
    """The program headers of a core file, and memory by its address."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            header = file.read(64)
            kind, machine = struct.unpack_from("<HH", header, 16)
            assert header[:6] == b"\x7fELF\x02\x01" and (kind, machine) == (4, 62), header
            at, = struct.unpack_from("<Q", header, 32)
            count, = struct.unpack_from("<H", header, 56)
            file.seek(at)
            table = file.read(56 * count)
            headers = [struct.unpack_from("<IIQQQQQQ", table, 56 * i) for i in range(count)]
            notes = next(h for h in headers if h[0] == 4)
            file.seek(notes[2])
            self.notes = list(self.parse_notes(file.read(notes[5])))
        # (address, bytes in memory, bytes in file, offset)
        self.segments = [(h[3], h[6], h[5], h[2]) for h in headers if h[0] == 1]

    @staticmethod
    def parse_notes(data):
        at = 0
        while at < len(data):
            name, size, kind = struct.unpack_from("<III", data, at)
            at += 12 + (name + 3 & ~3)
            yield kind, data[at:at + size]
            at += size + 3 & ~3

    def registers(self):
        """{name: value} of each thread: those that matter here of user_regs_struct."""
        for kind, data in self.notes:
            if kind == 1:
                values = struct.unpack_from("<27Q", data, 112)
                yield {"rax": values[10], "rip": values[16], "rsp": values[19]}

    def segment(self, address):
        for one in self.segments:
            if one[0] <= address < one[0] + one[1]:
                return one
        return None

    def page(self, address):
        """Its bytes; None where a debugger has to look elsewhere."""
        one = self.segment(address)
        if one is None or address - one[0] >= one[2]:
            return None
        with open(self.path, "rb") as file:
            file.seek(one[3] + address - one[0])
            return file.read(PAGE)

    def word(self, address):
        return struct.unpack_from("<Q", self.page(address // PAGE * PAGE), address % PAGE)[0]


def contents(kind, number):
    return struct.pack("<Q", kind << 32 | number) * (PAGE // 8)


ZEROS = bytes(PAGE)


def bytes_in(pipe):
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


class Target:
    """tests/e2e/core_target.c, which obeys."""

    def __init__(self, test, large_mib=1, victim_mib=0):
        self.directory = test.lab.directory(f"target-{id(self)}")
        command = [CORE_TARGET, f"{self.directory}/mapped", str(large_mib), str(victim_mib)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        test.addCleanup(self.close)
        self.pid = self.process.pid
        line = self.process.stdout.readline()
        if not line:
            raise harness.HarnessError(f"core_target ended with {self.process.wait()}")
        self.at = json.loads(line)

    def order(self, what):
        """Until it has been obeyed."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def exit(self):
        self.process.stdin.close()
        self.process.wait()

    def first_counter(self):
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.at["first_counter"])
            return struct.unpack("<Q", memory.read(8))[0]

    def await_counting(self):
        """Until the counters are other ones, by more than they are apart."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            def count():
                return int.from_bytes(os.pread(memory.fileno(), 8, self.at["first_counter"]), "little")
            before = count()
            harness.wait_until(lambda: count() > before + 2, 20, "the process to go on counting")

    def counters(self, core):
        return core.word(self.at["first_counter"]), core.word(self.at["second_counter"])

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass


class CoreTest(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.directory = self.lab.directory("cores")
        self.path = f"{self.directory}/core"

    def start(self, pid, *options, path=None, **popen):
        command = [harness.PREDUMP, "core", "--pid", str(pid), "-o", path or self.path, *options]
        popen.setdefault("stdout", subprocess.PIPE)
        engine = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **popen)
        self.addCleanup(self.end, engine)
        return engine

    @staticmethod
    def end(engine):
        engine.kill()
        engine.wait()
        for stream in (engine.stdout, engine.stderr):
            if stream is not None:
                stream.close()

    def finish(self, engine, seconds=120):
        """The JSON object if there is one, with `exit` and `stderr`."""
        output, errors = engine.communicate(timeout=seconds)
        result = json.loads(output) if output and output.startswith("{") else {}
        result.update(exit=engine.returncode, stderr=errors)
        return result

    def core(self, pid, *options, path=None):
        return self.finish(self.start(pid, "--json", *options, path=path))

    def take(self, pid, *options, path=None):
        """A core file that must be had."""
        result = self.core(pid, *options, path=path)
        self.assertEqual(result["exit"], harness.COMPLETED, result["stderr"])
        return result, CoreFile(path or self.path)

    def assert_nothing_left(self, besides=()):
        self.assertEqual(sorted(os.listdir(self.directory)), sorted(besides))

    def while_it_writes(self, engine, mib=4):
        """Stops the engine once so much of the file is there."""
        folder = f"/proc/{engine.pid}/fd"

        def written():
            if engine.poll() is not None:
                raise harness.HarnessError(f"ended too soon: {engine.communicate()}")
            for fd in os.listdir(folder):
                try:
                    if os.readlink(f"{folder}/{fd}").startswith(self.directory + "/"):
                        return os.stat(f"{folder}/{fd}").st_blocks * 512 > mib << 20
                except FileNotFoundError:
                    pass
            return False

        harness.wait_until(written, 60, "the core file to grow")
        engine.send_signal(signal.SIGSTOP)
        harness.wait_until(lambda: harness.process_state(engine.pid) == "T", 20, "it to stop")

    @staticmethod
    def sharers(pid):
        """Tasks other than its threads that hold the same executable: a helper shows as one."""
        exe = os.readlink(f"/proc/{pid}/exe")
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and int(name) != pid and os.readlink(f"/proc/{name}/exe") == exe:
                    if open(f"/proc/{name}/maps").read() == open(f"/proc/{pid}/maps").read():
                        found.append(int(name))
            except OSError:
                pass
        return found


class Debuggers(CoreTest):
    def gdb(self, *commands):
        options = [word for command in commands for word in ("-ex", command)]
        done = subprocess.run(["gdb", "-nx", "-batch", *options, CORE_TARGET, self.path],
                              capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    def assert_debuggable(self):
        text = self.gdb("thread apply all bt", "print known_variable")
        threads = text.split("\nThread ")
        self.assertEqual(len(threads), 1 + THREADS, text)
        names = ("InnerOfThree", "MiddleOfThree", "OuterOfThree", "CountInStep", "StackThread",
                 "ObeyOrders", "main")
        where = {name: [t for t in threads if f" {name} (" in t] for name in names}
        for name, found in where.items():
            self.assertEqual(len(found), 1, f"{name} in {text}")
        self.assertEqual(where["InnerOfThree"], where["OuterOfThree"])
        self.assertEqual(where["ObeyOrders"], where["main"])
        self.assertIn("= 20261126", text)
        self.assertNotIn("Cannot access memory", text)

    def test_gdb_shows_every_thread_and_a_variable(self):
        target = Target(self)
        for source in (*SOURCES, "auto"):
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    result, _ = self.take(target.pid, "--source", source, *options)
                    if source != "auto":
                        self.assertEqual(result["source"], source)
                    self.assertEqual(result["threads"], THREADS)
                    self.assert_debuggable()

    def test_the_thread_that_was_asked_for_comes_first(self):
        target = Target(self)
        tids = sorted(int(tid) for tid in os.listdir(f"/proc/{target.pid}/task"))
        for tid in tids:
            self.take(target.pid, "--thread", str(tid))
            self.assertRegex(self.gdb("thread"), rf"Current thread is 1 \(.*\(LWP {tid}\)\)")
        result = self.core(target.pid, "--thread", "1")
        self.assertEqual(result["exit"], harness.FAILED)
        self.assertIn("no thread 1", result["message"])

    def test_readelf_finds_nothing_wrong(self):
        target = Target(self)
        self.take(target.pid)
        done = subprocess.run(["readelf", "-hlnW", self.path], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for note in ("NT_PRPSINFO", "NT_AUXV", "NT_FILE"):
            self.assertEqual(done.stdout.count(note), 1, done.stdout)
        for note in ("NT_PRSTATUS", "NT_FPREGSET", "NT_X86_XSTATE"):
            self.assertEqual(done.stdout.count(note), THREADS, done.stdout)
        self.assertIn("Type:                              CORE", done.stdout)


class Contents(CoreTest):
    def assert_memory(self, target, core):
        at = target.at
        for page in range(64):
            expected = ZEROS if page % 2 else contents(SPARSE, page)
            self.assertEqual(core.page(at["sparse"] + page * PAGE), expected, page)
        for page in range(4):
            self.assertEqual(core.page(at["hidden"] + page * PAGE), contents(HIDDEN, page))
            self.assertIsNone(core.page(at["secret"] + page * PAGE))
        self.assertIsNotNone(core.segment(at["secret"]))
        for page in range(16):
            guard = at["has_guards"] and 4 <= page < 8
            self.assertEqual(core.page(at["guarded"] + page * PAGE),
                             ZEROS if guard else contents(GUARDED, page))
        for page in (*range(1, 64), at["large_pages"] - 2):
            self.assertEqual(core.page(at["large"] + page * PAGE), contents(LARGE, page))
        # Reserved, never touched: described only.
        self.assertIsNone(core.page(at["reserved"]))
        self.assertEqual(core.segment(at["reserved"])[1], 1 << 30)

    def assert_shared(self, target, core):
        for page in range(16):
            expected = contents(SHARED, page) if 2 <= page < 5 else ZEROS
            self.assertEqual(core.page(target.at["shared"] + page * PAGE), expected, page)

    def assert_own_pages(self, target, core):
        for page in range(16):
            expected = contents(OWN, page) if page in (3, 9, 10) else None
            self.assertEqual(core.page(target.at["file"] + page * PAGE), expected, page)

    def test_memory_of_every_kind(self):
        target = Target(self)
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    result, core = self.take(target.pid, "--source", source, *options)
                    self.assertEqual(result["warnings"], [])
                    self.assert_memory(target, core)
                    self.assert_shared(target, core)
                    self.assert_own_pages(target, core)

    def test_stacks_fit_the_registers(self):
        # Enough memory that the last of the stacks is copied long after the registers were read.
        target = Target(self, large_mib=64)
        for source in SOURCES:
            with self.subTest(source=source):
                _, core = self.take(target.pid, "--source", source)
                # Only in that thread is there anything near the register.
                apart = [r["rax"] - core.word(r["rsp"] - 8) for r in core.registers()]
                self.assertTrue({0, 1} & set(apart), apart)

    def test_the_vdso_has_no_code_of_the_helper_in_it(self):
        target = Target(self)
        with open(f"/proc/{target.pid}/maps") as maps:
            start, end = next((int(n, 16) for n in line.split()[0].split("-")) for line in maps
                              if "[vdso]" in line)
        with open(f"/proc/{target.pid}/mem", "rb") as memory:
            memory.seek(start)
            expected = memory.read(end - start)
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    _, core = self.take(target.pid, "--source", source, *options)
                    got = b"".join(core.page(at) for at in range(start, end, PAGE))
                    self.assertTrue(got == expected)

    def test_holes_take_no_room_in_the_file(self):
        target = Target(self)
        self.take(target.pid)
        info = os.stat(self.path)
        self.assertEqual(info.st_mode & 0o7777, 0o600)
        # Half of `sparse`, most of `shared`, the holes of the stack.
        self.assertLess(info.st_blocks * 512, info.st_size - 40 * PAGE)

    def test_a_pipe_gets_the_same(self):
        target = Target(self)
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    with open(self.path, "wb") as file:
                        engine = self.start(target.pid, "--source", source, *options, path="-")
                        # A pipe in between, which is what the engine sees.
                        subprocess.run(["cat"], stdin=engine.stdout, stdout=file, check=True)
                    engine.wait()
                    self.assertEqual(engine.returncode, 0, engine.stderr.read())
                    core = CoreFile(self.path)
                    self.assert_memory(target, core)
                    self.assert_shared(target, core)
                    self.assert_own_pages(target, core)
                    last = core.segments[-1]
                    self.assertEqual(os.stat(self.path).st_size,
                                     max(s[3] + s[2] for s in core.segments if s[2]), last)

    def test_standard_output_may_be_a_file_or_a_socket(self):
        target = Target(self)
        with open(self.path, "wb") as file:
            engine = self.start(target.pid, path="-", stdout=file)
            self.assertEqual(self.finish(engine)["exit"], 0)
        self.assert_memory(target, CoreFile(self.path))
        script = ("import socket, subprocess, sys\na, b = socket.socketpair()\n"
                  "p = subprocess.Popen(sys.argv[1:], stdout=b)\nb.close()\n"
                  "while data := a.recv(1 << 16): sys.stdout.buffer.write(data)\n"
                  "sys.exit(p.wait())\n")
        with open(self.path, "wb") as file:
            subprocess.run([harness.PYTHON, "-c", script, harness.PREDUMP, "core", "--pid",
                            str(target.pid), "-o", "-"], stdout=file, check=True,
                           stderr=subprocess.DEVNULL)
        self.assert_memory(target, CoreFile(self.path))

    def test_the_filter_of_the_process_is_obeyed(self):
        target = Target(self)

        def with_filter(bits):
            with open(f"/proc/{target.pid}/coredump_filter", "w") as file:
                file.write(f"{bits:#x}\n")
            return self.take(target.pid)[1]

        at = target.at
        core = with_filter(0)
        for name in ("sparse", "shared", "file", "large"):
            self.assertIsNone(core.page(at[name] + 2 * PAGE), name)
            self.assertIsNotNone(core.segment(at[name]))
        self.assertIsNone(core.page(at["file"] + 3 * PAGE))
        core = with_filter(0x2)
        self.assert_shared(target, core)
        self.assertIsNone(core.page(at["sparse"]))
        core = with_filter(0x4)  # private file mappings, whole
        for page in range(16):
            kind = OWN if page in (3, 9, 10) else OF_FILE
            number = page if kind == OWN else 0
            self.assertEqual(core.page(at["file"] + page * PAGE), contents(kind, number))
        core = with_filter(0x10)  # ELF headers
        with open(f"/proc/{target.pid}/maps") as maps:
            start = next(int(line.split("-")[0], 16) for line in maps if CORE_TARGET in line)
        self.assertEqual(core.page(start)[:4], b"\x7fELF")
        self.assertIsNone(core.page(start + PAGE))
        self.assertIsNone(core.page(at["file"]))  # no ELF file

    def test_what_is_consistent_and_what_is_not(self):
        target = Target(self, large_mib=128)
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    engine = self.start(target.pid, "--json", "--source", source, *options)
                    # The first counter is in the file by now, the second is not.
                    self.while_it_writes(engine)
                    states = {harness.process_state(f"{target.pid}/task/{tid}")
                              for tid in os.listdir(f"/proc/{target.pid}/task")}
                    if options:
                        self.assertEqual(states, {"t"})
                    else:
                        self.assertNotIn("t", states)
                        goal = target.first_counter() + 2
                        harness.wait_until(lambda: target.first_counter() > goal, 60,
                                           "the counters to go on")
                    engine.send_signal(signal.SIGCONT)
                    result = self.finish(engine)
                    self.assertEqual(result["exit"], harness.COMPLETED, result["stderr"])
                    first, second = target.counters(CoreFile(self.path))
                    self.assertGreater(first, 0)
                    self.assertEqual(result["consistent"], bool(options))
                    self.assertIn(f"stopped for {result['stopped-ms']:.3f} ms", result["stderr"])
                    if options:
                        self.assertIn(first - second, (0, 1))
                        self.assertIn("until its memory was taken", result["stderr"])
                    else:
                        self.assertGreater(second - first, 1)

    def test_consistent_also_where_the_reader_takes_its_time(self):
        # The counters are on the stack, near the end of the file: the process runs on while they
        # wait in the pipe to be read.
        target = Target(self, large_mib=0)
        fifo = f"{self.directory}/fifo"
        os.mkfifo(fifo)
        for source in SOURCES:
            with self.subTest(source=source), open(self.path, "wb") as file:
                reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
                fcntl.fcntl(reader, F_SETPIPE_SZ, 1 << 20)
                engine = self.start(target.pid, "--json", "--source", source, "--consistent",
                                    path=fifo)
                select.select([reader], [], [], 60)
                os.set_blocking(reader, True)
                file.write(os.read(reader, 1 << 16))
                file.flush()
                total = max(s[3] + s[2] for s in CoreFile(self.path).segments if s[2])
                while (left := total - file.tell()) > 1 << 19:
                    file.write(os.read(reader, min(left - (1 << 19) + PAGE, 1 << 20)))
                result = self.finish(engine)
                self.assertEqual(result["exit"], harness.COMPLETED, result["stderr"])
                while page := os.read(reader, PAGE):
                    file.write(page)
                    target.await_counting()
                os.close(reader)
                file.flush()
                first, second = target.counters(CoreFile(self.path))
                self.assertIn(first - second, (0, 1))
                self.assertGreater(first, 0)


class Unnoticed(CoreTest):
    def test_a_workload_sees_nothing(self):
        # Late is what a consistent core makes it; that is not asked here.
        for name, options in (("threads", ["--late-ms", "10000"]), ("heart", [])):
            workload = self.lab.workload(name, *options)
            before = harness.settled_snapshot(workload)
            for source in SOURCES:
                for options in ([], ["--consistent"]):
                    with self.subTest(workload=name, source=source, options=options):
                        self.take(workload.pid, "--source", source, *options)
                        self.assert_unchanged(before, workload)
                        self.assert_goes_on(workload, 20)
            self.assertEqual(self.sharers(workload.pid), [])
            self.assert_finishes_well(workload)

    def test_a_process_that_cannot_be_moved(self):
        script = ("import os, socket\ns = socket.create_server(('127.0.0.1', 0))\n"
                  "a = socket.create_connection(s.getsockname()); b, _ = s.accept()\n"
                  "f = os.fork() or os.read(b.fileno(), 1)\n"
                  "print('ready', flush=True)\na.send(b.recv(1))\n")
        process = subprocess.Popen([harness.PYTHON, "-c", script], stdout=subprocess.PIPE,
                                   start_new_session=True, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(os.killpg, process.pid, signal.SIGKILL)
        self.assertEqual(process.stdout.readline(), "ready\n")
        for source in SOURCES:
            self.take(process.pid, "--source", source)

    def test_a_stopped_process_stays_stopped(self):
        target = Target(self)
        os.kill(target.pid, signal.SIGSTOP)
        harness.wait_until(lambda: harness.process_state(target.pid) == "T", 20, "it to stop")
        for options in ([], ["--consistent"]):
            result, _ = self.take(target.pid, *options)
            self.assertNotEqual(result["source"], "helper")
            self.assertEqual(harness.process_state(target.pid), "T")
        result = self.core(target.pid, "--source", "helper")
        self.assertEqual(result["exit"], harness.FAILED)
        self.assertIn("helper", result["message"])
        os.kill(target.pid, signal.SIGCONT)
        self.assertEqual(target.order("on"), "done\n")


class Midway(CoreTest):
    """Things that happen while the core is taken."""

    def test_a_mapping_that_goes_reads_as_zeros(self):
        fifo = f"{self.directory}/fifo"
        os.mkfifo(fifo)
        for source in SOURCES:
            with self.subTest(source=source):
                target = Target(self, large_mib=1, victim_mib=16)
                reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
                engine = self.start(target.pid, "--json", "--source", source, path=fifo)
                # The pipe is full long before the end of the victim is reached.
                select.select([reader], [], [], 60)
                self.assertEqual(target.order("unmap"), "done\n")
                os.set_blocking(reader, True)
                with open(self.path, "wb") as file, open(reader, "rb", buffering=0) as pipe:
                    while data := pipe.read(1 << 20):
                        file.write(data)
                result = self.finish(engine)
                self.assertEqual(result["exit"], harness.COMPLETED, result["stderr"])
                victim, pages = target.at["victim"], target.at["victim_pages"]
                core = CoreFile(self.path)
                self.assertEqual(core.page(victim + (pages - 1) * PAGE), ZEROS)
                gone = f"{victim:x}-{victim + pages * PAGE:x}"
                self.assertEqual(len(result["warnings"]), 1, result["warnings"])
                self.assertRegex(result["warnings"][0], f"{gone}.* was unmapped")
                self.assertIn(gone, result["stderr"])
                self.assertEqual(target.order("on"), "done\n")

    def test_exit_and_exec(self):
        for source in SOURCES:
            for what, code, words in (("exit", harness.TARGET_GONE, "has exited"),
                                      ("exec", harness.FAILED, "another program")):
                with self.subTest(source=source, what=what):
                    target = Target(self, large_mib=128)
                    engine = self.start(target.pid, "--json", "--source", source)
                    self.while_it_writes(engine)
                    target.exit() if what == "exit" else target.order("exec")
                    engine.send_signal(signal.SIGCONT)
                    result = self.finish(engine)
                    self.assertEqual(result["exit"], code, result["stderr"])
                    self.assertIn(words, result["message"])
                    self.assertIn("no core was completed", result["message"])
                    self.assert_nothing_left()
                    if what == "exec":
                        self.assertEqual(target.order("on"), "done\n")
                        self.assertEqual(self.sharers(target.pid), [])
                    target.close()

    def test_a_killed_engine_leaves_nothing(self):
        workload = self.lab.workload("heart")
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    before = harness.settled_snapshot(workload)
                    engine = self.start(workload.pid, "--source", source, *options)
                    self.while_it_writes(engine)
                    self.assertEqual(len(self.sharers(workload.pid)), source == "helper")
                    engine.kill()
                    engine.wait()
                    self.assert_nothing_left()
                    harness.wait_until(lambda: self.sharers(workload.pid) == [], 20,
                                       "the helper to go")
                    self.assert_unchanged(before, workload)
                    self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_an_interrupt_cancels(self):
        workload = self.lab.workload("heart")
        with open(self.path, "w") as file:
            file.write("the old one")
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    before = harness.settled_snapshot(workload)
                    engine = self.start(workload.pid, "--json", "--source", source, *options)
                    self.while_it_writes(engine)
                    engine.send_signal(signal.SIGINT)
                    engine.send_signal(signal.SIGCONT)
                    result = self.finish(engine, 30)
                    self.assertEqual(result["exit"], harness.CANCELLED, result["stderr"])
                    self.assertIn("SIGINT", result["message"])
                    self.assert_nothing_left(["core"])
                    self.assertEqual(harness.read_file(self.path), "the old one")
                    self.assertEqual(self.sharers(workload.pid), [])
                    self.assert_unchanged(before, workload)
                    self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_an_interrupt_while_the_reader_does_not_read(self):
        target = Target(self)
        fifo = f"{self.directory}/fifo"
        os.mkfifo(fifo)
        for options in ([], ["--consistent"]):
            with self.subTest(options=options):
                reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
                engine = self.start(target.pid, "--json", *options, path=fifo)
                room = fcntl.fcntl(reader, F_GETPIPE_SZ)
                harness.wait_until(lambda: bytes_in(reader) == room, 60, "the pipe to be full")
                engine.send_signal(signal.SIGTERM)
                result = self.finish(engine, 30)
                os.close(reader)
                self.assertEqual(result["exit"], harness.CANCELLED, result["stderr"])
                self.assertEqual(target.order("on"), "done\n")
                self.assertEqual(self.sharers(target.pid), [])


class BadOutput(CoreTest):
    def setUp(self):
        super().setUp()
        self.workload = self.lab.workload("heart")
        self.before = harness.settled_snapshot(self.workload)

    def assert_unharmed(self):
        self.assert_unchanged(self.before, self.workload)
        self.assert_goes_on(self.workload)
        self.assertEqual(self.sharers(self.workload.pid), [])

    def mounted(self, options, *core_options):
        """Takes a core to a file system of its own: exit code, messages, what is then in there."""
        script = ('mount -t tmpfs -o "$1" predump-test "$2" || exit 99; shift; where=$1; shift; '
                  'echo old > "$where/core" 2>/dev/null; "$@"; code=$?; ls -A "$where"; '
                  'cat "$where/core" 2>/dev/null; exit $code')
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", options,
             self.directory, harness.PREDUMP, "core", "--pid", str(self.workload.pid), "-o",
             self.path, *core_options], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr, done.stdout

    def test_a_full_disk(self):
        for source in SOURCES:
            for options in ([], ["--consistent"]):
                with self.subTest(source=source, options=options):
                    code, errors, left = self.mounted("size=8m", "--source", source, *options)
                    self.assertEqual(code, harness.FAILED, errors)
                    self.assertRegex(errors, f"{self.path}.*no space is left")
                    self.assertEqual(left, "core\nold\n")
                    self.assert_unharmed()

    def test_a_directory_that_is_read_only(self):
        code, errors, left = self.mounted("ro")
        self.assertEqual(code, harness.FAILED, errors)
        self.assertRegex(errors, f"{self.path}.*Read-only file system")
        self.assertEqual(left, "")
        self.assert_unharmed()

    def test_a_limit_on_file_sizes(self):
        command = [harness.PREDUMP, "core", "--pid", str(self.workload.pid), "-o", self.path]
        done = subprocess.run(["prlimit", "--fsize=1048576", *command], capture_output=True,
                              text=True, timeout=60)
        self.assertEqual(done.returncode, harness.FAILED, done.stderr)
        self.assertIn("limit", done.stderr)
        self.assert_nothing_left()
        self.assert_unharmed()

    def test_a_reader_that_goes(self):
        for options in ([], ["--consistent"]):
            with self.subTest(options=options):
                engine = self.start(self.workload.pid, *options, path="-")
                os.read(engine.stdout.fileno(), 100)
                engine.stdout.close()
                engine.stdout = None
                engine.wait(60)
                errors = engine.stderr.read()
                self.assertEqual(engine.returncode, harness.FAILED, errors)
                self.assertIn("its reader has gone", errors)
                self.assert_unharmed()

    def test_an_existing_file_is_replaced(self):
        with open(self.path, "w") as file:
            file.write("old")
        os.chmod(self.path, 0o644)
        self.take(self.workload.pid)
        self.assertEqual(os.stat(self.path).st_mode & 0o7777, 0o600)
        self.assert_nothing_left(["core"])

    def refused(self, path, code, words, **popen):
        result = self.finish(self.start(self.workload.pid, path=path, **popen), 60)
        self.assertEqual(result["exit"], code, result["stderr"])
        self.assertRegex(result["stderr"], words)
        self.assertEqual(len([line for line in result["stderr"].splitlines()
                              if line.startswith("predump: ")]), 1, result["stderr"])

    def test_outputs_that_are_none(self):
        link, fifo = f"{self.directory}/link", f"{self.directory}/fifo"
        os.symlink("/var/tmp/nowhere", link)
        os.mkfifo(fifo)
        self.refused(link, harness.USAGE, "symbolic link")
        self.refused(fifo, harness.FAILED, "nobody reads")
        self.refused(self.directory, harness.USAGE, "is a directory")
        self.refused(f"{self.directory}/missing/core", harness.FAILED, "missing.*No such file")
        with open(self.path, "ab") as file:
            self.refused("-", harness.USAGE, "appending", stdout=file)
        terminal, other_end = pty.openpty()
        self.refused("-", harness.USAGE, "terminal", stdout=other_end)
        os.close(terminal)
        os.close(other_end)
        self.assert_unharmed()

    def test_somebody_elses_process(self):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", harness.PREDUMP,
             "core", "--pid", str(self.workload.pid), "-o", "/var/tmp/predump-core-of-nobody"],
            capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, harness.FAILED, done.stderr)
        self.assertRegex(done.stderr, r"(?i)permi|allowed")
        self.assertFalse(os.path.exists("/var/tmp/predump-core-of-nobody"))
        self.assert_unharmed()

    def test_a_process_of_ones_own(self):
        # Without privileges all but memory that others alone have touched can be had.
        own = self.lab.directory("own")
        os.chown(own, harness.NOBODY, harness.NOBODY)
        script = ("import mmap, os\nm = mmap.mmap(-1, 8192)\n"
                  "if os.fork() == 0:\n  m[0] = 1\n  os._exit(0)\nos.wait()\n"
                  "m[4096] = 2\nprint('ready', flush=True)\nimport signal\nsignal.pause()\n")
        as_nobody = ["setpriv", f"--reuid={harness.NOBODY}", f"--regid={harness.NOBODY}",
                     "--clear-groups"]
        process = subprocess.Popen([*as_nobody, harness.PYTHON, "-c", script],
                                   stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "ready\n")
        done = subprocess.run([*as_nobody, harness.PREDUMP, "core", "--json", "--pid",
                               str(process.pid), "-o", f"{own}/core"], capture_output=True,
                              text=True, timeout=60)
        self.assertEqual(done.returncode, harness.COMPLETED, done.stderr)
        warnings = json.loads(done.stdout)["warnings"]
        self.assertEqual(len(warnings), 1, warnings)
        self.assertIn("CAP_CHECKPOINT_RESTORE", warnings[0])
        self.assertEqual(os.stat(f"{own}/core").st_uid, harness.NOBODY)
        CoreFile(f"{own}/core")

    def test_a_32_bit_process_is_refused(self):
        program = f"{self.directory}/program"
        base, code = 0x8048000, b"\xeb\xfe"  # jumps to itself
        with open(program, "wb") as file:
            file.write(b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack(
                "<HHIIIIIHHHHHH", 2, 3, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0))
            file.write(struct.pack("<IIIIIIII", 1, 0, base, base, 86, 86, 5, PAGE) + code)
        os.chmod(program, 0o700)
        try:
            process = subprocess.Popen([program])
        except OSError:
            return  # this kernel runs none
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        result = self.core(process.pid)
        self.assertEqual(result["exit"], harness.FAILED, result["stderr"])
        self.assertIn("32-bit", result["message"])
        self.assert_nothing_left(["program"])

    def test_wrong_use_is_told_apart(self):
        pid = str(self.workload.pid)
        for options in (["core"], ["core", "--pid", pid], ["core", "-o", self.path],
                        ["core", "--pid", "0", "-o", self.path],
                        ["core", "--pid", pid, "-o", self.path, "--source", "guess"],
                        ["core", "--pid", pid, "-o", self.path, "--verify"],
                        ["core", "--pid", pid, "-o", "-", "--json"],
                        ["core", "--pid", pid, "-o", self.path, "--freeze-timeout", "soon"]):
            with self.subTest(options=options):
                done = subprocess.run([harness.PREDUMP, *options], capture_output=True, text=True,
                                      timeout=60)
                self.assertEqual(done.returncode, harness.USAGE, done.stdout + done.stderr)
                self.assertTrue(done.stderr)
        self.assert_nothing_left()
        result = self.core(1 << 21)
        self.assertEqual(result["exit"], harness.TARGET_GONE)


if __name__ == "__main__":
    sys.exit(harness.main())
