"""Readers of labelled sets: one table of layouts (`layouts.yaml`), one way to read them all."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from ovrs.bench.evaluate import IGNORE
from ovrs.errors import CatalogError, SceneReadError
from ovrs.words import vocabulary
from ovrs.words.vocabulary import BackgroundRule, ClassEntry, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ovrs.collection.catalog import DatasetEntry

log = logging.getLogger(__name__)

EVERYTHING = "all"
"""The split of all images, for sets whose splits are lists."""


class Encoding(BaseModel):
    """What a label file's values mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["index", "colours", "binary", "lines"]
    first: int = 0
    """`index`: number of class 0; lower numbers are ignored."""
    colours: tuple[str, ...] = ()
    """`colours`: RRGGBB in class order; `A|B` for a class of two colours."""
    above: int = 0
    """`binary`: larger values are the class."""
    width: float = 8.0
    """`lines`: metres."""


class Layout(BaseModel):
    """How one set lies on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    images: str
    """Pattern below the root; `{split}` is filled in."""
    list: str | None = None
    """Text file with one image a line, with or without suffix, for sets whose split is a list."""
    labels: tuple[tuple[str, str], ...]
    """Replacements that turn an image's path into its label's."""
    split: str = ""
    encoding: Encoding
    vocabulary: str | None = None
    classes: tuple[str, ...] = ()
    background: str | None = None
    """A class put before the others, with the threshold rule."""
    licence: str = ""
    obtain: str = ""


@dataclass(frozen=True)
class Sample:
    """One image of a set."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class LabelledSet:
    """A set that is there to be read."""

    name: str
    root: Path
    layout: Layout
    words: Vocabulary
    split: str
    held_out: tuple[str, ...] = ()
    shrink: float = 1.0
    pixel_size: float | None = None
    """Metres per pixel before `shrink`, if known."""
    benchmark: str | None = None
    """The set, as papers know it; None is a set of one's own, or one asked for in words of one's own."""

    def samples(self) -> list[Sample]:
        """All images that have a label, in the order of their names.

        Raises:
            CatalogError: Nothing is found, or no image has a label; says where it was looked for.
        """
        found, lacking = self.find()
        if not found:
            raise CatalogError(lacking[0])
        return found

    def find(self) -> tuple[list[Sample], list[str]]:
        """All images that have a label, in the order of their names, and a line for each that has none.

        Raises:
            CatalogError: There is no image at all, or a list of images is missing.
        """
        pattern = self.layout.images.replace("{split}", self.split)
        images = sorted(self.root.glob(pattern))
        if self.layout.list is not None and self.split != EVERYTHING:
            file = self.root / self.layout.list.replace("{split}", self.split)
            if not file.is_file():
                raise CatalogError(
                    f"data set {self.name}: no list of images at {file}; `split: {EVERYTHING}` in the catalog takes all"
                )
            wanted = set(file.read_text("utf-8").split())
            images = [i for i in images if i.stem in wanted or i.name in wanted]
        images = [i for i in images if i.name.startswith(self.held_out or ("",))]
        if not images:
            told = f" How to get it: {self.layout.obtain}." if self.layout.obtain else ""
            raise CatalogError(f"data set {self.name}: no images {pattern} below {self.root}.{told}")
        found, lacking = [], []
        for image in images:
            name, label = str(image.relative_to(self.root)), self._label(image)
            if isinstance(label, Path):
                found.append(Sample(name, image, label))
            else:
                lacking.append(f"data set {self.name}: {image.name} has no label {label} below {self.root}")
        return found, lacking

    def _label(self, image: Path) -> Path | str:
        """Return the label file of an image, or the places where none was found."""
        relative = "/" + image.relative_to(self.root).as_posix()
        for old, new in self.layout.labels:
            old, new = (t.replace("{split}", self.split).replace("{stem}", image.stem) for t in (old, new))
            relative = new if old == "*" else relative.replace(old, new)
        return next(iter(sorted(self.root.glob(relative.lstrip("/")))), relative.lstrip("/"))

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels `(3, h, w)` uint8 and labels `(H, W)` uint8 (255 ignored)."""
        rgb = read_rgb(sample.image)
        return rgb, self.decode(sample)

    def decode(self, sample: Sample) -> NDArray[np.uint8]:
        """Labels `(H, W)` uint8, 255 ignored."""
        encoding, classes = self.layout.encoding, len(self.words.classes)
        if encoding.kind == "lines":
            return _lines(sample, encoding.width)
        if encoding.kind == "colours":
            return _colours(read_rgb(sample.label), encoding.colours)
        raw = _band(sample.label)
        if encoding.kind == "binary":
            return (raw > encoding.above).astype(np.uint8)
        index = raw.astype(np.int64) - encoding.first
        return np.where((index < 0) | (index >= classes), IGNORE, index).astype(np.uint8)


@cache
def layouts() -> dict[str, Layout]:
    """All known layouts by name."""
    text = (resources.files("ovrs.bench") / "layouts.yaml").read_text("utf-8")
    raw: Mapping[str, Any] = {k: v for part in yaml.safe_load(text).values() for k, v in part.items()}
    return {
        name: Layout.model_validate(
            {**raw[e["like"]], **{k: v for k, v in e.items() if k != "like"}} if "like" in e else e
        )
        for name, e in raw.items()
    }


def open_set(name: str, entry: DatasetEntry, root: Path, words: Vocabulary | None) -> LabelledSet:
    """Return a set of the catalog.

    Raises:
        CatalogError: An unknown layout, or fields that layout `pairs` needs.
    """
    if entry.layout == "pairs":
        layout = _pairs(name, entry, words)
    elif entry.layout in layouts():
        layout = layouts()[entry.layout]
    else:
        raise CatalogError(f"data set {name}: no layout {entry.layout!r}; known: pairs, {', '.join(layouts())}")
    return LabelledSet(
        name,
        root,
        layout,
        words or _words(entry.layout, layout),
        entry.split or layout.split,
        entry.held_out,
        entry.shrink,
        entry.pixel_size,
        _benchmark(entry.layout, layout, words),
    )


def _benchmark(name: str, layout: Layout, words: Vocabulary | None) -> str | None:
    """Return the name of a set in papers: a shipped vocabulary that was given, else its layout's vocabulary or name."""
    if words is None:
        return layout.vocabulary or name
    known = words.name if words.name in vocabulary.shipped() else None
    return known if known and vocabulary.load(known) == words else None


def _pairs(name: str, entry: DatasetEntry, words: Vocabulary | None) -> Layout:
    lacking = [k for k in ("images", "labels") if not getattr(entry, k)] + ([] if words else ["vocabulary"])
    if lacking:
        raise CatalogError(f"data set {name}: layout pairs needs {', '.join(lacking)}")
    kind: Literal["colours", "index"] = "colours" if entry.colours else "index"
    return Layout(
        title=name,
        images=str(entry.images),
        labels=(("*", str(entry.labels)),),
        encoding=Encoding(kind=kind, first=entry.first, colours=entry.colours),
    )


def _words(name: str, layout: Layout) -> Vocabulary:
    if layout.vocabulary:
        return vocabulary.load(layout.vocabulary)
    binary = layout.encoding.kind in ("binary", "lines")
    background = layout.classes[0] if binary else layout.background
    names = layout.classes if binary else ((layout.background,) if layout.background else ()) + layout.classes
    return Vocabulary(
        name=name,
        title=layout.title,
        background=BackgroundRule(class_name=background, threshold=0.0) if background else None,
        classes=tuple(ClassEntry(name=n) for n in names if n),
    )


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """`(3, h, w)` uint8; palettes are resolved, 16-bit imagery is stretched to its 2nd and 98th percentile."""
    if path.suffix.lower() in (".tif", ".tiff"):
        import rasterio

        with rasterio.open(path) as source:
            bands = source.read(indexes=[1, 2, 3] if source.count >= 3 else [1, 1, 1])
        if bands.dtype == np.uint8:
            return np.ascontiguousarray(bands)
        low, high = np.percentile(bands, (2, 98), axis=(1, 2), keepdims=True)
        return np.asarray(np.clip((bands - low) / np.maximum(high - low, 1e-6) * 255, 0, 255), np.uint8)
    return np.ascontiguousarray(np.moveaxis(_image(path, "RGB"), -1, 0))


def _image(path: Path, mode: str | None) -> NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image if mode is None else image.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise SceneReadError(f"{path} cannot be read: {error}") from error


def _band(path: Path) -> NDArray[Any]:
    """First band: class numbers of a palette image, not its colours."""
    if path.suffix.lower() in (".tif", ".tiff"):
        import rasterio

        with rasterio.open(path) as source:
            return np.asarray(source.read(1))
    raw = _image(path, None)
    return raw if raw.ndim == 2 else raw[..., 0]


def _colours(rgb: NDArray[np.uint8], table: tuple[str, ...]) -> NDArray[np.uint8]:
    key = (rgb[0].astype(np.int64) << 16) | (rgb[1].astype(np.int64) << 8) | rgb[2]
    out = np.full(key.shape, IGNORE, np.uint8)
    for index, colours in enumerate(table):
        out[np.isin(key, [int(c, 16) for c in colours.split("|")])] = index
    return out


def _lines(sample: Sample, width: float) -> NDArray[np.uint8]:
    """Road lines drawn `width` metres wide on the image's grid."""
    import rasterio
    from odc.geo.geobox import GeoBox
    from rasterio.features import rasterize
    from shapely.geometry import shape

    from ovrs.scene.grid import pixel_size_m

    lines = [shape(f["geometry"]) for f in json.loads(sample.label.read_text("utf-8"))["features"] if f["geometry"]]
    with rasterio.open(sample.image) as source:
        grid = GeoBox(source.shape, source.transform, source.crs.to_wkt())
        half = width / 2 / pixel_size_m(grid)[0] * abs(source.transform.a)  # metres in units of the CRS
        shapes = [line.buffer(half) for line in lines]
        if not shapes:
            return np.zeros(source.shape, np.uint8)
        return np.asarray(rasterize(shapes, source.shape, transform=source.transform, dtype="uint8"))
