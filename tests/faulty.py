"""Servers with TCP and HTTP faults that a proper server cannot produce."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sunx_adapter.sandbox.delivery import Delivery, reset_when_closed

Play = Callable[[socket.socket, threading.Event], None]


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an HTTP answer as bytes."""
    lines = [f"HTTP/1.1 {status}", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection in a separate thread; yield the port; join all threads at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=(connection,))
            thread.start()
            threads.append(thread)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


@contextmanager
def faulty_server(play: Play) -> Iterator[str]:
    """Run a server that reads a request's head, calls ``play``, and closes; yield its address.

    ``play`` gets the connection, and an event that is set when the server ends.
    """
    ending = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            head = b""
            try:
                while b"\r\n\r\n" not in head:
                    received = connection.recv(65536)
                    if not received:
                        return
                    head += received
                play(connection, ending)
            except OSError:
                pass  # the client may disconnect

    with tcp_server(serve) as port:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            ending.set()


def delivering(delivery: Delivery) -> Play:
    """Send a delivery and end the connection as it says."""

    def play(connection: socket.socket, ending: threading.Event) -> None:
        for piece in delivery.pieces:
            connection.sendall(piece)
            if delivery.pause and ending.wait(delivery.pause):
                return
        if delivery.end == "reset":
            reset_when_closed(connection)
        elif delivery.end == "stall":
            ending.wait()

    return play


def answering(text: bytes) -> Play:
    """Send these bytes and close."""
    return delivering(Delivery([text]))


silent = delivering(Delivery(end="stall"))
resetting = delivering(Delivery(end="reset"))


def dripping(head: bytes) -> Play:
    """Send ``head``, then one byte at a time without end."""
    return delivering(Delivery([head, *[b"x"] * 100_000], pause=0.02))
