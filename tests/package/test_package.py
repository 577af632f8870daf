#!/usr/bin/python3
"""test_package.py BUILD: the .deb that `./run package` builds, looked at, installed below a folder of its
own, used and removed; and `cmake --install`."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD = pathlib.Path(sys.argv[1])
ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ("migrate", "migrate-criu", "pre-dump-loop")
PROGRAMS = ["predump", *(f"predump-{script}" for script in SCRIPTS)]
FILES = {*(f"usr/bin/{program}" for program in PROGRAMS),
         *(f"usr/share/man/man1/{program}.1.gz" for program in PROGRAMS),
         *(f"usr/share/doc/predump/{name}"
           for name in ("README.md", "from-criu.md", "copyright", "changelog.gz"))}
# Parts of the C library; all else has to be in the program.
LIBRARIES = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "linux-vdso.so.1"}


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300,
                          check=False, **options)


def output_of(*command, **options):
    done = run(*command, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def libraries_of(program):
    return {os.path.basename(line.split()[0]) for line in output_of("ldd", program).splitlines()}


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="predump-package-", dir="/var/tmp"))
        # Whatever a builder's files are readable for must not show in the package.
        output_of("cpack", "-G", "DEB", "-B", cls.work, cwd=BUILD, umask=0o077)
        packages = list(cls.work.glob("*.deb"))
        if len(packages) != 1:
            raise AssertionError(f"not one package: {packages}")
        cls.package = packages[0]
        cls.root = cls.work / "root"
        output_of("dpkg-deb", "--extract", cls.package, cls.root)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.work)

    def field(self, name):
        return output_of("dpkg-deb", "--field", self.package, name).rstrip("\n")

    def version(self):
        text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        return re.search(r"project\(predump VERSION ([\d.]+)", text).group(1)

    def test_it_says_what_it_is(self):
        self.assertEqual(self.field("Package"), "predump")
        self.assertEqual(self.field("Version"), self.version())
        self.assertEqual(self.field("Architecture"), "amd64")
        self.assertEqual(self.package.name, f"predump_{self.version()}_amd64.deb")
        self.assertRegex(self.field("Maintainer"), r"^[\w ]+ <\S+@\S+>$")
        summary, *more = self.field("Description").splitlines()
        self.assertLess(len(summary), 80)
        self.assertFalse(summary.endswith("."))
        self.assertGreater(len(more), 3)
        for line in more:
            self.assertRegex(line, r"^ (\.|\S.{0,79})$")

    def test_it_depends_on_the_c_library_and_on_nothing_else(self):
        self.assertRegex(self.field("Depends"), r"^libc6 \(>= 2\.\d+\)$")

    def test_what_is_in_it(self):
        files = {}
        for line in output_of("dpkg-deb", "--contents", self.package).splitlines():
            mode, owner, _, _, _, name = line.split(None, 5)
            self.assertEqual(owner, "root/root", line)
            if mode.startswith("d"):
                self.assertEqual(mode, "drwxr-xr-x", line)
            else:
                files[name.removeprefix("./")] = mode
        self.assertEqual(set(files), FILES)
        for name, mode in files.items():
            self.assertEqual(mode, "-rwxr-xr-x" if "/bin/" in name else "-rw-r--r--", name)
        sums = output_of("dpkg-deb", "--info", self.package, "md5sums").splitlines()
        self.assertEqual({line.split("  ", 1)[1] for line in sums}, FILES)

    def test_the_program_is_stripped_and_tells_its_version(self):
        program = self.root / "usr/bin/predump"
        self.assertIn(", stripped", output_of("file", program))
        self.assertEqual(output_of(program, "--version").strip(), self.version())

    def test_the_program_needs_nothing_but_the_c_library(self):
        program = self.root / "usr/bin/predump"
        self.assertLessEqual(libraries_of(program), LIBRARIES)
        # As on a host where nothing is installed beside the C library.
        bare = self.work / "bare"
        for line in output_of("ldd", program).splitlines():
            path = re.search(r"(/\S+) \(0x", line)
            if path:
                (bare / path[1][1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path[1], bare / path[1][1:])
        shutil.copy(program, bare / "predump")
        self.assertEqual(output_of("chroot", bare, "/predump", "--version").strip(), self.version())
        self.assertIn("page-server", output_of("chroot", bare, "/predump", "--help"))

    def test_every_program_has_a_manual_page_without_faults(self):
        for program in PROGRAMS:
            with self.subTest(program=program):
                page = self.root / f"usr/share/man/man1/{program}.1.gz"
                done = run("man", "--warnings", "-l", page,
                           env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"})
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn("NAME", done.stdout)
                self.assertRegex(done.stdout, rf"{program}\s+-\s")

    def test_every_script_tells_how_it_is_called_there(self):
        for script in SCRIPTS:
            program = self.root / f"usr/bin/predump-{script}"
            self.assertTrue(output_of(program, "--help").startswith(f"Usage: predump-{script} "))

    def test_it_can_be_installed_and_removed(self):
        root = self.work / "installed"
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        (root / "var/lib/dpkg/updates").mkdir()
        for name in ("status", "available"):
            (root / "var/lib/dpkg" / name).touch()
        # There is no C library there to depend on; no maintainer's scripts, so that none are run.
        dpkg = ["dpkg", f"--root={root}", "--force-depends", "--log=/dev/null"]
        output_of(*dpkg, "--install", self.package)
        self.assertIn("ok installed", output_of("dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W",
                                                "-f", "${Status}", "predump"))
        self.assertEqual(output_of(root / "usr/bin/predump", "--version").strip(), self.version())
        for name in FILES:
            self.assertTrue((root / name).is_file(), name)
        output_of(*dpkg, "--purge", "predump")
        self.assertFalse((root / "usr/bin").exists())

    def test_cmake_installs_the_same(self):
        prefix = self.work / "prefix"
        output_of("cmake", "--install", BUILD, "--prefix", prefix)
        output_of("cmake", "--install", BUILD, "--prefix", prefix)  # over it
        found = {f"usr/{path.relative_to(prefix)}" for path in prefix.rglob("*") if path.is_file()}
        self.assertEqual(found, FILES)
        self.assertEqual(output_of(prefix / "bin/predump", "--version").strip(), self.version())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
