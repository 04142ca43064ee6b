"""Several calls: ccxt's other ways to ask, and calls that follow or overlap each other."""

import contextlib
import copy
from collections.abc import Callable
from itertools import combinations
from typing import Any

from suite.exchanges import Bench, Opened
from suite.structure import containers
from suite.vectors import Played

AT_ONCE = 16
PARTS = ("free", "used", "total")


def test_derivative_methods(bench: Bench, account: Played) -> None:
    """ccxt's derivative methods give the parts of the same balance, by either kind of name."""
    arguments = account.vector.arguments()
    # Asked for without `number`, while the parts are asked for as floats: both must be the same.
    whole = bench.outcome(account, None).given_balance()
    code = next(iter(account.vector.expect["balance"]), "total")
    with bench.opened(account, number=float) as opened:
        assert opened.call("fetchBalance", *arguments) == whole
        for part in PARTS:
            assert opened.call(f"fetch_{part}_balance", *arguments) == whole[part]
            assert opened.call(f"fetch{part.capitalize()}Balance", *arguments) == whole[part]
        assert opened.call("fetch_partial_balance", code, *arguments) == whole[code]
        assert opened.call("fetchPartialBalance", code, *arguments) == whole[code]


def test_repeated_calls_share_nothing(bench: Bench, account: Played) -> None:
    """Whatever is done to one balance, no other one is touched by it, earlier or later."""
    arguments = account.vector.arguments()
    with bench.opened(account) as opened:
        first, second = (opened.call("fetch_balance", *arguments) for _ in range(2))
        untouched = copy.deepcopy(first)
        assert second == untouched
        for container in list(containers(first)):
            container.clear()
        assert second == untouched
        assert opened.call("fetch_balance", *arguments) == untouched


def test_the_views_of_a_balance_are_not_tied(bench: Bench, account: Played) -> None:
    """Nothing in a balance stands in two places, so changing one view changes no other."""
    places = list(map(id, containers(bench.outcome(account, None).given_balance())))
    assert len(places) == len(set(places))


def test_params_are_left_alone(bench: Bench, with_params: Played) -> None:
    """The caller's `params` are the same after a call, whatever becomes of it."""
    (params,) = with_params.vector.arguments()
    # Whether the call may fail is the vector's own test.
    with contextlib.suppress(Exception), bench.opened(with_params) as opened:
        opened.call("fetch_balance", params)
    assert params == with_params.vector.params


def test_exchanges_at_once_do_not_mix(bench: Bench) -> None:
    """Exchanges that are used at once each get their own account."""
    accounts = [played for played in bench.collection.played() if played.vector.gives_balance]
    accounts = accounts[:AT_ONCE]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(bench.opened(account)) for account in accounts]
        balances = bench.face.run_together(list(map(_asking, opened, accounts)))
    for account, balance in zip(accounts, balances, strict=True):
        assert balance == bench.outcome(account, None).given_balance()


def test_one_exchange_can_be_asked_at_once(bench: Bench) -> None:
    """One exchange that is asked often at once gives the same each time, sharing nothing."""
    account = next(p for p in bench.collection.played() if p.vector.gives_balance)
    with bench.opened(account) as opened:
        balances = bench.face.run_together([_asking(opened, account)] * AT_ONCE)
    assert all(balance == balances[0] for balance in balances)
    for one, other in combinations(balances, 2):
        assert not set(map(id, containers(one))) & set(map(id, containers(other)))


def _asking(opened: Opened, account: Played) -> Callable[[], Any]:
    return lambda: opened.exchange.fetch_balance(*account.vector.arguments())
