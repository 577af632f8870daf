"""A virtual machine of the lab (kernel-patch/lab/boot), as the tests on this side see it."""
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

import harness  # noqa: E402

LAB = ROOT / "kernel-patch/lab"
# What guests say goes here: their consoles, and the lines that `./run test --all` shows at its end.
RESULTS = harness.BUILD / "lab"
# A line of a console that begins with this belongs into the summary.
SUMMARY = "lab: "


class _Echo:
    """A stream whose lines are shown as they are read."""

    def __init__(self, stream, prefix):
        self._stream, self._prefix = stream, prefix

    def __iter__(self):
        for line in self._stream:
            sys.stdout.write(self._prefix + line)
            sys.stdout.flush()
            yield line

    def close(self):
        self._stream.close()


class Guest:
    """A booted machine that runs one command. It ends with the command, or with us."""

    def __init__(self, name, command, *options, seconds, memory, wire=None, prefix=""):
        self.name = name
        RESULTS.mkdir(exist_ok=True)
        arguments = ["setpriv", "--pdeathsig", "TERM", str(LAB / "boot"), "--name", name,
                     "--timeout", str(seconds), "--memory", str(memory),
                     "--log", str(RESULTS / f"{name}.console"), *options]
        if wire is not None:
            arguments += ["--link", f"fd:{wire}"]
        self.process = subprocess.Popen(
            [*arguments, "--", *map(str, command)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            pass_fds=() if wire is None else (wire,))
        self.console = harness.LineReader(_Echo(self.process.stdout, prefix))

    def wait(self):
        """The exit code of kernel-patch/lab/boot, which has a time limit of its own."""
        self.process.wait()
        self.console.text()
        return self.process.returncode

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def summary(self):
        return [line[len(SUMMARY):] for line in self.console.text().splitlines()
                if line.startswith(SUMMARY)]


def write_summary(name, lines):
    (RESULTS / f"{name}.summary").write_text("".join(f"{line}\n" for line in lines))


def require(*programs):
    """What `./run` installs; without it there is no lab."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(f"{', '.join(missing)}: not installed; `./run lab` and `./run test --all` install "
                 "what the lab needs")
