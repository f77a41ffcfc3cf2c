"""mIoU of finished maps: the whole engine, on the generated demo scene and on labelled image folders.

    python -m benchmarks.accuracy [--out benchmarks/results/demo.json]
    python -m benchmarks.accuracy --data DATA --sets dubai czortho

Labelled images are mapped without georeference through tiling, blending and Zarr, as a user would map them
(`benchmarks/adaptation.py` compares many methods on single tiles instead). Also prints megapixels per minute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from benchmarks.record import keep
from benchmarks.sets import SETS
from ovrs import options, pipeline
from ovrs.bench.evaluate import Confusion
from ovrs.demo.run import write_demo_scene
from ovrs.store.map import open_map
from ovrs.words import vocabulary

if TYPE_CHECKING:
    from ovrs.words.vocabulary import Vocabulary

ROWS = {
    "names only, no adaptation": {"method": "none", "prompts": "names"},
    "no adaptation": {"method": "none", "prompts": "all"},
    "no adaptation, jbu_one": {"method": "none", "prompts": "all", "upsampler": "jbu_one"},
    "TMPA per tile": {"method": "tmpa", "adaptation": "tile", "prompts": "all"},
    "default": {},
}


def predict(
    scene: Path, words: Vocabulary, method: dict, model: str, folder: Path, shape: tuple[int, int]
) -> np.ndarray:
    """Labels of one scene at `shape` (nearest)."""
    out = folder / "map.zarr"
    chosen = options.build(model={"model": model}, method=method, run={"pyramid": False})
    pipeline.map_scene(scene, words, out, chosen, overwrite=True)
    labels = open_map(out).label[:]
    return np.asarray(Image.fromarray(labels).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def evaluate(
    title: str, pairs: list[tuple[Path, np.ndarray]], words: Vocabulary, rows: list[str], model: str
) -> dict[str, Any]:
    """Print and return one line per method for a set of (scene, labels)."""
    kept: dict[str, Any] = {}
    print(f"\n{title}: {len(pairs)} scenes, {len(words.classes)} classes ({', '.join(words.class_names)})")
    print(f"{'method':28} {'mIoU':>6} {'aAcc':>6} {'Mpx/min':>8}   IoU per class")
    with tempfile.TemporaryDirectory() as folder:
        for name in rows:
            score, seconds, pixels = Confusion.empty(len(words.classes)), 0.0, 0
            for scene, labels in pairs:
                start = time.perf_counter()
                found = predict(scene, words, ROWS[name], model, Path(folder), labels.shape)
                seconds += time.perf_counter() - start
                with rasterio.open(scene) as source:
                    pixels += source.width * source.height
                score = score.add(found, labels)
            kept[name] = {"miou": score.miou(), "accuracy": score.accuracy(), "mpx_min": pixels / seconds * 6e-5}
            each = " ".join(f"{100 * v:5.1f}" for v in score.iou())
            print(
                f"{name:28} {score.miou():6.2f} {score.accuracy():6.2f} {pixels / seconds * 6e-5:8.1f}   {each}",
                flush=True,
            )
        print(f"{'majority class':28} {score.majority_miou():6.2f}")
    return kept | {"majority class": {"miou": score.majority_miou()}}


def as_scene(rgb: np.ndarray, out: Path, pixel_size: float | None) -> Path:
    """An image as a GeoTIFF with a made-up place (the engine wants one); pixels of unknown size become half a metre."""
    metres = pixel_size or 0.5
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.6e6, metres, metres)}
    shape = {"height": rgb.shape[0], "width": rgb.shape[1], "count": 3, "dtype": "uint8"}
    with rasterio.open(out, "w", driver="GTiff", **shape, **place) as target:
        target.write(np.moveaxis(rgb, -1, 0))
    return out


def main() -> None:
    """Evaluate what the arguments name; without any, the demo scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["czortho", "dubai"])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.data is None:
            scene, truth = write_demo_scene(folder)
            with rasterio.open(truth) as source:
                truths = [(scene, source.read(1))]
            found = {"demo scene": evaluate("demo scene", truths, vocabulary.load("demo"), args.rows, args.model)}
            if args.out is not None:
                keep(args.out, found)
            return
        found = {}
        for title in args.sets:
            given = SETS[title]
            pairs = [
                (as_scene(rgb, folder / f"{title}{i}.tif", given.shown_pixel_size), labels)
                for i, (rgb, labels) in enumerate(given.pairs(args.data))
            ]
            found[title] = evaluate(title, pairs, given.words, args.rows, args.model)
        if args.out is not None:
            keep(args.out, found)


if __name__ == "__main__":
    main()
