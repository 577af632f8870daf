#!/usr/bin/python3
"""Stands between sshd and `predump page-server --stdio`, and breaks the connection at one instant.

Usage: stdio_server.py MODE MARKER COMMAND...

MODE "cut": instead of passing on Running (the word that the process runs here), ends the login
session as a broken connection would. MODE "hold": keeps it back and everything after it. MARKER is
made then; where it is there already, everything passes. The server is left to itself either way.
"""
import os
import signal
import struct
import subprocess
import sys
import threading

# src/transport/relay_frame.h and proto/session.proto.
_HELLO, _FRAME, _CONTROL = struct.Struct("<QII"), struct.Struct("<IHHI"), struct.Struct("<HHI")
_DATA, _CONTROL_STREAM, _RUNNING = 2, 1, 11


def read_exactly(stream, size):
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def copy(source, sink):
    while True:
        data = os.read(source, 1 << 16)
        if not data:
            break
        sink.write(data)
        sink.flush()
    sink.close()


class ControlFrames:
    """Sees frames of the control connection in what one stream brings."""

    def __init__(self):
        self._pending = b""

    def types(self, data):
        self._pending += data
        found = []
        while len(self._pending) >= _CONTROL.size:
            kind, _, length = _CONTROL.unpack_from(self._pending)
            if kind not in found:
                found.append(kind)
            if len(self._pending) < _CONTROL.size + length:
                break
            self._pending = self._pending[_CONTROL.size + length:]
        return found


def answer(server, mode, marker):
    out = sys.stdout.buffer
    out.write(read_exactly(server, _HELLO.size))
    out.flush()
    frames = ControlFrames()
    while True:
        header = read_exactly(server, _FRAME.size)
        stream, kind, _, length = _FRAME.unpack(header)
        data = read_exactly(server, length) if kind == _DATA else b""
        if (kind == _DATA and stream == _CONTROL_STREAM and not os.path.exists(marker)
                and _RUNNING in frames.types(data)):
            with open(marker, "w", encoding="ascii"):
                pass
            if mode == "cut":
                os.kill(os.getppid(), signal.SIGKILL)  # sshd, or its shell
                os._exit(1)
            signal.pause()
        out.write(header + data)
        out.flush()


def main():
    mode, marker, *command = sys.argv[1:]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    threading.Thread(target=copy, args=(0, server.stdin), daemon=True).start()
    try:
        answer(server.stdout, mode, marker)
    except EOFError:
        pass
    os._exit(server.wait())


main()
