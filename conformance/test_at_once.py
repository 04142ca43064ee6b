"""Calls that overlap."""

import contextlib
from collections.abc import Callable
from itertools import combinations
from typing import Any

from suite.exchanges import Bench, Opened
from suite.structure import containers
from suite.vectors import Case

AT_ONCE = 16


def test_exchanges_at_once_do_not_mix(bench: Bench) -> None:
    """Exchanges that are used at once each get their own account."""
    accounts = [case for case in bench.collection.cases() if case.vector.gives_balance]
    accounts = accounts[:AT_ONCE]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(bench.opened(account)) for account in accounts]
        balances = bench.runner.run_together(list(map(_fetching, opened, accounts)))
    for account, balance in zip(accounts, balances, strict=True):
        assert balance == bench.outcome(account, None).balance_or_raise()


def test_one_exchange_can_be_called_at_once(bench: Bench) -> None:
    """Many calls of one exchange at once give the same balance each, sharing nothing."""
    account = next(case for case in bench.collection.cases() if case.vector.gives_balance)
    with bench.opened(account) as opened:
        balances = bench.runner.run_together([_fetching(opened, account)] * AT_ONCE)
    assert all(balance == balances[0] for balance in balances)
    for one, other in combinations(balances, 2):
        assert not set(map(id, containers(one))) & set(map(id, containers(other)))


def _fetching(opened: Opened, account: Case) -> Callable[[], Any]:
    return lambda: opened.exchange.fetch_balance(*account.vector.arguments())
