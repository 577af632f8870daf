"""A host that ssh gets into: an sshd of the test's own, in the network namespace of one of harness's
hosts, with pids and mounts of its own, as a second machine has."""
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import harness  # noqa: E402

# First process there; the shell takes in whatever is left without a parent, as init does.
_INIT = """mount -t tmpfs -o mode=0755 tmpfs /run && mkdir /run/sshd || exit 1
/usr/sbin/sshd -D -e -f "$1" &
wait"""


class SshHost:
    """`host` by ssh, for whoever runs with `environment`: there `ssh` knows the keys."""

    def __init__(self, lab, host, programs):
        """`programs`: {name: path} of what is to be found at both ends, before all else."""
        self.host = host
        self.directory = pathlib.Path(lab.directory(f"ssh-{host.address}"))
        self.programs = self._programs("programs", programs)
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "predump-test",
                            "-f", self.directory / name], check=True)
        path = f"{self.programs}:{os.environ['PATH']}"
        self._write("sshd_config", f"""
ListenAddress {host.address}:22
HostKey {self.directory}/host_key
AuthorizedKeysFile {self.directory}/user_key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
SetEnv PATH={path}
""")
        key = (self.directory / "host_key.pub").read_text(encoding="ascii").split()
        self._write("known_hosts", f"{host.address} {key[0]} {key[1]}\n")
        # What a user has in ~/.ssh.
        self._write("ssh_config", f"""
Host *
  IdentityFile {self.directory}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {self.directory}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
""")
        client = self.directory / "client"
        client.mkdir()
        wrapper = client / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.directory}/ssh_config "$@"\n',
                           encoding="ascii")
        wrapper.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{client}:{path}"}
        self.process = lab.adopt(host.popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation",
             "private", "sh", "-c", _INIT, "sh", self.directory / "sshd_config"],
            dies_with_us=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True))
        self.log = harness.LineReader(self.process.stderr)
        self.log.wait_for("Server listening", 20)

    def _programs(self, name, programs):
        directory = self.directory / name
        directory.mkdir()
        for program, path in programs.items():
            (directory / program).symlink_to(path)
        return directory

    def _write(self, name, text):
        (self.directory / name).write_text(text, encoding="ascii")

    def hang(self, pattern):
        """From now on an ssh with `pattern` among its arguments says that it hangs, and does."""
        stub = self.directory / "hanging" / "ssh"
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/sh\ncase "$*" in *"{pattern}"*) echo "ssh hangs: $*" >&2; '
                        f'exec sleep 1000 ;; esac\nexec {self.directory}/client/ssh "$@"\n',
                        encoding="ascii")
        stub.chmod(0o755)
        self.environment["PATH"] = f"{stub.parent}:{self.environment['PATH']}"

    @staticmethod
    def hanging(host):
        """Pids of those that hang at `host`."""
        return [pid for pid in host.processes() if harness.process_state(pid) not in (None, "Z") and
                harness.read_file(f"/proc/{pid}/cmdline") == "sleep\0" "1000\0"]

    def process_there(self, pid):
        """The number, for us, of the process that is `pid` there; None if there is none."""
        for number in self.host.processes():
            try:
                status = harness.read_file(f"/proc/{number}/status")
            except (FileNotFoundError, ProcessLookupError):
                continue
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if len(numbers) > 2 and numbers[-1] == str(pid):
                return number
        return None
