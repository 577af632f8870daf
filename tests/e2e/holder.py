"""holder.py DIRECTORY KIND...: takes hold of things that keep a process from moving, prints
"ready", and then does nothing but live: each SIGUSR1 is answered by a line "alive".
"""
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
KEPT = []  # what must not be closed


def syscall(number, *arguments):
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"syscall {number}")
    return result


def connected_tcp(directory):
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    KEPT.extend([client, listener.accept()[0]])
    listener.close()


def io_uring(directory):
    syscall(425, 8, ctypes.create_string_buffer(120))


def inotify(directory):
    LIBC.inotify_add_watch(LIBC.inotify_init(), directory.encode(), 2)


def userfault(directory):
    syscall(323, 1 | os.O_CLOEXEC)  # UFFD_USER_MODE_ONLY


def perf_event(directory):
    attributes = ctypes.create_string_buffer(struct.pack("<IIQ", 1, 112, 0).ljust(112, b"\0"))
    syscall(298, attributes, 0, -1, -1, 0)


def netlink(directory):
    KEPT.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


def packet(directory):
    KEPT.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))


def pidfd(directory):
    KEPT.append(os.pidfd_open(os.getppid()))


def deleted_file(directory):
    path = os.path.join(directory, "gone")
    KEPT.append(open(path, "w"))
    os.unlink(path)


def memory_file(directory):
    os.ftruncate(os.memfd_create("held"), 4096)


def flock(directory):
    file = open(os.path.join(directory, "locked"), "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    KEPT.append(file)


def record_lock(directory):
    file = open(os.path.join(directory, "locked-record"), "w")
    fcntl.lockf(file, fcntl.LOCK_EX)
    KEPT.append(file)


def lease(directory):
    file = open(os.path.join(directory, "leased"), "w")
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    KEPT.append(file)


def owner_of_signals(directory):
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(ours, fcntl.F_SETFL, fcntl.fcntl(ours, fcntl.F_GETFL) | os.O_ASYNC)
    KEPT.extend([ours, theirs])


def fifo(directory):
    path = os.path.join(directory, "fifo")
    os.mkfifo(path)
    KEPT.append(os.open(path, os.O_RDWR))


def pipe_to_another(directory):
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    pid = os.posix_spawn("/usr/bin/setsid", ["setsid", "--fork", "sleep", "600"], os.environ)
    os.waitpid(pid, 0)  # what it started is nobody's child any more and has the read end
    os.close(read_end)
    KEPT.append(write_end)


def shared_memory(directory):
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, ctypes.c_size_t(8192), 3, 0x21, -1, ctypes.c_long(0))
    ctypes.memset(address, 1, 8192)


def system_v_memory(directory):
    identity = LIBC.shmget(0, 8192, 0o1600)
    LIBC.shmat.restype = ctypes.c_void_p
    LIBC.shmat(identity, None, 0)
    LIBC.shmctl(identity, 0, None)  # goes away with its last user


def posix_timer(directory):
    timer = ctypes.c_int()
    event = ctypes.create_string_buffer(struct.pack("<Qii", 0, signal.SIGURG, 0).ljust(64, b"\0"))
    syscall(222, 1, event, ctypes.byref(timer))
    syscall(223, timer, 0, struct.pack("<qqqq", 0, 0, 3600, 0), None)


def child(directory):
    KEPT.append(subprocess.Popen(["sleep", "600"]))


def zombie(directory):
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def seccomp(directory):
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    allow = ctypes.create_string_buffer(struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", 1, ctypes.addressof(allow)))
    if LIBC.prctl(22, 2, program, 0, 0) != 0:
        raise OSError("seccomp")


def asynchronous_io(directory):
    context = ctypes.c_ulong()
    syscall(206, 16, ctypes.byref(context))


def own_hostname(directory):
    if LIBC.unshare(0x04000000) != 0:  # CLONE_NEWUTS
        raise OSError("unshare")


def user_dispatch(directory):
    selector = ctypes.create_string_buffer(1)  # SYSCALL_DISPATCH_FILTER_ALLOW
    KEPT.append(selector)
    if LIBC.prctl(59, 1, ctypes.c_long(0), ctypes.c_long(0), selector) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def sealed_mapping(directory):
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, ctypes.c_size_t(8192), 3, 0x22, -1, ctypes.c_long(0))
    syscall(462, ctypes.c_void_p(address), ctypes.c_size_t(8192), 0)


def guard_region(directory):
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, ctypes.c_size_t(16384), 3, 0x22, -1, ctypes.c_long(0))
    syscall(28, ctypes.c_void_p(address), ctypes.c_size_t(4096), 102)  # MADV_GUARD_INSTALL


def pending_continue(directory):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])
    os.kill(os.getpid(), signal.SIGCONT)


def protection_key(directory):
    key = syscall(330, 0, 0)
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
    syscall(329, ctypes.c_void_p(address), ctypes.c_size_t(4096), 3, key)


def traced(directory):
    ours, theirs = os.pipe()
    reaped, reap = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        if os.fork() != 0:
            os._exit(0)
        # Not before the parent has had its SIGCHLD: it would stop at it, and nobody resumes it.
        os.close(reap)
        os.read(reaped, 1)
        seized = LIBC.ptrace(0x4206, parent, None, None)
        os.write(theirs, b"y" if seized == 0 else b"n")
        os.close(theirs)
        for descriptor in (0, 1, 2, ours, reaped):
            os.close(descriptor)
        while True:
            time.sleep(1000)
    os.wait()
    os.close(reaped)
    os.close(reap)
    if os.read(ours, 1) != b"y":
        raise OSError("ptrace")
    os.close(ours)
    os.close(theirs)


KINDS = {name.replace("_", "-"): value for name, value in list(globals().items())
         if callable(value) and getattr(value, "__module__", "") == __name__ and
         name not in ("syscall", "main")}


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for kind in sys.argv[2:]:
        KINDS[kind](sys.argv[1])
    print("ready", flush=True)
    while signal.sigwait([signal.SIGUSR1]):
        print("alive", flush=True)


if __name__ == "__main__":
    main()
