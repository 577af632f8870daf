"""proxy.py HOST:PORT [DIRECTION:TYPE]: stands between a source and its page server.

Prints "listening on HOST:PORT". Passes everything on, both ways, until a control frame of that type
goes up (to the server) or down (to the source). Before that frame is passed on it prints
"holding DIRECTION:TYPE" and passes nothing on any connection, until a line comes on standard input:
  forward   passes everything on again, to the end
  cut       ends all connections and takes no new one
  mute      forwards that frame, and nothing of what the other side answers; new connections pass
Types are those of proto/session.proto.
"""
import os
import socket
import struct
import sys
import threading

CONTROL_MAGIC = b"PRDCTL01"


class Gate:
    """Shut while the frame is being held."""

    def __init__(self, direction, kind):
        self.direction, self.kind = direction, kind
        self.opened = threading.Event()
        self.opened.set()
        self.used = False
        self.muted = None
        self.lock = threading.Lock()

    def meets(self, direction, kind):
        return not self.used and (direction, kind) == (self.direction, self.kind)

    def hold(self, session):
        with self.lock:
            self.used = True
            self.opened.clear()
        print(f"holding {self.direction}:{self.kind}", flush=True)
        order = sys.stdin.readline().strip()
        if order == "cut":
            os._exit(0)
        if order == "mute":
            self.muted = session
        self.opened.set()


def read_exactly(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def pump(source, sink, direction, control, gate, session):
    try:
        while True:
            if control:
                header = read_exactly(source, 8)
                kind, _, length = struct.unpack("<HHI", header)
                data = header + read_exactly(source, length)
                if gate.meets(direction, kind):
                    gate.hold(session)
            else:
                data = source.recv(1 << 18)
                if not data:
                    break
            gate.opened.wait()
            if gate.muted == session and direction != gate.direction:
                continue
            sink.sendall(data)
    except OSError:
        pass
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            end.shutdown(how)
        except OSError:
            pass


def serve(client, target, gate, session):
    try:
        server = socket.create_connection(target, 10)
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        magic = read_exactly(client, 8)
        server.sendall(magic)
    except OSError:
        client.close()
        return
    control = magic == CONTROL_MAGIC
    threading.Thread(target=pump, args=(server, client, "down", control, gate, session),
                     daemon=True).start()
    pump(client, server, "up", control, gate, session)


def main():
    host, _, port = sys.argv[1].rpartition(":")
    direction, _, kind = (sys.argv[2] if len(sys.argv) > 2 else "none:0").partition(":")
    gate = Gate(direction, int(kind))
    listener = socket.create_server(("", 0))
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    session = 0
    while True:
        client, _ = listener.accept()
        session += 1
        threading.Thread(target=serve, args=(client, (host, int(port)), gate, session),
                         daemon=True).start()


if __name__ == "__main__":
    main()
