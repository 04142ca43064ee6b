import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sunx_adapter import Sandbox, __version__

COMMAND = [sys.executable, "-m", "sunx_adapter"]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SUNX_", "HTXFUTURES_"))
} | {"COLUMNS": "120", "NO_COLOR": "1"}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user runs it, with a clean environment but for ``environ``."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=CLEAN | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_balance_of_the_sandbox() -> None:
    """The README's first command shows both venues' balances, states and times, without keys."""
    done = run("balance", "--sandbox")
    assert (done.returncode, done.stderr) == (0, "")
    for expected in ("sunx  NORMAL", "htxfutures  NORMAL", "USDT", "3,210.75", "as of 20", "25%"):
        assert expected in done.stdout


def test_precise_and_debt() -> None:
    """--precise shows every digit, and debt where there is some."""
    done = run("balance", "--sandbox", "--account", "indebted", "--precise", "-e", "sunx")
    assert done.returncode == 0
    for expected in ("-2.9969196676", "2.8999998", "-0.0969198676", "0.0050448676", "debt"):
        assert expected in done.stdout


def test_cut_digits_are_marked() -> None:
    """Without --precise digits may be cut, which is to be seen, and never rounded up."""
    done = run("balance", "--sandbox", "--account", "small", "-e", "sunx")
    assert "0.00401510…" in done.stdout


def test_state_that_forbids() -> None:
    """A state that forbids something says what."""
    done = run("balance", "--sandbox", "--account", "open_limit", "-e", "htxfutures")
    assert "OPEN_LIMIT: no trading, no transfers out" in done.stdout


def test_empty_account() -> None:
    """An account without currencies is told as such."""
    done = run("balance", "--sandbox", "--account", "empty", "-e", "sunx")
    assert done.returncode == 0
    assert "holds no currency" in done.stdout


def test_json_of_one() -> None:
    """--json prints the unified structure of one exchange and nothing else."""
    done = run("balance", "--sandbox", "-e", "sunx", "--json")
    balance = json.loads(done.stdout)
    assert balance["USDT"]["used"] == 3210.75
    assert done.stderr == ""


def test_json_of_several() -> None:
    """--json of several exchanges is by id; with --precise amounts are text."""
    done = run("balance", "--sandbox", "--json", "--precise", "--free", "withdrawable")
    balances = json.loads(done.stdout)
    assert list(balances) == ["sunx", "htxfutures"]
    assert balances["sunx"]["total"]["USDT"] == "12666.650075113264418803"


def test_no_keys() -> None:
    """Without keys the variables are named, and the way to do without."""
    done = run("balance")
    assert done.returncode == 1
    assert done.stdout == ""
    for expected in ("SUNX_API_KEY", "HTXFUTURES_API_SECRET", "--sandbox"):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-e", "sunxx", "--sandbox"], "no venue 'sunxx'"),
        (["--account", "small"], "add --sandbox"),
        (["--account", "nobody", "--sandbox"], "it has: main, small"),
        (["--free", "cash"], "'cash' is not one of"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str) -> None:
    """What cannot be is told with what can."""
    done = run("balance", *arguments)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_keys_from_the_environment() -> None:
    """Keys of the environment are used; a wrong one is an error in a line, with status 1."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx", "small")
        environ = {
            "SUNX_API_KEY": config["apiKey"],
            "SUNX_API_SECRET": config["secret"],
            "SUNX_REST_URL": sandbox.url,
        }
        good = run("balance", "--precise", **environ)
        bad = run("balance", **(environ | {"SUNX_API_SECRET": "made-up-wrong-secret"}))
        loud = run(
            "balance", "--verbose", **(environ | {"SUNX_API_SECRET": "made-up-wrong-secret"})
        )
    assert "0.004015101942876636" in good.stdout
    assert good.returncode == 0
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: AuthenticationError: sunx fetch_balance(): 12008")
    assert bad.stderr.count("\n") == 1
    assert "Traceback" in loud.stderr
    for text in (bad.stderr, loud.stderr):
        assert "made-up-wrong-secret" not in text
        assert config["apiKey"] not in text
        assert "Signature=" not in text


def test_one_of_two_fails() -> None:
    """If one of several fails, the others are shown and the status is 1."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx")
        environ = {
            f"{prefix}_{name}": value
            for prefix in ("SUNX", "HTXFUTURES")
            for name, value in (
                ("API_KEY", config["apiKey"]),
                ("API_SECRET", config["secret"]),
                ("REST_URL", sandbox.url),
            )
        } | {"HTXFUTURES_API_KEY": "made-up-unknown-key"}
        done = run("balance", "--json", **environ)
    assert done.returncode == 1
    assert list(json.loads(done.stdout)) == ["sunx"]
    assert "htxfutures" in done.stderr


def test_exchanges() -> None:
    """The list tells which plugin offers what; with --all every exchange of ccxt too."""
    short, everything, as_json = (
        run("exchanges"),
        run("exchanges", "--all"),
        run("exchanges", "--json"),
    )
    assert "sunx-adapter" in short.stdout
    assert "exchanges of ccxt" in short.stdout
    assert "kraken" in everything.stdout
    assert {row["id"] for row in json.loads(as_json.stdout)["exchanges"]} >= {"sunx", "htxfutures"}


@pytest.mark.parametrize("arguments", [[], ["balance"], ["exchanges"], ["sandbox"]])
def test_help(arguments: list[str]) -> None:
    """Every command explains itself."""
    done = run(*arguments, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_version() -> None:
    """--version tells the package's version."""
    assert run("--version").stdout.strip() == f"sunx-adapter {__version__}"


def test_sandbox_command() -> None:
    """The sandbox command says how to point an exchange at it, serves, and ends on Ctrl-C."""
    with subprocess.Popen(
        [*COMMAND, "sandbox"],
        env=CLEAN | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            told = ""
            while "Accounts:" not in told:
                told += process.stdout.readline()
            exported = dict(
                word.split("=", 1)
                for line in told.splitlines()
                if line.strip().startswith("export SUNX_")
                for word in line.split()[1:]
            )
            done = run("balance", "-e", "sunx", **exported)
            up = httpx.get(exported["SUNX_REST_URL"] + "/heartbeat/", trust_env=False)
        finally:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert done.returncode == 0
    assert up.json()["status"] == "ok"
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_sandbox_faults() -> None:
    """Faults are listed in the help, and with one that there is not."""
    assert "reset" in run("sandbox", "--help").stdout
    done = run("sandbox", "--fault", "nonsense")
    assert done.returncode == 1
    assert "reset" in done.stderr
    assert "Traceback" not in done.stderr


def test_sandbox_port_in_use() -> None:
    """A port in use is told in a line."""
    with Sandbox() as sandbox:
        done = run("sandbox", "--port", sandbox.url.rpartition(":")[2])
    assert done.returncode == 1
    assert "choose another port" in done.stderr
    assert "Traceback" not in done.stderr


def test_sandbox_accounts(tmp_path: Path) -> None:
    """Accounts can be printed, changed and served again."""
    printed = run("sandbox", "--show-accounts")
    assert printed.returncode == 0
    (tmp_path / "accounts.json").write_text(printed.stdout)
    again = run("sandbox", "--accounts", str(tmp_path / "accounts.json"), "--show-accounts")
    assert again.stdout == printed.stdout
    broken = run("sandbox", "--accounts", str(tmp_path / "none.json"))
    assert broken.returncode == 1
    assert "none.json" in broken.stderr
    assert "Traceback" not in broken.stderr
