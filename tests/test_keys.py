import traceback
from pathlib import Path

import pytest

from sunx_adapter import keys
from sunx_adapter.keys import (
    Account,
    KeysError,
    account_from_environment,
    accounts_from_environment,
    accounts_from_file,
    config_from_environment,
)

NAMED = """
[sunx]
apiKey = "a"
secret = "b"
[grid-bot]
exchange = "htxfutures"
apiKey = "c"
secret = "d"
[kraken]
apiKey = "e"
anything = "f"
"""


def private_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_environment() -> None:
    """Keys come from variables with the exchange's prefix; an empty variable counts as not set."""
    environ = {
        "SUNX_API_KEY": "key",
        "SUNX_API_SECRET": "secret",
        "SUNX_UID": "",
        "HTXFUTURES_API_KEY": "other",
        "SUNX_REST_URL": "http://127.0.0.1:1",
    }
    assert config_from_environment("sunx", environ) == {
        "apiKey": "key",
        "secret": "secret",
        "urls": {"api": {"rest": "http://127.0.0.1:1"}},
    }
    assert config_from_environment("htxfutures", environ) == {"apiKey": "other"}
    assert config_from_environment("kraken", environ) == {}


def test_private_key_file(tmp_path: Path) -> None:
    """A private key is read from a file that only its owner can read."""
    file = private_file(tmp_path / "key.pem", "made-up key")
    config = config_from_environment("sunx", {"SUNX_PRIVATE_KEY_FILE": str(file)})
    assert config == {"privateKey": "made-up key"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_file_with_wide_permissions(tmp_path: Path, mode: int) -> None:
    """A file that others can access is refused; the error has the command that fixes it."""
    file = private_file(tmp_path / "key.pem", "made-up key", mode)
    with pytest.raises(KeysError, match=f"chmod 600 '{file}'"):
        config_from_environment("sunx", {"SUNX_PRIVATE_KEY_FILE": str(file)})


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is named in the error."""
    with pytest.raises(KeysError, match=r"none\.pem cannot be read: No such file"):
        config_from_environment("sunx", {"SUNX_PRIVATE_KEY_FILE": str(tmp_path / "none.pem")})


def test_keys_file(tmp_path: Path) -> None:
    """A TOML file has one table per exchange; environment variables take precedence."""
    text = '[sunx]\napiKey = "a"\nsecret = "b"\n[htxfutures]\napiKey = "c"\n'
    environ = {"SUNX_ADAPTER_KEYS": str(private_file(tmp_path / "keys.toml", text))}
    assert config_from_environment("sunx", environ) == {"apiKey": "a", "secret": "b"}
    environ["HTXFUTURES_API_KEY"] = "d"
    assert config_from_environment("htxfutures", environ) == {"apiKey": "d"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret = = made-up", "not a TOML file"),
        ('[sunx]\napikey = "made-up"', r"unknown settings: apikey; did you mean 'apiKey'\?$"),
        ('[sunx]\nnonsense = "made-up"', "nonsense; the settings are exchange, apiKey"),
        ("[sunx]\nsecret = 5", "secret must be text in quotes"),
        ('sunx = "made-up"', r"write \[sunx\] above its keys"),
        ('apiKey = "made-up"', r"apiKey is outside a table; write .* like \[sunx\] above it"),
        ('[sunxx]\napiKey = "made-up"', r"\[sunxx\] is not an exchange; did you mean 'sunx'\?"),
        ('[main]\napiKey = "made-up"', r"\[main\]: the exchange is missing; .* = \"sunx\""),
        ('[main]\nexchange = "sunnx"', r"\[main\]: no plugin offers .*; did you mean 'sunx'\?"),
        ('[main]\nexchange = "made-up"', r"\[main\]: no plugin offers this exchange$"),
        ("[main]\nexchange = 5", "exchange must be text in quotes"),
    ],
)
def test_bad_keys_file(tmp_path: Path, text: str, words: str) -> None:
    """An invalid keys file is refused without quoting its content."""
    file = private_file(tmp_path / "keys.toml", text)
    with pytest.raises(KeysError, match=words) as caught:
        config_from_environment("sunx", {"SUNX_ADAPTER_KEYS": str(file)})
    assert "made-up" not in str(caught.value)
    assert caught.value.__context__ is None


def test_named_accounts(tmp_path: Path) -> None:
    """A table's name is an exchange's id, or any name if the table has ``exchange``."""
    file = private_file(tmp_path / "keys.toml", NAMED)
    assert accounts_from_file(file) == {
        "sunx": Account("sunx", {"apiKey": "a", "secret": "b"}),
        "grid-bot": Account("htxfutures", {"apiKey": "c", "secret": "d"}),
        "kraken": Account("kraken", {"apiKey": "e", "anything": "f"}),
    }
    environ = {"SUNX_ADAPTER_KEYS": str(file), "GRID_BOT_API_SECRET": "g"}
    assert config_from_environment("grid-bot", environ) == {"apiKey": "c", "secret": "g"}
    assert account_from_environment("grid-bot", environ).exchange == "htxfutures"
    assert account_from_environment("htxfutures", environ) == Account("htxfutures", {})


def test_all_accounts_with_keys(tmp_path: Path) -> None:
    """All accounts are those of the file and those with keys in variables."""
    environ = {"HTXFUTURES_API_KEY": "h", "SUNX_API_KEY": ""}
    assert accounts_from_environment(environ) == {
        "htxfutures": Account("htxfutures", {"apiKey": "h"})
    }
    environ["SUNX_ADAPTER_KEYS"] = str(private_file(tmp_path / "keys.toml", NAMED))
    assert list(accounts_from_environment(environ)) == ["sunx", "htxfutures", "grid-bot", "kraken"]
    assert accounts_from_environment({}) == {}


def test_account_from_variables_alone() -> None:
    """A named account needs no file: a variable can name its exchange."""
    environ = {"MAIN_EXCHANGE": "sunx", "MAIN_API_KEY": "a", "MAIN_API_SECRET": "b"}
    assert account_from_environment("main", environ) == Account(
        "sunx", {"apiKey": "a", "secret": "b"}
    )


def test_thousands_of_accounts(tmp_path: Path) -> None:
    """One call lists all accounts of a large file."""
    tables = (f'[bot-{n}]\nexchange = "sunx"\napiKey = "k{n}"\n' for n in range(5000))
    accounts = accounts_from_file(private_file(tmp_path / "keys.toml", "".join(tables)))
    assert len(accounts) == 5000
    assert accounts["bot-4999"] == Account("sunx", {"apiKey": "k4999"})


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """Neither an account's repr nor the traceback of an exception shows a key."""
    file = private_file(tmp_path / "keys.toml", NAMED.replace('"b"', '"made-up-secret"'))
    assert "made-up-secret" not in repr(accounts_from_file(file))
    environ = {"SUNX_ADAPTER_KEYS": str(file), "SUNX_PRIVATE_KEY_FILE": str(tmp_path / "none")}
    for read in (
        accounts_from_environment,
        lambda environ: account_from_environment("sunx", environ),
    ):
        with pytest.raises(KeysError, match="none cannot be read") as caught:
            read(environ)
        traceback, frames = caught.value.__traceback__, []
        while traceback is not None:
            frames.append(traceback.tb_frame)
            traceback = traceback.tb_next
        values = [str(frame.f_locals) for frame in frames if frame.f_globals is vars(keys)]
        assert values
        assert "made-up-secret" not in "".join(values)


@pytest.mark.parametrize("name", ["sunxx", "htxfuture", "grid-bott"])
def test_misspelt_name(tmp_path: Path, name: str) -> None:
    """A misspelt exchange or account name is refused; the error suggests the right one."""
    environ = {keys.KEYS_FILE_VARIABLE: str(private_file(tmp_path / "keys.toml", NAMED))}
    with pytest.raises(KeysError, match=r"did you mean '(sunx|htxfutures|grid-bot)'"):
        config_from_environment(name, environ)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("timeout = " + "9" * 5000, "is not a TOML file"),
        ("options = {x = " + "[" * 3000 + "]" * 3000 + "}", "is not a TOML file"),
        ('urls = "made-up"', "urls must look like"),
        ('urls = {api = "made-up"}', "urls must look like"),
        ("urls = [1]", "urls must look like"),
    ],
)
def test_invalid_content(tmp_path: Path, content: str, words: str) -> None:
    """Content that cannot be used is a KeysError, and no frame of it holds a secret."""
    secret = "made-up-secret-0123456789"
    text = f'[sunx]\napiKey = "made-up-key"\nsecret = "{secret}"\n{content}\n'
    environ = {
        keys.KEYS_FILE_VARIABLE: str(private_file(tmp_path / "keys.toml", text)),
        "HTXFUTURES_API_SECRET": secret,
    }
    for read in (accounts_from_environment, keys.account_names):
        with pytest.raises(KeysError, match=words) as failure:
            read(environ)
        assert secret not in frames_of(failure.value)
    with pytest.raises(KeysError, match=words) as failure:
        config_from_environment("sunx", environ)
    assert secret not in frames_of(failure.value)


@pytest.mark.parametrize("variable", [keys.KEYS_FILE_VARIABLE, "SUNX_PRIVATE_KEY_FILE"])
@pytest.mark.parametrize("name", ["~no-such-user/keys", "a\0b"])
def test_names_that_are_no_file(variable: str, name: str) -> None:
    """A name that no file can have is a KeysError, and no frame of it holds a secret."""
    secret = "made-up-secret-0123456789"
    with pytest.raises(KeysError, match="cannot be read") as failure:
        config_from_environment("sunx", {"SUNX_API_SECRET": secret, variable: name})
    assert secret not in frames_of(failure.value)


def frames_of(error: BaseException) -> str:
    """The local variables of the package's frames in a traceback."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    package = [each for each in frames if each.f_globals["__name__"].startswith("sunx_adapter")]
    assert package
    return repr([each.f_locals for each in package])
