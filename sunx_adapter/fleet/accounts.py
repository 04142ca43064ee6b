"""The accounts of a keys file, and which of them belong to one user."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sunx_adapter.keys import read_private

Accounts = dict[str, tuple[str, dict[str, Any]]]
"""For each name the exchange's id and its configuration."""


def read_accounts(path: str) -> Accounts:
    """All accounts of a keys file, in one read.

    Raises:
        KeysError: the file cannot be used.
    """
    tables = tomllib.loads(read_private(Path(path)))
    return {name: (table.pop("exchange", name), table) for name, table in tables.items()}


def users(accounts: Accounts) -> dict[str, list[str]]:
    """The accounts' names by user: those that share a UID or a key are one user's.

    Returns:
        The names by a text that is the same for the same user in every run; it may hold a key, so
        it stays in the process.
    """
    by_mark: dict[tuple[str, str, str], str] = {}
    user_of: dict[str, str] = {}
    for name, (exchange_id, config) in accounts.items():
        marks = [
            (exchange_id, key, str(config[key])) for key in ("uid", "apiKey") if config.get(key)
        ]
        known = sorted({by_mark[mark] for mark in marks if mark in by_mark})
        user = known[0] if known else "/".join(marks[0]) if marks else name
        for other in known[1:]:  # this account shows that two users are one
            user_of = {each: user if u == other else u for each, u in user_of.items()}
            by_mark = {mark: user if u == other else u for mark, u in by_mark.items()}
        by_mark.update(dict.fromkeys(marks, user))
        user_of[name] = user
    names: dict[str, list[str]] = {}
    for name, user in user_of.items():
        names.setdefault(user, []).append(name)
    return names


def with_uids(accounts: Accounts) -> Accounts:
    """The same accounts; one whose key has a UID elsewhere gets it, so that they share a budget."""
    uids = {
        (exchange_id, config["apiKey"]): config["uid"]
        for exchange_id, config in accounts.values()
        if config.get("uid") and config.get("apiKey")
    }
    return {
        name: (exchange_id, _with(config, uids.get((exchange_id, config.get("apiKey")))))
        for name, (exchange_id, config) in accounts.items()
    }


def _with(config: Mapping[str, Any], uid: object) -> dict[str, Any]:
    return {"uid": uid, **config} if uid else dict(config)
