#!/usr/bin/python3
"""Runs in a virtual machine of the lab, for test_criu_in_lab.py: the scripts, and the commands of
docs/from-criu.md, with CRIU's own dump and restore. Debian's criu works in the lab's kernel."""
import os
import pathlib
import subprocess

import from_criu
import ssh_host
from ssh_host import harness

SCRIPTS = harness.ROOT / "scripts"
CRIU = "/usr/sbin/criu"
# An emulated processor.
SECONDS = 300
PATIENT = ("--", "--freeze-timeout", "60s")


class WithCriu(harness.E2eTest):
    TARGET_MOUNTS = True

    def setUp(self):
        super().setUp()
        self.programs = {"predump": harness.PREDUMP, "criu": CRIU,
                         **{f"predump-{script.name}": script for script in SCRIPTS.iterdir()}}

    def program(self):
        # ssh on an emulated processor takes its time; in it little shall be written.
        return self.lab.workload("heart", "--size-mib", "16", "--threads", "2",
                                 "--dirty-pages-per-second", "20", max_seconds=1800)

    def at_target(self, there, workload):
        """It runs there, and not here."""
        arrived = there.process_there(workload.pid)
        self.assertIsNotNone(arrived)
        workload.moved_to(self.lab.target, arrived)

    def judge(self, workload, steps=50):
        """CRIU ends calls that wait early (EINTR), which is not ours to judge."""
        workload.report.wait_progress(steps, SECONDS)
        harness.signal.pidfd_send_signal(workload.pidfd, harness.signal.SIGTERM)
        self.assertTrue(harness.pidfd_ended(workload.pidfd, SECONDS))
        report = workload.report
        self.assertTrue(report.finished, workload.output())
        self.assertEqual((report.errors, report.restarts), (0, 0), report.trouble())

    def run_script(self, there, *arguments):
        done = subprocess.run(self.lab.source.command(arguments), env=there.environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False)
        return done.returncode, done.stdout

    def copy_and_restore(self, there, dump, store, pid):
        """What docs/from-criu.md and pre-dump-loop leave to the person."""
        destination = f"root@{self.lab.target.address}"
        copied = (f"tar -C {dump} --exclude ./parent -cf - . | "
                  f"ssh {destination} tar -C {store}/latest/ -xf -; ssh {destination} "
                  f"criu restore --images-dir {store}/latest --restore-detached -o restore.log")
        code, output = self.run_script(there, "bash", "-euo", "pipefail", "-c", copied)
        log = pathlib.Path(store, "latest", "restore.log")
        said = log.read_text(encoding="utf-8") if log.exists() else ""
        self.assertEqual(code, 0, output + "\n".join(
            line for line in said.splitlines() if "Error" in line))

    def test_migrate_criu_moves_a_process(self):
        there = ssh_host.SshHost(self.lab, self.lab.target, self.programs)
        workload = self.program()
        images = self.lab.directory("images")
        code, output = self.run_script(there, SCRIPTS / "migrate-criu", "--directory", images,
                                       workload.pid, f"root@{self.lab.target.address}", *PATIENT)
        self.assertEqual(code, harness.COMPLETED, output)
        self.at_target(there, workload)
        self.judge(workload)
        self.assertEqual(os.listdir(images), [])

    def test_migrate_criu_keeps_a_chain_of_rounds(self):
        there = ssh_host.SshHost(self.lab, self.lab.target, self.programs)
        workload = self.program()
        images = self.lab.directory("images")
        code, output = self.run_script(there, SCRIPTS / "migrate-criu", "--keep", "--rounds", "2",
                                       "--directory", images, workload.pid,
                                       f"root@{self.lab.target.address}", *PATIENT)
        self.assertEqual(code, harness.COMPLETED, output)
        self.at_target(there, workload)
        self.judge(workload)
        [store] = pathlib.Path(images).glob("target-*/store")
        sizes = [sum(path.stat().st_size for path in (store / number).glob("pages-*.img"))
                 for number in "123"]
        # Memory that the process does not write to was sent once, and not by CRIU.
        self.assertGreater(sizes[0], 16 << 20)
        self.assertLess(sizes[2], sizes[0] // 2)

    def test_a_process_that_criu_refuses_goes_on(self):
        there = ssh_host.SshHost(self.lab, self.lab.target, self.programs)
        workload = self.program()
        code, output = self.run_script(
            there, SCRIPTS / "migrate-criu", "--dump-option", "--no-such-option", workload.pid,
            f"root@{self.lab.target.address}", *PATIENT)
        self.assertEqual(code, harness.FAILED, output)
        self.assertIn("criu dump ended with", output)
        self.judge(workload)

    def test_pre_dump_loop_ends_with_criu_dump(self):
        there = ssh_host.SshHost(self.lab, self.lab.target, self.programs)
        workload = self.program()
        store, here = self.lab.directory("store"), os.path.join(self.lab.root, "here")
        server = self.lab.server(self.lab.target, "--images-dir", store, new_pidns=False)
        code, output = self.run_script(there, SCRIPTS / "pre-dump-loop", "--then", "criu-dump",
                                       "--images-dir", here, "--max-rounds", "4", workload.pid,
                                       server.address, *PATIENT)
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn("enough after round", output)
        self.assertTrue(harness.pidfd_ended(workload.pidfd, 20))
        self.copy_and_restore(there, f"{here}/dump", store, workload.pid)
        self.at_target(there, workload)
        self.judge(workload)

    def test_the_page_for_criu_users_sends_rounds_to_criu(self):
        reader = from_criu.Reader(self, self.programs)
        workload = self.program()
        [block] = [block for block in from_criu.blocks() if "criu://" in block.commands]
        reader.run_there("mkdir -p images/1 && criu page-server --images-dir images/1 --address "
                         f"{self.lab.target.address} --port 7002 --daemon -o server.log")
        reader.type(block, workload.pid, SECONDS)
        pages = list(pathlib.Path(reader.directory_there, "images/1").glob("pages-*.img"))
        self.assertGreater(sum(path.stat().st_size for path in pages), 16 << 20)
        self.judge(workload)

    def test_the_page_for_criu_users_dumps_with_criu(self):
        reader = from_criu.Reader(self, self.programs)
        workload = self.program()
        [serving] = [block for block in from_criu.blocks()
                     if block.serves() and "--images-dir" in block.commands]
        reader.serve(reader.variables(0) + serving.text).wait_for("^listening on ", 60)
        for block in from_criu.blocks():
            if "criu dump" in block.commands:
                reader.type(block, workload.pid, SECONDS)
        self.assertTrue(harness.pidfd_ended(workload.pidfd, 20))
        self.copy_and_restore(reader.there, f"{reader.directory}/local/dump",
                              f"{reader.directory_there}/images", workload.pid)
        self.at_target(reader.there, workload)
        self.judge(workload)


if __name__ == "__main__":
    # CRIU asks for files by mounts it knows, and takes no overlay for one.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/var/tmp"], check=True)
    harness.main()
