#!/usr/bin/python3
"""Runs in a virtual machine of the lab, for test_suites.py: each suite of suites.txt, one by one.

Prints a line per suite, all that a failing one said, and the summary.
"""
import argparse
import dataclasses
import fnmatch
import os
import pathlib
import re
import select
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SELFTESTS = {"kernel_selftest": ["process_vmsplice"],
             "kernel_selftest_stress": ["process_vmsplice_stress", "5"]}
# Here processes move between two namespaces of the guest.
E2E = HERE.parent / "e2e"
PLAN = HERE / "suites.txt"
SUITE_SECONDS, E2E_SECONDS = 600, 900
KTAP_SKIP = 4

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_GTEST = {"OK": PASSED, "FAILED": FAILED, "SKIPPED": SKIPPED}


def say(text):
    print(f"lab: {text}", flush=True)


@dataclasses.dataclass
class Plan:
    """suites.txt"""
    suites: dict  # name: about how many seconds
    long: list  # such that --quick leaves out
    more: list  # suites that only a filter brings
    must: list  # (suite, pattern of tests)
    lacking: list  # (suite, pattern of tests, what they need and do not have here)
    long_tests: list  # (suite, pattern of tests) that --quick leaves out

    @staticmethod
    def read(path):
        plan = Plan({}, [], [], [], [], [])
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split("#")[0].split(None, 2)
            if not words:
                continue
            kind, name, rest = (words + ["", ""])[:3]
            if kind == "suite" and rest.isdecimal():
                plan.suites[name] = int(rest)
            elif kind == "long" and ":" in name and not rest:
                plan.long_tests.append(tuple(name.split(":", 1)))
            elif kind == "long" and name and not rest:
                plan.long.append(name)
            elif kind == "more" and name and not rest:
                plan.more.append(name)
            elif kind == "must" and ":" in name and not rest:
                plan.must.append(tuple(name.split(":", 1)))
            elif kind == "lacks" and ":" in name and rest:
                plan.lacking.append((*name.split(":", 1), rest.strip()))
            else:
                sys.exit(f"{path}:{number}: not understood: {line}")
        unknown = {entry[0] for entry in plan.must + plan.lacking + plan.long_tests}
        unknown -= {*plan.suites, *plan.long}
        if unknown:
            sys.exit(f"{path}: no such suites: {sorted(unknown)}")
        return plan

    def quick(self):
        """What is left of it when time is short."""
        lacking = self.lacking + [(*entry, "more time") for entry in self.long_tests]
        return dataclasses.replace(
            self, long=[], long_tests=[], lacking=lacking,
            must=[entry for entry in self.must if entry[0] in self.suites])

    def shares(self, count):
        """The suites, but for long ones, dealt out so that each list takes about as long."""
        shares = [([], 0)] * count
        for name in sorted(self.suites, key=self.suites.get, reverse=True):
            shares.sort(key=lambda share: share[1])
            names, seconds = shares[0]
            shares[0] = (names + [name], seconds + self.suites[name])
        return [names for names, _ in shares if names]

    def only(self, names):
        """That share of it."""
        kept = {name: seconds for name, seconds in self.suites.items() if name in names}
        return dataclasses.replace(
            self, suites=kept, long=[],
            must=[entry for entry in self.must if entry[0] in kept])


@dataclasses.dataclass
class Outcome:
    suite: str
    tests: dict  # name: PASSED, FAILED or SKIPPED
    reasons: dict  # of skipped ones
    lacking: list = dataclasses.field(default_factory=list)  # (pattern, need): not even started
    trouble: str = ""  # beyond single tests
    seconds: float = 0
    output: str = ""

    def names(self, kind):
        return [name for name, outcome in self.tests.items() if outcome == kind]


class ControlGroup:
    """Holds a suite and all that it starts: nothing of it runs on beside the next one."""

    PATH = pathlib.Path("/sys/fs/cgroup/suite")

    def __enter__(self):
        self.PATH.mkdir()
        return self

    def enter(self):
        """For the child, before it executes its program."""
        (self.PATH / "cgroup.procs").write_text("0")

    def __exit__(self, *unused):
        (self.PATH / "cgroup.kill").write_text("1")
        with open(self.PATH / "cgroup.events", encoding="ascii") as events:
            changes = select.poll()
            changes.register(events, select.POLLPRI)
            while "populated 1" in events.read():
                changes.poll(10000)
                events.seek(0)
        self.PATH.rmdir()


def run(command, limit=SUITE_SECONDS):
    """(exit code or None if it took too long, what it printed, seconds)"""
    start = time.monotonic()
    # In a file: what a killed program has started may keep a pipe open.
    path = "/tmp/output"
    with open(path, "wb") as output, ControlGroup() as group:
        try:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output,
                                  stderr=subprocess.STDOUT, timeout=limit, check=False,
                                  preexec_fn=group.enter).returncode
        except subprocess.TimeoutExpired:
            code = None
    text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    return code, text, time.monotonic() - start


def trouble_of(code, limit=SUITE_SECONDS):
    if code is None:
        return f"not over after {limit} s"
    return f"ended with {code}" if code != 0 else ""


def run_gtest(suite, program, plan, wanted):
    lacking = [(pattern, need) for name, pattern, need in plan.lacking if name == suite]
    excluded = ":".join(pattern for pattern, _ in lacking)
    command = [program, f"--gtest_filter={':'.join(wanted) or '*'}-{excluded}"]
    code, text, seconds = run(command)
    outcome = Outcome(suite, {}, {}, lacking, trouble_of(code), seconds, text)
    lines = text.splitlines()
    begun = 0
    for number, line in enumerate(lines):
        if line.startswith("[ RUN      ] "):
            begun = number
        match = re.match(r"\[ +(OK|FAILED|SKIPPED) +\] ([\w/.]+)(?:, where .*)? \(\d+ ms\)$", line)
        if match:
            outcome.tests[match.group(2)] = _GTEST[match.group(1)]
            if match.group(1) == "SKIPPED":
                outcome.reasons[match.group(2)] = " ".join(lines[begun + 1:number]).partition(
                    "Skipped ")[2]
    # A line that something else wrote into would be missing above.
    ran = re.search(r"^\[={10}\] (\d+) tests? from \d+ test suites? ran\.", text, re.MULTILINE)
    if not outcome.trouble and (ran is None or int(ran.group(1)) != len(outcome.tests)):
        outcome.trouble = f"{len(outcome.tests)} outcomes seen, of {ran and ran.group(1)} tests"
    return outcome


def run_selftest(suite, programs):
    program, *options = SELFTESTS[suite]
    code, text, seconds = run([programs / program, *options])
    # A kernel without the call is no kernel of the lab's, so that this is no excuse.
    trouble = "skipped: the kernel has no process_vmsplice" if code == KTAP_SKIP else trouble_of(code)
    outcome = Outcome(suite, {}, {}, [], trouble, seconds, text)
    for line in text.splitlines():
        match = re.match(r"(not ok|ok) \d+ (\S*)\s*(?:# SKIP\s*(.*))?", line)
        if match is None:
            continue
        name = match.group(2)
        outcome.tests[name] = FAILED if match.group(1) != "ok" else PASSED
        if "# SKIP" in line:
            outcome.tests[name] = SKIPPED
            outcome.reasons[name] = match.group(3)
    if not outcome.tests and not trouble:
        outcome.trouble = "no outcome of any test seen"
    return outcome


def run_e2e(suite, program, build):
    code, text, seconds = run(["env", f"PREDUMP_BUILD_DIR={build}", sys.executable, program],
                              E2E_SECONDS)
    outcome = Outcome(suite, {}, {}, [], trouble_of(code, E2E_SECONDS), seconds, text)
    name = None
    for line in text.splitlines():
        # What a test prints stands between its name and its outcome.
        begun = re.match(r"(\w+) \(__main__\.(\w+)\.\w+\)", line)
        name = f"{begun[2]}.{begun[1]}" if begun else name
        ended = re.search(r"(?:^|\.\.\. )(ok|FAIL|ERROR|skipped (.*))$", line)
        if name is None or ended is None:
            continue
        outcome.tests[name] = {"ok": PASSED, "FAIL": FAILED, "ERROR": FAILED}.get(ended[1], SKIPPED)
        if ended[2]:
            outcome.reasons[name] = ended[2]
        name = None
    ran = re.search(r"^Ran (\d+) tests? in ", text, re.MULTILINE)
    if not outcome.trouble and (ran is None or int(ran[1]) != len(outcome.tests)):
        outcome.trouble = f"{len(outcome.tests)} outcomes seen, of {ran and ran[1]} tests"
    return outcome


def tests_of(program):
    """Names as --gtest_filter takes them."""
    listed = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True,
                            timeout=60, check=True).stdout
    names, suite = [], ""
    for line in listed.splitlines():
        word = line.split("#")[0].rstrip()
        if word.startswith("  "):
            names.append(suite + word.strip())
        elif word.endswith("."):
            suite = word
    return names


def run_suite(suite, arguments, plan):
    """None if nothing of it is wanted."""
    expression = re.compile(arguments.filter)
    if suite in SELFTESTS:
        return run_selftest(suite, arguments.programs) if expression.search(suite) else None
    if suite.startswith("e2e_"):
        program = E2E / f"test_{suite.removeprefix('e2e_')}.py"
        return run_e2e(suite, program, arguments.build) if expression.search(suite) else None
    program = arguments.build / "tests" / suite
    if not os.access(program, os.X_OK):
        return Outcome(suite, {}, {}, [], f"there is no {program}")
    wanted = []
    if arguments.filter:
        wanted = [name for name in tests_of(program) if expression.search(f"{suite}:{name}")]
        if not wanted:
            return None
    return run_gtest(suite, program, plan, wanted)


def show(outcome):
    failed = outcome.names(FAILED)
    counts = ", ".join(f"{len(outcome.names(kind))} {kind}" for kind in (PASSED, SKIPPED, FAILED)
                       if outcome.names(kind) or kind == PASSED)
    say(f"{'FAILED' if failed or outcome.trouble else 'ok':6} {outcome.suite}: {counts} in "
        f"{outcome.seconds:.0f} s{'; ' if outcome.trouble else ''}{outcome.trouble}")
    if failed or outcome.trouble:
        print(outcome.output, flush=True)
    for pattern, need in outcome.lacking:
        say(f"       left out {pattern}: needs {need}")
    for name in outcome.names(SKIPPED):
        say(f"       skipped {name}: {outcome.reasons.get(name) or 'no reason given'}")


def not_run(plan, outcomes):
    """What suites.txt wants to be run here, and was not."""
    complaints = []
    for suite, pattern in plan.must:
        tests = next((outcome.tests for outcome in outcomes if outcome.suite == suite), {})
        lacking = [left_out for name, left_out, _ in plan.lacking if name == suite]
        names = [name for name in tests if fnmatch.fnmatchcase(name, pattern) and
                 not any(fnmatch.fnmatchcase(name, left_out) for left_out in lacking)]
        if not names:
            complaints.append(f"no test {suite}:{pattern} was run, and it must be")
        complaints += [f"{suite}:{name} was skipped, and must run here" for name in names
                       if tests[name] == SKIPPED]
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="of the selftest")
    parser.add_argument("--quick", action="store_true", help="without what takes long")
    parser.add_argument("--only", metavar="SUITES", help="these of them, by commas")
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    plan = Plan.read(PLAN)
    if arguments.quick:
        plan = plan.quick()
    if arguments.only:
        plan = plan.only(arguments.only.split(","))
    outcomes = []
    for suite in [*plan.suites, *plan.long, *(plan.more if arguments.filter else [])]:
        outcome = run_suite(suite, arguments, plan)
        if outcome is not None:
            outcomes.append(outcome)
            show(outcome)
    if not outcomes:
        say(f"FAILED no test's name matches {arguments.filter}")
        return 1
    complaints = not_run(plan, outcomes) if not arguments.filter else []
    for complaint in complaints:
        say(f"FAILED {complaint}")
    totals = {kind: sum(len(outcome.names(kind)) for outcome in outcomes)
              for kind in (PASSED, SKIPPED, FAILED)}
    bad = [outcome.suite for outcome in outcomes if outcome.names(FAILED) or outcome.trouble]
    say(f"Linux {os.uname().release}: {len(outcomes)} suites, " +
        ", ".join(f"{count} tests {kind}" for kind, count in totals.items()) +
        (f"; failed suites: {', '.join(bad)}" if bad else ""))
    return 1 if bad or complaints else 0


if __name__ == "__main__":
    sys.exit(main())
