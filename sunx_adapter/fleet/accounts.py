"""Which accounts belong to one user, whose read budget they share."""

from collections.abc import Mapping

from sunx_adapter.keys import Account


def users(accounts: Mapping[str, Account]) -> dict[str, list[str]]:
    """The names of the accounts of each user: accounts that share a UID or a key have one user.

    Returns:
        The names by an id of the user, the same in every run. It may hold a key, so it must not
        leave the process.
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
        # Two users so far are one if this account has the UID of one and the key of the other.
        joined = [each for other in same for each in names.pop(other)]
        names[user] = [*joined, name]
        if len(same) > 1:
            known = {mark: user if each in same else each for mark, each in known.items()}
        known.update(dict.fromkeys(marks, user))
    return names


def with_uids(accounts: Mapping[str, Account]) -> dict[str, Account]:
    """The accounts, each with its user's UID if one of that user's accounts has it."""
    shared = dict(accounts)
    for names in users(accounts).values():
        uids = (accounts[name].config.get("uid") for name in names)
        if uid := next(filter(None, uids), None):
            for name in names:
                account = accounts[name]
                shared[name] = Account(account.exchange, {**account.config, "uid": uid})
    return shared
