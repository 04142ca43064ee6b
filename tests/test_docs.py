"""The README and docs/: examples run, tables and links are valid, and facts match the code."""

import os
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import httpx
import pytest
from ccxt.base.errors import BadRequest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from sunx_adapter import Sandbox, Sunx
from sunx_adapter.protocol.errors import ERROR_RULES, ErrorRule
from sunx_adapter.protocol.push import PUSH_ERROR_RULES
from tests import draw
from tests.processes import run_python

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, ROOT / "CHANGELOG.md", ROOT / "conformance" / "README.md"]
MARKDOWN = MarkdownIt("commonmark").enable("table")

# As in Jupyter, examples may use ``await`` at the top level.
RUN_A_CELL = """
import ast, asyncio, sys
code = compile(sys.stdin.read(), "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
result = eval(code, {"__name__": "__main__"})
if result is not None:
    asyncio.run(result)
"""


def name_of(page: Path) -> str:
    """Return the page's name for test ids."""
    return str(page.relative_to(ROOT))


def examples() -> Iterator[Any]:
    """Yield every Python example of the README and the docs."""
    for page in (README, *DOCS):
        fences = (t for t in MARKDOWN.parse(page.read_text("utf-8")) if t.type == "fence")
        for token in fences:
            if token.info == "python":
                assert token.map is not None
                yield pytest.param(token.content, id=f"{name_of(page)}:{token.map[0] + 1}")


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, str]]:
    """An environment with the keys of a sandbox."""
    variables = dict(os.environ)
    with Sandbox() as venue:
        for prefix, exchange_id in (("SUNX", "sunx"), ("HTXFUTURES", "htxfutures")):
            config = venue.config(exchange_id)
            variables[f"{prefix}_API_KEY"] = config["apiKey"]
            variables[f"{prefix}_API_SECRET"] = config["secret"]
            variables[f"{prefix}_REST_URL"] = config["urls"]["api"]["rest"]
            variables[f"{prefix}_STREAM_URL"] = config["urls"]["api"]["stream"]
        yield variables


@pytest.mark.parametrize("code", list(examples()))
def test_examples_run(code: str, keys: dict[str, str]) -> None:
    """Each Python example runs as printed."""
    done = run_python("-W", "error", "-c", RUN_A_CELL, env=keys, text=code)
    # Retries are logged.
    errors = [line for line in done.stderr.splitlines() if "trying again" not in line]
    assert (done.returncode, errors) == (0, [])


def test_readme_is_short() -> None:
    """The README can be read in five minutes."""
    assert len(README.read_text("utf-8").split()) <= 1600


def test_commands() -> None:
    """The README has the two commands exactly as CI runs them."""
    lines = [line.strip() for line in README.read_text("utf-8").splitlines()]
    assert "pip install . && sunx-adapter balance --sandbox" in lines
    assert "pip install -e '.[test]' && pytest" in lines


# -- rendering ------------------------------------------------------------------------------


def broken_rows(text: str) -> list[str]:
    """Return the lines that are written as table rows but not rendered as such.

    That is a row outside any table, and one with more or fewer cells than the table's heading.
    """
    lines = text.splitlines()
    tokens = MARKDOWN.parse(text)
    fenced = {
        n for t in tokens if t.type in ("fence", "code_block") and t.map for n in range(*t.map)
    }
    tables = [range(*t.map) for t in tokens if t.type == "table_open" and t.map]
    inside = {number: table for table in tables for number in table}
    broken = []
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("|") or number in fenced:
            continue
        table = inside.get(number)
        if table is None or cells(line) != cells(lines[table.start]):
            broken.append(f"line {number + 1}: {line}")
    return broken


def cells(row: str) -> int:
    """Count the cells that a renderer sees: a ``|`` in code divides them too, unless escaped."""
    return len(re.findall(r"(?<!\\)\|", row.strip())) - 1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_render(page: Path) -> None:
    """Each table row is rendered in its table, with as many cells as the heading."""
    assert broken_rows(page.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "a line\n\n| no heading |\n",
        "| a | b |\n|---|---|\n| `x | y` | z |\n",
        "| a | b |\n|---|---|\n| x |\n",
        "| a | b |\n|---|---|\n| x | y |\n\n| after | a gap |\n",
        "| a | b |\n|---|\n| x | y |\n",
    ],
    ids=["no-heading", "bar-in-code", "too-few", "gap", "rule"],
)
def test_broken_tables_are_found(text: str) -> None:
    """The check finds broken tables."""
    assert broken_rows(text)


def inline(tokens: list[Token]) -> Iterator[Token]:
    """Yield the tokens within paragraphs, headings and cells."""
    for token in tokens:
        yield from token.children or ()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as common forges make them."""
    tokens = MARKDOWN.parse(page.read_text("utf-8"))
    headings = (after for before, after in pairwise(tokens) if before.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", h.content.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    """Each link between pages points to an existing file and heading."""
    lost = []
    for token in inline(MARKDOWN.parse(page.read_text("utf-8"))):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not target or target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(target)
    assert lost == []


def test_every_page_is_linked() -> None:
    """The README links to each page in docs/."""
    tokens = inline(MARKDOWN.parse(README.read_text("utf-8")))
    linked = {str(token.attrs.get("href", "")).partition("#")[0] for token in tokens}
    assert {name_of(page) for page in DOCS} <= linked


@pytest.mark.parametrize("name", draw.PICTURES)
def test_pictures(name: str) -> None:
    """The README's pictures show what the commands print; ``python -m tests.draw`` redraws them."""
    kept = (ROOT / "docs" / f"{name}.svg").read_text("utf-8")
    drawn = draw.picture(name, draw.PICTURES[name]())
    assert draw.words(kept) == draw.words(drawn)
    assert "USDT" in kept
    assert "url(http" not in kept  # the picture loads nothing


# -- facts ----------------------------------------------------------------------------------


def code_words(page: Path) -> Iterator[str]:
    """Yield the code spans of the text."""
    tokens = inline(MARKDOWN.parse(page.read_text("utf-8")))
    return (token.content for token in tokens if token.type == "code_inline")


@pytest.mark.parametrize("page", [README, *DOCS], ids=name_of)
def test_named_things_exist(page: Path) -> None:
    """Files, modules and commands that a page names exist."""
    missing = []
    for word in code_words(page):
        if re.fullmatch(r"(sunx_adapter|tests|conformance|docs)/[\w./]+", word):
            if not (ROOT / word).exists():
                missing.append(word)
        elif re.fullmatch(r"sunx_adapter(\.\w+)+", word):
            resolve_name(word)
        elif module := re.match(r"python -m ((?:tests|sunx_adapter)[\w.]*)", word):
            path = ROOT / module[1].replace(".", "/")
            if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
                missing.append(word)
    assert missing == []


def options_named() -> Iterator[tuple[str, str]]:
    """Yield each command and option named in a page's examples or text."""
    for page in (README, *DOCS):
        for command, rest in re.findall(r"sunx-adapter (\w+)([^\n`#]*)", page.read_text("utf-8")):
            yield from ((command, option) for option in re.findall(r"--[\w-]+|(?<= )-\w\b", rest))


def test_named_options_exist() -> None:
    """Each command-line option that a page names exists."""
    named = set(options_named())
    help_texts = {
        command: run_python(
            *("-m", "sunx_adapter", command, "--help"), env=os.environ | {"COLUMNS": "200"}
        ).stdout
        for command in {command for command, _ in named}
    }
    assert {(c, option) for c, option in named if option not in help_texts[c]} == set()


def first_cells(page: str, heading: str) -> list[str]:
    """Return the code spans in the first column of the table under a heading."""
    text = (ROOT / page).read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", text, re.M)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_settings_are_known() -> None:
    """Each setting on the configuration page is known: a misspelling of it is refused."""
    settings = first_cells("docs/configuration.md", "Settings")
    options = first_cells("docs/configuration.md", "Options")
    assert len(settings) > 15
    assert len(options) > 10
    for name in settings:
        with pytest.raises(BadRequest, match=rf"did you mean '?{name}"):
            Sunx({f"{name}x": "1"})
    for option in options:
        name = option.removeprefix('options["').removesuffix('"]')
        with pytest.raises(BadRequest, match=rf"did you mean '?{name}"):
            Sunx({"options": {f"{name}x": "1"}})


def printed(rules: tuple[ErrorRule, ...], *last: str) -> str:
    """Print the table of some error rules."""
    rows = [
        f"| {', '.join(f'`{code}`' for code in rule.codes)} | {rule.meaning} "
        f"| `{rule.exception.__name__}` | {'yes' if rule.transient else ''} |"
        for rule in rules
    ]
    heading = "| code | meaning | exception | tried again |\n|---|---|---|---|"
    return "\n".join([heading, *rows, *last])


@pytest.mark.parametrize(
    ("mark", "table"),
    [
        (
            "errors",
            printed(ERROR_RULES, "| anything else that is not success | | `ExchangeError` | |"),
        ),
        ("push errors", printed(PUSH_ERROR_RULES)),
    ],
)
def test_error_tables(mark: str, table: str) -> None:
    """The printed tables of codes equal the tables in the code."""
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->" in text


def fixed_answer(body: bytes, _: httpx.Request) -> httpx.Response:
    """A venue that always sends the same answer."""
    return httpx.Response(200, content=body)


def test_worked_out_examples() -> None:
    """The documented answers give the figures of the page on figures."""
    rows = []
    for venue in ("sunx", "htx-v5"):
        body = (ROOT / "tests" / "payloads" / f"{venue}-documented.json").read_bytes()
        transport = httpx.MockTransport(partial(fixed_answer, body))
        config = {"apiKey": "made-up", "secret": "made-up", "number": str}
        with Sunx({**config, "options": {"transport": transport}}) as exchange:
            balance: Any = exchange.fetch_balance()
        for row in balance["info"]["data"]["details"]:
            code = row["currency"]
            figures = [row["equity"], row["initial_margin"], row["available"]]
            figures += [balance[code][view] for view in ("free", "used", "total")]
            figures.append(balance[code].get("debt", ""))
            name = venue.partition("-")[0].replace("sunx", "SunX").replace("htx", "HTX")
            rows.append(f"| {name}, {code} | {' | '.join(figures)} |".replace("  |", " |"))
            assert Decimal(figures[5]) == Decimal(figures[3]) + Decimal(figures[4])
    text = (ROOT / "docs" / "figures.md").read_text("utf-8")
    assert "\n".join(rows) in text
