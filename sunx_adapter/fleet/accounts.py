"""Groups accounts by user: the accounts of a user share one read limit."""

from collections.abc import Mapping

from sunx_adapter.keys import Account


def users(accounts: Mapping[str, Account]) -> dict[str, list[str]]:
    """The names of each user's accounts; accounts that share a UID or a key have the same user.

    Returns:
        The names by user id. The ids are the same in every run. They may contain a key, so they
        must not leave the process.
    """
    known: dict[tuple[str, str, str], str] = {}
    names: dict[str, list[str]] = {}
    for name, account in accounts.items():
        marks = [
            (account.exchange, kind, str(account.config[kind]))
            for kind in ("uid", "apiKey")
            if account.config.get(kind)
        ]
        same = dict.fromkeys(known[mark] for mark in marks if mark in known)
        user = next(iter(same), "/".join(marks[0]) if marks else name)
        # If this account has the UID of one user and the key of another, both are one user.
        joined = [each for other in same for each in names.pop(other)]
        names[user] = [*joined, name]
        if len(same) > 1:
            known = {mark: user if each in same else each for mark, each in known.items()}
        known.update(dict.fromkeys(marks, user))
    return names


def with_uids(accounts: Mapping[str, Account]) -> dict[str, Account]:
    """The accounts; if one account of a user has a UID, all of the user's accounts get it."""
    shared = dict(accounts)
    for names in users(accounts).values():
        uids = (accounts[name].config.get("uid") for name in names)
        if uid := next(filter(None, uids), None):
            for name in names:
                account = accounts[name]
                shared[name] = Account(account.exchange, {**account.config, "uid": uid})
    return shared
