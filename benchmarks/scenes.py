"""Zero-shot scene classes on the tenth of the scene sets that no training saw.

    python -m benchmarks.scenes --data DATA [--model bundled] [--out benchmarks/results/scenes.json]

Each class is asked for by its name in the 80 templates. An image is described by its class token, by the mean of its
dense patches, and by both together. Accuracy within each set's own classes, and among the names of all sets.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.record import keep
from ovrs.model.clip.dense import encode_prelude, last_block
from ovrs.model.clip.loading import load
from ovrs.model.clip.text import embed, imagenet_templates
from ovrs.options import ModelOptions
from training.phrases import class_name
from training.prepare import held_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    model = load(ModelOptions(model=args.model))
    records = [json.loads(line) for line in (args.data / "scenes/index.jsonl").read_text().splitlines()]
    records = [r for r in records if r["cls"] and held_scene(r["image"])]
    truth = np.array([class_name(r["cls"]) for r in records])
    sets = np.array([r["image"].split("/")[0] for r in records])
    names = sorted(set(truth))
    text = embed(model.clip, model.tokenize, names, imagenet_templates())
    pictures = {z.stem: zipfile.ZipFile(z) for z in (args.data / "scenes").glob("*.zip")}
    vectors = {"class token": [], "mean patch": []}
    side = model.clip.visual.image_size[0]
    for start in range(0, len(records), 64):
        batch = []
        for record in records[start : start + 64]:
            raw = pictures[record["image"].split("/")[0]].read(record["image"])
            rgb = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
            batch.append((rgb / 255 - np.array(model.mean)) / np.array(model.std))
        images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            x, grid = encode_prelude(model.clip.visual, images)
            whole = last_block(model.clip.visual, x, grid, "vanilla").cls
            patches = F.normalize(last_block(model.clip.visual, x, grid, "segearth").patches, dim=-1).mean(1)
        vectors["class token"].append(F.normalize(whole, dim=-1))
        vectors["mean patch"].append(F.normalize(patches, dim=-1))
    joined = {k: torch.cat(v) for k, v in vectors.items()}
    joined["both"] = joined["class token"] + joined["mean patch"]
    print(f"{'set':12} {'images':>6} {'classes':>7}  " + "  ".join(f"{k:>12}" for k in joined))
    kept: dict[str, dict[str, float]] = {}
    for group in [*sorted(set(sets)), "all names"]:
        rows = np.ones(len(truth), bool) if group == "all names" else sets == group
        own = sorted(set(truth[rows]))
        columns = torch.tensor([names.index(n) for n in own])
        shares = [
            np.mean(np.array(own)[(v[rows] @ text[columns].T).argmax(1).numpy()] == truth[rows])
            for v in joined.values()
        ]
        kept[group] = {"images": int(rows.sum()), "classes": len(own)}
        kept[group] |= {k: 100 * float(s) for k, s in zip(joined, shares, strict=True)}
        print(f"{group:12} {rows.sum():6} {len(own):7}  " + "  ".join(f"{100 * s:12.1f}" for s in shares))
    if args.out is not None:
        keep(args.out, kept)


if __name__ == "__main__":
    main()
