"""Options, fixtures and the report of the conformance suite; see ``README.md``."""

from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast

import pytest

from suite.exchanges import AsyncFace, Bench, Face, FaceName, SyncFace
from suite.playback import Playback
from suite.report import Report
from suite.vectors import DEFAULT_VECTORS, Collection, Played, Vector, VectorsError, load_collection

FACES: Final[tuple[FaceName, ...]] = ("sync", "async")

KINDS: Final[dict[str, Callable[[Vector], bool]]] = {
    "played": lambda _: True,
    "account": lambda vector: vector.gives_balance,
    "summarised": lambda vector: "account" in vector.expect,
    "repeating": lambda vector: vector.repeats_the_request,
    "with_params": lambda vector: bool(vector.params),
}
"""Which vectors a test gets, by the name of its argument."""

CASES: Final = ("vector", *KINDS)

IS_THE_VECTOR: Final = "is_the_vector"

_COLLECTION: Final = pytest.StashKey[Collection]()
_REPORT: Final = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's own options."""
    group = parser.getgroup("conformance")
    group.addoption(
        "--exchange",
        action="append",
        default=[],
        metavar="ID",
        help="an exchange to try, as its plugin offers it; may be given several times "
        "(default: those that the vectors' config.toml names)",
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
        help="write a Markdown table of what held",
    )
    group.addoption(
        "--write-readme",
        action="store_true",
        help="write the table of what ccxt makes of the vectors into the project's README",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the vectors."""
    config.addinivalue_line(
        "markers", f"{IS_THE_VECTOR}: the test of what a vector says; reported by its group"
    )
    try:
        collection = load_collection(config.getoption("--vectors"))
    except VectorsError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[_COLLECTION] = collection
    config.stash[_REPORT] = Report(
        f"{len(collection.vectors)} vectors over HTTP, each to the synchronous and the "
        f"asynchronous exchange; ccxt {version('ccxt')}."
    )


def _exchange_ids(config: pytest.Config) -> list[str]:
    chosen: list[str] = config.getoption("--exchange")
    ids = chosen or list(config.stash[_COLLECTION].settings.exchanges)
    if not ids:
        raise pytest.UsageError("name an exchange: --exchange ID")
    return list(dict.fromkeys(ids))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Multiply the tests by exchange, by way to call it, and by vector."""
    names = metafunc.fixturenames
    if "bench" in names:
        benches = [(name, face) for name in _exchange_ids(metafunc.config) for face in FACES]
        ids = [f"{name}-{face}" for name, face in benches]
        metafunc.parametrize("bench", benches, indirect=True, ids=ids, scope="session")
    collection = metafunc.config.stash[_COLLECTION]
    if "vector" in names:
        metafunc.parametrize("vector", collection.vectors, ids=str)
    for name, wanted in KINDS.items():
        if name in names:
            plays = [played for played in collection.played() if wanted(played.vector)]
            metafunc.parametrize(name, plays, ids=str)


@pytest.fixture(scope="session")
def collection(pytestconfig: pytest.Config) -> Collection:
    """The vectors and their settings."""
    return pytestconfig.stash[_COLLECTION]


@pytest.fixture(scope="session")
def playback() -> Iterator[Playback]:
    """The thread in which vectors are played."""
    with Playback() as playback:
        yield playback


@pytest.fixture(scope="session")
def faces() -> Iterator[dict[FaceName, Face]]:
    """Both ways to call an exchange."""
    with AsyncFace() as asynchronous:
        yield {"sync": SyncFace(), "async": asynchronous}


@pytest.fixture(scope="session")
def bench(
    request: pytest.FixtureRequest,
    collection: Collection,
    playback: Playback,
    faces: dict[FaceName, Face],
) -> Bench:
    """One exchange, called in one way."""
    exchange_id, face = request.param
    return Bench(exchange_id, faces[face], collection, playback)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the result for the report."""
    result = yield
    if (result.when == "call" or result.failed) and isinstance(item, pytest.Function):
        _note(item, result)
    return result


def _note(item: pytest.Function, result: pytest.TestReport) -> None:
    report = item.config.stash[_REPORT]
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    rule = (item.function.__doc__ or item.name).splitlines()[0].rstrip(".")
    column = None
    if "bench" in parameters:
        exchange_id, face = cast("tuple[str, str]", parameters["bench"])
        column = f"{exchange_id} {face}"
        if item.get_closest_marker(IS_THE_VECTOR):
            played = cast("Played", parameters["played"])
            report.add_vector(played.vector.group, column, result.outcome)
        else:
            report.add_rule(rule, column, result.outcome)
    if result.failed:
        case = next((str(parameters[name]) for name in CASES if name in parameters), None)
        report.add_failure(rule, case, column)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report if one was asked for."""
    path: Path | None = session.config.getoption("--report")
    if path is not None:
        session.config.stash[_REPORT].write(path)
