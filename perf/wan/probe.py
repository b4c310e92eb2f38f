"""A small program for one end of a link, which shows what the link itself does.

``take FOLDER``, ``drain`` and ``echo`` print the port where they listen; ``blast HOST PORT SECONDS`` and
``ping HOST PORT COUNT`` print what they found, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Final

PIECE: Final = 1 << 20
PACKET: Final = 8
BETWEEN_SECONDS: Final = 0.001


def take(folder: str) -> None:
    """Files that come as HTTP PUT, one connection after the other, as any upload target would take them."""
    buffer = bytearray(PIECE)
    with _listener() as listener:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as body:
                name = body.readline().split()[1].decode().rpartition("/")[2]
                left = 0
                while (line := body.readline().strip()) != b"":
                    if line.lower().startswith(b"content-length:"):
                        left = int(line.partition(b":")[2])
                with (Path(folder) / name).open("wb", buffering=0) as file:
                    while left and (n := body.readinto(memoryview(buffer)[: min(left, PIECE)])):
                        left -= file.write(memoryview(buffer)[:n])
                if not left:
                    connection.sendall(
                        b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )


def drain() -> None:
    """Take one connection after the other, and drop what comes."""
    buffer = bytearray(PIECE)
    with _listener() as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                while connection.recv_into(buffer):
                    pass


def blast(host: str, port: int, seconds: float) -> None:
    """Send on one connection for so long: the bytes that were acknowledged, and the seconds it took."""
    piece, sent = bytes(PIECE // 4), 0
    with socket.create_connection((host, port)) as connection:
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            sent += connection.send(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the other end closes when it has read everything
        print(json.dumps({"bytes": sent, "seconds": time.monotonic() - started}))


def echo() -> None:
    """Send every datagram back."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        print(sock.getsockname()[1], flush=True)
        while True:
            data, sender = sock.recvfrom(PACKET)
            sock.sendto(data, sender)


def ping(host: str, port: int, count: int) -> None:
    """Send datagrams at an even pace: the round trips of those that came back, in seconds, ascending."""
    trips: list[float] = []
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect((host, port))
        for number in range(count):
            sock.send(time.monotonic_ns().to_bytes(PACKET, "big"))
            # After the last one, as long as any can still be under way.
            until = time.monotonic() + (BETWEEN_SECONDS if number < count - 1 else 1.0)
            while (left := until - time.monotonic()) > 0:
                sock.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    trips.append((time.monotonic_ns() - int.from_bytes(sock.recv(PACKET), "big")) / 1e9)
    print(json.dumps(sorted(trips)))


def _listener() -> socket.socket:
    listener = socket.create_server(("0.0.0.0", 0))
    print(listener.getsockname()[1], flush=True)
    return listener


def main(mode: str, *told: str) -> None:
    if mode == "take":
        take(told[0])
    elif mode == "drain":
        drain()
    elif mode == "echo":
        echo()
    elif mode == "blast":
        blast(told[0], int(told[1]), float(told[2]))
    else:
        ping(told[0], int(told[1]), int(told[2]))


if __name__ == "__main__":
    main(*sys.argv[1:])
