"""What the sandbox knows of one account: its key, its state of affairs, its balance."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sunx_adapter.protocol.signing import ED25519_KEY_BYTES, SignatureMethod, mask
from sunx_adapter.sandbox.holdings import balance_data

MULTI_ASSETS_MODE: Final = 1
ASSET_MODES: Final = (0, MULTI_ASSETS_MODE, 2)
"""``data.asset_mode``: 0 single-asset (old), 1 multi-assets, 2 single-asset."""


@dataclass(frozen=True, slots=True)
class AccountRefusal:
    """A code of the venues' error lists that every signed request of an account is answered with.

    Attributes:
        code: for example 12009, user locked.
        message: the text beside it.
    """

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class SandboxAccount:
    """One account of the sandbox, with one API key. Its secrets are not in its repr.

    Attributes:
        name: what :meth:`Sandbox.config` is asked for; nothing of it is sent.
        uid: user id. The read limit is per uid, so accounts may share one.
        api_key: the access key.
        secret: signs with HmacSHA256; ``None`` if the key is not enabled for that.
        private_key: signs with Ed25519, Base64 of the raw 32 bytes; ``None`` as above.
        balance: ``data`` of the balance answer, sent as it is; amounts are decimal text.
            :func:`~sunx_adapter.sandbox.holdings.balance_data` makes a consistent one.
        asset_mode: collateral mode, see :data:`ASSET_MODES`; with 0 the v5 balance is refused.
        extra_row_fields: whether v5 sends the undocumented row fields that the balance has, as
            live answers do; SunX never does.
        refusal: set where every signed request is to be refused.

    Raises:
        ValueError: a value cannot be; the text begins with the attribute's name.
    """

    name: str
    uid: str
    api_key: str
    secret: str | None = None
    private_key: str | None = None
    balance: Mapping[str, Any] = field(default_factory=balance_data, hash=False)
    asset_mode: int = MULTI_ASSETS_MODE
    extra_row_fields: bool = True
    refusal: AccountRefusal | None = None

    def __post_init__(self) -> None:
        for attribute in ("name", "uid", "api_key"):
            if not getattr(self, attribute):
                raise ValueError(f"{attribute}: must not be empty")
        if not self.signature_methods:
            raise ValueError("secret: a key needs a secret, a private_key or both")
        if self.private_key is not None and _raw_key(self.private_key) is None:
            raise ValueError("private_key: must be Base64 of the raw 32 bytes of an Ed25519 key")
        if self.asset_mode not in ASSET_MODES:
            raise ValueError("asset_mode: must be 0, 1 or 2")

    def __repr__(self) -> str:
        return (
            f"SandboxAccount(name={self.name!r}, uid={self.uid!r}, api_key={mask(self.api_key)}, "
            f"signature_methods={self.signature_methods!r}, asset_mode={self.asset_mode!r}, "
            f"extra_row_fields={self.extra_row_fields!r}, refusal={self.refusal!r})"
        )

    @property
    def signature_methods(self) -> tuple[SignatureMethod, ...]:
        """The methods that the key is enabled for."""
        methods: tuple[SignatureMethod, ...] = ()
        if self.secret:
            methods += ("HmacSHA256",)
        if self.private_key:
            methods += ("Ed25519",)
        return methods

    @property
    def raw_private_key(self) -> bytes:
        """The 32 bytes of the Ed25519 key.

        Raises:
            ValueError: the key is not enabled for Ed25519.
        """
        raw = _raw_key(self.private_key or "")
        if raw is None:
            raise ValueError(f"account {self.name!r} has no private_key")
        return raw


def _raw_key(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == ED25519_KEY_BYTES else None


def checked_accounts(accounts: Iterable[SandboxAccount]) -> tuple[SandboxAccount, ...]:
    """The accounts, which can be told apart.

    Raises:
        ValueError: there is none, or two have one name or one API key.
    """
    checked = tuple(accounts)
    if not checked:
        raise ValueError("a sandbox needs at least one account")
    names = [account.name for account in checked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two accounts have the name {twice[0]!r}")
    keys = [account.api_key for account in checked]
    if same := [account.name for account in checked if keys.count(account.api_key) > 1]:
        raise ValueError(f"the accounts {', '.join(same)} share an api_key: each needs its own")
    return checked
