"""The project as users have it: a wheel in a fresh environment, with other people's code."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.environment import Environment, build_wheels

ROOT = Path(__file__).parent.parent
HOSTS = Path(__file__).parent / "hosts"

pytestmark = pytest.mark.long("installs this project and a small host into a fresh environment")

MAIN_USDT = {"free": 9455.900075113264, "used": 3210.75, "total": 12666.650075113264}


@dataclass(frozen=True, slots=True)
class Installation:
    """An environment with the project and the small host, and plugins that can be added to it.

    Attributes:
        environment: has the wheels of the project and the small host.
        configs: configurations for account ``main`` of the installed sandbox, by exchange id.
        plugins: directories of plugins that can be added, by name.
    """

    environment: Environment
    configs: dict[str, Any]
    plugins: dict[str, Path]

    def run_small_host(self, plugins: tuple[str, ...] = (), **prefer: str) -> dict[str, Any]:
        """Run the small host with these plugins added; return its report."""
        python = self.environment.program()
        done = self.environment.run(
            *(python, "-W", "error", "-m", "small_host"),
            extra_paths=[self.plugins[name] for name in plugins],
            text=json.dumps({"accounts": self.configs, "prefer": prefer}),
        )
        assert (done.returncode, done.stderr) == (0, "")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def run_python(self, code: str, plugins: tuple[str, ...] = ()) -> Any:
        """Run code that prints JSON, with ``configs`` defined; return the decoded JSON."""
        code = f"import json\nconfigs = json.loads({json.dumps(self.configs)!r})\n{code}"
        done = self.environment.run(
            *(self.environment.program(), "-W", "error", "-c", code),
            extra_paths=[self.plugins[name] for name in plugins],
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation, built once for this module."""
    names = ("small_host", "broken_plugin", "twin_plugin")
    sources = [ROOT, *(HOSTS / name for name in names)]
    project, host, *plugin_wheels = build_wheels(sources, tmp_path_factory.mktemp("wheels"))
    environment = Environment.create(tmp_path_factory.mktemp("environment"), [project, host])
    plugins: dict[str, Path] = {}
    for name, wheel in zip(("broken-plugin", "twin-plugin"), plugin_wheels, strict=True):
        # Unpacking installs a wheel that has no dependencies and commands.
        plugins[name] = tmp_path_factory.mktemp(f"plugin-{name}")
        shutil.unpack_archive(wheel, plugins[name], "zip")
    with environment.sandbox("main") as configs:
        yield Installation(environment, configs, plugins)


def test_host_that_does_not_know_the_package(installation: Installation) -> None:
    """A host finds the exchanges by entry point only, and reads balances."""
    report = installation.run_small_host()
    assert report["plugins"] == ["sunx-adapter"]
    assert report["problems"] == {}
    assert report["imported_early"] == []
    assert report["balances"].keys() == {"sunx", "htxfutures"}
    for balances in report["balances"].values():
        assert balances["sync"]["USDT"] == balances["async"]["USDT"] == MAIN_USDT


def test_nothing_comes_from_the_source_tree(installation: Installation) -> None:
    """The installed wheel is used, not the source tree."""
    used = installation.run_python("import sunx_adapter; print(json.dumps(sunx_adapter.__file__))")
    assert Path(used).is_relative_to(installation.environment.root)
    assert Path(used).with_name("py.typed").exists()


@pytest.mark.parametrize(
    ("plugins", "prefer", "problems", "read"),
    [
        (("broken-plugin",), {}, {"broken-plugin"}, {"sunx", "htxfutures"}),
        (("twin-plugin",), {}, {"sunx"}, {"htxfutures"}),
        (
            ("broken-plugin", "twin-plugin"),
            {"sunx": "sunx-adapter"},
            {"broken-plugin"},
            {"sunx", "htxfutures"},
        ),
    ],
    ids=["broken", "twin", "both-and-a-choice"],
)
def test_faulty_plugins_in_another_host(
    installation: Installation,
    plugins: tuple[str, ...],
    prefer: dict[str, str],
    problems: set[str],
    read: set[str],
) -> None:
    """A broken plugin affects no exchange; a duplicate id fails until the user chooses."""
    report = installation.run_small_host(plugins, **prefer)
    assert report["problems"].keys() == problems
    assert report["balances"].keys() == read
    for balances in report["balances"].values():
        assert balances["sync"]["USDT"] == balances["async"]["USDT"] == MAIN_USDT


def test_faulty_plugins_in_this_host(installation: Installation) -> None:
    """This package's host names broken and conflicting plugins, and serves all other ids."""
    found = installation.run_python(
        plugins=("broken-plugin", "twin-plugin"),
        code="""
from sunx_adapter import ExchangeHost
from sunx_adapter.host import ConflictingOffersError

def refusal(host, exchange_id):
    try:
        host.create(exchange_id)
    except ConflictingOffersError as error:
        return str(error)

def usdt(host, exchange_id):
    with host.create(exchange_id, configs[exchange_id]) as exchange:
        return exchange.fetch_balance()["USDT"]

host = ExchangeHost()
print(json.dumps({
    "htxfutures": usdt(host, "htxfutures"),
    "sunx": usdt(ExchangeHost(prefer={"sunx": "sunx-adapter"}), "sunx"),
    "kraken": host.create("kraken").id,
    "fights": [refusal(host, "sunx"), refusal(host, "twin")],
    "problems": [str(problem) for problem in host.problems],
}))
""",
    )
    assert found["htxfutures"] == found["sunx"] == MAIN_USDT
    assert found["kraken"] == "kraken"
    about_sunx, about_twin = found["fights"]
    assert "'sunx-adapter' and 'twin-plugin'" in about_sunx
    assert "'twin-plugin' and 'twin-plugin'" in about_twin
    [problem] = found["problems"]
    assert "'broken-plugin' is not used: RuntimeError: broken as soon" in problem


def test_faulty_plugins_and_the_command(installation: Installation) -> None:
    """The installed command reads exchanges without conflict, whatever plugins are installed."""
    done = installation.environment.run(
        *(installation.environment.program("sunx-adapter"), "balance", "--sandbox", "--json"),
        *("--exchange", "htxfutures"),
        extra_paths=list(installation.plugins.values()),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["USDT"]
    assert {view: float(figure) for view, figure in figures.items()} == MAIN_USDT


def test_drop_in_for_a_bot_that_knows_only_ccxt(installation: Installation) -> None:
    """After ``register_with_ccxt()``, a bot finds the exchanges in ccxt and reads balances."""
    found = installation.run_python("""
import sunx_adapter
sunx_adapter.register_with_ccxt()

import asyncio
import ccxt
import ccxt.async_support
import ccxt.pro

async def usdt(module, exchange_id):
    async with getattr(module, exchange_id)(configs[exchange_id]) as exchange:
        return (await exchange.fetch_balance())["USDT"]

ids = [id for id in ccxt.exchanges if id in configs]
print(json.dumps(
    [getattr(ccxt, id)(configs[id]).fetch_balance()["USDT"] for id in ids]
    + [asyncio.run(usdt(ccxt.async_support, id)) for id in ids]
    + [asyncio.run(usdt(ccxt.pro, id)) for id in ids]
))
""")
    assert found == [MAIN_USDT] * 6
