"""Vectors: a venue's answers, and the expected balance or exception for each.

``README.md`` and ``vector.schema.json`` describe the format, which is the same for all venues.
"""

import base64
import copy
import gzip
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal

SERVER: Final = "@SERVER@"
"""Placeholder for the server's address, ``http://127.0.0.1:…``."""

TARGET: Final = "@TARGET@"
"""Placeholder for the path and query of the request, unchanged."""

SETTINGS_FILE: Final = "config.toml"

SCHEMA: Final = Path(__file__).parent.parent / "vector.schema.json"
DEFAULT_VECTORS: Final = Path(__file__).parent.parent / "vectors"


class VectorsError(Exception):
    """A directory of vectors cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer, without any transport fault.

    Attributes:
        status: the HTTP status code.
        headers: without those for length and framing.
        body: the sent bytes, perhaps compressed.
        text_body: whether placeholders in the body are replaced.
    """

    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    text_body: bool = False


@dataclass(frozen=True, slots=True)
class Transport:
    """How an answer is sent; by default whole, at once, with its length.

    Attributes:
        connection: in place of an answer: the connection is refused, reset or closed, or the server
            stays silent.
        raw: bytes to send in place of an HTTP answer, before the connection is closed.
        framing: how the end of the body is marked.
        piece: number of bytes of the body (or of ``raw``) per write; ``None`` for all.
        pause: the pause between two pieces, in seconds.
        cut_after: number of bytes of the body after which to stop; ``None`` for never.
        cut_by: what happens to the connection then.
    """

    connection: Literal["refuse", "reset", "close", "silent"] | None = None
    raw: bytes | None = None
    framing: Literal["content-length", "chunked", "until-close"] = "content-length"
    piece: int | None = None
    pause: float = 0.0
    cut_after: int | None = None
    cut_by: Literal["close", "reset", "stall"] = "close"


@dataclass(frozen=True)
class Vector:
    """One vector file."""

    path: Path
    content: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The file's name without its suffix; it says what the vector shows."""
        return self.path.stem

    @property
    def group(self) -> str:
        """Its subject: one row of the report."""
        return str(self.content.get("group", "other"))

    @property
    def variants(self) -> tuple[str, ...]:
        """The path variants that it is tested with; empty means the exchange's own."""
        return tuple(self.content.get("variants", ()))

    @property
    def config(self) -> Mapping[str, Any]:
        """Additions to the exchange's configuration."""
        config: Mapping[str, Any] = self.content.get("config", {})
        return config

    @property
    def params(self) -> Mapping[str, Any] | None:
        """The argument of ``fetch_balance()``; ``None`` for a call without one."""
        params: Mapping[str, Any] | None = self.content.get("params")
        return params

    def arguments(self) -> tuple[dict[str, Any], ...]:
        """A copy of the arguments of ``fetch_balance()``, which the caller may modify."""
        return () if self.params is None else (copy.deepcopy(dict(self.params)),)

    @property
    def expect(self) -> Mapping[str, Any]:
        """The expected balance or exception."""
        expect: Mapping[str, Any] = self.content.get("expect", {})
        return expect

    @property
    def gives_balance(self) -> bool:
        """Whether the exchange must return a balance instead of raising."""
        return "balance" in self.expect

    @cached_property
    def answer(self) -> Answer:
        """The venue's answer."""
        return read_answer(self.content.get("answer", {}))

    @property
    def repeats_the_request(self) -> bool:
        """Whether the answer contains the request's query, with its key and signature."""
        texts = [*self.answer.headers.values()]
        if self.answer.text_body:
            texts.append(self.answer.body.decode())
        return any(TARGET in text for text in texts)

    @property
    def json(self) -> Any:
        """The body, decoded by Python's JSON library."""
        content = self.content["answer"]
        return json.loads(_body_bytes(content["body"]))

    @cached_property
    def transport(self) -> Transport:
        """How the answer is sent."""
        content = dict(self.content.get("transport", {}))
        if "raw" in content:
            content["raw"] = _body_bytes(content["raw"])
        if "pause_ms" in content:
            content["pause"] = content.pop("pause_ms") / 1000
        return Transport(**content)


@dataclass(frozen=True)
class Case:
    """A vector with one path variant (``None``: the exchange's own)."""

    vector: Vector
    variant: str | None = None

    def __str__(self) -> str:
        variant = f"@{self.variant.replace('/', '-')}" if self.variant else ""
        return self.vector.name + variant


@dataclass(frozen=True)
class Variant:
    """One path variant of the venue's API.

    Attributes:
        config: additions to the exchange's configuration that select it.
        path: the path that must be requested; ``None`` for any.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None


@dataclass(frozen=True)
class Settings:
    """The ``config.toml`` of a directory of vectors.

    Attributes:
        exchanges: ids to test by default.
        config: the configuration of every exchange.
        variants: the path variants that vectors may name.
        answers: answers at other paths (markets, currencies).
        secret_query: query parameters whose values must not be in exceptions or logs.
    """

    exchanges: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    secret_query: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collection:
    """A directory of vectors with its settings."""

    path: Path
    vectors: tuple[Vector, ...]
    settings: Settings

    def cases(self) -> list[Case]:
        """Every vector with each of its path variants."""
        return [
            Case(vector, variant)
            for vector in self.vectors
            for variant in (vector.variants or (None,))
        ]


def load_collection(directory: Path) -> Collection:
    """Read a directory of vectors.

    Raises:
        VectorsError: there are none, or one is not a JSON object; the message names the file.
    """
    vectors = tuple(_load_vector(path) for path in sorted(directory.glob("*.json")))
    if not vectors:
        raise VectorsError(f"no vectors (*.json) in {directory}")
    return Collection(directory, vectors, _load_settings(directory / SETTINGS_FILE))


def _load_vector(path: Path) -> Vector:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise VectorsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise VectorsError(f"{path} is not a JSON object")
    return Vector(path, content)


def _load_settings(path: Path) -> Settings:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise VectorsError(f"{path} is missing: it has the exchanges' configuration") from None
    except ValueError as error:
        raise VectorsError(f"{path} is not TOML: {error}") from error
    try:
        return Settings(
            exchanges=tuple(content.pop("exchanges", ())),
            config=content.pop("config", {}),
            variants={
                name: Variant(**variant) for name, variant in content.pop("variants", {}).items()
            },
            answers={
                path: read_answer(answer) for path, answer in content.pop("answers", {}).items()
            },
            secret_query=tuple(content.pop("secret_query", ())),
            **content,
        )
    except TypeError as error:
        raise VectorsError(f"{path} has an unknown entry: {error}") from error


def read_answer(content: Mapping[str, Any]) -> Answer:
    """Read the ``answer`` of a vector."""
    body = content.get("body", {"text": ""})
    data = _body_bytes(body)
    headers = {"Content-Type": "application/json", **content.get("headers", {})}
    if content.get("encoding") == "gzip":
        data = gzip.compress(data, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Answer(
        status=content.get("status", HTTPStatus.OK),
        headers=headers,
        body=data,
        text_body="text" in body and "encoding" not in content,
    )


def _body_bytes(body: Mapping[str, Any]) -> bytes:
    match body:
        case {"json": value}:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        case {"base64": text}:
            return base64.b64decode(text, validate=True)
        case {"parts": parts}:
            return b"".join(part["text"].encode() * part.get("times", 1) for part in parts)
        case _:
            text = body["text"]
            return str(text).encode()
