"""Concurrent calls."""

import contextlib
from collections.abc import Callable
from itertools import combinations
from typing import Any

from suite.exchanges import ExchangeUnderTest, Opened
from suite.structure import containers
from suite.vectors import Case

AT_ONCE = 16


def test_exchanges_at_once_do_not_mix(subject: ExchangeUnderTest) -> None:
    """Exchanges that are used concurrently each get their own account."""
    accounts = [case for case in subject.collection.cases() if case.vector.gives_balance]
    accounts = accounts[:AT_ONCE]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(subject.opened(account)) for account in accounts]
        balances = subject.runner.run_together(list(map(_fetching, opened, accounts)))
    for account, balance in zip(accounts, balances, strict=True):
        assert balance == subject.outcome(account, None).balance_or_raise()


def test_one_exchange_can_be_called_at_once(subject: ExchangeUnderTest) -> None:
    """Concurrent calls of one exchange return equal balances that share no object."""
    account = next(case for case in subject.collection.cases() if case.vector.gives_balance)
    with subject.opened(account) as opened:
        balances = subject.runner.run_together([_fetching(opened, account)] * AT_ONCE)
    assert all(balance == balances[0] for balance in balances)
    for one, other in combinations(balances, 2):
        assert not set(map(id, containers(one))) & set(map(id, containers(other)))


def _fetching(opened: Opened, account: Case) -> Callable[[], Any]:
    return lambda: opened.exchange.fetch_balance(*account.vector.arguments())
