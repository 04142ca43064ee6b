"""Options, fixtures and the report of the conformance suite; see ``README.md``."""

from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

pytest.register_assert_rewrite("suite.rules")

from suite.exchanges import AsyncRunner, ExchangeUnderTest, Mode, Runner, SyncRunner  # noqa: E402
from suite.report import Report, attach_record  # noqa: E402
from suite.server import ServerThread  # noqa: E402
from suite.vectors import (  # noqa: E402
    DEFAULT_VECTORS,
    Collection,
    VectorsError,
    load_collection,
)
from sunx_adapter.host import ExchangeHost, HostError  # noqa: E402

MODES: Final[tuple[Mode, ...]] = ("sync", "async")

_COLLECTION: Final = pytest.StashKey[Collection]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's own options."""
    group = parser.getgroup("conformance")
    group.addoption(
        "--exchange",
        action="append",
        default=[],
        metavar="ID",
        help="an exchange to test, by the id that its plugin offers; may be given several times "
        "(default: those in the vectors' config.toml)",
    )
    group.addoption(
        "--vectors",
        type=Path,
        default=DEFAULT_VECTORS,
        metavar="DIR",
        help="the directory with the vectors and their config.toml (default: %(default)s)",
    )
    group.addoption(
        "--report",
        type=Path,
        default=None,
        metavar="FILE.md",
        help="write the results as Markdown tables",
    )
    group.addoption(
        "--write-docs",
        action="store_true",
        help="update the table of ccxt's results in docs/comparison.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the vectors and check the exchanges' ids before tests are collected."""
    try:
        collection = load_collection(config.getoption("--vectors"))
    except VectorsError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[_COLLECTION] = collection
    _check_exchanges(config)
    report: Path | None = config.getoption("--report")
    # pytest-xdist's workers send their results to the process that writes the report.
    if report is not None and not hasattr(config, "workerinput"):
        heading = (
            f"{len(collection.vectors)} vectors over HTTP, each to the synchronous and the "
            f"asynchronous exchange; ccxt {version('ccxt')}."
        )
        config.pluginmanager.register(Report(report, heading))


def _exchange_ids(config: pytest.Config) -> list[str]:
    chosen: list[str] = config.getoption("--exchange")
    return list(dict.fromkeys(chosen or config.stash[_COLLECTION].settings.exchanges))


def _check_exchanges(config: pytest.Config) -> None:
    ids = _exchange_ids(config)
    if not ids:
        raise pytest.UsageError("no exchange to test: add --exchange ID")
    host = ExchangeHost()
    for exchange_id in ids:
        try:
            host.offer(exchange_id)
        except HostError as error:
            problems = [str(error), *map(str, host.problems)]
            raise pytest.UsageError(f"--exchange {exchange_id}: {'; '.join(problems)}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the tests by exchange, by kind of exchange, and by vector."""
    names = metafunc.fixturenames
    collection = metafunc.config.stash[_COLLECTION]
    if "subject" in names:
        subjects = [(name, mode) for name in _exchange_ids(metafunc.config) for mode in MODES]
        ids = [f"{name}-{mode}" for name, mode in subjects]
        metafunc.parametrize("subject", subjects, indirect=True, ids=ids, scope="session")
    if "vector" in names:
        metafunc.parametrize("vector", collection.vectors, ids=str)
    if "case" in names:
        metafunc.parametrize("case", collection.cases(), ids=str)


@pytest.fixture(scope="session")
def collection(pytestconfig: pytest.Config) -> Collection:
    """The vectors and their settings."""
    return pytestconfig.stash[_COLLECTION]


@pytest.fixture(scope="session")
def server_thread() -> Iterator[ServerThread]:
    """The thread of the servers that send the vectors' answers."""
    with ServerThread() as server_thread:
        yield server_thread


@pytest.fixture(scope="session")
def runners() -> Iterator[dict[Mode, Runner]]:
    """The runner for each kind of exchange."""
    with AsyncRunner() as asynchronous:
        yield {"sync": SyncRunner(), "async": asynchronous}


@pytest.fixture(scope="session")
def subject(
    request: pytest.FixtureRequest,
    collection: Collection,
    server_thread: ServerThread,
    runners: dict[Mode, Runner],
) -> ExchangeUnderTest:
    """One exchange under test, synchronous or asynchronous."""
    exchange_id, mode = request.param
    return ExchangeUnderTest(exchange_id, runners[mode], collection, server_thread)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the report's data to the results, if a report is written."""
    result = yield
    wanted = item.config.getoption("--report") is not None
    if wanted and (result.when == "call" or result.failed) and isinstance(item, pytest.Function):
        attach_record(item, result)
    return result
