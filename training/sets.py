"""The pixel-labelled sets of `sets.yaml`: images as RGB and masks as numbers of concepts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ovrs.demo.synth import World

UNKNOWN = 255
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """One set: where its images lie, what its mask values mean, and how large its pixels are."""

    name: str
    concepts: tuple[str, ...]
    """Concepts in the order of the label numbers."""
    values: dict[int, int]
    """Mask value to label number; colours are 0xRRGGBB. From `len(concepts)` on, a number says "anything but"."""
    denied: tuple[int, ...] = ()
    """Concepts (by their numbers) that the labels from `len(concepts)` on deny."""
    among: tuple[str, ...] = ()
    """Concepts that stand among the answers although nothing is labelled so."""
    metres: float
    scale: tuple[float, float]
    """Least and greatest metres per pixel of a crop."""
    share: float
    held: tuple[str, ...] = ()
    coloured: bool = False
    source: dict[str, str | int] = field(default_factory=dict)
    """Folders of images and masks, a folder of patches, or a count of drawn worlds."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image: RGB uint8 `(h, w, 3)` and labels uint8 `(h, w)`, `UNKNOWN` where nothing is said."""

    set: str
    name: str
    held: bool
    rgb: np.ndarray
    labels: np.ndarray


def load_sets(path: Path = HERE / "sets.yaml") -> dict[str, LabelledSet]:
    """The sets by name."""
    return {name: _parsed(name, told) for name, told in yaml.safe_load(path.read_text("utf-8")).items()}


def _parsed(name: str, told: dict) -> LabelledSet:
    table = told.get("colours") or told["ids"]
    numbers = {int(str(k), 16) if "colours" in told else int(k): concept for k, concept in table.items()}
    concepts = tuple(dict.fromkeys(numbers.values()))
    values = {value: concepts.index(concept) for value, concept in numbers.items()}
    denied = tuple(told.get("not", {}).values())
    values |= {value: len(concepts) + k for k, value in enumerate(told.get("not", {}))}
    return LabelledSet(
        name=name,
        concepts=concepts,
        values=values,
        denied=tuple(concepts.index(c) for c in denied),
        among=tuple(told.get("among", ())),
        metres=told["metres"],
        scale=tuple(told["scale"]),
        share=told["share"],
        held=tuple(told.get("held", ())),
        coloured="colours" in told,
        source={k: told[k] for k in ("images", "masks", "patches", "worlds") if k in told},
    )


def read(given: LabelledSet, data: Path) -> Iterator[Labelled]:
    """All images of a set in the order of their names."""
    if "worlds" in given.source:
        yield from _worlds(given)
    elif "patches" in given.source:
        yield from _patches(given, data / str(given.source["patches"]))
    else:
        masks = {m.stem: m for m in sorted((data / str(given.source["masks"])).iterdir())}
        for path in sorted((data / str(given.source["images"])).iterdir()):
            rgb, raw = np.asarray(Image.open(path).convert("RGB")), _mask(given, masks[path.stem])
            if rgb.shape[:2] == raw.shape:  # a few published masks have another size than their image
                held = bool(given.held) and path.name.startswith(given.held)
                yield Labelled(set=given.name, name=path.name, held=held, rgb=rgb, labels=_numbered(given, raw))


def _mask(given: LabelledSet, path: Path) -> np.ndarray:
    if not given.coloured:
        return np.asarray(Image.open(path))
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _numbered(given: LabelledSet, raw: np.ndarray) -> np.ndarray:
    labels = np.full(raw.shape, UNKNOWN, np.uint8)
    for value, number in given.values.items():
        labels[raw == value] = number
    return labels


def _patches(given: LabelledSet, folder: Path) -> Iterator[Labelled]:
    """Each patch in natural colours and in colour infrared; bands are red, green, blue, near infrared, labels the ninth."""
    for path in sorted(folder.rglob("*.npz")):
        block = np.load(path)["arr_0"].squeeze()
        block = block if block.shape[0] < block.shape[-1] else np.moveaxis(block, -1, 0)
        labels = _numbered(given, block[8].astype(int))
        bands = np.moveaxis(block[:4], 0, -1).clip(0, 255).astype(np.uint8)
        for shown, told in (((0, 1, 2), "rgb"), ((3, 0, 1), "infrared")):
            rgb = np.ascontiguousarray(bands[..., shown])
            yield Labelled(set=given.name, name=f"{path.stem}_{told}", held=False, rgb=rgb, labels=labels)


def _worlds(given: LabelledSet) -> Iterator[Labelled]:
    for seed in range(int(given.source["worlds"])):
        gsd = [0.25, 0.4, 0.5, 0.8, 1.0, 1.5][seed % 6]
        rgb, raw = World(seed=1000 + seed, gsd=gsd, noise=1 + seed % 7).render(700 * seed, 0, 1024, 1024)
        yield Labelled(
            set=given.name,
            name=f"world_{seed}",
            held=False,
            rgb=np.ascontiguousarray(np.moveaxis(rgb, 0, -1)),
            labels=_numbered(given, raw),
        )
