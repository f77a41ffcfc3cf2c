"""Adaptation per tile against adaptation to the scene: agreement with the truth, seams, grid shift, time.

    python -m benchmarks.scene_adaptation [--size 2048] [--seeds 21 22]

On generated scenes with exact labels. *Tile lines* is the share of class changes across first rows and columns of tiles
over the share elsewhere, beside the range of the same lines moved to other crop lines. *Shift* is the share of pixels
that keep their class when the grid begins half a tile further down and right (crops stay where they are, so it shows the
tiles alone).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import rasterio

from benchmarks.seams import measure
from ovrs import options, pipeline
from ovrs.bench.evaluate import Confusion
from ovrs.demo.synth import World, write_scene
from ovrs.run.rundir import RunDir
from ovrs.run.verify import plan_of
from ovrs.store.map import open_map
from ovrs.words import vocabulary

if TYPE_CHECKING:
    import numpy as np

ROWS = {
    "none": {"method": "none"},
    "tmpa per tile": {"method": "tmpa", "adaptation": "tile"},
    "tmpa per scene": {"method": "tmpa"},
}


def mapped(scene: Path, out: Path, method: dict, bbox: tuple | None = None) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    chosen = options.build(scene={"bbox": bbox}, method=method, run={"pyramid": False})
    pipeline.map_scene(scene, vocabulary.load("demo"), out, chosen, overwrite=True)
    return open_map(out).label[:], time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21])
    args = parser.parse_args()
    print(f"{'seed':>4} {'row':16} {'mIoU':>6} {'tile lines':>10} {'others':>15} {'shift %':>8} {'seconds':>8}")
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            scene, truth, out = (Path(name) / n for n in ("scene.tif", "truth.tif", "map.zarr"))
            world = World(seed=seed)
            write_scene(scene, height=args.size, width=args.size, world=world, labels_path=truth)
            with rasterio.open(truth) as source:
                labels, bounds = source.read(1), source.bounds
            for row, method in ROWS.items():
                found, seconds = mapped(scene, out, method)
                plan = plan_of(RunDir(out).description())
                tiles = next(s for s in measure(found, plan) if s.name == "tile starts")
                score = Confusion.empty(6).add(found, labels).miou()
                half = plan.geometry.pitch // 2
                moved = (bounds.left + half * world.gsd, bounds.bottom, bounds.right, bounds.top - half * world.gsd)
                other, _ = mapped(scene, out, method, moved)
                same = 100 * (other == found[half:, half:]).mean()
                others = f"{tiles.crop_low:.3f} .. {tiles.crop_high:.3f}"
                print(
                    f"{seed:4} {row:16} {score:6.2f} {tiles.ratio:10.3f} {others:>15} {same:8.2f} {seconds:8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
