"""mIoU of no adaptation, fixed visual bias, and TMPA, on the demo scene and on labelled image folders.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --pairs IMAGES MASKS --table czortho --stem T22 --factor 2.4

Labelled sets are given as a folder of images and one of colour masks with the same stems; `--table` names the colour
table below. Images are mapped without georeference, at `--factor` times fewer pixels, labels stay at full size.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from ovrs import options, pipeline, store, vocabulary
from ovrs.demo import write_demo_scene
from ovrs.evaluate import Confusion
from ovrs.vocabulary import ClassEntry, Vocabulary

ROWS = {
    "no adaptation": {"method": "none"},
    "names only, no adaptation": {"method": "none"},
    "fixed alpha 0.02": {"method": "tmpa", "steps": 0},
    "TMPA": {"method": "tmpa"},
    "TMPA with shift": {"method": "tmpa_shift"},
    "TMPA as released": {"method": "tmpa_compat"},
}
TABLES = {
    "czortho": {
        "vegetation": "32FFA7",
        "bare land": "A67556",
        "paved area": "6D32FF",
        "building": "FFE132",
        "water": "32A7FF",
        "unpaved road": "FF8C00",
    },
    "dubai": {
        "building": "3C1098",
        "unpaved land": "8429F6",
        "road": "6EC1E4",
        "vegetation": "FEDD3A",
        "water": "E2A929",
    },
}
"""Class name and colour in the masks; every other colour is ignored."""
WORDS = {
    "vegetation": (
        "trees and grass",
        [
            "green plant cover of grass, bushes and trees",
            "dark green tree crowns with shadows",
            "a smooth meadow or crop field",
        ],
    ),
    "bare land": (
        "bare soil",
        ["brown bare earth without plants", "a ploughed field", "dry open ground of light tone"],
    ),
    "unpaved land": ("sand", ["pale sandy ground without plants", "dry open desert terrain", "a dusty building site"]),
    "paved area": (
        "asphalt",
        ["grey sealed ground between buildings", "an asphalt road with lane markings", "a concrete yard"],
    ),
    "building": (
        "roof",
        ["a rectangular roof with a shadow", "red tiled or grey roofs", "a large flat roof of a hall"],
    ),
    "water": (
        "river",
        ["a dark smooth surface without texture", "a pond or lake with a clear shoreline", "blue green water"],
    ),
    "unpaved road": (
        "gravel track",
        ["a narrow light brown track between fields", "a dusty path with wheel ruts", "a gravel lane"],
    ),
    "road": ("street", ["a long narrow grey strip", "asphalt with lane markings", "a wide highway with several lanes"]),
}


def words_of(table: str) -> Vocabulary:
    """Vocabulary of a labelled set, in the order of its colour table."""
    entries = [ClassEntry(name=n, synonyms=(WORDS[n][0],), descriptions=tuple(WORDS[n][1])) for n in TABLES[table]]
    return Vocabulary(name=table, classes=tuple(entries))


def bare(words: Vocabulary) -> Vocabulary:
    """The same classes by name alone."""
    return words.model_copy(update={"classes": tuple(ClassEntry(name=c.name) for c in words.classes)})


def colour_labels(path: Path, table: dict[str, str]) -> np.ndarray:
    """Mask colours to class indices, 255 elsewhere."""
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    key = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    out = np.full(key.shape, 255, np.uint8)
    for index, colour in enumerate(table.values()):
        out[key == int(colour, 16)] = index
    return out


def predict(
    scene: Path, words: Vocabulary, method: dict[str, object], folder: Path, shape: tuple[int, int]
) -> np.ndarray:
    """Labels of one scene at `shape` (nearest)."""
    out = folder / "map.zarr"
    chosen = options.build(method=method, run={"pyramid": False})
    pipeline.map_scene(scene, words, out, chosen, overwrite=True)
    labels = np.asarray(store.array(store.open_complete(out), "label")[:])
    return np.asarray(Image.fromarray(labels).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def evaluate(title: str, pairs: list[tuple[Path, np.ndarray]], words: Vocabulary, rows: list[str]) -> None:
    """Print one line per method for a set of (scene, labels)."""
    print(f"\n{title}: {len(pairs)} scenes, {len(words.classes)} classes ({', '.join(words.class_names)})")
    print(f"{'method':28} {'mIoU':>6} {'aAcc':>6}   IoU per class")
    with tempfile.TemporaryDirectory() as folder:
        for name in rows:
            score = Confusion.empty(len(words.classes))
            for scene, labels in pairs:
                used = bare(words) if name.startswith("names only") else words
                score = score.add(predict(scene, used, ROWS[name], Path(folder), labels.shape), labels)
            each = " ".join(f"{100 * v:5.1f}" for v in score.iou())
            print(f"{name:28} {score.miou():6.2f} {score.accuracy():6.2f}   {each}", flush=True)
        print(f"{'majority class':28} {score.majority_miou():6.2f}")


def resized_copy(image: Path, factor: float, out: Path) -> Path:
    """The image at `factor` times fewer pixels as a GeoTIFF with a made-up place (the engine wants one)."""
    rgb = Image.open(image).convert("RGB")
    small = np.moveaxis(
        np.asarray(rgb.resize((round(rgb.width / factor), round(rgb.height / factor)), Image.Resampling.BOX)), -1, 0
    )
    with rasterio.open(
        out,
        "w",
        driver="GTiff",
        height=small.shape[1],
        width=small.shape[2],
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=from_origin(5e5, 5.6e6, 0.5, 0.5),
    ) as target:
        target.write(small)
    return out


def main() -> None:
    """Evaluate what the arguments name; without any, the demo scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs=2, type=Path, metavar=("IMAGES", "MASKS"))
    parser.add_argument("--table", choices=sorted(TABLES), default="czortho")
    parser.add_argument("--stem", default="", help="only images whose name begins so; several separated by commas")
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    args = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.pairs is None:
            scene, truth = write_demo_scene(folder)
            with rasterio.open(truth) as source:
                evaluate("demo scene", [(scene, source.read(1))], vocabulary.load("demo"), args.rows)
            return
        pairs = []
        for image in sorted(args.pairs[0].iterdir()):
            if image.name.startswith(tuple(args.stem.split(","))):
                mask = next(args.pairs[1].glob(image.stem + ".*"))
                labels = colour_labels(mask, TABLES[args.table])
                if labels.shape == Image.open(image).size[::-1]:
                    pairs.append((resized_copy(image, args.factor, folder / f"{image.stem}.tif"), labels))
        evaluate(
            f"{args.table} ({args.stem or 'all'}, 1/{args.factor:g} of the pixels)",
            pairs,
            words_of(args.table),
            args.rows,
        )


if __name__ == "__main__":
    main()
