"""Collect the training material: phrases and their vectors, labelled pictures, captioned scenes.

    python -m training.prepare --data DIR --work DIR [--only texts|bank]

Pictures are kept as JPEG in a few files below 50 MB each (`training.bank`), which a machine with an accelerator can be sent
one by one; nothing but these files, `scenes.json`, `classes.json` and the two towers is needed there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from training import bank, phrases
from training.sets import load_sets, read
from training.text_tower import encode_all, text_tower

JPEG = b"\xff\xd8"


def held_scene(image: str) -> bool:
    """A tenth of the scenes, chosen by a hash of the name."""
    return hashlib.sha256(image.encode()).digest()[0] % 10 == 0


def labelled(data: Path, work: Path) -> None:
    """The pixel-labelled sets as a bank; a file that is a JPEG already is taken as it is."""

    def records() -> Iterator[tuple[str, bytes, bytes]]:
        for given in load_sets().values():
            for one in read(given, data):
                told = json.dumps({"set": one.set, "name": one.name, "held": one.held})
                own = data / str(given.source.get("images", "")) / one.name
                picture = own.read_bytes() if own.suffix == ".jpg" else bank.jpeg(one.rgb)
                yield told, picture, bank.png(one.labels)

    print("labelled pictures in", [p.name for p in bank.save(work, "labelled", records())])


def scenes(data: Path, work: Path) -> None:
    """The captioned scenes as a bank, in their own files' bytes, and their captions."""
    records = [json.loads(line) for line in (data / "scenes/index.jsonl").read_text().splitlines()]
    archives = {z.stem: zipfile.ZipFile(z) for z in sorted((data / "scenes").glob("*.zip"))}
    known = {name: set(z.namelist()) for name, z in archives.items()}
    records = [r for r in records if r["image"] in known[r["image"].split("/")[0]]]

    def pictures() -> Iterator[tuple[str, bytes, bytes]]:
        for record in records:
            kind = record["image"].split("/")[0]
            told = json.dumps({"set": kind, "name": record["image"], "held": held_scene(record["image"])})
            raw = archives[kind].read(record["image"])
            yield told, raw if raw[:2] == JPEG else bank.jpeg(bank.decoded(raw)[..., :3]), b""

    print("scenes in", [p.name for p in bank.save(work, "scenes", pictures())])
    captions = [[phrases.clean(c) for c in r["captions"]] or [phrases.class_name(r["cls"])] for r in records]
    (work / "scenes.json").write_text(json.dumps(captions))
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
    parser.add_argument("--only", choices=["texts", "bank"])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only != "bank":
        texts(args.data, args.work)
    if args.only != "texts":
        labelled(args.data, args.work)
        scenes(args.data, args.work)
