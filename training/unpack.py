"""Take an exported model apart again, so that training can go on from it.

python -m training.unpack --model ovrs/assets --work DIR
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    state = {k: v.float() for k, v in load_file(args.model / "open_clip_model.safetensors").items()}
    own = json.loads((args.model / "ovrs.json").read_text("utf-8"))
    scale = own.get("head", own.get("defaults"))["logit_scale"]
    torch.save({k: v for k, v in state.items() if not k.startswith("visual.")}, args.work / "text.pt")
    visual = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    dense = torch.tensor(math.log(scale))
    torch.save({"visual": visual, "dense_scale": dense, "image_scale": state["logit_scale"]}, args.work / "vision.pt")


if __name__ == "__main__":
    main()
