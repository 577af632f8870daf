#!/usr/bin/python3
"""A terminal shows one live line and a line per round; anything else gets plain lines."""
import os
import pty
import subprocess
import sys

import harness


class Terminal(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.workload = self.lab.workload("heart")
        self.command = [harness.PREDUMP, "--pid", self.workload.pid, "--to",
                        self.lab.server_at(self.lab.target).address, "--state-dir",
                        self.lab.source_state(self.lab.source), "--bandwidth", "64M"]

    def on_terminal(self, *options):
        ours, theirs = pty.openpty()
        process = self.lab.source.popen([*self.command, *options], dies_with_us=True,
                                        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs,
                                        text=True)
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the last one to have it open has gone
                break
            if not data:
                break
            seen += data
        os.close(ours)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, seen)
        return seen.decode(), output

    def test_a_terminal_shows_a_live_line_and_a_line_per_round(self):
        seen, output = self.on_terminal()
        live = [text for text in seen.split("\r\033[K") if "remaining" in text]
        self.assertGreater(len(live), 3, seen)
        for text in live:
            for word in ("round", "dirty pages/s", "/s", "remaining", "expected downtime"):
                self.assertIn(word, text)
        self.assertRegex(seen, r"round 0: \d+ pages .* ms.*\r?\n")
        self.assertRegex(seen, r"downtime \d+\.\d+ ms")
        self.assertEqual(output, "")

    def test_json_goes_to_standard_output_alone(self):
        seen, output = self.on_terminal("--json")
        self.assertEqual(len(output.strip().splitlines()), 1)
        self.assertTrue(output.startswith("{"))
        self.assertNotIn('{"status"', seen)

    def test_elsewhere_there_are_only_plain_lines(self):
        done = self.lab.source.run(self.command)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("\033", done.stderr)
        self.assertNotIn("\r", done.stderr)
        self.assertRegex(done.stderr, r"round 0: ")
        self.assertRegex(done.stderr, r"downtime \d+\.\d+ ms")
        self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    sys.exit(harness.main())
