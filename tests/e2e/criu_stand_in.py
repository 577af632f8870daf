#!/usr/bin/python3
"""criu_stand_in.py DIR ADDRESS PORT [PARENT]: what `criu page-server` does with a client of CRIU up to
4.1.1, for kernels on which CRIU does not start: one connection, one directory, the same rules, the
same exit codes. Stores entries.json, [[page, count, flags], ...], beside the pages."""
import json
import os
import socket
import struct
import sys

PAGE = 4096
PARENT, PRESENT = 1, 4
ADD_F, OPEN2, CLOSE = 6, 4, 0x1023


class Refused(Exception):
    """The client broke a rule: it is hung up on."""


def covered(directory):
    with open(os.path.join(directory, "entries.json"), encoding="ascii") as file:
        return {page for first, count, _ in json.load(file)["entries"]
                for page in range(first, first + count)}


class Connection:
    def __init__(self, stream, directory, parent):
        self.stream, self.directory = stream, directory
        self.parent = covered(parent) if parent else None
        self.object = None
        self.entries = []

    def take(self, size):
        data = self.stream.read(size)
        if len(data) != size:
            raise Refused("the client ended in the midst")
        return data

    def serve(self, pages, answer):
        while True:
            command, count, address, what = struct.unpack("<IIQQ", self.take(24))
            if command == CLOSE:
                break
            if what & 0xFF != 1:
                raise Refused(f"unknown type of {what:x}")
            if command == OPEN2:
                self.object = what >> 8
                answer(b"\0" if self.parent is None else b"\1")
            elif command & 0xFFFF == ADD_F and self.object == what >> 8:
                self.add(address // PAGE, count, command >> 16, pages)
            else:
                raise Refused(f"unknown command {command:x}")
        with open(os.path.join(self.directory, "entries.json"), "w", encoding="ascii") as file:
            json.dump({"pid": self.object, "entries": self.entries}, file)
        answer(struct.pack("<i", 0))
        if self.stream.read(1):
            raise Refused("words after the end")

    def add(self, first, count, flags, pages):
        self.entries.append([first, count, flags])
        if flags & PRESENT:
            for _ in range(count):
                pages.write(self.take(PAGE))
            pages.flush()
        elif self.parent is not None:
            missing = [page for page in range(first, first + count) if page not in self.parent]
            if missing:
                raise Refused(f"{missing[0]:x} is not in the parent")


def main():
    directory, address, port, *parent = sys.argv[1:]
    listener = socket.create_server((address, int(port)), backlog=1)
    print("ready", flush=True)
    client, _ = listener.accept()
    listener.close()
    with client, client.makefile("rb") as stream, \
            open(os.path.join(directory, "pages"), "wb") as pages:
        try:
            Connection(stream, directory, parent[0] if parent else None).serve(
                pages, client.sendall)
        except (Refused, OSError) as error:
            print(error, file=sys.stderr, flush=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
