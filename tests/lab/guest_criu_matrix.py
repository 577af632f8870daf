#!/usr/bin/python3
"""Runs in the virtual machine of test_criu_matrix.py: every way to capture, every way to restore.

A cell of the table is one program, captured by predump or by CRIU, with pre-dump rounds before that
by neither, predump or CRIU, and restored by predump or by CRIU. It passes if the program itself
finds nothing amiss afterwards; or it is refused in the words that EXPECTED has for it, or finds what
LOSSES says that CRIU loses; both are printed. Anything else fails, and so does a cell that did not run, or passes where it is to be
refused. What else CRIU and predump are compared in is in guest_criu_pages.py.
"""
import argparse
import os
import pathlib
import re
import sys
import time
import traceback

import criu_pages
import criu_programs
import criu_tools
import guest_criu_pages
import harness
from criu_tools import Refused, criu

WORK = pathlib.Path("/tmp/criu-matrix")
PASSED, REFUSED, LOST, FAILED = "passed", "refused", "loses", "FAILED"
RESTORES = {"criu": criu_tools.criu_restore, "predump": criu_tools.predump_restore}


def say(text=""):
    """A line of the summary (tests/lab/guest.py)."""
    print(f"lab: {text}", flush=True)


# ---------------------------------------------------------------------------------------------
# Captures. Each gets the place and the program, and returns the directory to restore from. A
# program works on between two rounds.

def criu_alone(place, program):
    final = os.path.join(place.root, "final")
    criu("dump", final, "-t", program.pid)
    return final


def pre_dumps(place, program, count, *options):
    """By CRIU, to this disk; the last one's directory."""
    last = None
    for number in range(1, count + 1):
        here = os.path.join(place.root, f"pre-dump-{number}")
        parent = ["--prev-images-dir", os.path.relpath(last, here)] if last else []
        criu("pre-dump", here, "-t", program.pid, "--track-mem", *parent, *options)
        program.work()
        last = here
    return last


def criu_after_criu(place, program, *options):
    last, final = pre_dumps(place, program, 2, *options), os.path.join(place.root, "final")
    criu("dump", final, "-t", program.pid, "--track-mem", "--prev-images-dir",
         os.path.relpath(last, final), *options)
    return final


def criu_with_auto_dedup(place, program):
    return criu_after_criu(place, program, "--auto-dedup")


def criu_into_our_store(place, program):
    """All of CRIU's, but for the server: two pre-dumps and the dump."""
    server = criu_tools.ImageServer(place)
    last = pre_dumps(place, program, 2, *server.to_criu())
    return final_dump_into(server, place, program, last)


def criu_after_predump(place, program):
    server, local = criu_tools.ImageServer(place), os.path.join(place.root, "local")
    criu_tools.send(place, program.pid, server.address, "--rounds", 3, "--leave-running",
                    "--tracker", "soft-dirty", "--images-dir", local)
    program.work()
    return final_dump_into(server, place, program, local)


def final_dump_into(server, place, program, local):
    """CRIU's last step; `local` is what it compares with on this side."""
    final = os.path.join(place.root, "final")
    criu("dump", final, "-t", program.pid, "--track-mem", "--prev-images-dir",
         os.path.relpath(local, final), *server.to_criu())
    criu_tools.copy_beside(final, server.latest())
    return server.latest()


def predump_alone(place, program):
    store = os.path.join(place.root, "store")
    criu_tools.send(place, program.pid, f"file:{store}", "--rounds", 1)
    return os.path.realpath(os.path.join(store, "latest"))


def predump_after_predump(place, program):
    server = criu_tools.ImageServer(place)
    criu_tools.send(place, program.pid, server.address, "--rounds", 3)
    return server.latest()


def predump_after_criu(place, program):
    """CRIU's pages are no parent for ours: predump sends its own, all of them."""
    server = criu_tools.ImageServer(place)
    pre_dumps(place, program, 1, *server.to_criu())
    criu_tools.send(place, program.pid, server.address, "--rounds", 1)
    return server.latest()


class Way:
    """Captured by whom, with rounds by whom, how; and what its images must show."""

    def __init__(self, captured_by, rounds_by, capture, levels, programs=None):
        self.captured_by, self.rounds_by, self.capture = captured_by, rounds_by, capture
        # Of the chain of directories: so many, with pages in a parent if more than one.
        self.levels = levels
        self.programs = programs or PROGRAMS


PROGRAMS = ["threads", "python", "redis", "files"]
WITH_HOLDINGS = [*PROGRAMS, "holdings"]

WAYS = [
    Way("criu", "none", criu_alone, 1, WITH_HOLDINGS),
    Way("criu", "predump", criu_after_predump, 4),
    Way("criu", "criu", criu_after_criu, 3),
    Way("criu", "criu, auto-dedup", criu_with_auto_dedup, 3, ["threads", "redis"]),
    Way("criu", "criu, our server", criu_into_our_store, 3, ["threads", "redis"]),
    # A whole move has one round at least, and the last pages.
    Way("predump", "none", predump_alone, 2, WITH_HOLDINGS),
    Way("predump", "predump", predump_after_predump, 4, WITH_HOLDINGS),
    # CRIU's pages are not used.
    Way("predump", "criu", predump_after_criu, 2),
]

# {(captured by, rounds by, restored by, program): regular expression of the message}; None stands
# for any. Whatever is refused and not in here fails.
EXPECTED = {
    # Senders' credentials in the queue of a socket (SO_PASSCRED).
    ("criu", None, None, "holdings"): r"^criu dump: .*Control messages in queue, not supported",
}

# The same of what may be refused, by what the program holds at that moment.
POSSIBLE = {
    # Its directory /proc/self/fd, open while it is looked at.
    ("criu", None, "predump", "files"): r"^predump restore: .*file /proc/\d+/fd: not on this host",
}

# The same of what the program finds amiss because CRIU 3.17.1 does not keep it.
LOSSES = {
    # Threads stopped in a restartable sequence lose their abort.
    ("criu", None, None, "threads"): r"^errors \d+,.*; last: rseq: ",
    (None, "criu", None, "threads"): r"^errors \d+,.*; last: rseq: ",
    # What its messages have no room for: docs/from-criu.md.
    ("predump", None, "criu", "holdings"): r"(first|last): (affinity|IP_TTL|eventfd|TCP_|timer slack|descriptor \d+ \(flags)",
}


def expression(of, way, restored_by, program):
    """What `of` has for this cell, or None."""
    cell = (way.captured_by, way.rounds_by.split(",")[0], restored_by, program)
    return next((pattern for key, pattern in of.items()
                 if all(part in (None, of_cell) for part, of_cell in zip(key, cell))), None)


def expected(way, restored_by, program):
    """The expression by which this cell is to be refused, or None: it is to pass."""
    return expression(EXPECTED, way, restored_by, program)


class Cell:
    """What came of one."""

    def __init__(self, outcome, message=""):
        self.outcome, self.message = outcome, message


class Row:
    """One program captured in one way."""

    def __init__(self, way, program, attempt):
        self.way, self.program, self.attempt = way, program, attempt
        self.cells, self.note, self.seconds = {}, "", 0.0

    def run(self):
        started = time.monotonic()
        path = WORK / re.sub(r"\W+", "-", f"{self.program} {self.way.captured_by} "
                                          f"{self.way.rounds_by} {self.attempt}")
        with criu_tools.Place(path) as place:
            judge = criu_programs.PROGRAMS[self.program](place)
            try:
                self._capture_and_restore(place, judge)
            finally:
                judge.end()
        self.seconds = time.monotonic() - started

    def _capture_and_restore(self, place, judge):
        judge.work()
        try:
            directory = self.way.capture(place, judge)
            judge.captured()
            self.note = self._look_at(directory, judge.pid)
        except Refused as refused:
            # The process has to be as well as before.
            trouble = judge.judge(eintr_allowed=True) if judge.goes_on() else "it is gone"
            for name in RESTORES:
                self.cells[name] = self._refused(name, refused, trouble)
            return
        for number, (name, restore) in enumerate(RESTORES.items()):
            if number > 0:
                judge.put_back()
            self.cells[name] = self._restore(name, restore, directory, judge)

    def _restore(self, name, restore, directory, judge):
        try:
            pid = restore(directory)
        except Refused as refused:
            return self._refused(name, refused, "")
        judge.restored(pid)
        # CRIU ends calls with EINTR, at a dump as at a restore; predump is not to.
        by_criu = "criu" in (self.way.captured_by, self.way.rounds_by.split(",")[0], name)
        trouble = judge.judge(eintr_allowed=by_criu)
        if trouble:
            loss = expression(LOSSES, self.way, name, self.program)
            return Cell(LOST if loss and re.search(loss, trouble) else FAILED, trouble)
        if expected(self.way, name, self.program):
            return Cell(FAILED, "it passes, where EXPECTED has it refused")
        return Cell(PASSED, f"{judge.eintr()} EINTR" if judge.eintr() else "")

    def _refused(self, name, refused, trouble):
        pattern = (expected(self.way, name, self.program)
                   or expression(POSSIBLE, self.way, name, self.program))
        if trouble:
            return Cell(FAILED, f"{refused}; and then: {trouble}")
        if pattern is None or not re.search(pattern, str(refused)):
            return Cell(FAILED, str(refused))
        return Cell(REFUSED, str(refused))

    def _look_at(self, directory, pid):
        """Which pages came when. That rounds took place shows here, and nowhere else."""
        pagemap = criu_pages.Pagemap(directory, f"pagemap-{pid}.img") \
            if "auto-dedup" not in self.way.rounds_by else None
        levels = criu_pages.depth(directory)
        # More where a freeze came at a bad moment (the program held something that cannot move), and
        # another round was made.
        if levels < self.way.levels or (levels > self.way.levels and
                                        self.way.captured_by == "criu"):
            raise criu_pages.Broken(f"{directory}: {levels} directories, not {self.way.levels}")
        if pagemap is None:
            return f"{levels} directories"
        present, parent = pagemap.count(criu_pages.PRESENT), pagemap.count(criu_pages.PARENT)
        if (parent > 0) != (self.way.levels > 1):
            raise criu_pages.Broken(f"{directory}: {parent} pages in parents, of {levels} levels")
        return f"{present} pages in the last of {levels}, {parent} before"


def show(rows):
    """The table; refusals stand below it, once each."""
    messages = []

    def cell_text(cell):
        if cell is None:
            return "NOT RUN"
        if cell.outcome == PASSED:
            return f"passed{f' ({cell.message})' if cell.message else ''}"
        if cell.message not in messages:
            messages.append(cell.message)
        return f"{cell.outcome} [{messages.index(cell.message) + 1}]"

    say(f"{'program':8} {'captured by':11} {'rounds by':17} {'restored by criu':18} "
        f"{'by predump':18} {'s':>4}  pages")
    for row in rows:
        cells = [cell_text(row.cells.get(name)) for name in RESTORES]
        say(f"{row.program:8} {row.way.captured_by:11} {row.way.rounds_by:17} {cells[0]:18} "
            f"{cells[1]:18} {row.seconds:4.0f}  {row.note}")
    for number, message in enumerate(messages, 1):
        say(f"  [{number}] {message}")
    counts = [sum(cell.outcome == outcome for row in rows for cell in row.cells.values())
              for outcome in (PASSED, REFUSED, LOST, FAILED)]
    wanted = len(RESTORES) * len(rows)
    say(f"Linux {os.uname().release}, {wanted} cells: {counts[0]} passed, {counts[1]} refused as "
        f"expected, {counts[2]} lost what CRIU does not keep, {counts[3]} failed, "
        f"{wanted - sum(counts)} not run")
    return counts[3] == 0 and sum(counts) == wanted


def run_row(way, program):
    """Once more where it fails: on an emulated processor some of what the programs ask for comes
    late. Both outcomes are shown."""
    name = f"{program}, captured by {way.captured_by}, rounds by {way.rounds_by}"
    row = try_row(way, program, name, 1)
    failures = {restore: cell.message for restore, cell in row.cells.items()
                if cell.outcome == FAILED}
    if not failures:
        return row
    say(f"again: {name}: {failures}")
    return try_row(way, program, name, 2)


def try_row(way, program, name, attempt):
    row = Row(way, program, attempt)
    try:
        row.run()
    except Exception as error:  # whatever it is, the other cells are to be seen
        traceback.print_exc()
        for restore in RESTORES:
            row.cells.setdefault(restore, Cell(FAILED, criu_tools.one_line(
                f"{type(error).__name__}: {error}")))
    print(f"{name}:", *(f"{restore} {cell.outcome} {cell.message};"
                        for restore, cell in row.cells.items()),
          f"{row.seconds:.0f} s", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", default="",
                        help="only rows like 'redis, captured by criu, rounds by predump'")
    arguments = parser.parse_args()
    expression = re.compile(arguments.filter)
    WORK.mkdir()
    rows = [run_row(way, program) for program in criu_programs.PROGRAMS for way in WAYS
            if program in way.programs and expression.search(
                f"{program}, captured by {way.captured_by}, rounds by {way.rounds_by}")]
    well = show(rows) if rows else True
    compared = guest_criu_pages.run(WORK, expression, say)
    if not rows and not compared:
        say(f"FAILED: nothing is named like {arguments.filter}")
        well = False
    return 0 if well and all(compared) else 1


if __name__ == "__main__":
    sys.exit(main())
