"""How well the bundled text tower understands words and sentences it was not trained on.

python -m benchmarks.text [--model bundled] [--phrases WORK/texts.json] [--teacher] [--out benchmarks/results/text.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.record import keep

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).parent / "words"
TEMPLATED = 64
"""Phrases up to which templates are used: 80 times as many take minutes."""
TABLES = ("held_out_words", "held_out_descriptions", "held_out_contexts")


def ranked_first(encode: Callable[[list[str]], np.ndarray], table: dict[str, list[str]]) -> tuple[float, list[str]]:
    """Share of phrases whose own concept has the highest cosine of all concepts, and the misses."""
    names = list(table)
    concepts = encode(names)
    phrases = [(phrase, i) for i, name in enumerate(names) for phrase in table[name]]
    guess = (encode([p for p, _ in phrases]) @ concepts.T).argmax(1)
    misses = [f"{p} -> {names[g]} (not {names[i]})" for (p, i), g in zip(phrases, guess, strict=True) if g != i]
    return 1 - len(misses) / len(phrases), misses


def seen(table: dict[str, list[str]], phrases: Path) -> list[str]:
    known = {p.lower() for p in json.loads(phrases.read_text())}
    return [p for group in table.values() for p in group if p.lower() in known]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--phrases", type=Path, help="the training phrases, to prove that none of these is among them")
    parser.add_argument("--teacher", action="store_true", help="the sentence-embedding teacher instead: the ceiling")
    parser.add_argument("--misses", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    kept: dict[str, dict[str, Any]] = {}
    for file in TABLES:
        table = yaml.safe_load((HERE / f"{file}.yaml").read_text())
        if args.phrases and (known := seen(table, args.phrases)):
            raise SystemExit(f"{file}.yaml holds training phrases: {', '.join(known)}")
        for way, encode in {"teacher": teacher()}.items() if args.teacher else towers(args.model).items():
            if way == "templates" and len(table) > TEMPLATED:
                continue
            share, misses = ranked_first(encode, table)
            count = sum(map(len, table.values()))
            print(f"{file}, {way}: {100 * share:.1f} % first of {len(table)} ({count} phrases)")
            kept.setdefault(file, {"concepts": len(table), "phrases": count})[way] = 100 * share
            if args.misses:
                print("\n".join("  " + m for m in misses))
    if args.out is not None:
        keep(args.out, kept, bundled=not args.teacher)


def towers(name: str) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """The model asked in bare words, and in CLIP's templates (lists of more than `TEMPLATED` phrases stay bare)."""
    from ovrs.model.clip.loading import load
    from ovrs.model.clip.text import embed, imagenet_templates
    from ovrs.options import ModelOptions

    model = load(ModelOptions(model=name))
    plain = [lambda phrase: phrase]

    def bare(phrases: list[str]) -> np.ndarray:
        return embed(model.clip, model.tokenize, phrases, plain).numpy()

    def templates(phrases: list[str]) -> np.ndarray:
        chosen = imagenet_templates() if len(phrases) <= TEMPLATED else plain
        return embed(model.clip, model.tokenize, phrases, chosen).numpy()

    return {"bare": bare, "templates": templates}


def teacher() -> Callable[[list[str]], np.ndarray]:
    from training.phrases import Teacher

    return Teacher().raw


if __name__ == "__main__":
    main()
