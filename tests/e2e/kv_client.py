"""A client of redis or memcached that knows what every key must hold.

  kv_client.py PROTOCOL fill HOST:PORT KEYS BYTES      writes KEYS values of BYTES bytes each
  kv_client.py PROTOCOL compare HOST:PORT KEYS BYTES   reads all of them and compares every byte
  kv_client.py PROTOCOL live HOST:PORT HOST:PORT       writes one key after the other until a line
                                                       comes on standard input; reconnects, to
                                                       whichever of the two addresses answers

Each prints one JSON object at its end. `live` prints "at HOST:PORT" first whenever it got its first
answer from an address. A write counts once it was acknowledged; one that was not is sent again. In
the end `live` reads back every key it wrote.
"""
import json
import random
import select
import socket
import sys
import time

_PATTERN = random.Random(4711).randbytes(1 << 20) * 2
_BATCH = 256
# Between two writes of `live`: enough of them to be hurt by a move, and time left for others.
_PAUSE_S = 0.0002
# No answer for so long means that the server hangs.
_HANG_S = 60


def value_of(number, size):
    offset = number * 2654435761 % (1 << 20)
    return (b"%016d" % number) + _PATTERN[offset:offset + size - 16]


def connect(address, timeout=_HANG_S):
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Redis:
    @staticmethod
    def set(key, value):
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)

    STORED = b"+OK\r\n"

    @staticmethod
    def get(keys):
        return b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1) + b"".join(
            b"$%d\r\n%b\r\n" % (len(key), key) for key in keys)

    @staticmethod
    def got(keys, values):
        """The whole answer to get(keys) if all is as it must be."""
        return b"*%d\r\n" % len(keys) + b"".join(
            b"$%d\r\n%b\r\n" % (len(value), value) for value in values)

    COUNT = b"*1\r\n$6\r\nDBSIZE\r\n"

    @staticmethod
    def count(connection):
        with connection.makefile("rb") as file:
            return int(file.readline()[1:])


class Memcached:
    @staticmethod
    def set(key, value):
        return b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value)

    STORED = b"STORED\r\n"

    @staticmethod
    def get(keys):
        return b"get " + b" ".join(keys) + b"\r\n"

    @staticmethod
    def got(keys, values):
        return b"".join(b"VALUE %b 0 %d\r\n%b\r\n" % (key, len(value), value)
                        for key, value in zip(keys, values)) + b"END\r\n"

    COUNT = b"stats\r\n"

    @staticmethod
    def count(connection):
        with connection.makefile("rb") as file:
            items = 0
            for line in file:
                if line.startswith(b"STAT curr_items "):
                    items = int(line.split()[2])
                if line == b"END\r\n":
                    return items
        raise ConnectionError("the server hung up")


def receive(connection, size):
    """Exactly that many bytes."""
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if count == 0:
            raise ConnectionError("the server hung up")
        got += count
    return buffer


def batches(keys):
    for first in range(0, keys, _BATCH):
        yield range(first, min(first + _BATCH, keys))


def fill(protocol, address, keys, size):
    with connect(address) as connection:
        for numbers in batches(keys):
            connection.sendall(b"".join(
                protocol.set(b"key:%d" % number, value_of(number, size)) for number in numbers))
            expected = protocol.STORED * len(numbers)
            if receive(connection, len(expected)) != expected:
                raise ValueError("the server did not store a value")
        connection.sendall(protocol.COUNT)
        return {"keys": protocol.count(connection)}


def compare(protocol, address, keys, size):
    """Keys whose values differ; a batch that differs is looked at key by key."""
    different = []
    with connect(address) as connection:
        for numbers in batches(keys):
            names = [b"key:%d" % number for number in numbers]
            values = [value_of(number, size) for number in numbers]
            connection.sendall(protocol.get(names))
            expected = protocol.got(names, values)
            if receive(connection, len(expected)) == expected:
                continue
            # The answer may be of another length: start over on a connection of its own each.
            for name, value in zip(names, values):
                with connect(address) as single:
                    single.settimeout(2)
                    single.sendall(protocol.get([name]))
                    expected = protocol.got([name], [value])
                    try:
                        same = receive(single, len(expected)) == expected
                    except OSError:
                        same = False
                    if not same:
                        different.append(name.decode())
            connection.close()
            connection = connect(address)
        connection.sendall(protocol.COUNT)
        return {"keys": protocol.count(connection), "different": different}


class Live:
    def __init__(self, protocol, addresses):
        self.protocol = protocol
        self.addresses = addresses
        self.at = 0
        self.connection = None
        self.seen = set()
        self.written = 0
        self.sent_again = 0
        self.reconnected = 0
        self.last_answer_ns = None
        self.longest_pause_ns = 0
        self.pause_of_move_ns = 0

    def value(self, number):
        return b"live value %d of this client" % number

    def ask(self, question, expected):
        """Until it has been answered, by whichever server."""
        again = False
        while True:
            try:
                if self.connection is None:
                    self.connection = connect(self.addresses[self.at])
                self.connection.sendall(question)
                answer = receive(self.connection, len(expected))
            except TimeoutError:
                raise
            except OSError:
                if self.connection is not None:
                    self.connection.close()
                    self.connection = None
                self.at = 1 - self.at
                again = True
                continue
            break
        if answer != expected:
            raise ValueError(f"asked {question!r}, got {bytes(answer)!r}, not {expected!r}")
        now = time.monotonic_ns()
        if self.last_answer_ns is not None:
            pause = now - self.last_answer_ns
            self.longest_pause_ns = max(self.longest_pause_ns, pause)
            if again:
                self.pause_of_move_ns = max(self.pause_of_move_ns, pause)
                self.reconnected += 1
        self.last_answer_ns = now
        self.sent_again += again
        if self.at not in self.seen:
            self.seen.add(self.at)
            print(f"at {self.addresses[self.at]}", flush=True)

    def run(self):
        while not select.select([sys.stdin], [], [], 0)[0]:
            self.ask(self.protocol.set(b"live:%d" % self.written, self.value(self.written)),
                     self.protocol.STORED)
            self.written += 1
            time.sleep(_PAUSE_S)
        # Pauses of reading many keys at once say nothing.
        result = {"written": self.written, "sent-again": self.sent_again,
                  "reconnected": self.reconnected, "at": self.addresses[self.at],
                  "longest-pause-ms": self.longest_pause_ns / 1e6,
                  "pause-of-move-ms": self.pause_of_move_ns / 1e6}
        for numbers in batches(self.written):
            names = [b"live:%d" % number for number in numbers]
            self.ask(self.protocol.get(names),
                     self.protocol.got(names, [self.value(number) for number in numbers]))
        result["compared"] = self.written
        return result


def main():
    protocol = {"redis": Redis, "memcached": Memcached}[sys.argv[1]]
    action, arguments = sys.argv[2], sys.argv[3:]
    if action == "live":
        result = Live(protocol, arguments).run()
    else:
        function = {"fill": fill, "compare": compare}[action]
        result = function(protocol, arguments[0], int(arguments[1]), int(arguments[2]))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
