"""Accounts from a JSON file, and the default ones as such a file to start from.

::

    {"accounts": [{
      "name": "mine",                       what Sandbox.config() is asked for
      "uid": "100000001",
      "api_key": "made-up-key",
      "secret": "made-up-secret",           for HmacSHA256   } one of the two
      "private_key": "Base64 of 32 bytes",  for Ed25519      } or both
      "balance": {…},                       `data` of a balance answer; without: no currency
      "asset_mode": 1,                      optional: 0, 1 or 2
      "extra_row_fields": true,             optional: v5 sends the undocumented row fields
      "refusal": {"code": 12009, "message": "…"}   optional: every signed request is refused
    }]}

Amounts are decimal text of up to 18 places (vouchers may be ``""``). A balance may have further
fields; it is sent as it stands.
"""

import json
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from sunx_adapter.sandbox.accounts import AccountRefusal, SandboxAccount, checked_accounts
from sunx_adapter.sandbox.defaults import DEFAULT_ACCOUNTS

_AMOUNT: Final = re.compile(r"-?[0-9]+(\.[0-9]{1,18})?")
_FIELDS: Final = tuple(SandboxAccount.__dataclass_fields__)


class AccountsFileError(ValueError):
    """An accounts file says something that cannot be; the text names the file and the place."""


class _Amount:
    """Decimal text."""


class _Row(msgspec.Struct):
    currency: Annotated[str, msgspec.Meta(min_length=1)]
    equity: _Amount
    available: _Amount
    withdraw_available: _Amount
    profit_unreal: _Amount
    initial_margin: _Amount
    maintenance_margin: _Amount
    maintenance_margin_rate: _Amount
    initial_margin_rate: _Amount
    available_margin: _Amount | None = None
    isolated_equity: _Amount | None = None
    isolated_profit_unreal: _Amount | None = None
    voucher: str | None = None
    voucher_value: str | None = None
    created_time: int | None = None
    updated_time: int | None = None


class _Balance(msgspec.Struct):
    state: str
    equity: _Amount
    initial_margin: _Amount
    maintenance_margin: _Amount
    maintenance_margin_rate: _Amount
    profit_unreal: _Amount
    available_margin: _Amount
    details: list[_Row]
    voucher_value: str | None = None
    created_time: int | None = None
    updated_time: int | None = None


class _Refusal(msgspec.Struct, forbid_unknown_fields=True):
    code: int
    message: str


class _Account(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    uid: str
    api_key: str
    secret: str | None = None
    private_key: str | None = None
    balance: _Balance | None = None
    asset_mode: Literal[0, 1, 2] = 1
    extra_row_fields: bool = True
    refusal: _Refusal | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    accounts: list[_Account]


def load_accounts(path: str | PathLike[str]) -> list[SandboxAccount]:
    """The accounts of a JSON file, in its order.

    Raises:
        AccountsFileError: it is no JSON, or not of the format above; the text names the file and
            the place, ``accounts[0].balance.details[1].equity``, and quotes nothing of a secret.
        OSError: it cannot be read.
    """
    try:
        return _accounts(json.loads(Path(path).read_bytes()))
    except (ValueError, RecursionError) as error:
        reason = f"{path}: {_reason(error)}"
    # Raised outside the handler: the parser's own exception holds the whole text, secrets too.
    raise AccountsFileError(reason)


def dump_accounts(accounts: Iterable[SandboxAccount] = DEFAULT_ACCOUNTS) -> str:
    """The accounts as the text of such a file, keys and secrets included."""
    entries = [_entry(account) for account in checked_accounts(accounts)]
    return json.dumps({"accounts": entries}, indent=2, ensure_ascii=False) + "\n"


def _entry(account: SandboxAccount) -> dict[str, Any]:
    values = {name: getattr(account, name) for name in _FIELDS}
    if account.refusal is not None:
        values["refusal"] = {"code": account.refusal.code, "message": account.refusal.message}
    return {name: value for name, value in values.items() if value is not None}


def _accounts(document: Any) -> list[SandboxAccount]:
    declared = msgspec.convert(document, _File, dec_hook=_amount).accounts
    accounts = []
    for index, (entry, raw) in enumerate(zip(declared, document["accounts"], strict=True)):
        try:
            accounts.append(_account(entry, raw))
        except ValueError as error:
            raise ValueError(f"accounts[{index}].{error}") from None
    try:
        return list(checked_accounts(accounts))
    except ValueError as error:
        raise ValueError(f"accounts: {error}") from None


def _account(entry: _Account, raw: dict[str, Any]) -> SandboxAccount:
    refusal = entry.refusal
    given = {name: raw[name] for name in _FIELDS if raw.get(name) is not None}
    if refusal is not None:
        given["refusal"] = AccountRefusal(refusal.code, refusal.message)
    return SandboxAccount(**given)


def _amount(_type: type, value: Any) -> _Amount:
    if isinstance(value, str) and _AMOUNT.fullmatch(value):
        return _Amount()
    raise ValueError('must be decimal text of up to 18 places, like "12.5"')


def _reason(error: Exception) -> str:
    """The place first: msgspec gives it at the end, as ``- at `$.accounts[0].uid```."""
    if isinstance(error, msgspec.ValidationError):
        problem, _, place = str(error).partition(" - at `$")
        return f"{place.strip('.`') or 'the whole text'}: {problem}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return f"no readable JSON: {error}"
    return str(error)
