"""A cluster of processes that can be killed, stopped and started again, and a recording relay."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from distributed import Client

from tests.ports import free_port

SETTINGS = {
    "DASK_DISTRIBUTED__COMM__RETRY__COUNT": "0",
    "DASK_DISTRIBUTED__COMM__COMPRESSION": "False",  # so that a recording can be read
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
}

LIMITED = 'ulimit -n $0 && exec "$@"'


class Cluster:
    """A scheduler and workers, each a process of its own.

    Args:
        directory: for their files.
        relay: maps a port to the port at which the other processes reach it.
    """

    def __init__(self, directory: Path, relay: Any = lambda port: port) -> None:
        self._directory, self._relay = directory, relay
        self._port = free_port()
        self.address = f"tcp://127.0.0.1:{relay(self._port)}"
        self._scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.start_scheduler()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self._scheduler):
            if process is not None:
                process.kill()
                process.wait()

    def start_scheduler(self) -> None:
        """Start the scheduler, at the same address each time."""
        listening = ("--host", "127.0.0.1", "--port", str(self._port))
        self._scheduler = self._start("dask_scheduler", *listening, "--no-dashboard")

    def kill_scheduler(self) -> None:
        """Kill the scheduler."""
        assert self._scheduler is not None
        self._scheduler.kill()
        self._scheduler.wait()

    def wait_for_workers(self) -> None:
        """Wait until all have joined; the error holds their logs."""
        with Client(self.address, set_as_default=False) as client:
            try:
                client.wait_for_workers(len(self.workers), timeout=60)
            except TimeoutError:
                logs = (file.read_text("utf-8") for file in self._directory.glob("*.log"))
                raise RuntimeError("\n".join(logs)) from None

    def start_worker(self, descriptors: int = 4096, **environ: str) -> subprocess.Popen[bytes]:
        """Start one more worker, with that limit of open files."""
        port = free_port()
        process = self._start(
            "dask_worker",
            self.address,
            *("--no-nanny", "--no-dashboard", "--nthreads", "1"),
            *("--listen-address", f"tcp://127.0.0.1:{port}"),
            *("--contact-address", f"tcp://127.0.0.1:{self._relay(port)}"),
            descriptors=descriptors,
            **environ,
        )
        self.workers.append(process)
        return process

    def _start(
        self, command: str, *arguments: str, descriptors: int = 4096, **environ: str
    ) -> subprocess.Popen[bytes]:
        # The dashboard's port, which would be a fixed one.
        pages = ("--dashboard-address", "127.0.0.1:0")
        log = (self._directory / f"{command}.log").open("ab")
        with log:
            return subprocess.Popen(
                [
                    "sh",
                    "-c",
                    LIMITED,
                    str(descriptors),
                    sys.executable,
                    "-m",
                    f"distributed.cli.{command}",
                    *arguments,
                    *pages,
                ],
                env={**os.environ, **SETTINGS, **environ},
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the process, so that it hangs."""
    process.send_signal(signal.SIGSTOP)


def go_on(process: subprocess.Popen[bytes]) -> None:
    """Let the process continue."""
    process.send_signal(signal.SIGCONT)


@dataclass
class Relay:
    """Forwards and records all traffic.

    Attributes:
        recorded: all bytes of both directions.
    """

    recorded: list[bytes] = field(default_factory=list)
    _servers: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def to(self, port: int) -> int:
        """Start a relay to that port; returns the relay's own port."""
        server = socket.create_server(("127.0.0.1", 0))
        self._servers.append(server)
        self._start(self._serve, server, port)
        return int(server.getsockname()[1])

    def _start(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _serve(self, server: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._connect, server.accept()[0], port)

    def _connect(self, client: socket.socket, port: int) -> None:
        target = ("127.0.0.1", port)
        with client, contextlib.suppress(OSError), socket.create_connection(target) as peer:
            back = self._start(self._carry, peer, client)
            self._carry(client, peer)
            back.join()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.recorded.append(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept no more connections, and wait until all have ended."""
        for server in self._servers:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        for thread in list(self._threads):
            thread.join(5)


@contextmanager
def recording() -> Iterator[Relay]:
    """A running relay."""
    relay = Relay()
    try:
        yield relay
    finally:
        relay.close()
