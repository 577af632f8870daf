#!/usr/bin/python3
"""man_page_test.py PREDUMP PAGE: the options of each command's --help and those of the manual page
are the same."""
import re
import subprocess
import sys
import unittest

PREDUMP, PAGE = sys.argv[1:3]
COMMON = "OPTIONS OF EVERY COMMAND"
SECTIONS = {"": "OPTIONS OF A MIGRATION", "page-server": "OPTIONS OF page-server",
            "check": "OPTIONS OF check", "core": "OPTIONS OF core", "resolve": "OPTIONS OF resolve",
            "restore": "OPTIONS OF restore",
            "show": "OPTIONS OF show"}
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


def run(*arguments):
    return subprocess.run([PREDUMP, *arguments], capture_output=True, text=True, timeout=30)


def options_of_help(command):
    """Each option's names as one set: {"-t", "--pid"}."""
    found = set()
    for line in run(*command.split(), "--help").stdout.splitlines():
        match = re.match(r"  ((?:-\w,)?--[\w-]+|-\w)(?: |$)", line)
        if match:
            found.add(frozenset(match.group(1).split(",")))
    return found


def options_of_page():
    """{section: its options}: what stands in the line behind each .TP."""
    found, section, tagged = {}, None, False
    with open(PAGE, encoding="utf-8") as page:
        for line in page:
            line = line.rstrip("\n").replace("\\-", "-")
            line = re.sub(r"\\f[BIRP]", "", line)
            if line.startswith(".SH "):
                section = line[4:].strip('"')
                found[section] = set()
            elif tagged:
                names = frozenset(OPTION.findall(line))
                if names:
                    found[section].add(names)
            tagged = line == ".TP"
    return found


class ManPage(unittest.TestCase):
    def test_each_option_of_a_command_is_in_its_section_and_the_other_way_round(self):
        page = options_of_page()
        for command, section in SECTIONS.items():
            with self.subTest(command=command or "a migration"):
                helped = options_of_help(command)
                self.assertIn(frozenset(("-h", "--help")), helped)
                self.assertGreater(len(page[section]), 2, f"section {section} was not understood")
                self.assertEqual(page[section] - helped, set(), "in the page only")
                self.assertEqual(helped - page[section] - page[COMMON], set(), "in --help only")

    def test_common_options_are_those_of_the_program(self):
        page = options_of_page()
        self.assertEqual(page[COMMON] - options_of_help(""), set())
        for options in page[COMMON]:
            self.assertNotIn(options, page[SECTIONS[""]])

    def test_no_option_stands_anywhere_else(self):
        page = options_of_page()
        for section, options in page.items():
            if section not in (COMMON, *SECTIONS.values()):
                self.assertEqual(options, set(), section)

    def test_every_command_has_a_section(self):
        shown = run("--help").stdout.partition("Subcommands:\n")[2].partition("\n\n")[0]
        commands = {line.split()[0] for line in shown.splitlines()}
        self.assertEqual(commands, set(SECTIONS) - {""})

    def test_log_options_may_stand_behind_a_command(self):
        # Refused for what it lacks, not for them.
        done = run("page-server", "-vv", "-o", "/dev/null")
        self.assertIn("--listen is required", done.stderr)
        self.assertEqual(run("check", "-v", "-o", "/dev/null", "--no-such").returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
