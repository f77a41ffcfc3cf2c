"""Train the vision tower toward the text space: captions for whole scenes, names and sentences for patches.

    python -m training.train_vision --data DIR --work DIR --minutes 100 --threads 2

The stem begins with ImageNet's weights, the transformer as an identity. Dense features are trained through the
SegEarth-OV last block, the variant that the bundled model uses at run time.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovrs.engine.allocator import keep_freed_memory
from ovrs.model.clip.dense import encode_prelude, last_block
from training.crops import SMALLEST, dense_crop, looked_up, normalised, photometric, scene_crop
from training.infrared import colour_infrared
from training.losses import agreement_loss, caption_loss, class_loss, dense_loss, noun_loss
from training.material import Material
from training.model import build, start
from training.mosaics import find

SIDE, N_DENSE, N_SCENE = 160, 24, 16
AVERAGE = 0.998
"""Decay of the averaged weights, which are what is kept."""
INFRARED = 0.12
"""Share of labelled crops that are shown in colour infrared."""
FROZEN_STAGES = 3  # up to stride 8 a network sees edges and colours, which aerial images share with photographs


def groups_of(visual: nn.Module, scales: list[nn.Parameter]) -> list[dict]:
    """Parameters with their share of the learning rate: what ImageNet taught is changed gently."""
    net, head = visual.conv1.net, visual.conv1.head
    for part in (net.conv_stem, net.bn1, *net.blocks[:FROZEN_STAGES]):
        part.requires_grad_(False)
    stem = [p for p in net.parameters() if p.requires_grad]
    known = {id(p) for p in [*net.parameters(), *head.parameters()]}
    rest = [p for p in visual.parameters() if id(p) not in known and p.requires_grad]
    return [
        {"params": stem, "weight_decay": 0.02, "factor": 0.25},
        {"params": list(head.parameters()), "weight_decay": 0.02, "factor": 1.0},
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.05, "factor": 1.0},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "factor": 1.0},
        {"params": scales, "weight_decay": 0.0, "factor": 5.0},
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from WORK/vision.pt")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng, draw = random.Random(args.seed), np.random.default_rng(args.seed)
    random.seed(args.seed)
    m = Material(args.data, args.work)

    visual = build().visual.eval()  # batch norms keep ImageNet's statistics
    start(visual)
    dense_scale = nn.Parameter(torch.tensor(math.log(15.0)))
    image_scale = nn.Parameter(torch.tensor(math.log(14.0)))
    if args.resume:
        before = torch.load(args.work / "vision.pt", weights_only=True)
        visual.load_state_dict(before["visual"])
        dense_scale.data, image_scale.data = before["dense_scale"].clone(), before["image_scale"].clone()
    averaged = copy.deepcopy(visual).requires_grad_(False)
    if args.resume:  # a network that knows nothing yet can't say which patches to use
        scale = dense_scale.exp().item()
        m.mosaics = find(lambda x: dense(averaged, x), scale, m.texts, m.concepts, m.scenes, m.sets, m.usable)
    optimiser = torch.optim.AdamW(groups_of(visual, [dense_scale, image_scale]), betas=(0.9, 0.98))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    elapsed, last, step = 0.0, time.time(), 0
    while (progress := elapsed / 60 / args.minutes) < 1:
        rate = args.rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        pairs, places = m.draw_pairs(N_DENSE, rng)
        crops = [dense_crop(p, SIDE, rng, place) for p, place in zip(pairs, places, strict=True)]
        crops = [
            (colour_infrared(*crop, pair[3], rng), crop[1]) if rng.random() < INFRARED else crop
            for crop, pair in zip(crops, pairs, strict=True)
        ]
        rows = draw.choice(len(m.scene_share), N_SCENE, p=m.scene_share)
        parts, wholes, boxes = zip(*(scene_crop(m.scenes[r], SIDE, SMALLEST, rng) for r in rows), strict=True)
        images = torch.stack([c[0] for c in crops] + list(parts))

        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            x, grid = encode_prelude(visual, photometric(images))
            z = F.normalize(last_block(visual, x, grid, "segearth").patches.float(), dim=-1)
            whole = F.normalize(last_block(visual, x[N_DENSE:], grid, "vanilla").cls.float(), dim=-1)
            seen = [dense(averaged, images[N_DENSE:]), looked_up(dense(averaged, torch.stack(wholes)), list(boxes))]
        pooled = F.normalize(z[N_DENSE:].mean(1), dim=-1)
        losses = {
            "dense": dense_loss(m, z, crops, pairs, dense_scale, rng),
            "agreement": 0.3 * agreement_loss(m, z[N_DENSE:], seen, rows, dense_scale, rng),
            "nouns": 0.5 * noun_loss(m, z[N_DENSE:], rows, dense_scale, rng),
            "captions": 0.15 * caption_loss(m, [whole, pooled], rows, image_scale, rng),
            "classes": 0.15 * class_loss(m, [whole, pooled], rows, image_scale),
        }
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        with torch.no_grad():
            dense_scale.clamp_(max=math.log(50))
            image_scale.clamp_(max=math.log(50))
            for slow, fast in zip(averaged.parameters(), visual.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(AVERAGE, (1 + step) / (10 + step)))
        step += 1
        elapsed, last = elapsed + min(time.time() - last, 30), time.time()  # a process that is halted spends no budget
        if step % 100 == 0:
            parts = " ".join(f"{k} {v.item():.3f}" for k, v in losses.items())
            scale = dense_scale.exp().item()
            print(f"{step} {100 * progress:.0f} % {parts} scale {scale:.1f} {score(averaged, m)}", flush=True)
            save(args.work / "vision.pt", averaged, dense_scale, image_scale)
    save(args.work / "vision.pt", averaged, dense_scale, image_scale)
    print("done", step, flush=True)


def save(path: Path, visual: nn.Module, dense_scale: Tensor, image_scale: Tensor) -> None:
    torch.save({"visual": visual.state_dict(), "dense_scale": dense_scale.data, "image_scale": image_scale.data}, path)


@torch.no_grad()
def score(visual: nn.Module, m: Material) -> str:
    """Patch-level IoU on images never trained on, through the last block that the model is used with."""

    return m.held_score(lambda images: dense(visual, images))


@torch.no_grad()
def dense(visual: nn.Module, images: Tensor) -> Tensor:
    """Patch vectors `(n, N, D)`, normalised, of RGB in 0..1."""
    x, grid = encode_prelude(visual, normalised(images))
    return F.normalize(last_block(visual, x, grid, "segearth").patches.float(), dim=-1)


if __name__ == "__main__":
    main()
