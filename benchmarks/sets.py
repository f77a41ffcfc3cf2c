"""Labelled image folders for measuring: what their masks mean, and in which words their classes are asked for.

The words were written before anything was measured on these sets. Images are not part of the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovrs.words import vocabulary
from ovrs.words.vocabulary import ClassEntry, Vocabulary

IGNORE = 255


@dataclass(frozen=True)
class LabelledSet:
    """One folder of images and one of masks with the same stems."""

    folder: str
    words: Vocabulary
    paraphrases: tuple[tuple[str, ...], ...] = ()
    """The same classes in other words."""
    colours: tuple[str, ...] = ()
    """Mask colours in the order of the classes; without, masks hold class numbers from 1, 0 is ignored."""
    held_out: tuple[str, ...] = ("",)
    """Beginnings of the names of images that no bundled model was trained on."""
    shrink: float = 1.0
    """Images are shown at this many times fewer pixels per side; labels stay at full size."""
    pixel_size: float | None = None
    """Metres per pixel of the images as they come, where known."""
    ids: tuple[int, ...] = ()
    """Mask values of the classes, where they are not 1, 2, 3 …; all others are ignored."""
    only: str = ""
    """Part of the names of the images that are taken."""
    every: int = 1
    """Take each n-th image: neighbours of a flight show the same ground."""

    def pairs(self, data: Path, *, held: bool = True, shrink: float = 1.0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(RGB `(h, w, 3)`, labels `(H, W)` with 255 ignored); with `held` false the other images.

        `shrink`: times the set's own.
        """
        shrink *= self.shrink
        images = [i for i in sorted((data / self.folder / "images").iterdir()) if self.only in i.name]
        for image in images[:: self.every]:
            if image.name.startswith(self.held_out) == held:
                mask = next((data / self.folder / "masks").glob(image.stem + ".*"))
                labels, rgb = self.labels(mask), Image.open(image).convert("RGB")
                if labels.shape == rgb.size[::-1]:  # a few published masks have another size than their image
                    size = (round(rgb.width / shrink), round(rgb.height / shrink))
                    yield np.asarray(rgb.resize(size, Image.Resampling.BOX)), labels

    @property
    def shown_pixel_size(self) -> float | None:
        """Metres per pixel of what `pairs` gives."""
        return None if self.pixel_size is None else self.pixel_size * self.shrink

    def labels(self, mask: Path) -> np.ndarray:
        if self.ids:
            raw = np.asarray(Image.open(mask))
            out = np.full(raw.shape, IGNORE, np.uint8)
            for index, value in enumerate(self.ids):
                out[raw == value] = index
            return out
        if not self.colours:
            raw = np.asarray(Image.open(mask)).astype(np.int64) - 1
            return np.where((raw < 0) | (raw >= len(self.words.classes)), IGNORE, raw).astype(np.uint8)
        rgb = np.asarray(Image.open(mask).convert("RGB")).astype(np.int64)
        key = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
        out = np.full(key.shape, IGNORE, np.uint8)
        for index, colour in enumerate(self.colours):
            out[key == int(colour, 16)] = index
        return out


def _words(name: str, table: dict[str, tuple[str, list[str]]]) -> Vocabulary:
    entries = [ClassEntry(name=n, synonyms=(s,), descriptions=tuple(d)) for n, (s, d) in table.items()]
    return Vocabulary(name=name, classes=tuple(entries))


CZORTHO = LabelledSet(
    folder="czortho",
    colours=("32FFA7", "A67556", "6D32FF", "FFE132", "32A7FF", "FF8C00"),
    held_out=("T8_",),
    pixel_size=0.125,
    words=_words(
        "czortho",
        {
            "vegetation": (
                "trees and grass",
                [
                    "green plant cover of grass, bushes and trees",
                    "dark green tree crowns with shadows",
                    "a smooth meadow or crop field",
                ],
            ),
            "bare land": (
                "bare soil",
                ["brown bare earth without plants", "a ploughed field", "dry open ground of light tone"],
            ),
            "paved area": (
                "asphalt",
                ["grey sealed ground between buildings", "an asphalt road with lane markings", "a concrete yard"],
            ),
            "building": (
                "roof",
                ["a rectangular roof with a shadow", "red tiled or grey roofs", "a large flat roof of a hall"],
            ),
            "water": (
                "river",
                ["a dark smooth surface without texture", "a pond or lake with a clear shoreline", "blue green water"],
            ),
            "unpaved road": (
                "gravel track",
                ["a narrow light brown track between fields", "a dusty path with wheel ruts", "a gravel lane"],
            ),
        },
    ),
    paraphrases=(
        ("green plants", "bare ground", "pavement", "house", "pond", "dirt track"),
        ("greenery", "soil", "asphalt surface", "rooftop", "lake", "gravel road"),
        ("trees, grass and crops", "brown earth", "tarmac and concrete", "houses", "water surface", "farm track"),
    ),
)
DUBAI = LabelledSet(
    folder="dubai",
    colours=("3C1098", "8429F6", "6EC1E4", "FEDD3A", "E2A929"),
    held_out=("tile1_", "tile2_"),
    words=_words(
        "dubai",
        {
            "building": (
                "roof",
                ["a rectangular roof with a shadow", "red tiled or grey roofs", "a large flat roof of a hall"],
            ),
            "unpaved land": (
                "sand",
                ["pale sandy ground without plants", "dry open desert terrain", "a dusty building site"],
            ),
            "road": (
                "street",
                ["a long narrow grey strip", "asphalt with lane markings", "a wide highway with several lanes"],
            ),
            "vegetation": (
                "trees and grass",
                [
                    "green plant cover of grass, bushes and trees",
                    "dark green tree crowns with shadows",
                    "a smooth meadow or crop field",
                ],
            ),
            "water": (
                "river",
                ["a dark smooth surface without texture", "a pond or lake with a clear shoreline", "blue green water"],
            ),
        },
    ),
    paraphrases=(
        ("house", "sandy ground", "street", "green plants", "sea water"),
        ("rooftop", "desert", "highway", "greenery", "lake"),
        ("villas and towers", "bare sand", "asphalt road", "trees and lawns", "canal"),
    ),
)
LOVEDA = LabelledSet(folder="benchmarks_mini/loveda", words=vocabulary.load("loveda"), pixel_size=0.3)
POTSDAM = LabelledSet(folder="benchmarks_mini/potsdam", words=vocabulary.load("potsdam"), shrink=4.0, pixel_size=0.05)
VAIHINGEN = LabelledSet(
    folder="benchmarks_mini/vaihingen", words=vocabulary.load("vaihingen"), shrink=2.0, pixel_size=0.09
)


def _plain(folder: str, names: str, pixel_size: float, **more: Any) -> LabelledSet:
    """A set asked for by plain names alone."""
    words = Vocabulary(name=folder, classes=tuple(ClassEntry(name=n) for n in names.split(", ")))
    return LabelledSet(folder=f"more/{folder}", words=words, pixel_size=pixel_size, **more)


HAND = _plain(
    "hand_industry_parking",
    "building, road, parking lot, railway, trees, grass, bare soil, construction site, sports field, water",
    0.35,
    ids=tuple(range(1, 11)),
    held_out=("vegas_",),
)
KAMPALA = _plain("kampala_buildings", "building, trees, grass, bare soil, road", 0.149, ids=(1, 3, 4, 5, 6), only="z20")
FIELDS = _plain(
    "rural_fields_ch",
    "cropland, bare field, gravel, road, trees, vehicle, grass, house",
    0.3,
    ids=tuple(range(1, 9)),
    held_out=("field_11", "field_12"),
)
NAIP = _plain("naip_rural_us", "building, road, bare land, forest, grass and crops", 0.3, ids=(1, 2, 3, 4))

SETS = {"czortho": CZORTHO, "dubai": DUBAI, "loveda": LOVEDA, "potsdam": POTSDAM, "vaihingen": VAIHINGEN}
"""The last three hold one to three images each, of regions and sensors never trained on: a look, no score."""


UNSEEN = {
    "Las Vegas": HAND,
    "Kampala": KAMPALA,
    "Swiss fields in winter": FIELDS,
    "Ohio": NAIP,
    "Dubai, tiles 1 and 2": DUBAI,
    "Czech T8": CZORTHO,
    "Czech T8 at 0.3 m": replace(CZORTHO, shrink=2.4),
    "LoveDA, three images": LOVEDA,
}
"""Images that no bundled model was trained on: of Kampala, Ohio and LoveDA none at all, of the others none of these places."""


def renamed(words: Vocabulary, names: tuple[str, ...]) -> Vocabulary:
    """The same classes under other names and nothing else."""
    return words.model_copy(update={"classes": tuple(ClassEntry(name=n) for n in names), "background": None})
