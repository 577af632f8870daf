#!/usr/bin/python3
"""Workloads that judge themselves are moved there and back while they run, every page compared."""
import sys

import harness

# Where the landing lives (src/restore/landing/layout.h): memory there has to be staged.
LANDING_HOME = 0x3D0000000000

# A call that waits by a socket's own timeout (SO_RCVTIMEO) begins anew when it is stopped, with the
# whole of it: no register and no argument holds what is left. Two stops (setup, freeze) can delay
# one of up to 420 ms twice.
_SOCKET_TIMEOUT_LATE_MS = ["--late-ms", "1000"]

# name: (program, options, how much progress shows that it goes on)
WORKLOADS = {
    "heart": ("heart", ["--size-mib", "64", "--threads", "2"], 500),
    "threads": ("threads", _SOCKET_TIMEOUT_LATE_MS, 50),
    "churn": ("churn", ["--pages-per-second", "50000"], 300),
    "file-reads": ("direct-io", [], 20),
    "vfork-parent": ("vfork-parent", [], 3),
    "huge": ("huge", ["--size-mib", "64"], 300),
    "sparse": ("sparse", [], 300),
    "landing-home": ("high-address", ["--address", ",".join(
        hex(LANDING_HOME + offset) for offset in (0, 64 << 20, 255 << 20))], 300),
    "across-landing-home": ("high-address", ["--address", hex(LANDING_HOME - (2 << 20)),
                                             "--size-kib", "8192"], 300),
    "eintr": ("eintr", ["--call", "epoll_wait"], 2),
    "python": ("python-counter", [], 5000),
}

_SOURCES = {"helper": ["--source", "helper"], "readv": ["--source", "readv"]}
_OTHER_MEANS = {"without-bpf": ["--no-bpf"], "full": ["--tracker", "full", "--source", "readv"]}


class Moves(harness.E2eTest):
    """Filled with a test per workload and means below."""

    def there_and_back(self, name, means):
        program, options, steps = WORKLOADS[name]
        workload = self.lab.workload(program, *options)
        for _ in range(2):
            result = self.lab.move(workload, "--verify", *means)
            if "--source" in means:
                self.assertEqual(result["source"], means[means.index("--source") + 1])
            if "--tracker" in means:
                self.assertEqual(result["tracker"], means[means.index("--tracker") + 1])
            self.assertGreater(result["pages-verified"], 0)
            self.assert_goes_on(workload, steps)
        self.assertIs(workload.host, self.lab.source)
        self.assert_finishes_well(workload)


def _add(kind, means, names):
    for name in names:
        def test(self, name=name, means=means):
            self.there_and_back(name, means)
        setattr(Moves, f"test_{kind}_{name.replace('-', '_')}", test)


for _kind, _means in _SOURCES.items():
    _add(_kind, _means, WORKLOADS)
for _kind, _means in _OTHER_MEANS.items():
    _add(_kind.replace("-", "_"), _means, ["heart", "threads", "churn", "vfork-parent"])


class EveryBlockingCall(harness.E2eTest):
    """No call that a thread may be inside of shows that it was moved."""

    def test_no_call_returns_early_or_with_eintr(self):
        listed = self.lab.source.run([harness.WORKLOADS / "eintr", "--list"]).stdout.splitlines()
        self.assertGreater(len(listed), 10)
        for name, kind in map(str.split, listed):
            with self.subTest(call=name):
                late = _SOCKET_TIMEOUT_LATE_MS if "_timeout" in name else ["--late-ms", "150"]
                workload = self.lab.workload("eintr", "--call", name, "--timeout-ms", "300", *late)
                self.lab.move(workload)
                self.lab.move(workload)
                # The call it was inside of during the second move must have had its turn to
                # return; those that never do are judged by not returning.
                if kind == "timed":
                    self.assert_goes_on(workload, 2)
                self.assert_finishes_well(workload)


class WhoItIs(harness.E2eTest):
    """What a process may do is what it could before, no more and no less."""

    def test_of_another_user(self):
        workload = self.lab.workload("files", "--uid", str(harness.NOBODY - 1), "--no-new-privs",
                                     "--skip", "unix-listener")
        for _ in range(2):
            self.lab.move(workload, "--verify")
            self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def user_with_capabilities(self, *means):
        user = str(harness.NOBODY - 1)
        workload = harness.Workload(
            self.lab, self.lab.source, "files", "--skip", "unix-listener",
            command=[
                "setpriv", "--reuid", user, "--regid", user, "--groups", "7,8",
                "--inh-caps", "+net_bind_service,+chown,+kill",
                "--ambient-caps", "+net_bind_service",
                "--bounding-set", "-sys_time,-mknod",
                "--securebits", "+noroot,+noroot_locked,+no_setuid_fixup",
                "--", harness.WORKLOADS / "files"], owner=int(user))
        for _ in range(2):
            self.lab.move(workload, "--verify", *means)
            self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_with_capabilities_and_secure_bits(self):
        self.user_with_capabilities()

    def test_with_capabilities_and_secure_bits_without_bpf(self):
        self.user_with_capabilities("--no-bpf")


class PathOfItsOwn(harness.E2eTest):
    """A unix socket listens at a path that either host has for itself."""

    TARGET_MOUNTS = True

    def test_listener_with_a_path(self):
        for host in (self.lab.source, self.lab.target):
            directory = self.lab.state_directory(host, "socket")
        listed = ("written-file", "append-log", "two-descriptions", "directory-listing",
                  "surroundings")
        workload = self.lab.workload("files", "--dir", directory, "--skip", ",".join(listed))
        for _ in range(2):
            self.lab.move(workload, "--verify")
            self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)


class ManyMoves(harness.E2eTest):
    """What is off by a little each time adds up."""

    def move_many_times(self, *means):
        # Both hosts see the directory in which its unix socket would be. It also holds a file of
        # /proc now and then, for a moment: a freeze that meets that is tried again.
        workload = self.lab.workload("files", "--skip", "unix-listener")
        for _ in range(15):
            self.lab.move(workload, *means)
            self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_files(self):
        self.move_many_times()

    def test_files_without_bpf(self):
        self.move_many_times("--no-bpf")


if __name__ == "__main__":
    sys.exit(harness.main())
