"""Collect the training material into arrays that the two training scripts map into memory.

python -m training.prepare --data DIR --work DIR
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ovrs.demo.synth import World
from training import phrases
from training.text_tower import encode_all, text_tower

SIDE = 176
HELD_OUT_CZORTHO = ("T8_",)  # the one region that shows all six classes
HELD_OUT_DUBAI = ("tile1_", "tile2_")

DUBAI = {0x3C1098: "building", 0x8429F6: "land", 0x6EC1E4: "road", 0xFEDD3A: "vegetation", 0xE2A929: "water"}
CZORTHO = {
    0x32FFA7: "vegetation",
    0xA67556: "soil",
    0x6D32FF: "paved",
    0xFFE132: "building",
    0x32A7FF: "water",
    0xFF8C00: "unpaved_road",
}
SYNTH = ["building", "road", "water", "tree", "field", "soil"]
CHESAPEAKE = {1: "water", 2: "tree", 3: "low_vegetation", 4: "soil", 5: "paved", 6: "road"}


def colour_labels(path: Path, table: dict[int, str], names: list[str]) -> np.ndarray:
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    key = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    out = np.full(key.shape, 255, np.uint8)
    for colour, name in table.items():
        out[key == colour] = names.index(name)
    return out


def dense_pairs(data: Path, split: str) -> list[tuple[str, np.ndarray, np.ndarray, list[str], tuple[float, float]]]:
    """(set, RGB (h, w, 3), labels (h, w) with 255 ignored, concept names, range of scale augmentation)."""
    out = []
    names = list(CZORTHO.values())
    for image in sorted((data / "czortho/images").glob("*.jpg")):
        if image.name.startswith(HELD_OUT_CZORTHO) == (split == "held"):
            mask = next((data / "czortho/masks").glob(image.stem + ".*"))
            out.append(
                (
                    "czortho",
                    np.asarray(Image.open(image).convert("RGB")),
                    colour_labels(mask, CZORTHO, names),
                    names,
                    (0.7, 3.0),
                )
            )
    names = list(DUBAI.values())
    for image in sorted((data / "dubai/images").glob("*.jpg")):
        if image.name.startswith(HELD_OUT_DUBAI) == (split == "held"):
            mask = next((data / "dubai/masks").glob(image.stem + ".*"))
            rgb, labels = np.asarray(Image.open(image).convert("RGB")), colour_labels(mask, DUBAI, names)
            if rgb.shape[:2] == labels.shape:
                out.append(("dubai", rgb, labels, names, (0.35, 1.3)))
    if split == "held":
        return out
    names = list(dict.fromkeys(CHESAPEAKE.values()))
    for patch in sorted((data / "chesapeake").rglob("*.npz")):
        for rgb, labels in chesapeake(patch, names):
            out.append(("chesapeake", rgb, labels, names, (0.35, 1.0)))
    for seed in range(36):
        gsd = [0.25, 0.4, 0.5, 0.8, 1.0, 1.5][seed % 6]
        rgb, labels = World(seed=1000 + seed, gsd=gsd, noise=1 + seed % 7).render(700 * seed, 0, 1024, 1024)
        out.append(("synth", np.moveaxis(rgb, 0, -1), labels, SYNTH, (0.35, 1.3)))
    return out


def held_scene(image: str) -> bool:
    """A tenth of the scenes, chosen by a hash of the name."""
    return hashlib.sha256(image.encode()).digest()[0] % 10 == 0


def chesapeake(path: Path, names: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The patch in natural colours and in colour infrared, with its labels."""
    block = np.load(path)["arr_0"].squeeze()
    block = block if block.shape[0] < block.shape[-1] else np.moveaxis(block, -1, 0)
    labels = np.full(block.shape[1:], 255, np.uint8)
    for value, name in CHESAPEAKE.items():
        labels[block[8].astype(int) == value] = names.index(name)
    bands = np.moveaxis(block[:4], 0, -1).clip(0, 255).astype(np.uint8)
    return [(bands[..., :3], labels), (bands[..., [3, 0, 1]], labels)]


def scenes(data: Path, work: Path) -> None:
    records = [json.loads(line) for line in (data / "scenes/index.jsonl").read_text().splitlines()]
    archives = {z.stem: zipfile.ZipFile(z) for z in (data / "scenes").glob("*.zip")}
    known = {name: set(z.namelist()) for name, z in archives.items()}
    records = [r for r in records if r["image"] in known[r["image"].split("/")[0]]]
    pixels = np.lib.format.open_memmap(work / "scenes.npy", "w+", np.uint8, (len(records), SIDE, SIDE, 3))
    for i, record in enumerate(records):
        raw = archives[record["image"].split("/")[0]].read(record["image"])
        pixels[i] = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC))
    (work / "scenes.json").write_text(
        json.dumps([[phrases.clean(c) for c in r["captions"]] or [phrases.class_name(r["cls"])] for r in records])
    )
    (work / "scene_sets.json").write_text(json.dumps([r["image"].split("/")[0] for r in records]))
    (work / "held_scenes.json").write_text(json.dumps([held_scene(r["image"]) for r in records]))
    (work / "classes.json").write_text(json.dumps([phrases.class_name(r["cls"]) if r["cls"] else "" for r in records]))


def texts(data: Path, work: Path) -> None:
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as TEMPLATES

    rng = np.random.default_rng(0)
    domain = phrases.captions(data) + phrases.concept_phrases() * 1 + phrases.composed(60_000)
    names = sorted({w for w in phrases.NOUNS if len(w) > 2} | set(phrases.MULTI) | set(phrases.concept_phrases()))
    templated = [TEMPLATES[int(rng.integers(len(TEMPLATES)))](n) for n in names for _ in range(24)]
    everything = list(dict.fromkeys(domain + names + templated))
    vocabulary = phrases.words()
    templated_words = [TEMPLATES[int(rng.integers(len(TEMPLATES)))](w) for w in vocabulary[::3]]
    more = phrases.sentences(60_000) + phrases.named_descriptions(phrases.concepts().values()) + phrases.noun_phrases()
    more += phrases.context_phrases()
    everything = list(dict.fromkeys(everything + vocabulary + templated_words + more))
    kept_out = held_out_phrases()
    everything = [p for p in everything if p.lower() not in kept_out]
    teacher = phrases.Teacher()
    raw = teacher.raw(everything)
    if (work / "text.pt").exists():  # the vision tower was trained toward an earlier text tower: stay in its space
        teacher.fit_to(raw, encode_all(text_tower(work / "text.pt"), everything).numpy())
    else:
        teacher.fit(raw[: len(dict.fromkeys(domain))])
    np.save(work / "texts.npy", teacher.project(raw))
    (work / "texts.json").write_text(json.dumps(everything))
    print(len(everything), "phrases")


def held_out_phrases() -> set[str]:
    """The words and sentences that `benchmarks/text.py` asks for."""
    folder = Path(__file__).parent.parent / "benchmarks/words"
    tables = [yaml.safe_load(f.read_text()) for f in sorted(folder.glob("held_out_*.yaml"))]
    return {p.lower() for table in tables for group in table.values() for p in group}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=["texts", "scenes"])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only != "scenes":
        texts(args.data, args.work)
    if args.only != "texts":
        scenes(args.data, args.work)
