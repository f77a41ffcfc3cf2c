"""Train the vision tower toward the text space: captions for whole scenes, names and sentences for patches.

    python -m training.train_vision --work DIR --minutes 100                      on two cores
    python -m training.train_vision --work DIR --minutes 8 --device cuda          on one accelerator

The stem begins with ImageNet's weights, the transformer as an identity; with `--resume`, both as they were. Dense features
are trained through the SegEarth-OV last block, the variant that the bundled model uses at run time. Pictures are on the
device from the beginning, and crops are cut, turned and photographed anew there. `log.jsonl` in the folder grows as it goes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovrs.engine.allocator import keep_freed_memory
from ovrs.model.clip.dense import encode_prelude, last_block
from training.crops import looked_up, normalised, photometric, scene_boxes
from training.infrared import colour_infrared
from training.losses import agreement_loss, caption_loss, class_loss, dense_loss, noun_loss
from training.material import SCENE_SIDE, Material
from training.model import build, float_depthwise, start
from training.mosaics import find

SIDE = 160
BATCH = {"cpu": (24, 16), "cuda": (256, 160)}
"""Crops of labelled pictures and of scenes in a batch, by kind of device."""
AVERAGE = 0.998
"""Decay of the averaged weights, which are what is kept."""
INFRARED = 0.12
"""Share of the sets of a batch that are shown in colour infrared."""
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


@dataclass
class Student:
    """The network in training, its running mean, and the two factors of cosines (as logarithms)."""

    visual: nn.Module
    averaged: nn.Module
    dense_scale: nn.Parameter
    image_scale: nn.Parameter

    def save(self, path: Path) -> None:
        """Write the mean weights."""
        scales = {k: getattr(self, k).data.cpu() for k in ("dense_scale", "image_scale")}
        torch.save({"visual": {k: v.cpu() for k, v in self.averaged.state_dict().items()}, **scales}, path)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the mean toward the weights, and bound the factors."""
        self.dense_scale.clamp_(max=math.log(50))
        self.image_scale.clamp_(max=math.log(50))
        slow, fast = list(self.averaged.parameters()), list(self.visual.parameters())
        torch._foreach_lerp_(slow, fast, 1 - min(AVERAGE, (1 + step) / (10 + step)))


def student(work: Path, device: torch.device, *, resume: bool) -> Student:
    """The network as training begins or goes on."""
    visual = build().visual.eval()  # batch norms keep ImageNet's statistics
    dense_scale, image_scale = (nn.Parameter(torch.tensor(math.log(v))) for v in (15.0, 14.0))
    if resume:
        before = torch.load(work / "vision.pt", weights_only=True)
        visual.load_state_dict(before["visual"])
        dense_scale.data, image_scale.data = before["dense_scale"].clone(), before["image_scale"].clone()
    else:
        start(visual)
    visual = visual.to(device)
    if device.type == "cpu":
        float_depthwise(visual)
    scales = [nn.Parameter(s.data.to(device)) for s in (dense_scale, image_scale)]
    return Student(visual, copy.deepcopy(visual).requires_grad_(False), *scales)


def losses_of(
    m: Material, own: Student, counts: tuple[int, int], rng: random.Random, draw: np.random.Generator
) -> dict:
    """One batch through the network: the losses by name."""
    device = m.device
    images, groups = m.draw(counts[0], SIDE, rng)
    for group in groups:
        if rng.random() < INFRARED:
            images[group.rows] = colour_infrared(images[group.rows], group.labels, group.set.concepts)
    rows = draw.choice(len(m.scene_share), counts[1], p=m.scene_share)
    parts, wholes, places = scene_boxes(torch.from_numpy(rows).to(device), SCENE_SIDE)
    parts, wholes = m.scenes.crops(parts, SIDE), m.scenes.crops(wholes, SIDE)
    with precision(device):
        x, grid = encode_prelude(own.visual, photometric(torch.cat([images, parts])))
        z = F.normalize(last_block(own.visual, x, grid, "segearth").patches.float(), dim=-1)
        whole = F.normalize(last_block(own.visual, x[counts[0] :], grid, "vanilla").cls.float(), dim=-1)
        seen = [dense(own.averaged, parts), looked_up(dense(own.averaged, wholes), places)]
    pooled = F.normalize(z[counts[0] :].mean(1), dim=-1)
    labelled, apart = dense_loss(m, z[: counts[0]], groups, own.dense_scale, rng)
    return {
        "dense": labelled,
        "wordings": 0.3 * apart,
        "agreement": 0.3 * agreement_loss(m, z[counts[0] :], seen, rows, own.dense_scale, rng),
        "nouns": 0.5 * noun_loss(m, z[counts[0] :], rows, own.dense_scale, rng),
        "captions": 0.15 * caption_loss(m, [whole, pooled], rows, own.image_scale, rng),
        "classes": 0.15 * class_loss(m, [whole, pooled], rows, own.image_scale),
    }


@contextmanager
def precision(device: torch.device) -> Iterator[None]:
    """bfloat16 with the attention kernel that is quick on the device."""
    kernels = [SDPBackend.MATH] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(kernels):
        yield


@torch.no_grad()
def dense(visual: nn.Module, images: Tensor) -> Tensor:
    """Patch vectors `(n, N, D)`, normalised, of RGB in 0..1."""
    x, grid = encode_prelude(visual, normalised(images))
    return F.normalize(last_block(visual, x, grid, "segearth").patches.float(), dim=-1)


def encoder(own: Student, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The averaged network in the training's precision: RGB `(n, 3, h, w)` in 0..1 to patch vectors on the device."""

    def encode(images: Tensor) -> Tensor:
        with precision(device):
            return dense(own.averaged, images.to(device))

    return encode


def scored(own: Student, m: Material) -> dict[str, float]:
    """Patch-level mIoU of the held-out pictures by set."""
    return m.score(encoder(own, m.device), SIDE)


def train(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train for the given time; returns the scores of the held-out pictures before and after."""
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng, draw = random.Random(args.seed), np.random.default_rng(args.seed)
    random.seed(args.seed)
    m = Material(args.work, device, args.hold)
    own = student(args.work, device, resume=args.resume)
    first = scored(own, m)
    print("before", first, flush=True)
    if args.resume:  # a network that knows nothing yet can't say which patches to use
        scale = own.dense_scale.exp().item()
        grounds = find(encoder(own, device), scale, m.texts, m.concepts, m.scene_pixels, m.scene_sets, m.usable)
        m.add_mosaics(grounds, rng)
    optimiser = torch.optim.AdamW(groups_of(own.visual, [own.dense_scale, own.image_scale]), betas=(0.9, 0.98))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    counts = tuple(args.batch or BATCH[device.type])
    log = (args.out or args.work) / "log.jsonl"
    elapsed, last, step, scores = 0.0, time.time(), 0, first
    while (progress := elapsed / 60 / args.minutes) < 1:
        rate = args.rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        losses = losses_of(m, own, counts, rng, draw)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        own.follow(step)
        step += 1
        elapsed, last = elapsed + min(time.time() - last, 30), time.time()  # a process that is halted spends no budget
        if step % args.every == 0:
            scores = scored(own, m)
            told = {k: round(v.item(), 4) for k, v in losses.items()}
            with log.open("a") as file:
                file.write(json.dumps({"step": step, "seconds": round(elapsed), "losses": told, "miou": scores}) + "\n")
            print(step, f"{100 * progress:.0f} %", told, scores, flush=True)
            own.save((args.out or args.work) / "vision.pt")
            last = time.time()
    own.save((args.out or args.work) / "vision.pt")
    after = scored(own, m)
    print("done", step, f"{step * sum(counts) / max(elapsed, 1):.0f} crops/s", after, flush=True)
    return {"before": first, "after": after}


def parser() -> argparse.ArgumentParser:
    """What the command can be told; `training.leave_out` has the same."""
    told = argparse.ArgumentParser()
    told.add_argument("--work", type=Path, required=True, help="what `training.prepare` wrote")
    told.add_argument("--out", type=Path, help="folder of the result and the log; WORK if not given")
    told.add_argument("--minutes", type=float, default=100)
    told.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    told.add_argument("--batch", type=int, nargs=2, metavar=("LABELLED", "SCENES"), help="crops of a batch")
    told.add_argument("--threads", type=int, default=2)
    told.add_argument("--seed", type=int, default=1)
    told.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    told.add_argument("--every", type=int, default=100, help="steps between scores")
    told.add_argument("--hold", nargs="*", default=[], metavar="SET", help="sets of sets.yaml to leave out and score")
    told.add_argument("--resume", action="store_true", help="go on from WORK/vision.pt")
    return told


if __name__ == "__main__":
    keep_freed_memory()
    train(parser().parse_args())
