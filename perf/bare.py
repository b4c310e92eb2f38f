"""The least that a program can do that moves a file over TCP: sendfile at one end, receive and write at the
other, over two connections, half a file each. No protocol worth the name, no hash, no journal, no fsync.

What it takes is the floor under everything that moves bytes over TCP on the machine, whatever it is written
in: the interpreter runs for each MiB only, and without its lock while bytes are copied. It imports only what
comes with the interpreter, so that its start is nearly no time.

    python perf/bare.py serve DIR        # prints `listening PORT`, until SIGTERM
    python perf/bare.py push FILE PORT
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from itertools import pairwise

HEAD = struct.Struct(">QQH")
"""Where the part begins and ends, and the length of the name that follows."""

CONNECTIONS = 2
BUFFER = 1 << 20


def serve(folder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening {listener.getsockname()[1]}", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_receive, args=(sock, folder), daemon=True).start()


def _receive(sock: socket.socket, folder: str) -> None:
    view = memoryview(bytearray(BUFFER))
    with sock:
        start, end, length = HEAD.unpack(sock.recv(HEAD.size, socket.MSG_WAITALL))
        name = sock.recv(length, socket.MSG_WAITALL).decode()
        descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while start < end:
                n = sock.recv_into(view, min(BUFFER, end - start), socket.MSG_WAITALL)
                if not n:
                    return
                start += os.pwrite(descriptor, view[:n], start)
        finally:
            os.close(descriptor)
        sock.sendall(b".")


def push(path: str, port: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    ends = [size * number // CONNECTIONS for number in range(CONNECTIONS + 1)]
    acknowledged: list[bytes] = []

    def send(start: int, end: int) -> None:
        with socket.socket() as sock:
            # As tdx does on loopback (docs/decisions/008-one-large-push.md).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            sock.connect(("127.0.0.1", port))
            name = os.path.basename(path).encode()
            sock.sendall(HEAD.pack(start, end, len(name)) + name)
            while start < end:
                start += os.sendfile(sock.fileno(), descriptor, start, end - start)
            acknowledged.append(sock.recv(1))

    threads = [threading.Thread(target=send, args=part) for part in pairwise(ends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if acknowledged != [b"."] * CONNECTIONS:
        sys.exit(f"{path}: not acknowledged")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", folder]:
            serve(folder)
        case ["push", path, port]:
            push(path, int(port))
        case _:
            sys.exit(__doc__)
