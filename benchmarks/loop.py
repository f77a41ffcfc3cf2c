"""The analyst's loop on two real scenes: map, assess, teach with a few clicks, assess again.

    python -m benchmarks.loop --data DATA [--out benchmarks/results/loop.json]

Reference points and clicks were set by eye by one person: `benchmarks/loop/*.geojson`. Points were drawn by `ovrs sample` from
the first map of each scene and labelled on pictures of the ground around them, which do not show what the map said. Then clicks
were set on a picture of the whole scene, which does not show the points. Ploughed land is farmland, paved yards are parking lots,
allotments are farmland. The imagery is not part of the project.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import keep

PLACES = Path(__file__).parent / "loop"
SCENES = {
    "Cologne, industry and fields": (
        "cologne",
        "geotiff/SegEarth-OV__oem_koeln_50.tif",
        "building, road, parking lot, trees, grass, farmland, bare soil",
    ),
    "Zürich, houses and forest": (
        "zurich",
        "geotiff/zurich_tiles",
        "building, road, parking lot, trees, grass, farmland, water",
    ),
}
"""Title to: name of the points' files, scene below DATA, classes."""


def ovrs(*words: str | Path) -> None:
    """Run a command of ours."""
    subprocess.run([sys.executable, "-m", "ovrs", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def assessed(store: Path, reference: Path) -> dict[str, Any]:
    """Overall accuracy and F1 of each class, in percent, with half widths of 95 % intervals, and hectares."""
    out = store.with_suffix(".json")
    ovrs("assess", store, "--reference", reference, "-o", out, "--overwrite")
    told = json.loads(out.read_text())
    overall = told["overall"]
    classes = {
        each["class"]: {
            "f1": 100 * each["f1"]["value"],
            "mapped": each["mapped_hectares"],
            "hectares": each["hectares"]["value"],
        }
        for each in told["per_class"]
        if each["f1"]["value"] is not None
    }
    half = 50 * (overall["high"] - overall["low"])
    return {"points": told["points"], "overall": 100 * overall["value"], "half": half, "classes": classes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    results = {}
    for title, (name, scene, classes) in SCENES.items():
        reference, clicks = (PLACES / f"{name}_{kind}.geojson" for kind in ("reference", "clicks"))
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder) / "first.zarr", Path(folder) / "taught.zarr"
            ovrs("map", args.data / scene, "--classes", classes, "-o", first, "--progress", "none")
            ovrs("teach", first, "--examples", clicks, "-o", second, "--progress", "none")
            given = len(json.loads(clicks.read_text())["features"])
            results[title] = {
                "clicks": given,
                "first": assessed(first, reference),
                "taught": assessed(second, reference),
            }
        for step in ("first", "taught"):
            found = results[title][step]
            print(f"{title}, {step}: overall {found['overall']:.1f} ± {found['half']:.1f}", flush=True)
    if args.out is not None:
        keep(args.out, results)


if __name__ == "__main__":
    main()
