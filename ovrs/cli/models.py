"""Commands about published CLIP models: which there are, and how their files become a directory that ovrs loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovrs.cli import shared
from ovrs.cli.edge import App
from ovrs.errors import OptionError

app = App()
model = App(help="Published CLIP models on this machine.", no_args_is_help=True)
app.add_typer(model, name="model")


@app.command(examples=("ovrs models", "ovrs models --stac model.json"))
def models(
    stac: Annotated[
        Path | None,
        typer.Option(help="FILE.json: describe the bundled model as a STAC Item (MLM 1.5), in place of the list."),
    ] = None,
    overwrite: shared.Overwrite = False,
) -> None:
    """List published models with activation, licence, measured accuracy, memory, source and command. Asks no network."""
    if stac is not None:
        from ovrs.export.mlm import write_bundled

        typer.echo(f"stac: {write_bundled(stac, overwrite=overwrite)}")
        return
    from ovrs.model.clip.known import listing

    typer.echo(listing())


@model.command()
def memory(
    names: Annotated[list[str], typer.Argument(help="Names that `ovrs models` lists, or architectures of open_clip.")],
) -> None:
    """Count parameters and the most memory that weights and one tile take. Nothing is downloaded or computed."""
    from ovrs.model.clip.footprint import footprint_of

    for name in names:
        typer.echo(footprint_of(name).line(name))


@model.command("import")
def import_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Weights: .pt, .pth, .bin, .safetensors, a zip with one, or a CLIPModel folder of transformers."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The directory to write; --model takes it.")],
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            "--quick-gelu/--no-quick-gelu", help="Activation of the towers, where the file's name does not tell it."
        ),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Attention heads VISION,TEXT, where they are not CLIP's (64 numbers a head).")
    ] = None,
    network: Annotated[str | None, typer.Option(help="Which network of a checkpoint that holds several.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of red, green and blue, 0 to 1; default OpenAI's.")] = None,
    std: Annotated[str | None, typer.Option(help="Of red, green and blue, 0 to 1; default OpenAI's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights; written into the directory.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model directory that is there.")] = False,
) -> None:
    """Write published weights as a directory in open_clip's format. Pickled code is never run.

    The written network is compared with one built from the source's own tensors. Files of SAM 3's authors (sam3.pt) become a
    directory in transformers' format.
    """
    from ovrs.model.clip.importing import Choices, import_model
    from ovrs.model.sam3 import importing as of_sam3

    if of_sam3.is_source(source):
        if any(told is not None for told in (quick_gelu, heads, mean, std, licence)):
            raise OptionError("SAM 3's files tell all; only --network and --overwrite are for them")
        lines = of_sam3.import_model(source, out, network, overwrite=overwrite)
        typer.echo("\n".join([*lines, f"model: {out}"]))
        return
    chosen = Choices(
        quick_gelu=quick_gelu,
        heads=_heads(heads),
        network=network,
        licence=licence,
        mean=_colours(mean, "--mean"),
        std=_colours(std, "--std"),
    )
    done = import_model(source, out, chosen, overwrite=overwrite)
    typer.echo("\n".join([*done.lines, f"model: {done.directory}"]))


def _heads(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise OptionError(f"--heads takes two whole numbers, VISION,TEXT, got {text!r}")
    return int(parts[0]), int(parts[1])


def _colours(text: str | None, option: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} takes three numbers separated by commas, got {text!r}") from error
    return red, green, blue
