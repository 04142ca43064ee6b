"""Where keys come from: the environment, or a file that only its owner can read.

Never from an argument of a command, where every user of the machine sees it.
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sunx_adapter.venue import VENUES

KEYS_FILE_VARIABLE: Final = "SUNX_ADAPTER_KEYS"

_VARIABLES: Final = {
    "API_KEY": "apiKey",
    "API_SECRET": "secret",
    "PRIVATE_KEY_FILE": "privateKey",
    "UID": "uid",
    "REST_URL": "rest",
    "STREAM_URL": "stream",
}
_FILE_KEYS: Final = (
    *("apiKey", "secret", "privateKey", "uid", "hostname", "urls", "options"),
    *("timeout", "httpProxy", "httpsProxy", "socksProxy", "cafile", "trust_env"),
)


class KeysError(Exception):
    """Keys are given in a way that cannot be used; the text says what to do."""


def environment_prefix(exchange_id: str) -> str:
    """What the names of an exchange's variables begin with: ``"SUNX"`` for ``sunx``."""
    venue = VENUES.get(exchange_id)
    return venue.env_prefix if venue else exchange_id.upper()


def config_from_environment(
    exchange_id: str, environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """An exchange's configuration from ``SUNX_API_KEY``, ``SUNX_API_SECRET`` and so on.

    ``…_PRIVATE_KEY_FILE`` names a file with an Ed25519 key, ``…_UID`` is optional,
    ``…_REST_URL`` and ``…_STREAM_URL`` point elsewhere (a sandbox). What is not set is not in the
    result; the file named by ``SUNX_ADAPTER_KEYS``, if any, gives what the variables do not.

    Raises:
        KeysError: a file is missing, unreadable, or readable by others.
    """
    file = environ.get(KEYS_FILE_VARIABLE)
    config = config_from_file(Path(file), exchange_id) if file else {}
    prefix = environment_prefix(exchange_id)
    for variable, key in _VARIABLES.items():
        # A pasted key may end with a line feed; none has white space in it.
        if value := environ.get(f"{prefix}_{variable}", "").strip():
            if key == "privateKey":
                config[key] = read_private(Path(value))
            else:
                config[key] = value
    addresses = {key: config.pop(key) for key in ("rest", "stream") if key in config}
    if addresses:
        config["urls"] = {"api": {**config.get("urls", {}).get("api", {}), **addresses}}
    return config


def key_sources(exchange_id: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where :func:`config_from_environment` finds what it finds: names of variables and files."""
    prefix = environment_prefix(exchange_id)
    keys = ("API_KEY", "API_SECRET", "PRIVATE_KEY_FILE")
    names = [KEYS_FILE_VARIABLE, *(f"{prefix}_{variable}" for variable in keys)]
    return [
        f"{name} ({environ[name]})" if name.endswith(("_FILE", "_KEYS")) else name
        for name in names
        if environ.get(name)
    ]


def config_from_file(path: Path, exchange_id: str) -> dict[str, Any]:
    """An exchange's configuration from a TOML file with one table per exchange id.

    ``[sunx]`` then ``apiKey = "…"``, ``secret = "…"`` (or ``privateKey``), and, if need be,
    ``uid``, ``hostname``, ``urls``, ``options``, ``timeout``, a proxy, ``cafile``, ``trust_env``.

    Raises:
        KeysError: the file is missing, readable by others, or not such a file.
    """
    table, fault = _table(path, exchange_id)
    if fault:
        # Raised where no frame holds what the file says.
        table = {}
        raise KeysError(f"{path}{fault}")
    return table


def _table(path: Path, exchange_id: str) -> tuple[dict[str, Any], str]:
    """The exchange's table, and what is wrong with the file, if anything is."""
    try:
        tables = tomllib.loads(read_private(path))
    except tomllib.TOMLDecodeError as error:
        # Of the parser's words only the place: the others may quote a key.
        place = re.search(r"\(at .*\)$", str(error))
        where = f" {place[0]}" if place else ""
        return {}, f" is no TOML file{where}; it must hold tables like [sunx]"
    table = tables.get(exchange_id, {})
    if not isinstance(table, dict):
        return {}, f": {exchange_id} is no table; write [{exchange_id}] above its keys"
    unknown = sorted(table.keys() - set(_FILE_KEYS))
    if unknown and exchange_id in VENUES:
        known = ", ".join(_FILE_KEYS)
        return {}, f", [{exchange_id}]: unknown keys {', '.join(unknown)}; known are {known}"
    return table, ""


def read_private(path: Path) -> str:
    """The text of a file that is its reader's own, and that nobody else can read.

    Raises:
        KeysError: it is missing, no plain file, unreadable, somebody else's, or others may read it;
            the text has the command that mends it.
    """
    path = path.expanduser()
    content, fault = b"", ""
    try:
        # A FIFO would otherwise be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            fault = _not_private(os.fstat(descriptor), path)
            content = b"" if fault else file.read()
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    if not fault:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            fault = "cannot be read: not UTF-8 text"
    # Raised where no frame and no other exception holds what the file says.
    del content
    raise KeysError(f"{path} {fault}")


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
