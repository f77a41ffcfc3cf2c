"""A real scene beside its map, for the README: one image of a labelled set, mapped with the defaults.

    python -m benchmarks.picture --data DATA [--set Ohio] [--image 14587] [--out docs/scene.png]

The image has a made-up place. Whether a picture may be published depends on the imagery: that of Ohio (NAIP) is in the
public domain.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.accuracy import as_scene
from benchmarks.sets import UNSEEN
from ovrs import options, pipeline
from ovrs.export.quicklook import write_quicklook
from ovrs.store.map import open_map

COLOURS = {
    "building": "#c0392b",
    "road": "#7f8c8d",
    "bare land": "#c9a66b",
    "forest": "#1e6b34",
    "trees": "#1e6b34",
    "grass and crops": "#9acd60",
    "grass": "#9acd60",
    "water": "#2e6fb7",
}
"""Of classes whose colour a reader expects."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=list(UNSEEN), default="Ohio")
    parser.add_argument("--image", default="14587", help="stem of the image's name")
    parser.add_argument("--out", type=Path, default=Path("docs/scene.png"))
    args = parser.parse_args()
    given = UNSEEN[args.set]
    path = next((args.data / given.folder / "images").glob(f"{args.image}.*"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = as_scene(np.asarray(Image.open(path).convert("RGB")), folder / "scene.tif", given.shown_pixel_size)
        classes = tuple(c.model_copy(update={"colour": COLOURS.get(c.name, c.colour)}) for c in given.words.classes)
        words = given.words.model_copy(update={"classes": classes})
        pipeline.map_scene(scene, words, folder / "scene.zarr", options.build())
        with open_map(folder / "scene.zarr") as mapped:
            write_quicklook(mapped, args.out, side=512, overwrite=True)


if __name__ == "__main__":
    main()
