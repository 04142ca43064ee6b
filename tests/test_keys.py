from pathlib import Path

import pytest

from sunx_adapter.keys import KeysError, config_from_environment


def private_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_environment() -> None:
    """Keys come from variables with the exchange's prefix; what is empty is not given."""
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
    """A private key comes from a file that only its owner can read."""
    file = private_file(tmp_path / "key.pem", "made-up key")
    config = config_from_environment("sunx", {"SUNX_PRIVATE_KEY_FILE": str(file)})
    assert config == {"privateKey": "made-up key"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_file_for_others(tmp_path: Path, mode: int) -> None:
    """A file that others may use is refused with the command that mends it."""
    file = private_file(tmp_path / "key.pem", "made-up key", mode)
    with pytest.raises(KeysError, match=f"chmod 600 '{file}'"):
        config_from_environment("sunx", {"SUNX_PRIVATE_KEY_FILE": str(file)})


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(KeysError, match=r"none\.pem cannot be read: No such file"):
        config_from_environment("sunx", {"SUNX_PRIVATE_KEY_FILE": str(tmp_path / "none.pem")})


def test_keys_file(tmp_path: Path) -> None:
    """A TOML file has a table per exchange; variables overrule it."""
    text = '[sunx]\napiKey = "a"\nsecret = "b"\n[htxfutures]\napiKey = "c"\n'
    environ = {"SUNX_ADAPTER_KEYS": str(private_file(tmp_path / "keys.toml", text))}
    assert config_from_environment("sunx", environ) == {"apiKey": "a", "secret": "b"}
    environ["HTXFUTURES_API_KEY"] = "d"
    assert config_from_environment("htxfutures", environ) == {"apiKey": "d"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret = = made-up", "no TOML file"),
        ('[sunx]\napikey = "made-up"', "unknown keys apikey"),
        ('sunx = "made-up"', "is no table"),
    ],
)
def test_bad_keys_file(tmp_path: Path, text: str, words: str) -> None:
    """A file of another form is refused without quoting it."""
    file = private_file(tmp_path / "keys.toml", text)
    with pytest.raises(KeysError, match=words) as caught:
        config_from_environment("sunx", {"SUNX_ADAPTER_KEYS": str(file)})
    assert "made-up" not in str(caught.value)
    assert caught.value.__context__ is None
