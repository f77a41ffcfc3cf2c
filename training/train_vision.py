"""Train the small vision tower toward the text space: captions for whole scenes, names and sentences for patches.

    python -m training.train_vision --data DIR --work DIR --minutes 100 --threads 2

Dense features are trained through the SegEarth-OV last block, the variant that the bundled model uses at run time.
The first part of the time goes to crops of 96 px (more images in the same time), the rest to the native 160 px.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovrs.model.dense import encode_prelude, last_block
from training import phrases
from training.crops import MEAN, STD, dense_crop, patch_targets, photometric, scene_crop
from training.image_teacher import DIM as SEEN_DIM
from training.model import CONFIG, build
from training.prepare import dense_pairs
from training.texts import FAR_OFF, Named, Texts, draw_phrase

DRAW_SET = {"czortho": 0.28, "dubai": 0.34, "synth": 0.26, "chesapeake": 0.12}
SMALL, NATIVE = (96, 44, 68), (160, 18, 26)  # crop side, pixel-labelled crops, scenes: about the same cost
SMALL_SHARE = 0.6  # of the time
PEAK_RATE = 1e-3


def encode(visual: nn.Module, images: Tensor, rng: random.Random) -> tuple[Tensor, tuple[int, int]]:
    """`encode_prelude`, but a small crop takes a random window of the position grid: scale then means one thing."""
    native, n = visual.grid_size[0], images.shape[-1] // 16
    if n == native:
        return encode_prelude(visual, images)
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(len(x), 1, -1)
    y0, x0 = rng.randint(0, native - n), rng.randint(0, native - n)
    position = visual.positional_embedding[1:].view(native, native, -1)[y0 : y0 + n, x0 : x0 + n]
    x = torch.cat([cls + visual.positional_embedding[0], x + position.reshape(n * n, -1)], 1)
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x, (n, n)


class Material:
    """Everything that is drawn from, in memory or mapped."""

    def __init__(self, data: Path, work: Path) -> None:
        self.texts = Texts(work)
        self.concepts = phrases.concepts()
        self.scenes = np.load(work / "scenes.npy", mmap_mode="r")
        self.seen_scenes = np.load(work / "seen_scenes.npy", mmap_mode="r")
        held = np.array(json.loads((work / "held_scenes.json").read_text()))
        sets = json.loads((work / "scene_sets.json").read_text())
        self.photographed = np.array([s != "eurosat" for s in sets])  # what the image teacher looked at
        share = np.where(self.photographed, 1.0, 0.25) * ~held  # 64 px satellite scenes teach less
        self.scene_share = share / share.sum()
        self.named = Named(self.texts.captions, self.texts.classes, sets)
        self.by_set: dict[str, list] = {}
        for k, pair in enumerate(dense_pairs(data, "train")):
            seen = np.load(work / f"seen_{k}.npy")
            self.by_set.setdefault(pair[0], []).append((pair, seen))
        self.weights = {name: class_weights([p for p, _ in pairs]) for name, pairs in self.by_set.items()}
        held_rng = random.Random(5)
        self.held = [(p, *dense_crop(p, None, 160, held_rng)[:2]) for p in dense_pairs(data, "held") for _ in range(4)]
        self.held_scenes = np.flatnonzero(held)
        print({k: len(v) for k, v in self.by_set.items()}, len(held) - held.sum(), "scenes", flush=True)


def class_weights(pairs: list) -> Tensor:
    """Inverse square root of the class shares of one set, mean one over its pixels."""
    count = sum(np.bincount(p[2].ravel(), minlength=256)[: len(p[3])] for p in pairs).astype(np.float64)
    share = np.maximum(count / count.sum(), 2e-3)
    weight = share**-0.5
    return torch.from_numpy(weight / (weight * share).sum()).float()


def dense_loss(m: Material, z: Tensor, crops: list, pairs: list, scale: Tensor, rng: random.Random) -> Tensor:
    """Cross-entropy of patches over the classes of their set (freshly drawn words) and some far-off things."""
    total = z.new_zeros(())
    for i, ((pair, _), (_, labels, _)) in enumerate(zip(pairs, crops, strict=True)):
        classes = len(pair[3])
        words = [draw_phrase(m.concepts[c], rng) for c in pair[3]] + rng.sample(FAR_OFF, rng.randint(0, 2))
        target, known = patch_targets(labels, classes)
        weight = (target * m.weights[pair[0]]).sum(-1) * (known > 0.5)
        chance = (scale.exp() * z[i] @ torch.stack([m.texts[w] for w in words]).T).log_softmax(-1)
        total = total - ((target * chance[:, :classes]).sum(-1) * weight).mean()
    return total / len(pairs)


def noun_loss(m: Material, z: Tensor, rows: np.ndarray, scale: Tensor, rng: random.Random) -> Tensor:
    """What a caption names must be somewhere in the image: the patches most like it answer for it."""
    present, absent = m.named.present[rows], m.named.absent[rows]
    likeness = z @ m.named.vectors(m.texts, rng).T
    pooled = ((10 * likeness).softmax(1) * likeness).sum(1) * scale.exp()
    against = pooled.masked_fill(~absent, -1e4).logsumexp(-1, keepdim=True)
    loss = F.softplus(against - pooled)
    return (loss * present).sum() / present.sum().clamp(min=1)


def caption_loss(m: Material, vectors: list[Tensor], rows: np.ndarray, scale: Tensor, rng: random.Random) -> Tensor:
    """Contrast of whole images with one of their captions or their class; like sentences share the target."""
    texts, said = m.texts, []
    for r in rows:
        cls = texts.classes[r]
        said.append(cls if cls and rng.random() < 0.4 else rng.choice(texts.captions[r]))
    text = torch.stack([texts[s] for s in said])
    same = (text @ text.T > 0.98).float()
    same = same / same.sum(-1, keepdim=True)
    loss = text.new_zeros(())
    for z in vectors:
        logits = scale.exp() * z @ text.T
        loss = loss - (same * logits.log_softmax(-1)).sum(-1).mean() - (same * logits.T.log_softmax(-1)).sum(-1).mean()
    return loss


def seen_loss(head: nn.Module, tokens: Tensor, seen: Tensor, use: Tensor) -> Tensor:
    """Cosine distance to what the image teacher saw, for the images that it looked at."""
    guess = head(tokens[use])
    return 1 - F.cosine_similarity(guess, seen[use].flatten(2).transpose(1, 2), dim=-1).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="highest learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from WORK/vision.pt, at the native size only")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng, draw = random.Random(args.seed), np.random.default_rng(args.seed)
    random.seed(args.seed)
    m = Material(args.data, args.work)

    visual = build().visual
    width = CONFIG["vision_cfg"]["width"]
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, SEEN_DIM))
    dense_scale = nn.Parameter(torch.tensor(math.log(15.0)))
    image_scale = nn.Parameter(torch.tensor(math.log(14.0)))
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in visual.parameters() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in visual.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(head.parameters()), "weight_decay": 0.0},
            {"params": [dense_scale, image_scale], "weight_decay": 0.0, "factor": 5.0},
        ],
        betas=(0.9, 0.98),
    )
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if args.resume:
        before = torch.load(args.work / "vision.pt", weights_only=True)
        visual.load_state_dict(before["visual"])
        dense_scale.data, image_scale.data = before["dense_scale"].clone(), before["image_scale"].clone()
    start, step = time.time(), 0
    while (progress := (time.time() - start) / 60 / args.minutes) < 1:
        rate = args.rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        size, n_dense, n_scene = SMALL if progress < SMALL_SHARE and not args.resume else NATIVE
        pairs = [rng.choice(m.by_set[n]) for n in rng.choices(list(DRAW_SET), list(DRAW_SET.values()), k=n_dense)]
        crops = [dense_crop(p, seen, size, rng) for p, seen in pairs]
        rows = draw.choice(len(m.scene_share), n_scene, p=m.scene_share)
        smallest = 112 if size == 160 else 104
        views = [scene_crop(m.scenes[r], m.seen_scenes[r], size, smallest, rng) for r in rows]
        images = torch.stack([c[0] for c in crops] + [v[0] for v in views])
        seen = torch.stack([c[2] for c in crops] + [v[1] for v in views])
        looked = torch.cat([torch.ones(n_dense, dtype=torch.bool), torch.from_numpy(m.photographed[rows])])

        x, grid = encode(visual, photometric(images), rng)
        z = F.normalize(last_block(visual, x, grid, "segearth").patches, dim=-1)
        whole = F.normalize(last_block(visual, x[n_dense:], grid, "vanilla").cls, dim=-1)
        pooled = F.normalize(z[n_dense:].mean(1), dim=-1)
        losses = {
            "dense": dense_loss(m, z, crops, pairs, dense_scale, rng),
            "nouns": 0.5 * noun_loss(m, z[n_dense:], rows, dense_scale, rng),
            "captions": 0.15 * caption_loss(m, [whole, pooled], rows, image_scale, rng),
            "seen": 1.0 * seen_loss(head, x[:, 1:], seen, looked),
        }
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        with torch.no_grad():
            dense_scale.clamp_(max=math.log(50))
            image_scale.clamp_(max=math.log(50))
        step += 1
        if step % 100 == 0:
            m.texts.refresh()
            parts = " ".join(f"{k} {v.item():.3f}" for k, v in losses.items())
            print(
                f"{step} {100 * progress:.0f} % {parts} scale {dense_scale.exp().item():.1f} {held_score(visual, m)}",
                flush=True,
            )
            save(args.work / "vision.pt", visual, dense_scale, image_scale)
    save(args.work / "vision.pt", visual, dense_scale, image_scale)
    print("done", step, flush=True)


def save(path: Path, visual: nn.Module, dense_scale: Tensor, image_scale: Tensor) -> None:
    torch.save({"visual": visual.state_dict(), "dense_scale": dense_scale.data, "image_scale": image_scale.data}, path)


@torch.no_grad()
def held_score(visual: nn.Module, m: Material) -> str:
    """Patch-level mIoU on scenes never trained on, first name of each concept as the prompt."""
    out = []
    for name in ("czortho", "dubai"):
        mine = [c for c in m.held if c[0][0] == name]
        text = torch.stack([m.texts.ensemble[m.concepts[c]["names"][0]] for c in mine[0][0][3]])
        x, grid = encode_prelude(visual, (torch.stack([c[1] for c in mine]) - MEAN) / STD)
        guess = (last_block(visual, x, grid, "segearth").patches @ text.T).argmax(-1).flatten()
        target = [patch_targets(c[2], len(text)) for c in mine]
        truth, known = torch.cat([t[0] for t in target]).argmax(-1), torch.cat([t[1] for t in target]) > 0.5
        index = truth[known] * len(text) + guess[known]
        matrix = torch.bincount(index, minlength=len(text) ** 2).view(len(text), -1).float()
        iou = (matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag()))[matrix.sum(1) > 0]
        out.append(f"{name} {100 * iou.mean():.1f}")
    return " ".join(out)


if __name__ == "__main__":
    main()
