"""The commands of docs/from-criu.md, as they stand there, for those who run them."""
import re
import sys

import ssh_host
from ssh_host import harness

PAGE = harness.ROOT / "docs/from-criu.md"


class Block:
    """What stands between two fences."""

    def __init__(self, line, text):
        self.line, self.text = line, text
        lines = [line.partition(" # ")[0].strip() for line in text.splitlines()
                 if not line.startswith("#")]
        self.commands = " ".join(lines).replace("\\ ", "")

    def serves(self):
        """It is typed at the other host, and goes on."""
        return self.commands.startswith("predump page-server")

    def needs_criu(self):
        """It works where Debian's criu does."""
        return "criu dump" in self.commands or "criu://" in self.commands


def blocks():
    text = PAGE.read_text(encoding="utf-8")
    found = [Block(text.count("\n", 0, match.start()) + 1, match.group(1))
             for match in re.finditer(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    if len(found) < 12:
        sys.exit(f"{PAGE}: {len(found)} blocks were found")
    return found


class Reader:
    """Somebody who types them, at two hosts."""

    def __init__(self, test, programs):
        self.test, self.lab = test, test.lab
        self.there = ssh_host.SshHost(test.lab, test.lab.target, programs)
        self.directory = test.lab.directory("here")
        self.directory_there = test.lab.directory("there")

    def variables(self, pid):
        return f"PID={pid}; TARGET={self.lab.target.address}; "

    def command(self, script):
        """bash, at the source, in the reader's folder."""
        return self.lab.source.command(["bash", "-euo", "pipefail", "-c",
                                        f"cd {self.directory}; {script}"])

    def type(self, block, pid, seconds=120):
        done = harness.subprocess.run(
            self.command(self.variables(pid) + block.text), env=self.there.environment,
            stdin=harness.subprocess.DEVNULL, stdout=harness.subprocess.PIPE,
            stderr=harness.subprocess.STDOUT, text=True, timeout=seconds, check=False)
        self.test.assertEqual(done.returncode, 0, f"{PAGE}:{block.line}: {block.commands}\n"
                                                  f"{done.stdout}")
        return done.stdout

    def serve(self, script):
        """Starts it at the other host; what it says."""
        process = self.lab.adopt(harness.subprocess.Popen(
            self.lab.source.command(["ssh", f"root@{self.lab.target.address}",
                                     f"cd {self.directory_there} && {script}"], dies_with_us=True),
            env=self.there.environment, stdin=harness.subprocess.DEVNULL,
            stdout=harness.subprocess.PIPE, stderr=harness.subprocess.STDOUT, text=True))
        return harness.LineReader(process.stdout)

    def run_there(self, script):
        """At the other host, to its end."""
        done = harness.subprocess.run(
            self.lab.source.command(["ssh", f"root@{self.lab.target.address}",
                                     f"cd {self.directory_there} && {script}"]),
            env=self.there.environment, stdin=harness.subprocess.DEVNULL,
            stdout=harness.subprocess.PIPE, stderr=harness.subprocess.STDOUT, text=True, timeout=120,
            check=False)
        self.test.assertEqual(done.returncode, 0, f"{script}\n{done.stdout}")
        return done.stdout
