#!/usr/bin/python3
"""test_options.py: what the scripts say of themselves, without a process or root: --help, the manual
pages, wrong use; and what shellcheck says of them."""
import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir())


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def options_of_help(script):
    """Each option's names as one set."""
    found = set()
    for line in run(script, "--help").stdout.splitlines():
        match = re.match(r"  ((?:-\w, )?)\s*(--[\w-]+)", line)
        if match:
            names = set(match.group(1).strip(" ,").split()) | {match.group(2)}
            rest = line[match.end():]
            names |= set(re.findall(r"(?<=, )--[\w-]+(?= [A-Z])", rest))
            found |= {frozenset(names)} if match.group(1) else {frozenset({name}) for name in names}
    return found


def options_with_a_value(script):
    lines = run(script, "--help").stdout.splitlines()
    return [option for line in lines if line.lstrip().startswith("-")
            for option in re.findall(r"(--[\w-]+) (?=[A-Z]+\b)", line)]


def options_of_page(script):
    found, tagged = set(), False
    page = (ROOT / "docs" / f"predump-{script.name}.1").read_text(encoding="utf-8")
    for line in page.splitlines():
        plain = re.sub(r"\\f[BIRP]", "", line.replace("\\-", "-"))
        if tagged:
            found.add(frozenset(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", plain)))
        tagged = line == ".TP"
    return found


class Options(unittest.TestCase):
    def assert_usage_error(self, said, *command):
        done = run(*command)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(said, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_there_are_the_three_scripts(self):
        self.assertEqual([script.name for script in SCRIPTS],
                         ["migrate", "migrate-criu", "pre-dump-loop"])

    def test_shellcheck_finds_nothing(self):
        done = run("shellcheck", *SCRIPTS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_stop_at_errors(self):
        for script in SCRIPTS:
            self.assertRegex(script.read_text(encoding="utf-8"), r"\nset -euo pipefail\n")

    def test_help_is_that_of_the_manual_page(self):
        for script in SCRIPTS:
            with self.subTest(script=script.name):
                helped = options_of_help(script)
                self.assertGreater(len(helped), 4)
                self.assertEqual(helped, options_of_page(script))

    def test_help_fits_a_page(self):
        for script in SCRIPTS:
            with self.subTest(script=script.name):
                done = run(script, "--help")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertTrue(done.stdout.startswith(f"Usage: {script.name} "))
                self.assertLessEqual(max(map(len, done.stdout.splitlines())), 106)

    def test_wrong_use_is_said_and_ends_with_2(self):
        for script in SCRIPTS:
            for arguments, said in (((), "give the process and"), (("1",), "give the process and"),
                                    (("--no-such", "1", "host"), "there is no option '--no-such'"),
                                    (("x1", "host"), "x1")):
                with self.subTest(script=script.name, arguments=arguments):
                    self.assert_usage_error(said, script, *arguments)

    def test_an_empty_value_is_none(self):
        for script in SCRIPTS:
            options = options_with_a_value(script)
            self.assertGreater(len(options), 2)
            for option in options:
                with self.subTest(script=script.name, option=option):
                    said = f"{option} needs a value"
                    self.assert_usage_error(said, script, option, "", "1", "host:1")
                    self.assert_usage_error(said, script, "1", "host:1", option)

    def test_an_empty_argument_is_none(self):
        for script in SCRIPTS:
            loop = script.name == "pre-dump-loop"
            with self.subTest(script=script.name):
                self.assert_usage_error("PID takes a number" if loop else "'' is no process id",
                                        script, "", "host:1")
                self.assert_usage_error("TO needs a value" if loop else "'' is no host", script, "1", "")

    def test_the_others_refuse_what_makes_no_rounds(self):
        for name in ("migrate-criu", "pre-dump-loop"):
            for word in ("--help", "--version", "-h", "-vV", "check", "show"):
                with self.subTest(script=name, word=word):
                    self.assert_usage_error(f"{word} cannot stand behind --: use predump {word}",
                                            ROOT / "scripts" / name, "1", "host:1", "--", word)

    def test_migrate_refuses_what_is_no_move(self):
        migrate = ROOT / "scripts/migrate"
        for word, instead in (("--rounds", "use predump itself"), ("--rounds=2", "use predump itself"),
                              ("--leave-running", "use migrate --dry-run"),
                              ("-R", "use migrate --dry-run"), ("-vjR", "use migrate --dry-run"),
                              ("--help", "use predump --help"), ("-h", "use predump -h"),
                              ("--version", "use predump --version"), ("-V", "use predump -V"),
                              ("--pid", "PID and HOST say"), ("-t1", "PID says"),
                              ("--to=h:1", "PID and HOST say"), ("check", "use predump check"),
                              ("--remote-options", "put it before --"),
                              ("--remote-predump", "put it before --"),
                              ("--state-dir=/x", "put it before --")):
            with self.subTest(word=word):
                self.assert_usage_error(f"{word} cannot stand behind --: {instead}", migrate, "1",
                                        "host", "--", "--verify", word, "2")
        for options in ("--images-dir /x", "--new-pidns --images-dir=/x", "-D /x", "-jD/x", "'-D' /x"):
            with self.subTest(options=options):
                self.assert_usage_error("stored and runs nowhere: use predump --to ssh://host",
                                        migrate, "--remote-options", options, "1", "host")

    def test_migrate_takes_what_only_looks_like_it(self):
        # There is no such process, so that it goes no further.
        done = run(ROOT / "scripts/migrate", "--remote-options",
                   "--cgroup /x-D --state-dir /--images-dir", "4194305", "host", "--", "-v", "-j",
                   "-oRt", "--max-rounds", "2", "--json")
        self.assertNotIn("behind --", done.stderr)
        self.assertNotIn("--remote-options", done.stderr)
        self.assertRegex(done.stderr, "no process|needs root|not installed")


if __name__ == "__main__":
    unittest.main(verbosity=2)
