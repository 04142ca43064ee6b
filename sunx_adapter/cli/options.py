"""Options that several commands share, and the typer classes that parse all options."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from sunx_adapter.venue import VENUES, FreePolicy


class PlainOption(TyperOption):
    """An option that typer does not convert if it is text or not given.

    Typer converts values with pydantic, whose import would take longer than typer's own imports.
    And ``--help`` shows no type for a flag, which has no value.
    """

    def __init__(self, option: TyperOption) -> None:  # copies the option
        vars(self).update(vars(option))

    def process_value(self, ctx: Any, value: Any) -> Any:
        """The value for the command."""
        descriptor = getattr(self, "type_descriptor", None)
        is_text = descriptor is not None and descriptor.annotation in {str, list[str]}
        if self.required or not (is_text or value is None):
            return super().process_value(ctx, value)
        if value is None and self.multiple:
            value = ()
        return value if self.callback is None else self.callback(ctx, self, value)

    def display_type_rich(self, ctx: Any) -> str | None:
        """The type that ``--help`` shows."""
        return None if self.is_flag else super().display_type_rich(ctx)


def _plain(parameters: list[Any]) -> list[Any]:
    return [PlainOption(p) if isinstance(p, TyperOption) else p for p in parameters]


class Command(TyperCommand):
    """A command with plain options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's parameters."""
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """The group of all commands, with plain options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters."""
        return _plain(super().get_params(ctx))


def examples(*commands: str) -> str:
    """The end of a command's help: examples to copy."""
    lines = (f"[dim]$[/] [cyan]{command}[/]" for command in commands)
    return "\n".join(("[bold]Examples[/]", *lines))


def _ids(incomplete: str) -> list[str]:
    return [name for name in VENUES if name.startswith(incomplete)]


def _account_names(incomplete: str) -> list[str]:
    from sunx_adapter.keys import KeysError, account_names  # noqa: PLC0415 - completion only

    try:
        return [name for name in account_names() if name.startswith(incomplete)]
    except KeysError:
        return []


ExchangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "-e",
        "--exchange",
        metavar="ID",
        help="Only this exchange (repeatable). Default: all exchanges with keys.",
        autocompletion=_ids,
    ),
]
SandboxOption = Annotated[
    bool, typer.Option("--sandbox", help="Use a local sandbox; no keys needed.")
]
AccountOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Only this account: a table of the keys file, or with --sandbox a sandbox account.",
        autocompletion=_account_names,
    ),
]
FreeOption = Annotated[
    FreePolicy | None,
    typer.Option(
        help="The meaning of 'free': margin that can still be used, the venue's 'available' "
        "(cash), or the amount that can be withdrawn. Default: the keys file's setting, or margin."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Log requests (masked) and show tracebacks.")
]
