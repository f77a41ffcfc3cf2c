"""Join both towers into a directory in open_clip's format (float16 safetensors): the bundled model.

python -m training.export --work DIR --out ovrs/assets
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from ovrs.model.clip.architecture import build as build_network
from ovrs.model.clip.checkpoint import fill
from ovrs.model.clip.loading import hash_weights
from training.model import CONFIG, STEM, build

TEXT = {"bare": True, "split_names": True, "prompts": "names"}
HEAD = {"dense": "segearth", "cls_weight": 0.0, "aggregate": "mean"}
TMPA = {"absent": "mean", "keep_shares": 100.0, "alpha_init": 0.02, "lr": 0.003}
"""Options that suit a model whose texts and patches were trained toward each other (model card)."""

WINDOWS = {"zoom": 5 / 3, "stride": 80, "pixel_sizes": [0.075, 0.135, 0.2], "wide": [2], "turned": True}
"""Enlarged windows with little overlap cost as much as half-overlapping ones as they are, and show more; fine imagery is
looked at in three scales (model card)."""


LICENCE = "Apache-2.0; parts of the training data are for research only (see MODEL_CARD.md)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = build()
    text = torch.load(args.work / "text.pt", weights_only=True)
    vision = torch.load(args.work / "vision.pt", weights_only=True)
    missing, unexpected = model.load_state_dict(text, strict=False)
    if unexpected or any(not name.startswith("visual.") for name in missing):
        raise SystemExit(f"text tower does not fit: {unexpected or missing}")
    model.visual.load_state_dict(vision["visual"])
    model.logit_scale.data = vision["image_scale"].clone()
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"},
        args.out / "open_clip_model.safetensors",
    )
    config = {
        "model_cfg": CONFIG,
        "stem": STEM,
        "preprocess_cfg": {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)},
    }
    (args.out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    scale = round(math.exp(float(vision["dense_scale"])), 2)
    clip = build_network(CONFIG, STEM)
    fill(clip, args.out / "open_clip_model.safetensors")
    if (args.work / "jbu_one.safetensors").exists():
        shutil.copy(args.work / "jbu_one.safetensors", args.out / "jbu_one.safetensors")
    methods = {"tmpa": TMPA, "tmpa_shift": TMPA}
    own = {"text": TEXT, "head": {**HEAD, "logit_scale": scale}, "methods": methods}
    own |= {"windows": WINDOWS, "sha256": hash_weights(clip), "licence": LICENCE}
    (args.out / "ovrs.json").write_text(json.dumps(own, indent=1) + "\n")
    print(sum(p.numel() for p in model.parameters()) / 1e6, "M parameters, dense logit scale", scale)


if __name__ == "__main__":
    main()
