#!/usr/bin/python3
"""docs/from-criu.md: its commands are run as they stand, and every option it names exists. Blocks
that need criu are run where Debian's works, by guest_criu.py."""
import re
import subprocess
import unittest

import from_criu
from ssh_host import harness

COMMANDS = ("page-server", "check", "core", "resolve", "restore", "show")


def options_of(*command):
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True)
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", done.stdout))


class Page(unittest.TestCase):
    def test_options_of_our_commands_exist(self):
        text = from_criu.PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
        common = options_of(harness.PREDUMP)
        # In code, up to the end of the command.
        commands = re.findall(r"(?:^|`)(predump(?:-[a-z-]+)?)(?= )([^`\n|]*)", text, re.MULTILINE)
        self.assertGreater(len(commands), 30)
        for program, rest in commands:
            words = rest.partition(" # ")[0].split()
            with self.subTest(command=f"{program} {rest}"):
                if program != "predump":
                    known = options_of(harness.ROOT / "scripts" / program.removeprefix("predump-"))
                elif words[0] in COMMANDS:
                    known = common | options_of(harness.PREDUMP, words[0])
                else:
                    known = common
                named = {word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
                self.assertEqual(named - known, set())

    def test_links_within_it_lead_somewhere(self):
        text = from_criu.PAGE.read_text(encoding="utf-8")
        headings = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        links = set(re.findall(r"\]\(#([^)]*)\)", text))
        self.assertGreater(len(links), 5)
        self.assertEqual(links - headings, set())

    def test_exit_codes_are_those_of_the_manual_page(self):
        text = from_criu.PAGE.read_text(encoding="utf-8")
        self.assertEqual(re.findall(r"^\| (\d) \|", text, re.MULTILINE), list("0123456"))


class Typed(harness.E2eTest):
    TARGET_MOUNTS = True

    def test_blocks_do_what_they_say(self):
        scripts = harness.ROOT / "scripts"
        reader = from_criu.Reader(self, {
            "predump": harness.PREDUMP,
            **{f"predump-{script.name}": script for script in scripts.iterdir()}})
        stored = None
        for block in from_criu.blocks():
            if block.needs_criu():
                continue
            with self.subTest(line=block.line, command=block.commands):
                if block.serves():
                    reader.serve(reader.variables(0) + block.text).wait_for("^listening on ", 30)
                    continue
                if "restore" in block.commands:
                    self.restore(reader, block, stored)
                    continue
                workload = self.lab.workload("heart", "--size-mib", "8")
                reader.type(block, workload.pid)
                stays = "--leave-running" in block.commands or not re.search("--to", block.commands)
                self.follow(reader, workload, stays, "--to file:" in block.commands)
                if not stays and "--to file:" in block.commands:
                    stored = workload

    def follow(self, reader, workload, stays, into_file):
        if stays:
            self.assert_goes_on(workload)
            self.assert_finishes_well(workload)
            return
        if into_file:
            self.assertTrue(harness.pidfd_ended(workload.pidfd, 20))
            workload.child.wait()  # or its number stays taken
            return
        arrived = reader.there.process_there(workload.pid)
        self.assertIsNotNone(arrived)
        workload.moved_to(self.lab.target, arrived)
        self.assert_goes_on(workload, 50)
        self.assert_finishes_well(workload)

    def restore(self, reader, block, stored):
        reader.type(block, stored.pid)
        pid = int(harness.read_file(f"{reader.directory}/pid"))
        self.assertEqual(pid, stored.pid)
        stored.moved_to(self.lab.source, pid)
        self.assert_goes_on(stored, 50)
        self.assert_finishes_well(stored)


if __name__ == "__main__":
    harness.main()
