"""`ovrs preview`: a few windows of a scene, under one setting or several, as a picture."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovrs.cli import complete, fields, shared
from ovrs.cli.edge import App
from ovrs.errors import OptionError

if TYPE_CHECKING:
    from ovrs.preview.sketch import Preview
    from ovrs.request import Request
    from ovrs.words.vocabulary import Vocabulary

app = App()

LEARNING_TILES = 8
"""Tiles from which a preview adapts to the scene, unless `--set scene_tiles=…` says how many."""


@app.command(
    cls=fields.Spelled,
    examples=(
        'ovrs preview SCENE.tif --classes "building, road, water" --compare none,tmpa',
        "ovrs preview SCENE.tif --compare-words landcover,mine.yaml --at 500300,5599800",
    ),
)
def preview(
    scenes: shared.Scenes,
    bands: shared.Bands = None,
    gsd: shared.Gsd = None,
    classes: shared.Classes = None,
    vocabulary: shared.Vocabulary = None,
    compare_words: Annotated[
        str | None,
        typer.Option(
            help="Several vocabularies, side by side: landcover,mine.yaml.",
            rich_help_panel="Compare",
            autocompletion=complete.many(complete.vocabularies),
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Several methods, side by side: none,tmpa; with options of each: tmpa+adaptation=tile.",
            rich_help_panel="Compare",
            autocompletion=complete.many(complete.methods),
        ),
    ] = None,
    model: shared.Model = None,
    pretrained: shared.Pretrained = None,
    device: shared.Device = None,
    method: shared.Method = None,
    examples: shared.Examples = None,
    settings: shared.Settings = None,
    at: Annotated[
        str | None, typer.Option(help="x,y in the CRS of the scene: one window around it.", rich_help_panel="Windows")
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(help="left,bottom,right,top in the CRS of the scene: this window.", rich_help_panel="Windows"),
    ] = None,
    parts: Annotated[
        int, typer.Option(min=1, max=24, help="Windows, spread over the scene's colours.", rich_help_panel="Windows")
    ] = 6,
    seed: Annotated[
        int, typer.Option(min=0, help="Another number shows other windows.", rich_help_panel="Windows")
    ] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="FILE.png.")] = Path("preview.png"),
    overwrite: shared.Overwrite = False,
) -> None:
    """Map a few windows of a scene and show them side by side; says what the whole would take. Keeps no map."""
    from ovrs.preview import picture
    from ovrs.preview.sketch import preview as look

    picture.check(out, overwrite=overwrite)
    flags = {
        "scene.bands": bands, "scene.gsd": gsd, "model.model": model, "model.pretrained": pretrained,
        "model.device": device, "method.method": method, "method.examples": examples,
    }  # fmt: skip
    words = _words(classes, vocabulary, compare_words)
    if compare is not None and method is not None:
        raise OptionError("--compare names the methods; leave --method out")
    asked, wanted = _requests(scenes, words, flags, settings or [], compare)
    found = look(
        asked,
        parts=parts,
        seed=seed,
        at=_numbers("--at", at, "x,y"),
        bbox=_numbers("--bbox", bbox, "left,bottom,right,top"),
        progress=(lambda name: typer.echo(f"mapping windows: {name}", err=True)) if len(asked) > 1 else None,
    )
    _tell(found, wanted)
    typer.echo(f"preview: {picture.write(found, out)}")


def _words(classes: str | None, vocabulary: str | None, compare: str | None) -> dict[str, Vocabulary]:
    from ovrs.request import words_from_names

    if compare is None:
        return {"": words_from_names(classes, vocabulary)}
    if classes is not None or vocabulary is not None:
        raise OptionError("--compare-words names the vocabularies; leave --classes and --vocabulary out")
    return {Path(name).stem: words_from_names(None, name) for name in _list("--compare-words", compare)}


def _requests(
    scenes: list[str],
    words: dict[str, Vocabulary],
    flags: dict[str, str | None],
    pairs: list[str],
    compare: str | None,
) -> tuple[dict[str, Request], dict[str, int]]:
    """Every pair of words and method as a request, by a name for its column; and the tiles that the whole would learn from.

    A name stands in the second dictionary where the preview learns from fewer tiles than the whole map.
    """
    from ovrs import options
    from ovrs.methods.base import SceneSettings
    from ovrs.request import Request

    methods = [""] if compare is None else _list("--compare", compare)
    found: dict[str, Request] = {}
    wanted: dict[str, int] = {}
    for (title, vocabulary), setting in product(words.items(), methods):
        name, *more = setting.split("+")
        title = ", ".join(filter(None, (title, setting)))
        told = fields.told({**flags, "method.method": name} if name else flags, [*pairs, *more])
        made = options.build(**told)
        used = options.resolved(made.model, made.method, vocabulary)
        if isinstance(used, SceneSettings) and used.scene_level and "scene_tiles" not in told["method"]:
            wanted[title or f"map ({made.method.method})"] = used.scene_tiles
            made = options.build(**{**told, "method": {**told["method"], "scene_tiles": LEARNING_TILES}})
        request = Request(
            uri=scenes[0], others=tuple(scenes[1:]), words=vocabulary, options=made, target="preview.zarr"
        )
        found[title or f"map ({made.method.method})"] = request
    return found, wanted


def _list(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    twice = {name for name in names if names.count(name) > 1}
    if "" in names or twice:
        raise OptionError(f"{option} takes different names separated by commas, got {text!r}")
    return names


def _numbers(option: str, text: str | None, form: str) -> Any:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(form.split(",")):
        raise OptionError(f"{option} takes {form} as numbers in the CRS of the scene, got {text!r}")
    return found


def _tell(found: Preview, wanted: dict[str, int]) -> None:
    """Shares, confidence, what was learned from less than the whole would, and its cost, for each setting."""
    for sketch in found.sketches:
        names = zip(sketch.words.class_names, sketch.shares, strict=True)
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in sorted(names, key=lambda pair: -pair[1]))
        typer.echo(f"{sketch.name}: {shares}; mean confidence {sketch.mean_confidence:.2f}")
        most = min(wanted.get(sketch.name, 0), sketch.tiles)
        if most > LEARNING_TILES:
            typer.echo(
                f"  adapted to the scene by {LEARNING_TILES} tiles, the whole map by {most}: classes may differ a little "
                f"(--set scene_tiles={most} looks at as many)"
            )
        typer.echo(f"  {sketch.estimate.text}")
