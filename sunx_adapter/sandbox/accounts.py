"""The sandbox's accounts: their keys, settings and balances, all made up."""

import base64
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from sunx_adapter.sandbox.balances import PRICES, Holding, RandomWalk, balance_data

SignatureMethod = Literal["HmacSHA256", "Ed25519"]

SINGLE_ASSET_MODE: Final = 0

_PRIVATE_KEY: Final = re.compile("[A-Za-z0-9+/]{43}=")  # Base64 of 32 bytes
_MAX_NAMES: Final = 20


@dataclass(frozen=True, slots=True)
class AccountRefusal:
    """The error that answers every signed request of an account.

    ``code`` is from the venues' error lists, like 12009 (user locked); ``message`` is its text.
    """

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class SandboxAccount:
    """One account of the sandbox, with one API key. Neither key nor secrets are in its repr.

    Attributes:
        name: its name in the sandbox's methods; it is never sent.
        uid: user id. The read limit is per uid, so accounts may share one.
        api_key: the access key.
        secret: for HmacSHA256 signatures; ``None`` if the key is not enabled for them.
        private_key: for Ed25519 signatures, Base64 of the raw 32 bytes; ``None`` as above.
        balance: ``data`` of the balance answer, sent unchanged; see :func:`balance_data`.
        asset_mode: collateral mode: 0 single-asset (old; v5 refuses its balance), 1 multi-assets,
            2 single-asset.
        extra_row_fields: whether v5 answers have the undocumented row fields, as live answers do.
        refusal: the error that answers every signed request; ``None`` for a working account.

    Raises:
        ValueError: a value is invalid; the message begins with the attribute's name.
    """

    name: str
    uid: str
    api_key: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    balance: Mapping[str, Any] = field(default_factory=balance_data, hash=False, repr=False)
    asset_mode: Literal[0, 1, 2] = 1
    extra_row_fields: bool = True
    refusal: AccountRefusal | None = None

    def __post_init__(self) -> None:
        for attribute in ("name", "uid", "api_key"):
            if not getattr(self, attribute):
                raise ValueError(f"{attribute}: must not be empty")
        if not self.signature_methods:
            raise ValueError("secret: a key needs a secret, a private_key or both")
        if self.private_key is not None and not _PRIVATE_KEY.fullmatch(self.private_key):
            raise ValueError("private_key: must be Base64 of the raw 32 bytes of an Ed25519 key")
        if self.asset_mode not in (0, 1, 2):
            raise ValueError("asset_mode: must be 0, 1 or 2")

    @property
    def signature_methods(self) -> tuple[SignatureMethod, ...]:
        """The methods that the key is enabled for."""
        hmac: tuple[SignatureMethod, ...] = ("HmacSHA256",) if self.secret else ()
        return (*hmac, "Ed25519") if self.private_key else hmac


class AccountBook:
    """The current accounts, by name and by API key. Thread-safe. The arguments are the sandbox's.

    ``on_change`` is called with each changed account; calls never overlap.

    Raises:
        ValueError: there is no account, or two share a name or an API key.
    """

    def __init__(
        self, accounts: Iterable[SandboxAccount] | int | None, walk: RandomWalk | None = None
    ) -> None:
        if accounts is None:
            accounts = DEFAULT_ACCOUNTS
        elif isinstance(accounts, int):
            accounts = numbered_accounts(accounts)
        self._by_name: dict[str, SandboxAccount] = {}
        self._by_key: dict[str, str] = {}
        for account in accounts:
            if account.name in self._by_name:
                raise ValueError(f"two accounts have the name {account.name!r}")
            other = self._by_key.setdefault(account.api_key, account.name)
            if other != account.name:
                names = f"{other}, {account.name}"
                raise ValueError(f"the accounts {names} share an api_key: each needs its own")
            self._by_name[account.name] = account
        if not self._by_name:
            raise ValueError("a sandbox needs at least one account")
        self.random_walk = walk
        self.on_change: Callable[[SandboxAccount], None] = lambda _: None
        self._changing = threading.Lock()

    def all(self) -> tuple[SandboxAccount, ...]:
        """All accounts, in the order given."""
        return tuple(self._by_name.values())

    def with_key(self, api_key: str) -> SandboxAccount | None:
        """The account with that API key, if there is one."""
        return self._by_name.get(self._by_key.get(api_key, ""))

    def named(self, name: str) -> SandboxAccount:
        """The account of that name. If there is none, a ValueError lists the existing ones."""
        if name not in self._by_name:
            raise ValueError(f"the sandbox has no account {name!r}; it has: {self.names()}")
        return self._by_name[name]

    def names(self) -> str:
        """The names, for messages; of many accounts the first ones."""
        known = ", ".join([*self._by_name][:_MAX_NAMES])
        more = len(self._by_name) - _MAX_NAMES
        return f"{known} and {more} more" if more > 0 else known

    def update(self, name: str, balance: Mapping[str, Any] | None = None) -> SandboxAccount:
        """Change an account: to that balance, or at random if one is due. See :meth:`named`."""
        with self._changing:
            account = self.named(name)
            if balance is None and self.random_walk is not None:
                balance = self.random_walk.next(name, account.balance)
            if balance is not None:
                account = self._by_name[name] = replace(account, balance=balance)
                self.on_change(account)
            return account


def _account(
    number: int, name: str, *holdings: Holding, state: str = "normal", **settings: Any
) -> SandboxAccount:
    return SandboxAccount(
        name=name,
        uid=str(100000000 + number),
        api_key=f"sandbox-{name}-access-key",
        secret=f"sandbox-{name}-secret",
        # Any 32 bytes are an Ed25519 key; readable ones are obviously made up.
        private_key=base64.b64encode(f"sandbox-{name}-key".encode().ljust(32, b".")).decode(),
        balance=balance_data(holdings, state=state),
        **settings,
    )


# A holding's amounts: cash, unrealised PnL, initial margin, maintenance margin.
# fmt: off
DEFAULT_ACCOUNTS: Final[tuple[SandboxAccount, ...]] = (
    # Three currencies, margin in use, a profit, a loss, amounts with 18 decimal places.
    _account(1, "main",
             Holding("USDT", "12480.250075113264418803", "186.4", "3210.75", "642.15"),
             Holding("BTC", "0.40000001", price=PRICES["BTC"]),
             Holding("ETH", "5.2", "-0.035", "0.75", "0.15", price=PRICES["ETH"])),
    # The example on SunX's page.
    _account(2, "small", Holding("USDT", "0.004015101942876636")),
    # The example on HTX's page: negative cash, covered by a bitcoin; vouchers are "".
    _account(3, "indebted",
             Holding("USDT", "-0.0050448676", "-0.091875", "2.8999998", "0.05437499625",
                     voucher=""),
             Holding("BTC", "1", price="75000", voucher="")),
    _account(4, "empty"),
    _account(5, "liquidating", Holding("USDT", "950", "-880.25", "400", "80"), state="liquidating"),
    # A state may be a number, as in the table on the venues' pages, or a name, as in the examples.
    _account(6, "adl", Holding("USDT", "2000", "1500.5", "900", "180"), state="5"),
    _account(7, "open_limit",
             Holding("USDT", "300", "-120", "150", "90"),
             Holding("ETH", "0.01", price=PRICES["ETH"]), state="open_limit"),
    _account(8, "locked", refusal=AccountRefusal(12009, "The user was locked or does not exist")),
    _account(9, "unopened", refusal=AccountRefusal(4002, "Futures trading is not opened")),
    # SunX has no other mode than multi-assets, so only v5 refuses this account.
    _account(10, "single_asset", Holding("USDT", "100"), asset_mode=SINGLE_ASSET_MODE),
)
# fmt: on


def numbered_accounts(count: int) -> tuple[SandboxAccount, ...]:
    """``account-1`` to ``account-COUNT``; ``account-7`` has 1007 USDT in cash, and so on."""
    return tuple(
        _account(1000 + n, f"account-{n}", Holding("USDT", str(1000 + n), "12.5", "100", "20"))
        for n in range(1, count + 1)
    )
