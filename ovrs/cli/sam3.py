"""Commands of SAM 3: are the weights in order, does a prior space carry signal, fit the aligned space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovrs import files
from ovrs.cli.edge import App

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.model.sam3.segmenter import CocoSegmenter

app = App(help="SAM 3: weights, prior spaces.", no_args_is_help=True)

Images = Annotated[
    list[str], typer.Argument(help="Rasters of the target area, 16 to 64 crops in all; labels are not read.")
]
Words = Annotated[str, typer.Option(help="A shipped vocabulary or a YAML file.")]
Model = Annotated[str, typer.Option(help="sam3, a directory, or sam3-tiny.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda")]
Crops = Annotated[int, typer.Option(min=1, help="Crops taken from each image.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="sam3.KEY=VALUE; may be repeated.")]


@app.command()
def check(model: Model = "sam3") -> None:
    """Load the weights and say what they are."""
    from ovrs.model.sam3.weights import facts

    typer.echo(facts(model))


@app.command()
def probe(
    images: Images,
    vocabulary: Words,
    out: Annotated[Path, typer.Option("-o", "--out", help="Verdict to write, FILE.json.")],
    model: Model = "sam3",
    device: Device = "auto",
    spaces: Annotated[str, typer.Option(help="Separated by commas.")] = "rs_clip,sam3,sam3_neck,prototype",
    crops: Crops = 4,
    settings: Settings = None,
) -> None:
    """Test whether a prior space agrees with SAM 3's own masks; write the verdict that lets the prior be used."""
    from ovrs.model.sam3 import probe as probing
    from ovrs.model.sam3.build import prior_space
    from ovrs.words import vocabulary as known_words

    segmenter = _segmenter(model, vocabulary, device, settings)
    wanted = [
        prior_space(s.strip(), segmenter.backend, segmenter.options, known_words.load(vocabulary))
        for s in spaces.split(",")
    ]
    verdict = probing.probe(segmenter, wanted, _crops(images, segmenter.geometry.crop, crops))
    files.write_text(out, json.dumps(verdict, indent=1) + "\n")
    for report in verdict["spaces"]:
        typer.echo(
            f"{report['space']:10} AUC {report['auc']:.3f}  {report['pairs']} pairs  collapse {report['collapse']:.0%}  "
            f"{'passed' if report['passed'] else 'not passed'}"
        )
    typer.echo(f"accepted: {verdict['accepted'] or 'none, the prior stays off'}\nverdict: {out}")


@app.command()
def align(
    images: Images,
    vocabulary: Words,
    out: Annotated[Path, typer.Option("-o", "--out", help="Map to write, FILE.npz.")],
    model: Model = "sam3",
    device: Device = "auto",
    crops: Crops = 4,
    settings: Settings = None,
) -> None:
    """Fit the `aligned` space on unlabelled images (closed form). Give many classes: 200 phrases or more."""
    import numpy as np

    from ovrs.model.sam3 import probe as probing

    segmenter = _segmenter(model, vocabulary, device, settings)
    fitted = probing.align(segmenter, _crops(images, segmenter.geometry.crop, crops))
    with files.atomic(out, keep_suffix=False) as temporary, temporary.open("wb") as target:
        np.savez(target, allow_pickle=False, **fitted)
    typer.echo(f"fitted on {int(fitted['pairs'])} confident masks: {out}")


def _segmenter(model: str, vocabulary: str, device: str, settings: list[str] | None) -> CocoSegmenter:
    from ovrs import options
    from ovrs.methods import preset
    from ovrs.model.sam3.build import build_sam3_segmenter
    from ovrs.model.sam3.segmenter import CocoSegmenter
    from ovrs.words import vocabulary as known_words

    given = preset.parse_settings(settings or [])
    told = {"prior_space": "none", **given, "method": "coco_sam3"}
    chosen = options.build(model={"model": model, "device": device}, method=told)
    found = build_sam3_segmenter(chosen.model, chosen.method, known_words.load(vocabulary))
    assert isinstance(found, CocoSegmenter)
    return found


def _crops(images: list[str], side: int, count: int) -> Iterator[Any]:
    """`count` crops of each image, at seeded random places."""
    import numpy as np

    from ovrs.options import SceneOptions
    from ovrs.scene.grid import Window
    from ovrs.scene.opening import open_scene

    rng = np.random.default_rng(0)
    for image in images:
        scene = open_scene(image, SceneOptions(allow_ungeoreferenced=True))
        height, width = scene.geobox.shape
        for _ in range(count if height > side or width > side else 1):
            row, col = (int(rng.integers(max(1, n - side + 1))) for n in (height, width))
            pixels = scene.read(Window(row, col, min(side, height), min(side, width)))
            if pixels.valid.any():
                yield np.ascontiguousarray(pixels.rgb), np.ascontiguousarray(pixels.valid)
