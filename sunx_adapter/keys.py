"""Where keys come from: the environment, or a file that only its owner can read.

Never from an argument of a command, where every user of the machine sees it. The command line
reads keys by these functions, and so can a bot::

    from sunx_adapter.keys import config_from_environment

    Sunx(config_from_environment("sunx"))

The file, which the variable ``SUNX_ADAPTER_KEYS`` names, is TOML with one table for each account.
A table that is named as an exchange is an account of that exchange; any other says which::

    [sunx]
    apiKey = "…"
    secret = "…"

    [grid-bot]
    exchange = "htxfutures"
    apiKey = "…"
    privateKey = "…"
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

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
    """Keys are given in a way that cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account.

    Attributes:
        exchange: the id of its exchange.
        config: the configuration for that exchange, with ccxt's names. It holds secrets.
    """

    exchange: str
    config: dict[str, Any] = field(repr=False)


def environment_prefix(name: str) -> str:
    """How the names of an account's variables begin: ``"SUNX"``, ``"GRID_BOT"``.

    Args:
        name: of the account, or the id of an exchange.
    """
    venue = VENUES.get(name)
    return venue.env_prefix if venue else re.sub(r"\W", "_", name).upper()


def config_from_environment(name: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The configuration of an exchange, or of a named account, as the command line reads it.

    It comes from the variables ``SUNX_API_KEY``, ``SUNX_API_SECRET`` or
    ``SUNX_PRIVATE_KEY_FILE`` (a file with an Ed25519 key), ``SUNX_UID``, ``SUNX_REST_URL`` and
    ``SUNX_STREAM_URL`` (to point elsewhere, at a sandbox). The file that ``SUNX_ADAPTER_KEYS``
    names gives what the variables do not.

    Args:
        name: an exchange's id, or the name of an account, which is in upper case in the variables.
        environ: the environment.

    Returns:
        What an exchange class takes. What is not set is not in it.

    Raises:
        KeysError: a file is missing, unreadable, readable by others, or has mistakes; or the name
            is misspelt.
    """
    return account_from_environment(name, environ).config


def account_from_environment(name: str, environ: Mapping[str, str] = os.environ) -> Account:
    """One account: the same as :func:`config_from_environment`, with its exchange.

    Raises:
        KeysError: as :func:`config_from_environment`.
    """
    file = environ.get(KEYS_FILE_VARIABLE)
    listed = _accounts(Path(file), only=name) if file else {}
    account, fault = _with_variables(name, listed.get(name), environ)
    if name not in listed and not any(key in account.config for key in _CREDENTIALS):
        hint = did_you_mean(name, [*VENUES, *listed])
        fault = fault or (hint and f"there are no keys of an account {name!r}{hint}")
    if fault:
        del listed, account  # an exception's frames hold no keys
        raise KeysError(fault)
    return account


def account_names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The names of all accounts that there are keys for, complete or not.

    Raises:
        KeysError: as :func:`accounts_from_file`.
    """
    file = environ.get(KEYS_FILE_VARIABLE)
    listed = accounts_from_file(Path(file)) if file else {}
    own = [name for name in VENUES if _key_variables(name, environ)]
    return list(dict.fromkeys((*own, *listed)))


def accounts_from_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Account]:
    """All accounts that there are keys for, by name.

    These are the accounts of the keys file, and the exchanges of this package whose keys are in
    variables. An account of which a part of the keys is missing is among them.

    Raises:
        KeysError: as :func:`config_from_environment`.
    """
    file = environ.get(KEYS_FILE_VARIABLE)
    listed = accounts_from_file(Path(file)) if file else {}
    accounts: dict[str, Account] = {}
    for name in dict.fromkeys((*VENUES, *listed)):
        account, fault = _with_variables(name, listed.get(name), environ)
        if fault:
            del listed, account, accounts  # an exception's frames hold no keys
            raise KeysError(fault)
        if any(key in account.config for key in _CREDENTIALS):
            accounts[name] = account
    return accounts


def accounts_from_file(path: Path) -> dict[str, Account]:
    """All accounts of a keys file, by name, in the order of the file, with one read of it.

    Raises:
        KeysError: the file is missing, readable by others, or has mistakes. The message names
            tables and keys, and never says what a key is set to.
    """
    return _accounts(path)


def config_from_file(path: Path, name: str) -> dict[str, Any]:
    """The configuration of one account of a keys file; empty if the file has no such table.

    Raises:
        KeysError: as :func:`accounts_from_file`.
    """
    account = _accounts(path, only=name).get(name)
    return account.config if account else {}


def missing_keys(name: str, config: Mapping[str, Any]) -> list[str]:
    """The variables to set before an account can be read; empty if none is missing."""
    prefix = environment_prefix(name)
    missing = [] if config.get("apiKey") else [f"{prefix}_API_KEY"]
    if not config.get("secret") and not config.get("privateKey"):
        missing.append(f"{prefix}_API_SECRET (or {prefix}_PRIVATE_KEY_FILE)")
    return missing


def key_sources(name: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where :func:`config_from_environment` looks for keys: names of variables, and of files.

    Raises:
        KeysError: as :func:`accounts_from_file`.
    """
    variables = _key_variables(name, environ)
    file = environ.get(KEYS_FILE_VARIABLE)
    listed = file is not None and name in _accounts(Path(file), only=name)
    return [
        *([f"{KEYS_FILE_VARIABLE} ({file})"] if listed else []),
        *(
            f"{variable} ({environ[variable]})" if variable.endswith("_FILE") else variable
            for variable in variables
        ),
    ]


def _key_variables(name: str, environ: Mapping[str, str]) -> list[str]:
    prefix = environment_prefix(name)
    names = (f"{prefix}_{suffix}" for suffix in ("API_KEY", "API_SECRET", "PRIVATE_KEY_FILE"))
    return [variable for variable in names if environ.get(variable, "").strip()]


def _with_variables(
    name: str, account: Account | None, environ: Mapping[str, str]
) -> tuple[Account, str]:
    """The account with what its variables say, which overrule the file; and what is wrong."""
    config = dict(account.config) if account else {}
    exchange = account.exchange if account else name
    prefix = environment_prefix(name)
    addresses: dict[str, str] = {}
    for variable, key in _VARIABLES.items():
        # A pasted key may end with a line feed; none has white space in it.
        value = environ.get(f"{prefix}_{variable}", "").strip()
        if not value:
            continue
        if key == "exchange":
            exchange = value
        elif key == "privateKey":
            config[key], fault = _read_private(Path(value))
            if fault:
                return Account(exchange, {}), fault
        elif key in {"rest", "stream"}:
            addresses[key] = value
        else:
            config[key] = value
    if addresses:
        config["urls"] = {"api": {**config.get("urls", {}).get("api", {}), **addresses}}
    return Account(exchange, config), ""


def _accounts(path: Path, only: str | None = None) -> dict[str, Account]:
    """The accounts of a file; the keys of tables other than ``only`` are not checked."""
    accounts, fault = _read_accounts(path, only)
    if fault:
        # Raised where no frame holds what the file says.
        accounts = {}
        raise KeysError(f"{path}{fault}")
    return accounts


def _read_accounts(path: Path, only: str | None) -> tuple[dict[str, Account], str]:
    """The accounts, and what is wrong with the file, if anything is."""
    import tomllib  # noqa: PLC0415 - most users have no such file

    try:
        tables = tomllib.loads(read_private(path))
    except tomllib.TOMLDecodeError as error:
        # Of the parser's message only the place: the rest may quote a key.
        place = re.search(r"\(at .*\)$", str(error))
        where = f" {place[0]}" if place else ""
        return {}, f" is no TOML file{where}; it must hold tables like [sunx]"
    accounts: dict[str, Account] = {}
    for name, table in tables.items():
        if fault := _name_fault(name, table):
            return {}, fault
        if only in {None, name} and (fault := _table_fault(name, table)):
            return {}, fault
        config = {key: value for key, value in table.items() if key != "exchange"}
        accounts[name] = Account(table.get("exchange", name), config)
    return accounts, ""


def _name_fault(name: str, table: object) -> str:
    shown = printable(name)
    if not isinstance(table, dict):
        if name in VENUES:
            return f": {shown} is no table; write [{shown}] above its keys"
        return f": {shown} is outside a table; write [sunx] or the like above it"
    exchange = table.get("exchange", name)
    if not isinstance(exchange, str):
        return f", [{shown}]: exchange must be text in quotes"
    if exchange in VENUES or exchange in _offered():
        return ""
    hint = did_you_mean(exchange, VENUES) or did_you_mean(exchange, _offered())
    if "exchange" in table:
        # What was written is not repeated: it may be anything.
        return f", [{shown}]: no plugin offers this exchange{hint}"
    if hint:
        return f": [{shown}] is no exchange{hint}"
    return f', [{shown}]: say whose account this is, for example exchange = "sunx"'


def _table_fault(name: str, table: Mapping[str, Any]) -> str:
    where = f", [{printable(name)}]: "
    for key in _CREDENTIALS:
        if key in table and not isinstance(table[key], str):
            return f"{where}{key} must be text in quotes"
    unknown = sorted(table.keys() - set(_FILE_KEYS))
    if unknown and table.get("exchange", name) in VENUES:
        hints = [printable(key) + did_you_mean(key, _FILE_KEYS) for key in unknown]
        known = "" if all("did you mean" in hint for hint in hints) else ", ".join(_FILE_KEYS)
        return f"{where}unknown keys: {', '.join(hints)}" + (
            f"; known are {known}" if known else ""
        )
    return ""


def _offered() -> set[str]:
    """The ids of all exchanges that plugins offer, ccxt's among them."""
    from sunx_adapter.host import ExchangeHost  # noqa: PLC0415 - few files need it

    return {found.offer.id for found in ExchangeHost().offers()}


def read_private(path: Path) -> str:
    """The text of a file that belongs to its reader, and that nobody else can read.

    Raises:
        KeysError: it is missing, no plain file, unreadable, somebody else's, or others may read it;
            the message has the command that mends it.
    """
    text, fault = _read_private(path)
    if fault:
        raise KeysError(fault)
    return text


def _read_private(path: Path) -> tuple[str, str]:
    """The text, and what is wrong with the file, if anything is."""
    path = path.expanduser()
    try:
        # A FIFO would otherwise be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if fault := _not_private(os.fstat(descriptor), path):
                return "", f"{path} {fault}"
            return file.read().decode("utf-8"), ""
    except OSError as error:
        return "", f"{path} cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "", f"{path} cannot be read: not UTF-8 text"


def _not_private(status: os.stat_result, path: Path) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "cannot be read: it is no plain file"
    if os.name != "posix":
        return ""
    if status.st_uid != os.geteuid():
        return f"belongs to another user; mend it with: chown {os.geteuid()} '{path}'"
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"can be read by others; mend it with: chmod 600 '{path}'"
    return ""
