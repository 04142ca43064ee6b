"""Misspelt or misplaced settings: each is one error that suggests the right one."""

from typing import Any

import ccxt
import pytest
from ccxt.base.errors import BadRequest, NotSupported

from sunx_adapter import AsyncHtxFutures, AsyncSunx, HtxFutures, Sunx
from tests.conftest import Caller
from tests.processes import run_python

URL = "http://127.0.0.1:9"
CLASSES = [Sunx, AsyncSunx, HtxFutures, AsyncHtxFutures]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("config", "meant"),
    [
        ({"apikey": "made-up"}, "setting 'apikey'; did you mean 'apiKey'?"),
        ({"api_key": "made-up"}, "setting 'api_key'; did you mean 'apiKey'?"),
        ({"tiemout": 1000}, "setting 'tiemout'; did you mean 'timeout'?"),
        ({"option": {"free": "margin"}}, "setting 'option'; did you mean 'options'?"),
        ({"options": {"fre": "margin"}}, "option 'fre'; did you mean 'free'?"),
        ({"options": {"rateLimitStorag": "memory://"}}, "did you mean 'rateLimitStorage'?"),
        ({"options": {"streamgaptimeout": 1}}, "did you mean 'streamGapTimeout'?"),
    ],
)
def test_misspelt_settings(kind: type[Any], config: dict[str, Any], meant: str) -> None:
    """A misspelt setting or option is refused; the error suggests the right name."""
    with pytest.raises(BadRequest) as failure:
        kind(config)
    assert str(failure.value).endswith(meant)
    assert "made-up" not in str(failure.value)


@pytest.mark.parametrize("parameter", ["fre", "Free", "subtype", "margin_mode"])
def test_misspelt_parameters(call: Caller, parameter: str) -> None:
    """A misspelt parameter is refused before any request."""
    config = {"apiKey": "made-up", "secret": "made-up"}
    with pytest.raises(BadRequest, match=f"unknown parameter '{parameter}'; did you mean "):
        call("sunx", config, "fetch_balance", {parameter: "margin"})


def test_names_of_other_exchanges() -> None:
    """Settings of other ccxt exchanges, and the host's own, are kept without an error."""
    described = [getattr(ccxt, exchange_id)().describe() for exchange_id in ccxt.exchanges]
    ours = HtxFutures().options
    options = {name: value for each in described for name, value in each.get("options", {}).items()}
    options = {name: value for name, value in options.items() if value and name not in ours}
    options = {name: value for name, value in options.items() if not name.startswith("default")}
    exchange = HtxFutures({"strategy": "x", "exchange_account": 7, "options": options})
    assert exchange.options.items() >= options.items()
    assert exchange.strategy == "x"


@pytest.mark.parametrize("kind", CLASSES)
def test_timeout_on_exit(kind: type[Any]) -> None:
    """``timeout_on_exit``, which some bots set to close exchanges, is accepted."""
    assert kind({"timeout_on_exit": 100}).timeout_on_exit == 100


@pytest.mark.parametrize("kind", CLASSES)
def test_keywords_instead_of_a_dict(kind: type[Any]) -> None:
    """Settings given as keywords raise a TypeError that shows the right way."""
    script = f"import sunx_adapter; sunx_adapter.{kind.__name__}(apiKey='made-up')"
    done = run_python("-c", script)
    [*_, last] = done.stderr.splitlines()
    name = kind.__name__
    assert last == f"TypeError: {name} takes its settings in a dict: {name}({{'apiKey': …}})"
    assert "ignored" not in done.stderr


@pytest.mark.parametrize("kind", CLASSES)
def test_settings_that_are_no_dict(kind: type[Any]) -> None:
    """A key as the only argument is refused and not quoted."""
    with pytest.raises(BadRequest, match="settings must be in a dict") as failure:
        kind("made-up")
    assert "made-up" not in str(failure.value)


@pytest.mark.parametrize("name", ["watch_balance", "watchBalance"])
def test_watching_without_asyncio(name: str) -> None:
    """A synchronous exchange names the class that can watch."""
    with pytest.raises(NotSupported, match="use AsyncHtxFutures"):
        getattr(HtxFutures(), name)()


@pytest.mark.parametrize(
    "urls", [{"apis": {"rest": URL}}, {"API": {"rest": URL}}, {"rest": URL}, {"api": {"REST": URL}}]
)
def test_misspelt_urls(urls: dict[str, Any]) -> None:
    """An address that would not be used is refused: requests would go to the venue instead."""
    with pytest.raises(BadRequest, match="unknown key"):
        Sunx({"urls": urls})


@pytest.mark.parametrize(
    "config",
    [
        {"timeframe": "5m"},
        {"fee": 0.001},
        {"limit": 100},
        {"certfile": "x.pem"},
        {"rateLimit": 0},
        {"options": {"maxRetriesOnFailure": 3, "maxRetriesOnFailureDelay": 1000}},
    ],
)
def test_settings_of_hosts(config: dict[str, Any]) -> None:
    """Settings that hosts use, and that resemble ours a little, are accepted."""
    assert Sunx(config).id == "sunx"


def test_text_is_no_switch() -> None:
    """The text "false" is refused where a boolean is needed: it would count as true."""
    with pytest.raises(BadRequest, match="enableRateLimit"):
        Sunx({"enableRateLimit": "false"})
