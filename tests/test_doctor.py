import json
from typing import Any

import pytest

from sunx_adapter import HtxFutures, Sandbox, Sunx
from sunx_adapter.doctor import Finding, diagnose
from tests.test_cli import run
from tests.test_reliability import Script, refusal

CLASSES: dict[str, Any] = {"sunx": Sunx, "htxfutures": HtxFutures}
QUIET = {"options": {"maxRetriesOnFailure": 0}}


def findings(exchange_id: str, config: dict[str, Any]) -> dict[str, Finding]:
    """What is found, by check."""
    with CLASSES[exchange_id]({**QUIET, **config}) as exchange:
        return {found.check: found for found in diagnose(exchange, ["a test"])}


def test_all_is_well(sandbox: Sandbox, exchange_id: str) -> None:
    """With the right key at a venue that is up, every check is ok, in the order of the call."""
    found = findings(exchange_id, sandbox.config(exchange_id))
    assert {finding.status for finding in found.values()} == {"ok"}
    common = ["keys", "name", "connection", "clock"]
    account = ["key and signature", "permission and address"]
    own: dict[str, tuple[list[str], list[str]]]
    own = {"sunx": ([], []), "htxfutures": (["venue"], ["collateral mode"])}
    end = ["account state", "read limit"]
    assert list(found) == [*common, *own[exchange_id][0], *account, *own[exchange_id][1], *end]


def test_no_keys(sandbox: Sandbox) -> None:
    """Without keys what needs none is checked all the same."""
    config = {"urls": sandbox.config("htxfutures")["urls"]}
    found = findings("htxfutures", config)
    assert found["keys"].status == "failed"
    assert found["connection"].status == found["clock"].status == found["venue"].status == "ok"
    assert found["account"].status == "skipped"


def test_wrong_host() -> None:
    """A name that does not exist ends the checks there, with what to look at."""
    found = findings("sunx", {"urls": {"api": {"rest": "https://no-such-host.invalid"}}})
    assert list(found) == ["keys", "name"]
    assert "name server" in found["name"].advice


def test_nobody_listens() -> None:
    """An address that does not answer ends the checks there."""
    with Sandbox() as sandbox:
        config = sandbox.config("sunx")
    found = findings("sunx", config)
    assert found["connection"].status == "failed"
    assert "firewall" in found["connection"].advice


def test_clock_that_is_off() -> None:
    """A clock that is off is told with by how much; the rest goes on, corrected."""
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
def test_account_in_the_way(sandbox: Sandbox, account: str, check: str, words: str) -> None:
    """An account that cannot be served is told apart from a key that is refused."""
    found = findings("htxfutures", sandbox.config("htxfutures", account))
    assert found["key and signature"].status == "ok"
    assert found[check].status == "failed"
    assert words in found[check].seen


def test_single_asset_account_is_told_what_serves_it(sandbox: Sandbox) -> None:
    """For a single-asset account the doctor says what serves it instead."""
    found = findings("htxfutures", sandbox.config("htxfutures", "single_asset"))
    assert "/linear-swap-api/" in found["collateral mode"].advice


def test_wrong_secret(sandbox: Sandbox) -> None:
    """A refused signature is a matter of key and signature."""
    config = sandbox.config("sunx") | {"secret": "made-up-wrong-secret"}
    found = findings("sunx", config)
    assert found["key and signature"].status == "failed"


@pytest.mark.parametrize(
    ("code", "check"), [(12005, "permission and address"), (1113, "permission and address")]
)
def test_permission(code: int, check: str) -> None:
    """An address or permission that is missing is told as such, the key being right."""
    script = Script(refusal(code, Date="Tue, 16 Sep 2025 07:16:15 GMT"))
    config = script.config(maxRetriesOnFailure=0)
    found = findings("sunx", config | {"urls": {"api": {"rest": "http://127.0.0.1:9"}}})
    assert found["key and signature"].status == "ok"
    assert found[check].status == "failed"


def test_state_that_forbids(sandbox: Sandbox) -> None:
    """A state that forbids something is a warning that says what."""
    found = findings("sunx", sandbox.config("sunx", "liquidating"))
    assert found["account state"].status == "warning"
    assert "no trading" in found["account state"].seen


def test_command() -> None:
    """The command shows marks, or JSON; its status is 1 if anything failed."""
    well, ill = run("doctor", "--sandbox"), run("doctor", "--sandbox", "--account", "locked")
    assert (well.returncode, ill.returncode) == (0, 1)
    assert well.stdout.count("✔") == 18
    assert "✘" in ill.stdout
    report = json.loads(run("doctor", "--sandbox", "-e", "sunx", "--json").stdout)
    assert {finding["status"] for finding in report["sunx"]} == {"ok"}


def test_command_without_anything() -> None:
    """With an empty environment and no network it says so, without a traceback."""
    done = run("doctor", SUNX_REST_URL="http://127.0.0.1:9", HTXFUTURES_REST_URL="http://[::1]:9")
    assert done.returncode == 1
    assert "none found" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_unknown_exchange() -> None:
    """An exchange of another plugin is told to be none of this doctor's."""
    done = run("doctor", "-e", "kraken")
    assert done.returncode == 1
    assert "only sunx, htxfutures" in done.stdout
