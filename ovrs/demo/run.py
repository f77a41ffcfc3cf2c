"""The demonstration: a generated scene with exact labels, mapped by the bundled model and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rasterio.errors import RasterioError

from ovrs import files, pipeline
from ovrs.bench.evaluate import Confusion
from ovrs.demo.synth import World, write_scene
from ovrs.errors import OutputError, told
from ovrs.request import Request
from ovrs.store.map import open_map

if TYPE_CHECKING:
    from pathlib import Path

    from ovrs.pipeline import Progress

SIZE = 2048
WORLD = World(seed=11, gsd=0.5)


def write_demo_scene(directory: Path) -> tuple[Path, Path]:
    """Render the demo scene and its exact labels; returns both paths."""
    scene, labels = directory / "scene.tif", directory / "labels.tif"
    if not (scene.exists() and labels.exists()):
        with files.atomic(scene) as rgb, files.atomic(labels) as truth:
            try:
                write_scene(rgb, height=SIZE, width=SIZE, world=WORLD, labels_path=truth)
            except RasterioError as error:
                raise OutputError(
                    f"cannot write {scene}: {told(error)}; free space, then give the same command again"
                ) from error
    return scene, labels


def run_demo(directory: Path, *, progress: Progress | None = None) -> list[str]:
    """Make scene, map, COG and picture below `directory`; returns the lines that tell a person what is where."""
    import rasterio

    from ovrs.export.cog import write_cog
    from ovrs.export.qml import write_qml
    from ovrs.export.quicklook import write_quicklook

    scene, labels = write_demo_scene(directory)
    out = directory / "map.zarr"
    pipeline.map(Request.from_names(scene, out, vocabulary="demo"), overwrite=True, progress=progress)
    with open_map(out) as mapped, rasterio.open(labels) as truth:
        cog = write_cog(mapped, directory / "map.tif", overwrite=True).path
        style = write_qml(mapped, cog, overwrite=True)
        picture = write_quicklook(mapped, directory / "map.png", overwrite=True).path
        score = Confusion.empty(len(mapped.classes)).add(np.asarray(mapped.label[:]), truth.read(1))
    return [
        f"scene    {scene}",
        f"map      {out}",
        f"picture  {picture}",
        f"GIS      {cog} (with {style.name} for QGIS)",
        f"mIoU against the exact labels: {score.miou():.1f} (a map of the most frequent class alone: {score.majority_miou():.1f})",
    ]
