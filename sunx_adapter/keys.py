"""Reads API keys from the environment, or from a file that only its owner can read.

Keys are never read from a command's arguments, which every user of the machine can see. The command
line uses these functions; bots can use them, too::

    from sunx_adapter.keys import config_from_environment

    Sunx(config_from_environment("sunx"))

The variable ``SUNX_ADAPTER_KEYS`` names the file. It is TOML with one table per account. The
table's name is the exchange's id, or the table has the key ``exchange``::

    [sunx]
    apiKey = "…"
    secret = "…"

    [grid-bot]
    exchange = "htxfutures"
    apiKey = "…"
    privateKey = "…"
"""

import functools
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from sunx_adapter.frames import without_frames
from sunx_adapter.hints import did_you_mean
from sunx_adapter.text import printable
from sunx_adapter.venue import VENUES

__all__ = [
    "KEYS_FILE_VARIABLE",
    "Account",
    "KeysError",
    "account_from_environment",
    "account_names",
    "accounts_from_environment",
    "accounts_from_file",
    "config_from_environment",
    "config_from_file",
    "environment_prefix",
    "key_sources",
    "missing_keys",
    "read_private",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

KEYS_FILE_VARIABLE: Final = "SUNX_ADAPTER_KEYS"

_VARIABLES: Final = {
    "EXCHANGE": "exchange",
    "API_KEY": "apiKey",
    "API_SECRET": "secret",
    "PRIVATE_KEY_FILE": "privateKey",
    "UID": "uid",
    "REST_URL": "rest",
    "STREAM_URL": "stream",
}
_CREDENTIALS: Final = ("apiKey", "secret", "privateKey")
_FILE_KEYS: Final = (
    *("exchange", *_CREDENTIALS, "uid", "hostname", "urls", "options"),
    *("timeout", "httpProxy", "httpsProxy", "socksProxy", "cafile", "trust_env"),
)


class KeysError(Exception):
    """The keys cannot be used as they are set; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account.

    Attributes:
        exchange: the exchange's id.
        config: the exchange's configuration, with ccxt's names. It contains secrets.
    """

    exchange: str
    config: dict[str, Any] = field(repr=False)


def environment_prefix(name: str) -> str:
    """The prefix of an account's environment variables: ``"SUNX"``, ``"GRID_BOT"``.

    Args:
        name: the name of an account, or the id of an exchange.
    """
    venue = VENUES.get(name)
    return venue.env_prefix if venue else re.sub(r"\W", "_", name).upper()


def _without_frames(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Remove the function's frames, which may hold keys, from its exceptions."""

    @functools.wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, too
            failure = without_frames(error)
        del args, kwargs  # the environment
        raise failure

    return called


@_without_frames
def config_from_environment(name: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The configuration of an exchange or a named account, as the command line reads it.

    The settings come from the variables ``SUNX_API_KEY``, ``SUNX_API_SECRET`` or
    ``SUNX_PRIVATE_KEY_FILE`` (a file with an Ed25519 key), ``SUNX_UID``, ``SUNX_REST_URL`` and
    ``SUNX_STREAM_URL`` (for another address, such as a sandbox's), and else from the file that
    ``SUNX_ADAPTER_KEYS`` names.

    Args:
        name: an exchange's id, or an account's name; in the variables' names it is in upper case.
        environ: the environment variables; default: this process's.

    Returns:
        The ``config`` argument for the exchange's class, with only the settings that were found.

    Raises:
        KeysError: a file is missing, unreadable, readable by others, or invalid; or the name is
            misspelt.
    """
    return account_from_environment(name, environ).config


@_without_frames
def account_from_environment(name: str, environ: Mapping[str, str] | None = None) -> Account:
    """One account: its exchange, and the same configuration as :func:`config_from_environment`.

    Raises:
        KeysError: as :func:`config_from_environment`.
    """
    environ = os.environ if environ is None else environ
    listed = _listed(environ, name)
    account = _with_variables(name, listed.get(name), environ)
    if name not in listed and not _has_keys(account):
        hint = did_you_mean(name, [*VENUES, *listed])
        if hint:
            raise KeysError(f"no keys for the account {name!r}{hint}")
    return account


@_without_frames
def account_names(environ: Mapping[str, str] | None = None) -> list[str]:
    """The names of all accounts with keys, complete or not.

    Raises:
        KeysError: as :func:`accounts_from_file`.
    """
    environ = os.environ if environ is None else environ
    own = [name for name in VENUES if _key_variables(name, environ)]
    return list(dict.fromkeys((*own, *_listed(environ, None))))


@_without_frames
def accounts_from_environment(environ: Mapping[str, str] | None = None) -> dict[str, Account]:
    """All accounts with keys, by name.

    These are the accounts of the keys file, and this package's exchanges whose keys are in
    environment variables. Accounts with incomplete keys are included.

    Raises:
        KeysError: as :func:`config_from_environment`.
    """
    environ = os.environ if environ is None else environ
    listed = _listed(environ, None)
    accounts = {
        name: _with_variables(name, listed.get(name), environ)
        for name in dict.fromkeys((*VENUES, *listed))
    }
    return {name: account for name, account in accounts.items() if _has_keys(account)}


@_without_frames
def accounts_from_file(path: Path) -> dict[str, Account]:
    """All accounts of a keys file, by name, in the order of the file, which is read once.

    Raises:
        KeysError: the file is missing, readable by others, or invalid. The message names tables
            and settings, but never a setting's value.
    """
    return _read_accounts(path, None)


@_without_frames
def config_from_file(path: Path, name: str) -> dict[str, Any]:
    """The configuration of one account in a keys file; empty if the file has no such table.

    Raises:
        KeysError: as :func:`accounts_from_file`.
    """
    accounts = _read_accounts(path, name)
    return accounts[name].config if name in accounts else {}


def missing_keys(name: str, config: Mapping[str, Any]) -> list[str]:
    """The variables that are missing to read an account."""
    prefix = environment_prefix(name)
    missing = [] if config.get("apiKey") else [f"{prefix}_API_KEY"]
    if not config.get("secret") and not config.get("privateKey"):
        missing.append(f"{prefix}_API_SECRET (or {prefix}_PRIVATE_KEY_FILE)")
    return missing


@_without_frames
def key_sources(name: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Where :func:`config_from_environment` finds keys: names of variables and files.

    Raises:
        KeysError: as :func:`accounts_from_file`.
    """
    environ = os.environ if environ is None else environ
    file = environ.get(KEYS_FILE_VARIABLE)
    sources = [f"{KEYS_FILE_VARIABLE} ({file})"] if name in _listed(environ, name) else []
    return sources + [
        f"{variable} ({environ[variable]})" if variable.endswith("_FILE") else variable
        for variable in _key_variables(name, environ)
    ]


def _listed(environ: Mapping[str, str], only: str | None) -> dict[str, Account]:
    file = environ.get(KEYS_FILE_VARIABLE)
    return _read_accounts(Path(file), only) if file else {}


def _has_keys(account: Account) -> bool:
    return any(key in account.config for key in _CREDENTIALS)


def _key_variables(name: str, environ: Mapping[str, str]) -> list[str]:
    prefix = environment_prefix(name)
    names = (f"{prefix}_{suffix}" for suffix in ("API_KEY", "API_SECRET", "PRIVATE_KEY_FILE"))
    return [variable for variable in names if environ.get(variable, "").strip()]


def _with_variables(name: str, account: Account | None, environ: Mapping[str, str]) -> Account:
    """The account with the settings of its variables, which override the file."""
    config = dict(account.config) if account else {}
    exchange = account.exchange if account else name
    prefix = environment_prefix(name)
    addresses: dict[str, str] = {}
    for variable, key in _VARIABLES.items():
        # A pasted key may end with a line feed; no key contains whitespace.
        value = environ.get(f"{prefix}_{variable}", "").strip()
        if not value:
            continue
        if key == "exchange":
            exchange = value
        elif key in {"rest", "stream"}:
            addresses[key] = value
        else:
            config[key] = read_private(Path(value)) if key == "privateKey" else value
    if addresses:
        config["urls"] = {"api": {**config.get("urls", {}).get("api", {}), **addresses}}
    return Account(exchange, config)


def _read_accounts(path: Path, only: str | None) -> dict[str, Account]:
    import tomllib  # noqa: PLC0415 - most users have no such file

    try:
        tables = tomllib.loads(read_private(path))
    except (ValueError, RecursionError) as error:  # tomllib's own error is a ValueError
        # Only the position: the rest of the parser's message may quote a key.
        position = re.search(r"\(at .*\)$", str(error))
        where = f" {position[0]}" if position else ""
        raise KeysError(
            f"{path} is not a TOML file{where}; it must have tables like [sunx]"
        ) from None
    accounts: dict[str, Account] = {}
    for name, table in tables.items():
        fault = _name_fault(name, table)
        if not fault and only in {None, name}:
            fault = _table_fault(name, table)
        if fault:
            raise KeysError(f"{path}{fault}")
        config = {key: value for key, value in table.items() if key != "exchange"}
        accounts[name] = Account(table.get("exchange", name), config)
    return accounts


def _name_fault(name: str, table: object) -> str:
    shown = printable(name)
    if not isinstance(table, dict):
        if name in VENUES:
            return f": {shown} is not a table; write [{shown}] above its keys"
        return f": {shown} is outside a table; write a heading like [sunx] above it"
    exchange = table.get("exchange", name)
    if not isinstance(exchange, str):
        return f", [{shown}]: exchange must be text in quotes"
    if exchange in VENUES or exchange in _offered():
        return ""
    hint = did_you_mean(exchange, VENUES) or did_you_mean(exchange, _offered())
    if "exchange" in table:
        # The value is not repeated: it may be a misplaced key.
        return f", [{shown}]: no plugin offers this exchange{hint}"
    if hint:
        return f": [{shown}] is not an exchange{hint}"
    return f', [{shown}]: the exchange is missing; add a line like exchange = "sunx"'


def _table_fault(name: str, table: Mapping[str, Any]) -> str:
    where = f", [{printable(name)}]: "
    for key in _CREDENTIALS:
        if key in table and not isinstance(table[key], str):
            return f"{where}{key} must be text in quotes"
    urls = table.get("urls", {})
    if not isinstance(urls, dict) or not isinstance(urls.get("api", {}), dict):
        return f'{where}urls must look like {{api = {{rest = "https://…", stream = "wss://…"}}}}'
    unknown = sorted(table.keys() - set(_FILE_KEYS))
    if unknown and table.get("exchange", name) in VENUES:
        hints = [printable(key) + did_you_mean(key, _FILE_KEYS) for key in unknown]
        known = "" if all("did you mean" in hint for hint in hints) else ", ".join(_FILE_KEYS)
        return f"{where}unknown settings: {', '.join(hints)}" + (
            f"; the settings are {known}" if known else ""
        )
    return ""


def _offered() -> set[str]:
    """The ids of all exchanges that plugins offer, ccxt's among them."""
    from sunx_adapter.host import ExchangeHost  # noqa: PLC0415 - few files need it

    return {found.offer.id for found in ExchangeHost().offers()}


@_without_frames
def read_private(path: Path) -> str:
    """The text of a file that only this user can read.

    Raises:
        KeysError: the file is missing, unreadable, not a regular file, readable by others, or
            belongs to another user; the message has the command that fixes it.
    """
    try:
        path = path.expanduser()
        # Without O_NONBLOCK, opening a FIFO would block.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if fault := _not_private(os.fstat(descriptor), path):
                raise KeysError(f"{path} {fault}")
            return file.read().decode("utf-8")
    except OSError as error:
        reason = error.strerror
    except RuntimeError:  # "~name" of a user that does not exist
        reason = "no such user"
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except ValueError:
        reason = "not a file's name"
    raise KeysError(f"{printable(str(path))} cannot be read: {reason}")


def _not_private(status: os.stat_result, path: Path) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "cannot be read: it is not a regular file"
    if os.name != "posix":
        return ""
    if status.st_uid != os.geteuid():
        return f"belongs to another user; fix it with: chown {os.geteuid()} '{path}'"
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"can be read by others; fix it with: chmod 600 '{path}'"
    return ""
