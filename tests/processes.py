"""Python processes that start quickly, because they are forks.

The tests start some two hundred processes, and importing ccxt and aiohttp takes a second of
processor time. So one process imports the dependencies, but nothing of this project, and then forks
itself for each process that a test starts. A fork has the environment, the files and the exit of
any Python. Tests about imports or about Python's own options start Python anew.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any, Final, NoReturn, Self

_DEPENDENCIES: Final = (
    *("aiohttp.web", "ccxt.async_support", "cryptography.hazmat.primitives.serialization"),
    *("cryptography.hazmat.primitives.asymmetric.ed25519", "httptools", "httpx", "msgspec"),
    *("pluggy", "redis.asyncio", "rich.console", "rich.live", "rich.table", "typer"),
)
"""Not ``typer.rich_utils``, which reads the environment when it is imported."""


class PythonProcess:
    """A process, with the attributes and methods of ``subprocess.Popen`` that tests use.

    Args:
        arguments: as ``python`` takes them: ``-W error`` or nothing, then ``-m`` and a module or
            ``-c`` and code, then the arguments of these.
        env: the environment; ``None`` for the present one.
        cwd: the working directory; ``None`` for the present one.
        stdin: a file descriptor, or ``subprocess.PIPE``; ``None`` for no input.
        stdout: the same; ``None`` for the standard output of this process.
        stderr: the same; ``None`` for the standard error of this process.
        start_new_session: whether it gets a session without a terminal.

    Attributes:
        stdin: the pipe to it, as text, if there is one.
        stdout: the pipe from it, as text, if there is one.
        stderr: another.
        returncode: as in ``Popen``; ``None`` until ``poll()`` or ``wait()`` sees the end.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        request = {
            "arguments": arguments,
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or Path.cwd()),
            "start_new_session": start_new_session,
        }
        self.returncode: int | None = None
        self._channel, theirs = socket.socketpair()
        with open(os.devnull) as nothing, theirs:
            self.stdin, for_stdin = _end(stdin, nothing.fileno(), writable=True)
            self.stdout, for_stdout = _end(stdout, 1)
            self.stderr, for_stderr = _end(stderr, 2)
            _forker().send([theirs.fileno(), for_stdin, for_stdout, for_stderr])
            pipes = ((stdin, for_stdin), (stdout, for_stdout), (stderr, for_stderr))
            for given, descriptor in pipes:
                if given == PIPE:
                    os.close(descriptor)
        self._channel.sendall(json.dumps(request).encode() + b"\n")
        self._answers = self._channel.makefile("r", encoding="ascii")
        self.pid = int(self._answers.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr, self.stdin):
            if file is not None:
                file.close()
        self.wait()
        self._answers.close()
        self._channel.close()

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends; return its exit code.

        Raises:
            subprocess.TimeoutExpired: it runs for longer than ``timeout`` seconds.
        """
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                # One number, sent at once.
                status = self._channel.recv(16)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("python", timeout or 0) from None
            self.returncode = os.waitstatus_to_exitcode(int(status))
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, text: str = "", timeout: float = 60) -> tuple[str, str]:
        """Write ``text`` to it, read its outputs to their end, and wait.

        It is killed after ``timeout`` seconds.
        """
        timer = threading.Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        try:
            with ThreadPoolExecutor(2) as threads:
                reads = [threads.submit(_read_all, file) for file in (self.stdout, self.stderr)]
                if self.stdin is not None:
                    with suppress(BrokenPipeError), self.stdin:  # it may end without reading
                        self.stdin.write(text)
                output, errors = (read.result() for read in reads)
            self.wait()
        finally:
            timer.cancel()
        return output, errors


def run_python(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    text: str = "",
) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end; its status is not checked.

    Args:
        arguments: as for :class:`PythonProcess`.
        env: as there.
        cwd: as there.
        text: its standard input.
    """
    with PythonProcess(
        *arguments, env=env, cwd=cwd, stdin=PIPE, stdout=PIPE, stderr=PIPE
    ) as process:
        output, errors = process.communicate(text)
        return subprocess.CompletedProcess(arguments, process.wait(), output, errors)


def _end(
    given: int | None, default: int, *, writable: bool = False
) -> "tuple[IO[str] | None, int]":
    """Return our end of a pipe, if there is one, and the process's file descriptor."""
    if given != PIPE:
        return None, default if given is None else given
    reading, writing = os.pipe()
    if writable:
        return open(writing, "w", encoding="utf-8"), reading
    return open(reading, encoding="utf-8"), writing


def _read_all(file: "IO[str] | None") -> str:
    return "" if file is None else file.read()


class _Forker:
    """The process that forks itself; it ends when the control socket is closed."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def send(self, descriptors: list[int]) -> None:
        """Start a process with these file descriptors; the first is the socket to it."""
        socket.send_fds(self._control, [b"."], descriptors)

    def close(self) -> None:
        """End it."""
        # Forks of this process may have the socket, too.
        self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait()


@cache
def _forker() -> _Forker:
    forker = _Forker()
    atexit.register(forker.close)
    return forker


# -- in the process that forks itself -------------------------------------------------------


def _fork_on_request(control: socket.socket) -> Callable[[], object]:
    """Fork for each request; return only in the forks, with the code to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, _forget_ended)
    while True:
        received, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not received:
            sys.exit()
        if not os.fork():
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _fork_and_watch(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _forget_ended(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_and_watch(number: int, *files: int) -> Callable[[], object]:
    """Fork; the parent reports the child's id and exit status, the child returns."""
    with socket.socket(fileno=number) as channel:
        with channel.makefile("r", encoding="utf-8") as lines:
            request = json.loads(lines.readline())
        if child := os.fork():
            _watch(channel, child, files)
    return _become(request, files)


def _watch(channel: socket.socket, child: int, files: tuple[int, ...]) -> NoReturn:
    for file in (0, 1, 2, *files):
        os.close(file)
    channel.sendall(b"%d\n" % child)
    channel.sendall(b"%d" % os.waitpid(child, 0)[1])
    os._exit(0)


def _become(request: dict[str, Any], files: tuple[int, ...]) -> Callable[[], object]:
    """Apply the request's environment, directory and files; return the code to run."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if request["start_new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", 1 if os.isatty(1) else -1, "utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    if "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = request["arguments"]
    if arguments[:2] == ["-W", "error"]:
        sys.warnoptions.append("error")
        warnings.simplefilter("error")
        arguments = arguments[2:]
    kind, what, *others = arguments
    sys.argv = [kind, *others]
    sys.path.insert(0, "" if kind == "-c" else request["cwd"])
    if kind == "-m":
        return lambda: runpy.run_module(what, run_name="__main__", alter_sys=True)
    assert kind == "-c", "neither a module nor code"
    sys.modules["__main__"] = types.ModuleType("__main__")
    code = compile(what, "<string>", "exec")
    # With no other reference to the module, so that it is freed as early as in any Python.
    return lambda: exec(code, vars(sys.modules["__main__"]))  # noqa: S102


if __name__ == "__main__":
    for _name in _DEPENDENCIES:
        importlib.import_module(_name)
    sys.dont_write_bytecode = False  # or each fork would compile the package
    gc.collect()
    gc.freeze()  # or each fork would copy all of it
    with socket.socket(fileno=int(sys.argv[1])) as _control:
        _task = _fork_on_request(_control)
    _task()
