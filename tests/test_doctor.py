import json
from pathlib import Path
from typing import Any

import pytest

from sunx_adapter import HtxFutures, Sandbox, Sunx
from sunx_adapter.doctor import Finding, diagnose
from tests.test_cli import run
from tests.test_reliability import ScriptedTransport, refusal

CLASSES: dict[str, Any] = {"sunx": Sunx, "htxfutures": HtxFutures}
QUIET = {"options": {"maxRetriesOnFailure": 0}}


def findings(exchange_id: str, config: dict[str, Any]) -> dict[str, Finding]:
    """Return the findings by check."""
    with CLASSES[exchange_id]({**QUIET, **config}) as exchange:
        return {found.check: found for found in diagnose(exchange, ["a test"])}


def test_no_problem(sandbox: Sandbox, exchange_id: str) -> None:
    """With a valid key and a running venue, every check is ok, in the documented order."""
    found = findings(exchange_id, sandbox.config(exchange_id))
    assert {finding.status for finding in found.values()} == {"ok"}
    common = ["keys", "name", "connection", "clock"]
    account = ["key and signature", "permission and address"]
    own: dict[str, tuple[list[str], list[str]]]
    own = {"sunx": ([], []), "htxfutures": (["venue"], ["collateral mode"])}
    end = ["account state", "read limit"]
    assert list(found) == [*common, *own[exchange_id][0], *account, *own[exchange_id][1], *end]


def test_no_keys(sandbox: Sandbox) -> None:
    """Without keys, the checks that need none still run."""
    config = {"urls": sandbox.config("htxfutures")["urls"]}
    found = findings("htxfutures", config)
    assert found["keys"].status == "failed"
    assert found["connection"].status == found["clock"].status == found["venue"].status == "ok"
    assert found["account"].status == "skipped"


def test_wrong_host() -> None:
    """An unknown host ends the checks there, with advice on what to check."""
    found = findings("sunx", {"urls": {"api": {"rest": "https://no-such-host.invalid"}}})
    assert list(found) == ["keys", "name"]
    assert "DNS" in found["name"].advice


def test_connection_refused() -> None:
    """A refused connection ends the checks there."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx")
    found = findings("sunx", config)
    assert found["connection"].status == "failed"
    assert "firewall" in found["connection"].advice


def test_wrong_clock() -> None:
    """A wrong clock is reported with its difference; the other checks correct for it."""
    with Sandbox(clock=lambda: 1_700_000_000.0) as past:
        found = findings("sunx", past.config("sunx"))
    assert found["clock"].status == "warning"
    assert "ahead" in found["clock"].seen
    assert found["key and signature"].status == "ok"


@pytest.mark.parametrize(
    ("account", "check", "words"),
    [
        ("locked", "account", "12009"),
        ("unopened", "account", "4002"),
        ("single_asset", "collateral mode", "single-asset"),
    ],
)
def test_unreadable_account(sandbox: Sandbox, account: str, check: str, words: str) -> None:
    """An account that cannot be read is reported as such, not as a refused key."""
    found = findings("htxfutures", sandbox.config("htxfutures", account))
    assert found["key and signature"].status == "ok"
    assert found[check].status == "failed"
    assert words in found[check].seen


def test_single_asset_account(sandbox: Sandbox) -> None:
    """For a single-asset account, the doctor names an alternative."""
    found = findings("htxfutures", sandbox.config("htxfutures", "single_asset"))
    assert "/linear-swap-api/" in found["collateral mode"].advice


def test_wrong_secret(sandbox: Sandbox) -> None:
    """A refused signature is reported as a problem of key and signature."""
    config = sandbox.config("sunx") | {"secret": "made-up-wrong-secret"}
    found = findings("sunx", config)
    assert found["key and signature"].status == "failed"


@pytest.mark.parametrize(
    ("code", "check"), [(12005, "permission and address"), (1113, "permission and address")]
)
def test_permission(code: int, check: str) -> None:
    """A missing permission or IP address is reported as such; the key itself is ok."""
    script = ScriptedTransport(refusal(code, Date="Tue, 16 Sep 2025 07:16:15 GMT"))
    config = script.config(maxRetriesOnFailure=0)
    found = findings("sunx", config | {"urls": {"api": {"rest": "http://127.0.0.1:9"}}})
    assert found["key and signature"].status == "ok"
    assert found[check].status == "failed"


def test_restricted_state(sandbox: Sandbox) -> None:
    """A restricted account state is a warning that says what it forbids."""
    found = findings("sunx", sandbox.config("sunx", "liquidating"))
    assert found["account state"].status == "warning"
    assert "no trading" in found["account state"].seen


def test_command() -> None:
    """The command prints marks or JSON; its status is 1 if a check failed."""
    well, ill = run("doctor", "--sandbox"), run("doctor", "--sandbox", "--account", "locked")
    assert (well.returncode, ill.returncode) == (0, 1)
    assert well.stdout.count("✔") == 18
    assert "✘" in ill.stdout
    report = json.loads(run("doctor", "--sandbox", "-e", "sunx", "--json").stdout)
    assert {finding["status"] for finding in report["sunx"]} == {"ok"}


def test_command_without_arguments() -> None:
    """With an empty environment, the command names the variables to set."""
    done = run("doctor")
    assert (done.returncode, done.stdout) == (1, "")
    assert "htxfutures: set HTXFUTURES_API_KEY and HTXFUTURES_API_SECRET" in done.stderr
    assert "sunx-adapter doctor -e sunx" in done.stderr


def test_command_without_keys() -> None:
    """A named exchange is checked even without keys."""
    done = run("doctor", "-e", "sunx", SUNX_REST_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "keys: not found\n    → set SUNX_API_KEY and SUNX_API_SECRET" in done.stdout
    assert "htxfutures" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_only_exchanges_with_keys(sandbox: Sandbox) -> None:
    """Without a name, only exchanges with keys are checked."""
    config = sandbox.config("htxfutures")
    done = run(
        "doctor",
        HTXFUTURES_API_KEY=config["apiKey"],
        HTXFUTURES_API_SECRET=config["secret"],
        HTXFUTURES_REST_URL=sandbox.url,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("htxfutures\n  ✔ keys: found in HTXFUTURES_API_KEY, ")
    assert "sunx\n" not in done.stdout


def test_missing_variable() -> None:
    """The missing variable is named."""
    done = run("doctor", SUNX_API_KEY="made-up", SUNX_REST_URL="http://127.0.0.1:9")
    advice = "set SUNX_API_SECRET (or SUNX_PRIVATE_KEY_FILE)"
    assert f"keys: found only SUNX_API_KEY\n    → {advice}" in done.stdout


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("apiKey", "…", "apiKey is a placeholder from an example"),
        ("secret", "abcd…", "secret is a placeholder from an example"),
        ("secret", "made up secret", "secret contains a space"),
        ("apiKey", "mäde-up", "apiKey contains a space, a control character or a non-ASCII"),
        ("privateKey", "made-up junk", "not an Ed25519 private key"),
    ],
)
def test_malformed_keys(sandbox: Sandbox, key: str, text: str, words: str) -> None:
    """A malformed key is found before anything is signed, and is not quoted."""
    found = findings("sunx", sandbox.config("sunx") | {key: text})
    assert found["keys"].status == "failed"
    assert words in found["keys"].seen
    assert text not in found["keys"].seen or text == "…"
    assert found["account"].status == "skipped"
    assert {request.uid for request in sandbox.requests} <= {None}


def test_malformed_private_key_file(sandbox: Sandbox, tmp_path: Path) -> None:
    """A malformed private key file is found before any request, and its variable is named."""
    file = tmp_path / "key.pem"
    file.write_text("made-up junk")
    file.chmod(0o600)
    environ = {"SUNX_API_KEY": "made-up-key", "SUNX_PRIVATE_KEY_FILE": str(file)}
    done = run("doctor", SUNX_REST_URL=sandbox.url, **environ)
    assert done.returncode == 1
    assert f"(from SUNX_API_KEY, SUNX_PRIVATE_KEY_FILE ({file}))" in done.stdout
    assert "made-up junk" not in done.stdout


def test_commands_are_not_wrapped(tmp_path: Path) -> None:
    """A command that fixes a problem stays on one line, even on a narrow terminal."""
    file = tmp_path / "a-rather-long-name-of-a-file-with-a-private-key.pem"
    file.write_text("made-up")
    file.chmod(0o644)
    done = run("doctor", SUNX_PRIVATE_KEY_FILE=str(file), COLUMNS="40")
    assert f"chmod 600 '{file}'" in done.stdout


def test_unknown_exchange() -> None:
    """The doctor says that it cannot check another plugin's exchange."""
    done = run("doctor", "-e", "kraken")
    assert done.returncode == 1
    assert "→ the doctor checks only sunx, htxfutures" in done.stdout
