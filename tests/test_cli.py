import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import httpx
import pytest

from sunx_adapter import ExchangeHost, Sandbox, __version__
from sunx_adapter.cli.accounts import chosen_accounts
from tests.processes import PythonProcess, run_python

COMMAND = ["-m", "sunx_adapter"]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SUNX_", "HTXFUTURES_"))
} | {"COLUMNS": "120", "NO_COLOR": "1"}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a clean environment plus ``environ``."""
    return run_python(*COMMAND, *arguments, env=CLEAN | environ)


def test_balance_of_the_sandbox() -> None:
    """The README's first command shows both venues' balances, states and times, without keys."""
    done = run("balance", "--sandbox")
    assert (done.returncode, done.stderr) == (0, "")
    for expected in ("sunx  NORMAL", "htxfutures  NORMAL", "USDT", "3,210.75", "as of 20", "25%"):
        assert expected in done.stdout


def test_precise_and_debt() -> None:
    """``--precise`` shows every digit, and the debt of an account that has one."""
    done = run("balance", "--sandbox", "--account", "indebted", "--precise", "-e", "sunx")
    assert done.returncode == 0
    for expected in ("-2.9969196676", "2.8999998", "-0.0969198676", "0.0050448676", "debt"):
        assert expected in done.stdout


def test_cut_digits_are_marked() -> None:
    """Without ``--precise``, cut digits are marked and never rounded up."""
    done = run("balance", "--sandbox", "--account", "small", "-e", "sunx")
    assert "0.00401510…" in done.stdout


def test_restricted_state() -> None:
    """A restricted account state is shown with what it forbids."""
    done = run("balance", "--sandbox", "--account", "open_limit", "-e", "htxfutures")
    assert "OPEN_LIMIT: no trading, no transfers out" in done.stdout


def test_empty_account() -> None:
    """The table says when an account has no currencies."""
    done = run("balance", "--sandbox", "--account", "empty", "-e", "sunx")
    assert done.returncode == 0
    assert "holds no currency" in done.stdout


def test_json_of_one_account() -> None:
    """``--json`` prints only ccxt's structure of the account, amounts as exact text."""
    done = run("balance", "--sandbox", "-e", "sunx", "--json")
    balance = json.loads(done.stdout)
    assert balance["USDT"]["used"] == "3210.75"
    assert balance["total"]["USDT"] == "12666.650075113264418803"
    assert done.stderr == ""


def test_json_of_several_accounts() -> None:
    """``--json`` prints several accounts as one object, by name."""
    done = run("balance", "--sandbox", "--json", "--free", "withdrawable")
    balances = json.loads(done.stdout)
    assert list(balances) == ["sunx", "htxfutures"]


def test_no_keys() -> None:
    """Without keys, the error names the variables to set and suggests the sandbox."""
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
        (["--account", "small"], "For an account of the sandbox add --sandbox"),
        (["--account", "nobody", "--sandbox"], "it has: main, small"),
        (["--free", "cash"], "'cash' is not one of"),
        (["-e", "sunxx"], "did you mean sunx?"),
        (["-e", "htx"], "no keys for htx, which is ccxt's own exchange; did you mean 'htxfutures'"),
        (
            ["--account", "mian"],
            "no keys for the account 'mian'; set SUNX_ADAPTER_KEYS to the path of the file",
        ),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str) -> None:
    """An invalid argument is an error that says what is valid."""
    done = run("balance", *arguments)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_keys_from_the_environment() -> None:
    """Keys come from the environment; a wrong key is a one-line error with status 1."""
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
    """If one account fails, the others are still shown, and the status is 1."""
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
    """The list shows which plugin offers what; with ``--all``, every ccxt exchange too."""
    short, everything, as_json = (
        run("exchanges"),
        run("exchanges", "--all"),
        run("exchanges", "--json"),
    )
    assert "sunx-adapter" in short.stdout
    assert "exchanges of ccxt" in short.stdout
    assert "kraken" in everything.stdout
    assert "fetchBalance, watchBalance" in short.stdout
    rows = {row["id"]: row for row in json.loads(as_json.stdout)["exchanges"]}
    assert rows["htxfutures"]["has"] == {"fetchBalance": True, "watchBalance": True}


@pytest.mark.parametrize("command", ["", "balance", "exchanges", "watch", "doctor", "sandbox"])
def test_help(command: str) -> None:
    """Every command has help with examples, and shows no type for flags."""
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert f"Usage: sunx-adapter {command}" in done.stdout
    assert f"$ sunx-adapter {command}" in done.stdout
    assert "bool" not in done.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("sunx-adapter bal", ["balance"]),
        ("sunx-adapter balance -e ", ["sunx", "htxfutures"]),
        ("sunx-adapter balance --free w", ["withdrawable"]),
        ("sunx-adapter sandbox --fault push-re", ["push-reset"]),
        ("sunx-adapter watch --account grid", ["grid-bot"]),
    ],
)
def test_completion(words: str, completed: list[str], tmp_path: Path) -> None:
    """A shell completes commands, exchanges, policies, faults and account names."""
    done = run(
        _SUNX_ADAPTER_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
        SUNX_ADAPTER_KEYS=str(keys_file(tmp_path, '[grid-bot]\nexchange = "sunx"\n')),
    )
    assert done.stdout.split() == completed


def test_completion_can_be_installed() -> None:
    """``--show-completion`` prints the completion script of a shell."""
    done = run(
        "--show-completion",
        "bash",
        SHELL="/bin/bash",
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert "complete -o" in done.stdout, done.stderr


def test_main_module_can_be_imported() -> None:
    """Importing ``sunx_adapter.__main__`` runs nothing."""
    code = "import sunx_adapter.__main__"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], env=CLEAN, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_ctrl_c_while_it_starts() -> None:
    """Ctrl-C ends the command quietly, even while it still imports what it needs."""
    command = [sys.executable, "-X", "importtime", *COMMAND, "balance", "--sandbox"]
    with subprocess.Popen(command, env=CLEAN, stderr=PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith(" typer.main\n"):
                process.send_signal(signal.SIGINT)
                break
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in errors


def imported_by(*arguments: str, **environ: str) -> set[str]:
    """Return the modules that the command line imports in a new Python."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND, *arguments],
        env=CLEAN | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))


def test_quick_start() -> None:
    """``balance --json`` imports neither pydantic nor rich; ``--version`` does not import ccxt."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx")
        environ = {
            "SUNX_API_KEY": config["apiKey"],
            "SUNX_API_SECRET": config["secret"],
            "SUNX_REST_URL": sandbox.url,
        }
        imported = imported_by("balance", "-e", "sunx", "--json", **environ)
    assert {"ccxt", "typer", "sunx_adapter.keys"} <= imported
    assert not {"pydantic", "rich", "aiohttp", "sunx_adapter.cli.table"} & imported
    assert "ccxt" not in imported_by("--version")


def keys_file(directory: Path, text: str) -> Path:
    """Write a keys file that only its owner can read."""
    file = directory / "keys.toml"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_named_accounts(tmp_path: Path) -> None:
    """All accounts of the keys file are read, or one by name, or those of one exchange."""
    with Sandbox() as sandbox:
        tables = ""
        for name, exchange, account in (("a", "sunx", "main"), ("b", "htxfutures", "small")):
            config = sandbox.config(exchange, account)
            tables += (
                f'[bot-{name}]\nexchange = "{exchange}"\napiKey = "{config["apiKey"]}"\n'
                f'secret = "{config["secret"]}"\nurls.api.rest = "{sandbox.url}"\n'
            )
        environ = {"SUNX_ADAPTER_KEYS": str(keys_file(tmp_path, tables))}
        everything = run("balance", "--json", **environ)
        one = run("balance", "--account", "bot-b", **environ)
        of_sunx = run("balance", "-e", "sunx", **environ)
        unknown = run("balance", "--account", "bot-d", **environ)
        checked = run("doctor", **environ)
        no_exchange = run("watch", "--json", "-e", "bot-b", **environ)
    assert list(json.loads(everything.stdout)) == ["bot-a", "bot-b"]
    assert "bot-b (htxfutures)  NORMAL" in one.stdout
    assert "bot-a" not in one.stdout
    assert "bot-a (sunx)" in of_sunx.stdout
    assert "bot-b" not in of_sunx.stdout
    assert "no keys for the account 'bot-d'; did you mean 'bot-" in unknown.stderr
    hint = "'bot-b' is an account, not an exchange; use --account bot-b"
    assert no_exchange.stderr == f"error: {hint}\n"
    assert checked.stdout.startswith("bot-a\n")
    assert checked.stdout.count("keys: found in SUNX_ADAPTER_KEYS") == 2


def test_missing_secret() -> None:
    """If part of an account's keys is missing, the error names the variable; nothing is read."""
    done = run("balance", SUNX_API_KEY="made-up", HTXFUTURES_API_KEY="k", HTXFUTURES_API_SECRET="s")
    assert done.returncode == 1
    missing = "SUNX_API_SECRET (or SUNX_PRIVATE_KEY_FILE)"
    assert f"keys for sunx are incomplete: set {missing}" in done.stderr


def test_misspelt_table(tmp_path: Path) -> None:
    """A misspelt table in the keys file is one error that suggests the right name."""
    file = keys_file(tmp_path, '[sunxx]\napiKey = "made-up"\n')
    done = run("balance", SUNX_ADAPTER_KEYS=str(file))
    assert done.returncode == 1
    assert done.stderr == f"error: {file}: [sunxx] is not an exchange; did you mean 'sunx'?\n"


def test_closed_pipe() -> None:
    """A command whose output pipe is closed ends without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "w") as closed,
        PythonProcess(
            *COMMAND,
            "exchanges",
            "--all",
            env=CLEAN,
            stdout=closed.fileno(),
            stderr=PIPE,
        ) as process,
    ):
        _, errors = process.communicate()
    assert process.returncode
    assert errors == ""


def test_version() -> None:
    """``--version`` prints the package's version."""
    assert run("--version").stdout.strip() == f"sunx-adapter {__version__}"


def sandbox_process(*options: str) -> PythonProcess:
    """Start ``sandbox`` with these options."""
    return PythonProcess(
        *COMMAND,
        *("sandbox", *options),
        env=CLEAN | {"PYTHONUNBUFFERED": "1"},
        stdout=PIPE,
        stderr=PIPE,
    )


def test_sandbox_command() -> None:
    """``sandbox`` prints how to point an exchange at it, serves, and ends on Ctrl-C."""
    with sandbox_process() as process:
        assert process.stdout is not None
        try:
            printed = ""
            while "Accounts:" not in printed:
                printed += process.stdout.readline()
            exported = dict(
                word.split("=", 1)
                for line in printed.splitlines()
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
    """The help lists all faults; so does the error for an unknown one."""
    assert "reset" in run("sandbox", "--help").stdout
    done = run("sandbox", "--fault", "nonsense")
    assert done.returncode == 1
    assert "reset" in done.stderr
    assert "Traceback" not in done.stderr


def test_sandbox_port_in_use() -> None:
    """A port in use is a one-line error."""
    with Sandbox() as sandbox:
        done = run("sandbox", "--port", sandbox.url.rpartition(":")[2])
    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr
    assert "choose another port" in done.stderr
    assert "Traceback" not in done.stderr


def test_sandbox_accounts(tmp_path: Path) -> None:
    """Accounts can be printed, edited and served again."""
    printed = run("sandbox", "--show-accounts")
    assert printed.returncode == 0
    (tmp_path / "accounts.json").write_text(printed.stdout)
    again = run("sandbox", "--accounts", str(tmp_path / "accounts.json"), "--show-accounts")
    assert again.stdout == printed.stdout
    broken = run("sandbox", "--accounts", str(tmp_path / "none.json"))
    assert broken.returncode == 1
    assert "none.json" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_sandbox_address_of_another_machine() -> None:
    """An address that this machine does not have is named in the error."""
    done = run("sandbox", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "192.0.2.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_sandbox_logs() -> None:
    """With ``--verbose``, the sandbox logs each request and any fault, without the query."""
    with sandbox_process("--verbose", "--fault", "html") as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split(" at ")[1].split()[0]
            httpx.get(f"{address}/v5/account/balance?Signature=made-up", trust_env=False)
        finally:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "sunx_adapter.sandbox" in errors
    assert "/v5/account/balance" in errors
    assert "html" in errors
    assert "made-up" not in errors


def test_variables_of_another_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of another ccxt exchange come from that exchange's variables."""
    monkeypatch.setenv("KRAKENFUTURES_API_KEY", "made-up")
    monkeypatch.setenv("KRAKENFUTURES_API_SECRET", "made-up too")
    [(name, account)] = chosen_accounts(ExchangeHost(), ["krakenfutures"], None).items()
    assert (name, account.exchange) == ("krakenfutures", "krakenfutures")
    assert account.config == {"apiKey": "made-up", "secret": "made-up too"}
