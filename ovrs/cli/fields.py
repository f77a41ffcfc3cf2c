"""Options on the command line, made of the fields of `ovrs.options`: flags, help, and the spelling of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ovrs.cli import complete
from ovrs.cli.edge import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovrs.options import Listed

RENAMED = {"alpha": "alpha_init", "block": "block_pitches", "scores": "store_scores"}
"""Flags of earlier versions that had another name than their field."""


def flag(key: str, panel: str | None = None) -> Any:
    """Make a flag with the name of a field, `SECTION.KEY`; its group in `--help` is `panel`, else the section.

    The field's help takes the place of the key when help is shown: the options are not loaded before.
    """
    section, _, name = key.partition(".")
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=key,
        rich_help_panel=panel or section.capitalize(),
        autocompletion=complete.OF_FIELD.get(key),
    )


def told(flags: Mapping[str, str | None], pairs: list[str]) -> dict[str, dict[str, Any]]:
    """Return flags (`SECTION.KEY` to text) and `--set` pairs as sections of `ovrs.options.build`.

    Raises:
        OptionError: A key that is none, that is said twice, or a value that does not fit it.
    """
    from ovrs import options

    return options.parse(pairs, {key: text for key, text in flags.items() if text is not None})


class Spelled(Strict):
    """A command that groups its flags in `--help`, and knows every field of the options by name.

    A field that has no flag may still be typed as one: the message says how it is spelled, and the command goes on.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `--set SECTION.KEY=VALUE` in the place of flags that are fields."""
        known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        rest, spelled = list(args), []
        while rest:
            word = rest.pop(0)
            if word == "--":
                spelled += [word, *rest]
                break
            typed, equals, value = word.partition("=")
            key = None if typed in known or not typed.startswith("--") else _key(typed[2:])
            if key is None:
                spelled.append(word)
                continue
            if _listing()[key].switch:
                value = "false" if typed.startswith(("--no-", "--not-")) else value or "true"
            elif not equals:
                if not rest:
                    raise typer.BadParameter(f"{typed} needs a value: --set {key}=VALUE", ctx=ctx)
                value = rest.pop(0)
            typer.echo(f"note: {typed} is spelled --set {key}={value}", err=True)
            spelled += ["--set", f"{key}={value}"]
        return super().parse_args(ctx, spelled)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags in groups, in the order in which the groups come up."""
        groups: dict[str, list[tuple[str, str]]] = {}
        known = _listing()
        param: Any
        for param in self.get_params(ctx):
            if (field := known.get(getattr(param, "help", None) or "")) is not None:
                param.help, param.metavar = f"{field.help}{_default(field)}", "|".join(field.choices) or "VALUE"
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _default(field: Listed) -> str:
    """Tell what a field is without its flag, where its help does not say so."""
    unsaid = field.default not in (None, (), "", {}) and "Default" not in field.help
    return f"  [default: {field.default}]" if unsaid else ""


def _listing() -> dict[str, Listed]:
    from ovrs import options

    return options.listing()


def _key(name: str) -> str | None:
    """`SECTION.KEY` of the field that a flag means."""
    field = name.removeprefix("no-").removeprefix("not-").replace("-", "_")
    field = RENAMED.get(field, field)
    return next((key for key in _listing() if key.partition(".")[2] == field), None)
