"""Fleets on a real cluster of processes, with real kills."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from ccxt.base.errors import AuthenticationError, ExchangeError
from distributed import Client

from sunx_adapter.fleet import Fleet, FleetError
from sunx_adapter.fleet.accounts import users, with_uids
from sunx_adapter.fleet.messages import WINDOW_SECONDS, packed, unpacked
from sunx_adapter.keys import Account, KeysError
from sunx_adapter.sandbox import Holding, Sandbox, SandboxAccount, SandboxRequest, balance_data
from tests.cluster import Cluster, go_on, recording, stop
from tests.lateness import Lateness
from tests.ports import free_port


def account(number: int, uid: int | None = None) -> SandboxAccount:
    """An account that holds ``number`` USDT."""
    return SandboxAccount(
        name=f"account-{number}",
        uid=str(900_000_000 + (number if uid is None else uid)),
        api_key=f"made-up-access-key-{number}",
        secret=f"made-up-secret-{number}",
        balance=balance_data([Holding("USDT", cash=str(number))]),
    )


def tables(venue: Sandbox, url: str | None = None) -> dict[str, dict[str, Any]]:
    """The tables of a keys file with the venue's accounts."""
    stream = venue.url.replace("http", "ws")
    return {
        each.name: {
            "exchange": "sunx",
            "uid": each.uid,
            "apiKey": each.api_key,
            "secret": each.secret,
            "urls.api": {"rest": url or venue.url, "stream": stream},
        }
        for each in venue.accounts
    }


def keys_file(path: Path, contents: dict[str, dict[str, Any]]) -> Path:
    """Write a keys file with these tables."""
    lines = []
    for name, table in contents.items():
        lines += [f"[{name}]", *(f"{key} = {value!r}" for key, value in table.items())]
    text = "\n".join(lines).replace("{'", "{").replace("': '", " = '").replace(", '", ", ")
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def starting_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with three workers, which are about to join."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        for _ in range(3):
            running.start_worker()
        yield running


@pytest.fixture(scope="module")
def cluster(starting_cluster: Cluster) -> Cluster:
    """A cluster with three workers at the start."""
    starting_cluster.wait_for_workers()
    return starting_cluster


async def joined(fleet: Fleet, count: int) -> None:
    """Wait until the fleet has this number of workers."""
    async with asyncio.timeout(30):
        while len(fleet.workers) != count:  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0.05)


async def fetched(fleet: Fleet) -> dict[str, Any]:
    """All balances of a fleet; checks that each account is yielded once."""
    balances: dict[str, Any] = {}
    async for name, balance in fleet.fetch_balances():
        assert name not in balances
        balances[name] = balance
    assert set(balances) == set(fleet.names)
    return balances


def most_reads(requests: Iterable[SandboxRequest], seconds: float = 3.0) -> int:
    """The largest number of reads of one user in any 3 s."""
    moments: dict[str | None, list[float]] = {}
    for request in requests:
        moments.setdefault(request.uid, []).append(request.monotonic)
    return max(
        sum(first <= moment < first + seconds for moment in of_user[index : index + 100])
        for of_user in moments.values()
        for index, first in enumerate(of_user)
    )


async def at_the_limit(venue: Sandbox, users: int) -> None:
    """Wait until this number of users has almost no read left."""
    async with asyncio.timeout(15):
        while True:
            since = time.monotonic() - WINDOW_SECONDS
            recent = [read for read in venue.requests if read.uid and read.monotonic > since]
            reads = Counter(read.uid for read in recent)
            if sum(count > 65 for count in reads.values()) == users:
                return
            await asyncio.sleep(0.05)


class Watcher:
    """Watches a fleet, and records when each balance arrived."""

    def __init__(self, fleet: Fleet, **arguments: Any) -> None:
        self.seen: dict[str, float] = {}
        self.timestamps: dict[str, list[int]] = {}
        self.failures: list[Exception] = []
        self._changed = asyncio.Event()
        self._names = fleet.names
        self._task = asyncio.create_task(self._take(fleet.watch_balances(**arguments)))

    async def _take(self, watch: AsyncIterator[tuple[str, Any]]) -> None:
        async for name, balance in watch:
            if isinstance(balance, Exception):
                self.failures.append(balance)
                continue
            self.seen[name] = time.monotonic()
            self.timestamps.setdefault(name, []).append(balance["timestamp"])
            self._changed.set()

    async def all_since(self, moment: float) -> float:
        """Wait for a balance of each account after that moment; returns the seconds it took."""
        while not all(self.seen.get(name, 0.0) > moment for name in self._names):
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 15)
        return time.monotonic() - moment

    async def end(self) -> None:
        """Stop, and check that no balance was older than the one before."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        assert all(each == sorted(each) for each in self.timestamps.values())


@pytest.mark.usefixtures("starting_cluster")  # for the tests after it
def test_no_secret_travels(tmp_path: Path) -> None:
    """Names travel between client, scheduler and workers, but no key, secret or signature."""
    venue = Sandbox([account(number) for number in range(120)])
    with venue, recording() as inside, recording() as outside:
        known = tables(venue, f"http://127.0.0.1:{outside.to(int(venue.url.rpartition(':')[2]))}")
        known["account-1"]["secret"] = "made-up-and-wrong"
        lacking = {name: table for name, table in known.items() if name != "account-2"}
        workers_own = keys_file(tmp_path / "workers.toml", lacking)
        # The application need not have any key.
        bare = {name: {"exchange": "sunx", "uid": table["uid"]} for name, table in known.items()}
        file = keys_file(tmp_path / "accounts.toml", bare)

        async def run(cluster: Cluster) -> dict[str, Any]:
            async with Fleet(file, scheduler=cluster.address, number=str) as fleet:
                balances = await fetched(fleet)
                few = [f"account-{number}" for number in range(5)]
                watch = fleet.watch_balances(few)
                watched = {(await anext(watch))[0] for _ in few}
                await watch.aclose()
                assert watched == set(few)
            return balances

        with Cluster(tmp_path, inside.to) as cluster:
            # It cannot keep a connection for each account.
            cluster.start_worker(descriptors=128, SUNX_ADAPTER_KEYS=str(workers_own))
            balances = asyncio.run(run(cluster))

    for number in range(3, 120):
        assert balances[f"account-{number}"]["total"] == {"USDT": str(number)}
    assert type(balances["account-1"]) is AuthenticationError
    assert "signature" in str(balances["account-1"])
    assert isinstance(balances["account-2"], KeysError)
    traffic = b"".join(inside.recorded)
    assert b"account-3" in traffic
    written = b"".join(outside.recorded).decode("latin-1")
    signatures = re.findall(r"Signature=([^& ]+)", written)
    assert len(signatures) >= len(known) - 1
    secrets = [str(table[key]) for table in known.values() for key in ("apiKey", "secret")]
    for secret in (*secrets, *signatures, *map(unquote, signatures)):
        assert secret.encode() not in traffic


def test_hanging_accounts_delay_no_other(cluster: Cluster, tmp_path: Path) -> None:
    """Accounts that hang, however many, do not keep the others from being read."""
    venue = Sandbox([account(n) for n in range(30)])
    with venue, socket.create_server(("127.0.0.1", 0), backlog=500) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        good = tables(venue)
        hanging = {
            f"hanging-{number}": {
                **good["account-0"],
                "uid": f"1{number}",
                "apiKey": f"made-up-{number}",
                "timeout": 8000,
                "urls.api": {"rest": address},
            }
            for number in range(200)
        }

        async def run(file: Path) -> list[str]:
            arrived: list[str] = []
            async with Fleet(file, scheduler=cluster.address) as fleet:
                await joined(fleet, 3)
                async for name, balance in fleet.fetch_balances():
                    assert isinstance(balance, dict)
                    arrived.append(name)
                    if len(arrived) == len(good):
                        break
            return arrived

        # The hanging ones are asked for first.
        arrived = asyncio.run(run(keys_file(tmp_path / "accounts.toml", {**hanging, **good})))
    assert set(arrived) == set(good)


def test_slow_reader_gets_the_newest(cluster: Cluster, tmp_path: Path) -> None:
    """A slow caller gets the newest balance of each account, here with an existing client."""
    with Sandbox([account(n) for n in range(4)]) as venue:

        async def run(file: Path) -> list[float]:
            ages: list[float] = []
            async with Fleet(file, client=client) as fleet:
                async for _, balance in fleet.watch_balances(every=0.05):
                    assert isinstance(balance, dict)
                    ages.append(time.time() - balance["timestamp"] / 1000)
                    if len(ages) == 8:
                        break
                    await asyncio.sleep(0.15)
            return ages

        with Client(cluster.address, set_as_default=False) as client:
            ages = asyncio.run(run(keys_file(tmp_path / "accounts.toml", tables(venue))))
    # Each account is taken every 0.6 s; it is read 20 times a second. A queue would give the second
    # balance of each, all more than 0.5 s old.
    assert statistics.median(ages[4:]) < 0.4


def test_workers_are_killed_hang_and_join(cluster: Cluster, tmp_path: Path) -> None:
    """If workers are killed, hang or resume, no account is lost and no limit is exceeded."""
    venue = Sandbox([account(number, uid=number % 6) for number in range(60)])
    slow_venue = Sandbox([account(number) for number in range(300)], faults=["slow=0.9"])
    killed, hanging, _ = cluster.workers

    async def run(fleet: Fleet, reader: Fleet) -> tuple[dict[str, Any], dict[str, Any]]:
        await joined(fleet, 3)
        await joined(reader, 3)
        watcher = Watcher(fleet, every=0.05)
        await at_the_limit(venue, 6)
        fetching = [asyncio.create_task(fetched(each)) for each in (fleet, reader)]
        # While they read, one worker ends, and another hangs until its users have a busy owner.
        while slow_venue.request_count < 80:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        killed.kill()
        stop(hanging)
        assert await watcher.all_since(time.monotonic()) < 10
        await at_the_limit(venue, 6)
        go_on(hanging)
        await joined(fleet, 2)
        assert await watcher.all_since(time.monotonic()) < 10
        await at_the_limit(venue, 6)
        await watcher.end()
        assert not watcher.failures
        balances, slow = await asyncio.gather(*fetching)
        return balances, slow

    async def with_fleets(file: Path, slow_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        async with (
            asyncio.timeout(60),
            Fleet(file, scheduler=cluster.address, number=str) as fleet,
            Fleet(slow_file, scheduler=cluster.address) as reader,
        ):
            return await run(fleet, reader)

    with venue, slow_venue, Lateness(venue) as lateness:
        file = keys_file(tmp_path / "accounts.toml", tables(venue))
        slow_file = keys_file(tmp_path / "slow.toml", tables(slow_venue))
        balances, slow = asyncio.run(with_fleets(file, slow_file))
    assert {each["USDT"]["total"] for each in balances.values()} == {
        str(number) for number in range(60)
    }
    assert all(isinstance(balance, dict) for balance in slow.values())
    reads = [request for request in venue.requests if request.uid]
    assert most_reads(reads, 3.0 - lateness.seconds) <= 72
    assert {read.code for read in reads} <= lateness.codes


def test_scheduler_restarts(cluster: Cluster, tmp_path: Path) -> None:
    """After the scheduler was killed and started again, every account is read and watched."""
    with Sandbox([account(n) for n in range(60)], faults=["slow=0.3"]) as venue:

        async def run(file: Path) -> None:
            async with Fleet(file, scheduler=cluster.address) as fleet:
                watcher = Watcher(fleet)
                await watcher.all_since(0.0)
                fetching = asyncio.create_task(fetched(fleet))
                await asyncio.sleep(0)
                cluster.kill_scheduler()
                # Workers end with their scheduler.
                cluster.start_scheduler()
                cluster.start_worker()
                moment = time.monotonic()
                balances = await fetching
                assert all(isinstance(each, dict) for each in balances.values())
                assert await watcher.all_since(moment) < 15
                await watcher.end()

        asyncio.run(run(keys_file(tmp_path / "accounts.toml", tables(venue))))


def test_cluster_of_its_own(tmp_path: Path) -> None:
    """Without a scheduler a fleet starts processes on this machine, and ends them."""
    with Sandbox([account(n) for n in range(10)]) as venue:

        async def run(file: Path) -> int:
            async with Fleet(file, workers=2, number=str) as fleet:
                assert len(fleet.workers) == 2
                assert all(address.startswith("tls://127.0.0.1:") for address in fleet.workers)
                balances = await fetched(fleet)
                assert balances["account-7"]["free"] == {"USDT": "7"}
                with pytest.raises(ValueError, match="every must be"):
                    fleet.watch_balances(every=-1)
                with pytest.raises(KeyError, match="no account 'unknown'"):
                    await anext(fleet.fetch_balances(["unknown"]))
                return len(multiprocessing.active_children())

        assert asyncio.run(run(keys_file(tmp_path / "accounts.toml", tables(venue)))) >= 2
    assert not multiprocessing.active_children()


def test_no_worker(tmp_path: Path) -> None:
    """Without an answer the fleet raises an error after ``patience``."""
    with Sandbox([account(0)]) as venue:
        file = keys_file(tmp_path / "accounts.toml", tables(venue))

    async def run() -> None:
        async with Fleet(file, scheduler=f"tcp://127.0.0.1:{free_port()}", patience=0.5):
            pass

    with pytest.raises(FleetError, match=r"no worker answered within 0\.5 s"):
        asyncio.run(run())


def test_accounts_of_one_user() -> None:
    """Accounts that share a UID or a key are one user's, on one exchange."""
    known = {
        "a": Account("sunx", {"uid": "1", "apiKey": "k1"}),
        "b": Account("sunx", {"uid": "1", "apiKey": "k2"}),
        "c": Account("sunx", {"apiKey": "k2"}),
        "d": Account("htxfutures", {"uid": "1", "apiKey": "k1"}),
        "e": Account("sunx", {"apiKey": "k3"}),
        "f": Account("sunx", {"uid": "2", "apiKey": "k4"}),
        "g": Account("sunx", {"uid": "2", "apiKey": "k3"}),
    }
    assert sorted(sorted(names) for names in users(known).values()) == [
        ["a", "b", "c"], ["d"], ["e", "f", "g"]
    ]  # fmt: skip
    assert with_uids(known)["c"].config["uid"] == "1"
    assert with_uids(known)["e"].config["uid"] == "2"


def test_what_cannot_be_pickled_says_so() -> None:
    """An exception that cannot be pickled arrives as an ``ExchangeError`` with its text."""

    class LocalError(Exception):
        pass

    arrived = unpacked(packed(LocalError("out of order")))
    assert type(arrived) is ExchangeError
    assert "LocalError: out of order" in str(arrived)
    refused = unpacked(packed(AuthenticationError("no such key")))
    assert type(refused) is AuthenticationError
    assert str(refused) == "no such key"


Commands = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def commands(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Commands as a user runs them, all at once."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("SUNX_")}
    with Sandbox([account(n) for n in range(4)]) as venue:
        known = tables(venue)
        known["account-2"]["secret"] = "made-up-and-wrong"
        file = keys_file(tmp_path_factory.mktemp("keys") / "accounts.toml", known)
        with contextlib.ExitStack() as stack:
            running = {
                name: stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-m", "sunx_adapter", "fleet", *arguments],
                        env=environ | {"COLUMNS": "100", "NO_COLOR": "1"},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
                for name, arguments in {
                    "sandbox": ("--sandbox", "12", "--scheduler", cluster.address),
                    "refused": (str(file), "--scheduler", cluster.address, "--json"),
                    "without accounts": (),
                }.items()
            }
            for process in running.values():
                stack.callback(process.kill)
            texts = {name: process.communicate(timeout=60) for name, process in running.items()}
        return {
            name: subprocess.CompletedProcess(process.args, process.returncode, *texts[name])
            for name, process in running.items()
        }


def test_command_with_a_sandbox(commands: Commands) -> None:
    """``fleet --sandbox`` reads a sandbox's accounts and prints the summary."""
    done = commands["sandbox"]
    assert (done.returncode, done.stderr) == (0, "")
    for expected in ("12 of 12 accounts read", "USDT", "12,228", "maintenance margin rate"):
        assert expected in done.stdout
    assert len(re.findall("account-", done.stdout)) == 10


def test_command_with_a_refused_account(commands: Commands) -> None:
    """An account that cannot be read is in the summary with its error; the exit status is 1."""
    done = commands["refused"]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    summary = lines.pop()["summary"]
    assert (summary["accounts"], summary["read"]) == (4, 3)
    assert summary["failed"] == {"AuthenticationError": 1}
    assert summary["equity"] == {"USDT": "4"}
    balances = {line["account"]: line for line in lines}
    assert balances["account-3"]["balance"]["USDT"]["total"] == "3"
    assert "made-up-and-wrong" not in done.stdout + done.stderr
    assert "AuthenticationError" in balances["account-2"]["error"]


def test_command_needs_accounts(commands: Commands) -> None:
    """Without a keys file or a sandbox the command prints what to add."""
    done = commands["without accounts"]
    assert (done.returncode, done.stdout) == (1, "")
    assert "name the keys file, or add --sandbox N" in done.stderr
