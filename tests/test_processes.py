"""Forked processes, compared with a new Python."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.processes import PythonProcess, run_python

SCRIPTS = {
    "input": "import os, sys; print(sys.argv, sys.path[0], sys.stdin.read(), os.environ['MINE'])",
    "place": "import os; print(__name__, os.getcwd(), os.getpgid(0) == os.getpid())",
    "files": "import os; print(sorted(os.listdir('/proc/self/fd')))",
    "signals": "import signal; print([signal.getsignal(each) for each in signal.valid_signals()])",
    "letters": "import sys; print('é'); print('é', file=sys.stderr)",
    "status": "raise SystemExit(3)",
    "reason": "raise SystemExit('a reason')",
    "exception": "1 / 0",
    "ctrl-c": "raise KeyboardInterrupt",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "at exit": "import atexit; atexit.register(print, 'the end')",
    "leak": "import socket; leaked = socket.socket()",
    "thread": "import threading; threading.Timer(0, print, ['from a thread']).start()",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_like_a_new_python(name: str, tmp_path: Path) -> None:
    """A fork has the input, files and signals of a new Python, and ends in the same way."""
    arguments = ("-W", "error", "-c", SCRIPTS[name], "an argument")
    env = os.environ | {"MINE": "made up", "PYTHONUTF8": "1"}
    new = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=env,
        input="some text",
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    fork = run_python(*arguments, cwd=tmp_path, env=env, text="some text")
    assert (fork.returncode, fork.stdout) == (new.returncode, new.stdout)
    # Its tracebacks have more frames.
    assert fork.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_ctrl_c() -> None:
    """A signal reaches the fork, and the caller gets its exit status."""
    code = "print('ready', flush=True)\nwhile True: input()"
    with PythonProcess("-c", code, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT


def test_imports_nothing_of_the_package() -> None:
    """A fork imports this package anew."""
    code = "import sys; print([name for name in sys.modules if name.startswith('sunx_adapter')])"
    assert run_python("-c", code).stdout == "[]\n"
