import copy
import json
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from ccxt.base.errors import BadResponse, NotSupported
from hypothesis import given, settings
from hypothesis import strategies as st

from sunx_adapter import AccountState, HtxFutures
from tests.conftest import Caller, config_answering, payload

ACCOUNT = {
    "state": "normal",
    **dict.fromkeys(("equity", "initial_margin", "maintenance_margin", "profit_unreal"), "0"),
    **dict.fromkeys(("maintenance_margin_rate", "available_margin"), "0"),
}


def amounts() -> st.SearchStrategy[str]:
    """Decimal texts of up to 40 digits, as the venues write amounts."""
    whole = st.integers(-(10**22), 10**22).map(str)
    places = st.text("0123456789", max_size=18).map(lambda text: f".{text}" if text else "")
    return st.builds("{}{}".format, whole, places)


def rows(with_margin: bool = False) -> st.SearchStrategy[dict[str, str]]:
    fields = ["equity", "available", "initial_margin", "withdraw_available"]
    fields += ["available_margin"] if with_margin else []
    return st.fixed_dictionaries(
        {
            "currency": st.sampled_from(["USDT", "usdt", "BTC", "XBT", "xbt", "ETH", "C1", "C2"]),
            **dict.fromkeys(fields, amounts()),
        }
    )


def body(details: object, **other: object) -> bytes:
    data = {**ACCOUNT, "details": details}
    return json.dumps({"code": 200, "data": data, "ts": 1, **other}).encode()


def read(details: object, config: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    unlimited = {"number": str, "enableRateLimit": False, **config_answering(body(details))}
    with HtxFutures(unlimited | (config or {})) as exchange:
        balance: dict[str, Any] = exchange.fetch_balance(params)
        return balance


EXAMPLES = [
    (
        "sunx-documented",
        {"USDT": ("0.004015101942876636", "0", "0.004015101942876636", None)},
        1759042264737,
    ),
    (
        "htx-v5-documented",
        {
            "USDT": ("-2.9969196676", "2.8999998", "-0.0969198676", "0.0050448676"),
            "BTC": ("1", "0", "1", None),
        },
        1736995070573,
    ),
    (
        "htx-v5-live-rest",
        {"USDT": ("174.216697577770536136", "0", "174.216697577770536136", None)},
        1770293281344,
    ),
]


@pytest.mark.parametrize(("name", "expected", "timestamp"), EXAMPLES)
def test_examples(
    call: Caller, name: str, expected: dict[str, tuple[str | None, ...]], timestamp: int
) -> None:
    """Each documented or live answer gives exactly these figures; ``info`` is unchanged."""
    for exchange_id in ("sunx", "htxfutures"):
        balance = call(
            exchange_id, {"number": str, **config_answering(payload(name))}, "fetch_balance"
        )
        figures = {
            code: tuple(balance[code].get(view) for view in ("free", "used", "total", "debt"))
            for code in expected
        }
        assert figures == expected
        assert balance["info"] == json.loads(payload(name))
        assert balance["timestamp"] == timestamp
        debt = {"debt"} if any(entry[3] for entry in expected.values()) else set()
        assert balance.keys() == {
            *expected, "free", "used", "total", "info", "timestamp", "datetime", *debt,
        }  # fmt: skip


@pytest.mark.long("maps generated accounts")
@settings(deadline=None)
@given(
    st.lists(st.booleans().flatmap(rows), max_size=8),
    st.sampled_from(["margin", "available", "withdrawable"]),
)
def test_mapping_against_fractions(details: list[dict[str, str]], policy: str) -> None:
    """For any account, each figure equals the mapping table computed with exact fractions."""
    totals: dict[str, Fraction] = {}
    frees: dict[str, Fraction] = {}
    debts: dict[str, Fraction] = {}
    for row in details:
        code = {"XBT": "BTC"}.get(row["currency"].upper(), row["currency"].upper())
        equity, cash = Fraction(row["equity"]), Fraction(row["available"])
        free = {
            "margin": Fraction(row["available_margin"])
            if "available_margin" in row
            else equity - Fraction(row["initial_margin"]),
            "available": cash,
            "withdrawable": Fraction(row["withdraw_available"]),
        }[policy]
        totals[code] = totals.get(code, Fraction(0)) + equity
        frees[code] = frees.get(code, Fraction(0)) + free
        if cash < 0:
            debts[code] = debts.get(code, Fraction(0)) - cash
    balance = read(details, free=policy)
    assert {code: Fraction(text) for code, text in balance["total"].items()} == totals
    assert {code: Fraction(text) for code, text in balance["free"].items()} == frees
    assert {code: Fraction(text) for code, text in balance.get("debt", {}).items()} == debts
    for code, total in totals.items():
        assert Fraction(balance[code]["used"]) == total - frees[code]
        for view in ("free", "used", "total"):
            assert balance[view][code] == balance[code][view]


@pytest.mark.long("maps generated accounts")
@settings(deadline=None)
@given(st.lists(rows(), max_size=4))
def test_number_types_agree(details: list[dict[str, str]]) -> None:
    """Decimal figures equal the text; float figures are the nearest floats."""
    text = read(details)
    exact = read(details, {"number": Decimal})
    floats = read(details, {"number": float})
    for code, figure in text["total"].items():
        assert exact["total"][code] == Decimal(figure)
        assert isinstance(exact["total"][code], Decimal)
        assert floats["total"][code] == float(figure)
        assert isinstance(floats["total"][code], float)


ROW = {"currency": "USDT", "equity": "3", "available": "2", "initial_margin": "1"}
NO_AMOUNTS: list[Any] = [
    *(None, "", " ", "abc", "NaN", "Infinity", "-inf", "1_0", " 1", "1 ", "1,5", "1.2.3", "--1"),
    *("\t1", "1\n", "\u00a01", "٣", "\uff11", "sNaN", "0x1f", True, [], {}, "e", "1" * 200),
    *("1e1000", "1e999999999", 10**150),
]


@pytest.mark.parametrize("value", NO_AMOUNTS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("field", ["equity", "available", "initial_margin"])
def test_unreadable_amount(field: str, value: object) -> None:
    """A needed amount that is no finite decimal number raises BadResponse with its path."""
    with pytest.raises(BadResponse, match=rf"data\.details\[1\]\.{field} "):
        read([ROW, {**ROW, field: value}])


@pytest.mark.parametrize("value", [None, "", True, [], {}], ids=repr)
@pytest.mark.parametrize("field", ["available", "available_margin"])
def test_unreadable_amount_beside_a_number(field: str, value: object) -> None:
    """The same holds where the equity is a JSON number."""
    row = {**ROW, "equity": 5, "available_margin": 5, field: value}
    with pytest.raises(BadResponse, match=rf"data\.details\[0\]\.{field} is"):
        read([row])


@pytest.mark.parametrize("field", ["equity", "available", "initial_margin"])
def test_missing_amount(field: str) -> None:
    """A missing needed amount raises BadResponse with its path."""
    with pytest.raises(BadResponse, match=rf"data\.details\[0\]\.{field} is missing"):
        read([{key: value for key, value in ROW.items() if key != field}])


def test_unneeded_amounts() -> None:
    """An amount that the policy does not need is not checked."""
    row = {**ROW, "available_margin": "2.5", "initial_margin": "?", "withdraw_available": None}
    assert read([row])["USDT"] == {"free": "2.5", "used": "0.5", "total": "3"}


@pytest.mark.parametrize("value", ["", None, "?"])
def test_unreadable_available_margin(value: object) -> None:
    """An unreadable ``available_margin`` raises BadResponse; it is not computed instead."""
    with pytest.raises(BadResponse, match=r"data\.details\[0\]\.available_margin"):
        read([{**ROW, "available_margin": value}])


def test_json_numbers_are_exact() -> None:
    """Amounts sent as JSON numbers keep every digit; ``info`` has them as ``json`` reads them."""
    details = (
        b'[{"currency":"USDT","equity":0.1234567890123456789012345,'
        b'"available":123456789012345678901234567890,"initial_margin":1e-20}]'
    )
    answer = b'{"code":200,"data":{"details":' + details + b'},"ts":"1770293281344"}'
    with HtxFutures({"number": str, **config_answering(answer)}) as exchange:
        balance = exchange.fetch_balance()
        assert balance["USDT"] == {
            "free": "0.1234567890123456788912345",
            "used": "0.00000000000000000001",
            "total": "0.1234567890123456789012345",
        }
        assert balance["timestamp"] == 1770293281344
        assert balance["info"] == json.loads(answer)
        assert type(balance["info"]["data"]["details"][0]["equity"]) is float
        assert exchange.fetch_balance({"free": "available"})["USDT"]["free"] == (
            "123456789012345678901234567890"
        )


def test_details_as_an_object() -> None:
    """Details in the form of HTX's docs, {"0": …, "1": …}, are read in order."""
    details = {str(index): {**ROW, "currency": f"C{index}"} for index in (10, *range(10))}
    assert list(read(details)["total"]) == [f"C{index}" for index in range(11)]


@pytest.mark.parametrize("keys", [["1"], ["0", "2"], ["0", "00"], ["0", "x"], ["-1", "0"]])
def test_details_with_a_gap(keys: list[str]) -> None:
    """Details whose keys are not 0, 1, 2 … are refused: a row may be missing."""
    with pytest.raises(BadResponse, match=r"data\.details is an object"):
        read(dict.fromkeys(keys, ROW))


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (b'{"code":200}', "data is missing"),
        (b'{"code":200,"data":null}', "data is null"),
        (b'{"code":200,"data":[]}', "data is a list"),
        (b'{"code":200,"data":{}}', r"data\.details is missing"),
        (b'{"code":200,"data":{"details":{}}}', r"data\.details is an object"),
        (b'{"code":200,"data":{"details":null}}', r"data\.details is null"),
        (b'{"code":200,"data":{"details":"[]"}}', r"data\.details is '\[\]'"),
        (b'{"code":200,"data":{"details":{"a":{}}}}', r"data\.details is an object"),
        (b'{"code":200,"data":{"details":[7]}}', r"data\.details\[0\] is 7"),
        (b'{"code":200,"data":{"details":[]},"ts":"soon"}', "ts is 'soon'"),
        (b'{"code":200,"code":200,"data":{"details":[]}}', "duplicate key 'code'"),
    ],
)
def test_wrong_shapes(call: Caller, answer: bytes, path: str) -> None:
    """A field that is missing, null or of the wrong type is named; the result is never empty."""
    with pytest.raises(BadResponse, match=path):
        call("htxfutures", config_answering(answer), "fetch_balance")


@pytest.mark.parametrize("currency", [None, "", "  ", 7, ["USDT"]])
def test_row_without_currency(currency: object) -> None:
    """A row without a currency raises BadResponse that names it."""
    with pytest.raises(BadResponse, match=r"data\.details\[0\]\.currency"):
        read([{**ROW, "currency": currency}])


def test_duplicate_key() -> None:
    """A duplicate key at any depth raises BadResponse."""
    row = json.dumps(ROW)[:-1] + ', "equity": "4"}'
    answer = f'{{"code":200,"data":{{"details":[{row}]}}}}'.encode()
    with (
        HtxFutures(config_answering(answer)) as exchange,
        pytest.raises(BadResponse, match="duplicate key 'equity'"),
    ):
        exchange.fetch_balance()


def test_colons_in_text_are_no_keys() -> None:
    """Colons inside text do not count as duplicate keys."""
    assert read([{**ROW, "note": "a:b:c:d:e:f:g:h:i:j:k:l:m"}])["USDT"]["total"] == "3"


def test_empty_and_zero() -> None:
    """No rows give an empty balance; a row of zeros is kept."""
    empty = read([])
    assert empty["total"] == empty["free"] == empty["used"] == {}
    zero = {**ROW, "equity": "0.000", "available": "0", "initial_margin": "-0"}
    assert read([zero])["USDT"] == {"free": "0", "used": "0", "total": "0"}


def test_two_ids_of_one_code() -> None:
    """Rows with the same unified code are added, and so are their debts."""
    details = [
        {**ROW, "currency": "XBT", "available": "-1"},
        {**ROW, "currency": "btc", "available": "5"},
    ]
    assert read(details)["BTC"] == {"free": "4", "used": "2", "total": "6", "debt": "1"}


def test_unknown_policy() -> None:
    """An unknown policy is refused; the error lists the valid ones."""
    with pytest.raises(NotSupported, match="margin, available, withdrawable"):
        read([ROW], free="cash")


def test_policy_as_option() -> None:
    """The policy can be set as an option and overridden per call."""
    config = {"number": str, **config_answering(body([{**ROW, "withdraw_available": "0.5"}]))}
    config["options"]["free"] = "withdrawable"
    with HtxFutures(config) as exchange:
        assert exchange.fetch_free_balance() == {"USDT": "0.5"}
        assert exchange.fetch_free_balance({"free": "available"}) == {"USDT": "2"}


def test_balances_are_plain_and_independent() -> None:
    """A balance can be copied and pickled; changing one does not change the next."""
    with HtxFutures(config_answering(payload("htx-v5-documented"))) as exchange:
        first, second = exchange.fetch_balance(), exchange.fetch_balance()
        kept = copy.deepcopy(second)
        assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301
        first["info"]["data"]["details"].clear()
        first["USDT"]["free"] = first["free"]["USDT"] = None
        assert second == kept
        assert exchange.fetch_balance() == kept


STATES = [
    (AccountState.NORMAL, (True, True, True)),
    (AccountState.LIQUIDATING, (False, False, False)),
    (AccountState.ADL, (False, False, False)),
    (AccountState.OPEN_LIMIT, (False, True, False)),
]


@pytest.mark.parametrize(("state", "permitted"), STATES)
def test_states(call: Caller, state: AccountState, permitted: tuple[bool, ...]) -> None:
    """A state is known by name and by number, and says what it permits."""
    spellings = [state.name, state.name.lower(), state.value, str(state.value)]
    for spelling in spellings:
        answer = json.dumps(
            {"code": 200, "data": {**ACCOUNT, "state": spelling, "details": []}}
        ).encode()
        summary = call("htxfutures", config_answering(answer), "fetch_account_summary")
        assert summary.state is state
    assert permitted == (
        state.permits_trading,
        state.permits_transfers_in,
        state.permits_transfers_out,
    )


@pytest.mark.parametrize("state", ["odd", 2, True, None, ""])
def test_unknown_state(state: object) -> None:
    """An unknown state raises an error in the summary, but not in the balance."""
    answer = json.dumps({"code": 200, "data": {**ACCOUNT, "state": state, "details": []}}).encode()
    with HtxFutures(config_answering(answer)) as exchange:
        assert exchange.fetch_balance()["total"] == {}
        with pytest.raises(BadResponse, match=r"data\.state .*known states: 1 NORMAL, 3"):
            exchange.fetch_account_summary()


def test_summary_of_the_example(call: Caller) -> None:
    """The summary of the documented account is exact; blank vouchers are None."""
    answer = config_answering(payload("htx-v5-documented"))
    summary = call("htxfutures", answer, "fetch_account_summary")
    assert summary.equity == Decimal("74999.9030801324")
    assert summary.equity - summary.initial_margin == summary.available_margin
    assert summary.maintenance_margin_rate == Decimal("0.000000725000886893")
    assert summary.voucher_value is None
    assert (summary.created_time, summary.timestamp) == (1736736784249, 1736995070573)


@pytest.mark.parametrize("field", ["equity", "available_margin", "maintenance_margin_rate"])
def test_summary_needs_its_figures(field: str) -> None:
    """A missing figure of the account is named in the error."""
    data = {key: value for key, value in ACCOUNT.items() if key != field}
    answer = json.dumps({"code": 200, "data": {**data, "details": []}}).encode()
    with (
        HtxFutures(config_answering(answer)) as exchange,
        pytest.raises(BadResponse, match=rf"data\.{field} is missing"),
    ):
        exchange.fetch_account_summary()
