"""Train the small vision tower toward the text space: captions for whole scenes, names and sentences for patches.

    python -m training.train_vision --data DIR --work DIR --minutes 60 --threads 2

Dense features are trained through the SegEarth-OV last block, the variant that the bundled model uses at run time.
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
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as TEMPLATES

from ovrs.model.dense import encode_prelude, last_block
from training import phrases
from training.distill_text import encode_short, tokens_of
from training.model import build
from training.prepare import dense_pairs

CROP, PATCH = 160, 16
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def dense_crop(pair: tuple, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """One augmented crop `(3, 160, 160)` in 0..1 and its labels `(160, 160)`."""
    _, rgb, labels, _, (low, high) = pair
    limit = min(rgb.shape[:2])
    side = int(min(limit, CROP * math.exp(rng.uniform(math.log(low), math.log(high)))))
    y, x = rng.randint(0, rgb.shape[0] - side), rng.randint(0, rgb.shape[1] - side)
    image = torch.from_numpy(rgb[y : y + side, x : x + side].copy()).permute(2, 0, 1).float()[None] / 255
    target = torch.from_numpy(labels[y : y + side, x : x + side].copy()).float()[None, None]
    if side != CROP:
        image = F.interpolate(image, (CROP, CROP), mode="bilinear", antialias=True)
        target = F.interpolate(target, (CROP, CROP), mode="nearest-exact")
    return turn(image[0], target[0, 0].long(), rng)


def scene_crop(pixels: np.ndarray, rng: random.Random) -> torch.Tensor:
    side = rng.randint(112, pixels.shape[0])
    y, x = rng.randint(0, pixels.shape[0] - side), rng.randint(0, pixels.shape[1] - side)
    image = torch.from_numpy(pixels[y : y + side, x : x + side].copy()).permute(2, 0, 1).float()[None] / 255
    image = F.interpolate(image, (CROP, CROP), mode="bilinear", antialias=True)
    return turn(image[0], torch.zeros(CROP, CROP), rng)[0]


def turn(image: torch.Tensor, target: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    quarter, mirror = rng.randrange(4), rng.random() < 0.5
    image, target = torch.rot90(image, quarter, (1, 2)), torch.rot90(target, quarter, (0, 1))
    return (image.flip(2), target.flip(1)) if mirror else (image, target)


def photometric(x: torch.Tensor) -> torch.Tensor:
    """Exposure, colour cast, contrast, saturation, haze, blur and noise, another draw for each image."""
    b = x.shape[0]

    def draw(low: float, high: float, c: int = 1) -> torch.Tensor:
        return torch.empty(b, c, 1, 1).uniform_(low, high)

    x = x.clamp(1e-4, 1) ** draw(0.7, 1.4)
    x = x * draw(0.75, 1.25) * draw(0.88, 1.12, 3)
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = grey + (x - grey) * draw(0.5, 1.4)
    x = mean + (x - mean) * draw(0.6, 1.4)
    haze = draw(-0.3, 0.35).clamp(min=0)
    x = x * (1 - haze) + 0.8 * haze
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    x = torch.where(draw(0, 1) < 0.25, soft, x)
    x = x + torch.randn_like(x) * draw(-0.04, 0.06).clamp(min=0)
    return (x.clamp(0, 1) - MEAN) / STD


def patch_targets(labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each class per patch `(N, classes)` and the share of labelled pixels `(N,)`."""
    one_hot = F.one_hot(labels.clamp(max=classes), classes + 1).permute(2, 0, 1).float()
    share = F.avg_pool2d(one_hot, PATCH).flatten(1).T
    known = 1 - share[:, classes]
    return share[:, :classes] / known[:, None].clamp(min=1e-6), known


class Texts:
    """Vectors of every training phrase: the teacher's until the student exists, then the student's own."""

    def __init__(self, work: Path) -> None:
        self.work, self.student = work, False
        self.row = {p: i for i, p in enumerate(json.loads((work / "texts.json").read_text()))}
        self.table = torch.from_numpy(np.load(work / "texts.npy"))
        self.ensemble: dict[str, torch.Tensor] = {}

    def refresh(self) -> None:
        if self.student or not (self.work / "text.pt").exists():
            return
        model = build()
        model.load_state_dict(torch.load(self.work / "text.pt", weights_only=True), strict=False)
        with torch.no_grad():
            tokens = tokens_of(list(self.row))
            order = tokens.argmax(1).argsort()
            for rows in order.split(1024):
                self.table[rows] = encode_short(model, tokens[rows])
            for phrase in phrases.concept_phrases():
                z = encode_short(model, tokens_of([t(phrase) for t in TEMPLATES]))
                self.ensemble[phrase] = F.normalize(z.mean(0), dim=0)
        self.student = True
        print("text vectors: the student's from here on", flush=True)

    def __getitem__(self, phrase: str) -> torch.Tensor:
        if phrase in self.ensemble and random.random() < 0.6:
            return self.ensemble[phrase]
        return self.table[self.row[phrase]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(args.threads)
    rng = random.Random(1)

    concepts = phrases.concepts()
    texts = Texts(args.work)
    scenes = np.load(args.work / "scenes.npy", mmap_mode="r")
    captions = json.loads((args.work / "scenes.json").read_text())
    classes = json.loads((args.work / "classes.json").read_text())
    train, held = dense_pairs(args.data, "train"), dense_pairs(args.data, "held")
    by_set: dict[str, list] = {}
    for pair in train:
        by_set.setdefault(pair[0], []).append(pair)
    draw_set = {"czortho": 0.36, "dubai": 0.26, "synth": 0.26, "chesapeake": 0.12}
    weights = {name: class_weights(pairs) for name, pairs in by_set.items()}
    held_rng = random.Random(5)
    held_crops = [(p, *dense_crop(p, held_rng)) for p in held for _ in range(4)]
    print(len(train), "dense pairs,", len(held), "held out,", len(captions), "scenes", flush=True)

    model = build()
    visual = model.visual
    dense_scale = torch.nn.Parameter(torch.tensor(math.log(20.0)))
    image_scale = torch.nn.Parameter(torch.tensor(math.log(14.0)))
    if args.resume:
        saved = torch.load(args.work / "vision.pt", weights_only=True)
        visual.load_state_dict(saved["visual"])
        dense_scale.data, image_scale.data = saved["dense_scale"], saved["image_scale"]
    decay = [p for p in visual.parameters() if p.ndim > 1]
    plain = [p for p in visual.parameters() if p.ndim <= 1]
    scales = [dense_scale, image_scale]
    optimiser = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": 0.05},
            {"params": plain, "weight_decay": 0.0},
            {"params": scales, "weight_decay": 0.0, "factor": 5.0},
        ],
        betas=(0.9, 0.98),
    )
    parameters = decay + plain + scales
    n_dense, n_scene = 22, 22
    start, step = time.time(), 0
    while (used := (time.time() - start) / 60) < args.minutes:
        if step % 100 == 0:
            texts.refresh()
        progress = used / args.minutes
        rate = 8e-4 * min(1, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        names = rng.choices(list(draw_set), list(draw_set.values()), k=n_dense)
        pairs = [rng.choice(by_set[n]) for n in names]
        crops = [dense_crop(p, rng) for p in pairs]
        rows = [rng.randrange(len(captions)) for _ in range(n_scene)]
        images = torch.stack([c[0] for c in crops] + [scene_crop(scenes[r], rng) for r in rows])
        x, grid = encode_prelude(visual, photometric(images))
        tokens = last_block(visual, x, grid, "segearth").patches
        whole = last_block(visual, x[n_dense:], grid, "vanilla").cls

        z = F.normalize(tokens, dim=-1)
        dense_loss = torch.zeros(())
        for i, (pair, (_, labels)) in enumerate(zip(pairs, crops, strict=True)):
            text = torch.stack([texts[draw_phrase(concepts[c], rng)] for c in pair[3]])
            target, known = patch_targets(labels, len(pair[3]))
            weight = (target * weights[pair[0]]).sum(-1) * (known > 0.5)
            logits = dense_scale.exp() * z[i] @ text.T
            ce = -(target * logits.log_softmax(-1)).sum(-1)
            dense_loss = dense_loss + (ce * weight).sum() / 100
        dense_loss = dense_loss / n_dense

        said = [classes[r] if classes[r] and rng.random() < 0.3 else rng.choice(captions[r]) for r in rows]
        text = torch.stack(
            [texts[s] if s in texts.row else texts[rng.choice(captions[r])] for s, r in zip(said, rows, strict=True)]
        )
        same = (text @ text.T > 0.98).float()
        same = same / same.sum(-1, keepdim=True)
        pooled = F.normalize(z[n_dense:].mean(1), dim=-1)
        image_loss = contrast(F.normalize(whole, dim=-1), text, same, image_scale) + contrast(
            pooled, text, same, image_scale
        )

        optimiser.zero_grad()
        (dense_loss + 0.3 * image_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        with torch.no_grad():
            dense_scale.clamp_(max=math.log(50))
            image_scale.clamp_(max=math.log(50))
        step += 1
        if step % 100 == 0:
            print(
                f"{step} {used:.1f} min  dense {dense_loss.item():.3f} image {image_loss.item():.3f} "
                f"scale {dense_scale.exp().item():.1f} {image_scale.exp().item():.1f}  {held_score(visual, held_crops, concepts, texts)}",
                flush=True,
            )
            torch.save(
                {"visual": visual.state_dict(), "dense_scale": dense_scale.data, "image_scale": image_scale.data},
                args.work / "vision.pt",
            )
    torch.save(
        {"visual": visual.state_dict(), "dense_scale": dense_scale.data, "image_scale": image_scale.data},
        args.work / "vision.pt",
    )
    print("done", step, flush=True)


def draw_phrase(concept: dict[str, list[str]], rng: random.Random) -> str:
    return rng.choice(concept["descriptions"] if rng.random() < 0.4 else concept["names"])


def class_weights(pairs: list) -> torch.Tensor:
    """Inverse square root of the class shares of one set, mean one over its pixels."""
    count = sum(np.bincount(p[2].ravel(), minlength=256)[: len(p[3])] for p in pairs).astype(np.float64)
    share = np.maximum(count / count.sum(), 2e-3)
    weight = share**-0.5
    return torch.from_numpy(weight / (weight * share).sum()).float()


def contrast(z: torch.Tensor, text: torch.Tensor, same: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits = scale.exp() * z @ text.T
    return -(same * logits.log_softmax(-1)).sum(-1).mean() - (same * logits.T.log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def held_score(visual: torch.nn.Module, crops: list, concepts: dict, texts: Texts) -> str:
    """Patch-level mIoU on scenes never trained on, first name of each concept as the prompt."""
    out = []
    for name in ("czortho", "dubai"):
        mine = [c for c in crops if c[0][0] == name]
        text = torch.stack([texts[concepts[c]["names"][0]] for c in mine[0][0][3]])
        images = (torch.stack([c[1] for c in mine]) - MEAN) / STD
        x, grid = encode_prelude(visual, images)
        guess = (last_block(visual, x, grid, "segearth").patches @ text.T).argmax(-1).flatten()
        target = [patch_targets(c[2], len(text)) for c in mine]
        truth, known = torch.cat([t[0] for t in target]).argmax(-1), torch.cat([t[1] for t in target]) > 0.5
        matrix = (
            torch.bincount(truth[known] * len(text) + guess[known], minlength=len(text) ** 2)
            .view(len(text), -1)
            .float()
        )
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        iou = (matrix.diag() / union)[matrix.sum(1) > 0]
        out.append(f"{name} {100 * iou.mean():.1f}")
    return " ".join(out)


if __name__ == "__main__":
    main()
