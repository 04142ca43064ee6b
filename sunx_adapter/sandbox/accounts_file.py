"""Reads accounts from a JSON file, and writes such a file.

::

    {"accounts": [{
      "name": "mine",                       the argument of Sandbox.config()
      "uid": "100000001",
      "api_key": "made-up-key",
      "secret": "made-up-secret",           for HmacSHA256   } at least one
      "private_key": "Base64 of 32 bytes",  for Ed25519      } of these two
      "balance": {…},                       optional: `data` of a balance answer
      "asset_mode": 1,                      optional: 0, 1 or 2
      "extra_row_fields": true,             optional: v5 answers include undocumented row fields
      "refusal": {"code": 12009, "message": "…"}   optional: the answer to every signed request
    }]}

Amounts are decimal text of up to 18 places (vouchers may be ``""``). A balance may have further
fields; it is sent unchanged.
"""

from collections.abc import Iterable
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from sunx_adapter.sandbox.accounts import DEFAULT_ACCOUNTS, AccountBook, SandboxAccount

T = TypeVar("T")

_FIELDS: Final = tuple(field.name for field in fields(SandboxAccount))
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
        return _accounts(msgspec.json.decode(content))
    except (ValueError, RecursionError) as error:
        reason = f"{path}: {_reason(error)}"
    # Raised outside the handler: the caught exception may quote the file, secrets included.
    raise AccountsFileError(reason)


def dump_accounts(accounts: Iterable[SandboxAccount] = DEFAULT_ACCOUNTS) -> str:
    """The accounts as the text of such a file, with keys and secrets."""
    entries = msgspec.to_builtins({"accounts": AccountBook(accounts).all()})
    for entry in entries["accounts"]:
        for name in [name for name, value in entry.items() if value is None]:
            del entry[name]
    return msgspec.json.format(msgspec.json.encode(entries), indent=2).decode() + "\n"


def _accounts(document: Any) -> list[SandboxAccount]:
    accounts = msgspec.convert(document, _File[SandboxAccount]).accounts
    msgspec.convert(document, _File[_HasBalance])  # a balance itself is sent unchanged
    for index, entry in enumerate(document["accounts"]):
        if unknown := [name for name in entry if name not in _FIELDS]:
            raise ValueError(f"accounts[{index}]: unknown field `{unknown[0]}`")
    try:
        return list(AccountBook(accounts).all())
    except ValueError as error:
        raise ValueError(f"accounts: {error}") from None


def _reason(error: Exception) -> str:
    """The error's text, field first: msgspec appends it as ``- at `$.accounts[0].uid```."""
    if isinstance(error, msgspec.ValidationError):
        problem, _, field = str(error).partition(" - at `$")
        field = field.strip(".`")
        if "matching regex" in problem:
            problem = 'must be decimal text of up to 18 places, like "12.5"'
        # A message of SandboxAccount begins with the name of an attribute.
        attribute, colon, rest = problem.partition(": ")
        if colon and attribute in _FIELDS:
            field, problem = f"{field}.{attribute}", rest
        return f"{field or 'the whole file'}: {problem}"
    if isinstance(error, msgspec.DecodeError | UnicodeDecodeError | RecursionError):
        return f"not valid JSON: {error}"
    return str(error)
