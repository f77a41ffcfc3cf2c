"""Flags that several commands have, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovrs.cli import complete, fields

Scenes = Annotated[
    list[str],
    typer.Argument(
        metavar="SCENE...", help="A raster GDAL can open; several, a pattern or a folder of them are one scene."
    ),
]
Bands = Annotated[str | None, fields.flag("scene.bands")]
Gsd = Annotated[str | None, fields.flag("scene.gsd")]
Classes = Annotated[
    str | None, typer.Option(help='Class names in plain words: "building, road, water".', rich_help_panel="Words")
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        help="A shipped vocabulary (`ovrs vocabulary list`) or a YAML file.",
        rich_help_panel="Words",
        autocompletion=complete.vocabularies,
    ),
]
Model = Annotated[str | None, fields.flag("model.model")]
Pretrained = Annotated[str | None, fields.flag("model.pretrained")]
Device = Annotated[str | None, fields.flag("model.device")]
Method = Annotated[str | None, fields.flag("method.method", "Model")]
Examples = Annotated[str | None, fields.flag("method.examples", "Model")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Any other option; without SECTION, one of the method. May be repeated.",
        rich_help_panel="Model",
        autocompletion=complete.keys,
    ),
]
Progress = Annotated[
    str,
    typer.Option(
        metavar="auto|json|none",
        help="A bar, or a line every ten seconds without a terminal; json: a line each second on standard error.",
        rich_help_panel="Run",
    ),
]
BeginAnew = Annotated[
    bool, typer.Option("--overwrite", help="Discard what is at the output and begin anew.", rich_help_panel="Run")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace also files that ovrs did not write.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Calibrated = Annotated[
    Path | None,
    typer.Option(help="FILE.json of `ovrs assess`: its temperature turns confidence into how often it is right."),
]
