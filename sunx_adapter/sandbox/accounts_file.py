"""Reads accounts from a JSON file, and writes such a file: ``{"accounts": [{…}, …]}``.

Each account has the attributes of :class:`SandboxAccount` as fields; those with a default are
optional. Amounts are decimal text of up to 18 places. A balance may have further fields.
"""

from collections.abc import Iterable
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from sunx_adapter.sandbox.accounts import DEFAULT_ACCOUNTS, AccountBook, SandboxAccount

T = TypeVar("T")

_FIELDS: Final = {field.name for field in fields(SandboxAccount)}
_Amount = Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]+(\.[0-9]{1,18})?$")]


class AccountsFileError(ValueError):
    """An accounts file is invalid; the message names the file and the field."""


class _Amounts(msgspec.Struct, kw_only=True):
    """The required amounts of an account and of each row. Further fields are accepted."""

    equity: _Amount
    initial_margin: _Amount
    maintenance_margin: _Amount
    maintenance_margin_rate: _Amount
    profit_unreal: _Amount


class _Row(_Amounts, kw_only=True):
    currency: Annotated[str, msgspec.Meta(min_length=1)]
    available: _Amount
    withdraw_available: _Amount
    initial_margin_rate: _Amount
    available_margin: _Amount | None = None


class _Balance(_Amounts, kw_only=True):
    state: str
    available_margin: _Amount
    details: list[_Row]


class _HasBalance(msgspec.Struct):
    balance: _Balance | None = None


class _File(msgspec.Struct, Generic[T], forbid_unknown_fields=True):
    accounts: list[T]


def load_accounts(path: str | PathLike[str]) -> list[SandboxAccount]:
    """The accounts of a JSON file, in its order.

    Raises:
        AccountsFileError: the file is not JSON, or not of the format above. The message names the
            file and the field, ``accounts[0].balance.details[1].equity``, and contains no secret.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        document = msgspec.json.decode(content)
        accounts = msgspec.convert(document, _File[SandboxAccount]).accounts
        msgspec.convert(document, _File[_HasBalance])  # a balance itself is sent unchanged
        for index, entry in enumerate(document["accounts"]):
            if unknown := sorted(entry.keys() - _FIELDS):
                raise msgspec.ValidationError(
                    f"unknown field `{unknown[0]}` - at `$.accounts[{index}]`"
                )
        return list(AccountBook(accounts).all())
    except msgspec.ValidationError as error:
        reason = _place(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = f"not valid JSON: {error}"
    except ValueError as error:
        reason = f"accounts: {error}"
    # Raised outside the handler: the caught exception may quote the file, secrets included.
    raise AccountsFileError(f"{path}: {reason}")


def _place(text: str) -> str:
    """The text of a validation error, field first: it ends in ``- at `$.accounts[0].uid```."""
    problem, _, field = text.partition(" - at `$")
    field = field.strip(".`")
    if "matching regex" in problem:
        problem = 'must be decimal text of up to 18 places, like "12.5"'
    # A message of SandboxAccount begins with the name of an attribute.
    attribute, colon, rest = problem.partition(": ")
    if colon and attribute in _FIELDS:
        field, problem = f"{field}.{attribute}", rest
    return f"{field or 'the whole file'}: {problem}"


def dump_accounts(accounts: Iterable[SandboxAccount] = DEFAULT_ACCOUNTS) -> str:
    """The accounts as the text of such a file, with keys and secrets."""
    entries = [
        {name: value for name, value in msgspec.to_builtins(account).items() if value is not None}
        for account in AccountBook(accounts).all()
    ]
    return msgspec.json.format(msgspec.json.encode({"accounts": entries})).decode() + "\n"
