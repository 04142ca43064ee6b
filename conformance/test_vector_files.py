"""The vector files are valid and consistent."""

import json
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from typing import Any

import ccxt
import jsonschema  # type: ignore[import-untyped]

from suite.vectors import SCHEMA, Collection, Vector


@cache
def _validator() -> Any:
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_vector_file(vector: Vector, collection: Collection) -> None:
    """Every vector is valid by `vector.schema.json`, and its expectation is consistent."""
    errors = [
        f"{error.json_path}: {error.message}" for error in _validator().iter_errors(vector.content)
    ]
    assert not errors, "\n".join(errors)
    assert set(vector.variants) <= set(collection.settings.variants)
    expect = vector.expect
    if not vector.gives_balance:
        assert issubclass(getattr(ccxt, expect["exception"]), ccxt.BaseError)
        return
    for code, figures in expect["balance"].items():
        free, used, total = (Fraction(figures[name]) for name in ("free", "used", "total"))
        assert free + used == total, code
    if expect["timestamp"] is None:
        assert expect["datetime"] is None
    else:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=expect["timestamp"])
        text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert expect["datetime"] == text
