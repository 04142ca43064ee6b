"""The sandbox's listening port, which can refuse connections for a while and then take them."""

import asyncio
import contextlib
import os
import socket
from typing import Final

from aiohttp import web

_BACKLOG: Final = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: the address cannot be listened on; the text says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OSError(
            error.errno,
            f"the sandbox cannot listen on {host} port {port} ({reason}): choose another port, "
            f"or 0 for a free one",
        ) from error


def address(listener: socket.socket) -> str:
    """``"127.0.0.1:8080"``, ``"[::1]:8080"``."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Port:
    """A port that an HTTP server is served on. For use in one event loop.

    Args:
        runner: of the server; set up.
        listener: the socket; this closes it.
    """

    def __init__(self, runner: web.ServerRunner, listener: socket.socket) -> None:
        self._runner = runner
        self._socket = listener
        self._site: web.SockSite | None = None
        self._changing = asyncio.Lock()
        self._reopening: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Take connections; an end is put to their refusal."""
        self._forget_reopening()
        await self._open()

    async def refuse(self, seconds: float) -> None:
        """Refuse new connections from now on for that long; open ones stay."""
        self._forget_reopening()
        async with self._changing:
            if self._site is not None:
                site, self._site = self._site, None
                where, family = self._socket.getsockname(), self._socket.family
                await self._stop(site)
                self._socket = _bound(where, family)
        self._reopening = asyncio.create_task(self._reopen(seconds))

    async def close(self) -> None:
        """Give the port back; open connections stay."""
        self._forget_reopening()
        async with self._changing:
            self._closed = True
            if self._site is not None:
                site, self._site = self._site, None
                await self._stop(site)
            self._socket.close()

    async def _reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        # From here on nobody may cancel it: half of an opening would leave a port without owner.
        self._reopening = None
        await self._open()

    async def _open(self) -> None:
        async with self._changing:
            if self._site is None and not self._closed:
                site = web.SockSite(self._runner, self._socket, backlog=_BACKLOG)
                await site.start()
                self._site = site

    async def _stop(self, site: web.SockSite) -> None:
        # asyncio loses a connection that was accepted just before its server is closed, and leaves
        # its socket open; so nothing is accepted any more by then, and what was has begun.
        with contextlib.suppress(NotImplementedError):  # an event loop that has no readers
            asyncio.get_running_loop().remove_reader(self._socket)
        await asyncio.sleep(0)
        await site.stop()

    def _forget_reopening(self) -> None:
        task, self._reopening = self._reopening, None
        if task is not None:
            task.cancel()


def _bound(where: tuple[object, ...], family: int) -> socket.socket:
    """A socket that holds the address and does not listen, so that connections are refused."""
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # Else connections that are still open would stand in the way.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(where)
    except OSError:
        holder.close()
        raise
    return holder
