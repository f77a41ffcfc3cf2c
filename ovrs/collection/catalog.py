"""`data_catalog.yaml`: the scenes, collections, vocabularies, models, data sets and outputs a person works with, by name.

Checked as a whole: every fault is named with its line. `${NAME}` and `${NAME:-default}` are taken from the environment.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from ovrs import yamlfile
from ovrs.collection.patterns import glob
from ovrs.errors import CatalogError, VocabularyError
from ovrs.options import MapOptions, MethodOptions, ModelOptions, RunOptions, SceneOptions, build
from ovrs.request import Request
from ovrs.words import vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ovrs.words.vocabulary import Vocabulary

    Told = Mapping[str, dict[str, object]]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_GLOB = re.compile(r"[*?\[]")
_REMOTE = re.compile(r"^(/vsi|[a-z][a-z0-9+.-]*://)")


E = TypeVar("E")


def file_name(name: str) -> str:
    """`name`, if it can be part of an output's file name; else ValueError."""
    if not name.strip() or name != name.strip() or len(name.encode()) > 200:
        raise ValueError("a name has 1 to 200 bytes and no blanks around it")
    if "\\" in name or name.startswith("/") or not all(part.strip(". ") for part in name.split("/")):
        raise ValueError(f"{name!r} is no name for a map's file; use letters and digits")
    return name


Title = Annotated[str, AfterValidator(file_name)]
Text = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = yamlfile.STRICT

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: object) -> object:
        return yamlfile.numbers_are_numbers(cls, data)


class _Work(_Entry):
    """How imagery is mapped."""

    vocabulary: Text
    """A name from `vocabularies`, or a shipped one."""
    model: str | None = None
    """A name from `models`. Default: the bundled model."""
    method: MethodOptions = MethodOptions()
    read: SceneOptions = SceneOptions()
    """Bands, ground sample distance, stretch, …"""
    title: str = ""


class SceneEntry(_Work):
    """One raster, or all that a pattern finds."""

    path: Text
    """File or pattern (`*.tif`) relative to the catalog, or anything GDAL opens (`/vsicurl/…`, `s3://…`)."""


class StacSearch(_Entry):
    """A search of a STAC API (pystac-client)."""

    url: Text
    collections: tuple[Text, ...] = Field(min_length=1)
    bbox: tuple[float, float, float, float] | None = None
    """west, south, east, north in degrees."""
    datetime: str | None = None
    """Such as `2026-01-01/..`."""
    query: dict[str, object] | None = None
    asset: str = "visual"
    """The asset of each item that is mapped."""
    max_items: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _on_earth(self) -> StacSearch:
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if not (-90 <= south < north <= 90 and west != east and max(abs(west), abs(east)) <= 180):
                raise ValueError(
                    f"bbox is west, south, east, north in degrees with south < north, found {list(self.bbox)}"
                )
        return self


class CollectionEntry(_Work):
    """Where new imagery appears; flows look here."""

    pattern: Text | None = None
    """Files, relative to the catalog: `incoming/**/*.tif`."""
    stac: StacSearch | None = None

    @model_validator(mode="after")
    def _one(self) -> CollectionEntry:
        if (self.pattern is None) == (self.stac is None):
            raise ValueError("a collection has either a pattern or a stac search")
        return self


class DatasetEntry(_Entry):
    """A labelled set for `ovrs bench`."""

    layout: Text
    """How it lies on disk: one of `ovrs bench datasets`, or `pairs` for two folders."""
    root: Text
    split: str = ""
    """Replaces the layout's own split."""
    held_out: tuple[str, ...] = ()
    """Only images whose names begin so."""
    shrink: float = Field(default=1.0, gt=0)
    """The model sees so many times fewer pixels per side; labels stay as they are."""
    pixel_size: float | None = Field(default=None, gt=0)
    """Metres per pixel of the images as they come: what a georeferenced scene would tell a model that asks for it."""
    vocabulary: str | None = None
    """Default: the layout's."""
    images: str | None = None
    """Layout `pairs`: pattern of the images below `root`."""
    labels: str | None = None
    """Layout `pairs`: file of the labels, with `{stem}` for the image's name."""
    colours: tuple[str, ...] = ()
    """Layout `pairs`: RRGGBB of each class; without, labels hold class numbers."""
    first: int = 0
    """Layout `pairs`: number of the first class in label files; lower ones are ignored."""
    licence: str = ""
    obtain: str = ""
    """How to get it."""


class Outputs(_Entry):
    """Where products go."""

    root: Text = "maps"
    """A directory relative to the catalog, or a URL that fsspec knows (`s3://bucket/maps`)."""


class Catalog(_Entry):
    """The whole file."""

    version: int = Field(ge=1, le=1)
    outputs: Outputs = Outputs()
    vocabularies: dict[str, Path] = {}
    models: dict[str, ModelOptions] = {}
    scenes: dict[Title, SceneEntry] = {}
    collections: dict[Title, CollectionEntry] = {}
    datasets: dict[str, DatasetEntry] = {}
    base: Path = Field(default=Path(), exclude=True)
    """Directory of the catalog file: relative paths start here."""

    def scene(self, name: str) -> SceneEntry:
        """One scene by name.

        Raises:
            CatalogError: There is none; the message lists those there are.
        """
        return _known(self.scenes, name, "scene")

    def collection(self, name: str) -> CollectionEntry:
        """One collection by name (errors as `scene`)."""
        return _known(self.collections, name, "collection")

    def dataset(self, name: str) -> DatasetEntry:
        """One labelled set by name (errors as `scene`)."""
        return _known(self.datasets, name, "data set")

    def resolve(self, path: str) -> str:
        """Return a path of the catalog as seen from here; URLs and absolute paths stay."""
        return path if _REMOTE.match(path) else str(self.base / path)

    def uris(self, name: str) -> list[tuple[str, str]]:
        """(map name, what GDAL opens) for each raster of a scene; several where its path is a pattern.

        Raises:
            CatalogError: The pattern finds nothing, or two files of one name.
        """
        path = self.resolve(self.scene(name).path)
        if _REMOTE.match(path) or not _GLOB.search(path) or os.path.lexists(path):
            return [(name, path)]
        found = glob(path)
        if not found:
            raise CatalogError(f"scene {name}: {path} finds no file")
        require_own_names(f"scene {name}", [Path(f).stem for f in found])
        return [(f"{name}/{Path(f).stem}", f) for f in found]

    def vocabulary(self, name: str) -> Vocabulary:
        """Return a vocabulary by catalog name, else by shipped name."""
        return vocabulary.load(self._words(name))

    def words_of(self, entry: SceneEntry | CollectionEntry) -> str:
        """Return the classes of an entry as `Request.from_names` takes them: a file, or a shipped name."""
        return str(self._words(entry.vocabulary))

    def _words(self, name: str) -> str | Path:
        file = self.vocabularies.get(name)
        return name if file is None else self.base / file

    def model(self, name: str | None) -> ModelOptions:
        """Return a model by catalog name; None is the bundled one. A folder beside the catalog is found from anywhere."""
        if name is None:
            return ModelOptions()
        found = _known(self.models, name, "model")
        beside = self.base / found.model
        return found.model_copy(update={"model": str(beside.absolute())}) if beside.is_dir() else found

    def options(
        self, entry: SceneEntry | CollectionEntry, run: RunOptions | None = None, told: Told | None = None
    ) -> MapOptions:
        """Return what an entry tells a run.

        Args:
            entry: A scene or a collection.
            run: Where and how the work runs.
            told: Options by section (`scene`, `model`, `method`, `run`) and name that win over the entry's.

        Raises:
            OptionError: The options do not fit each other.
        """
        parts = {
            "scene": entry.read,
            "model": self.model(entry.model),
            "method": entry.method,
            "run": run or RunOptions(),
        }
        own = {section: part.model_dump(exclude_unset=True) for section, part in parts.items()}
        return build(**{section: {**values, **(told or {}).get(section, {})} for section, values in own.items()})

    def requests(self, name: str, *, words: Vocabulary | None = None, told: Told | None = None) -> list[Request]:
        """Return what a name asks for: a request for each raster of a scene, or for each image that a collection holds now.

        Args:
            name: A scene or a collection.
            words: Classes instead of the entry's own.
            told: See `options`.

        Raises:
            CatalogError: No such name, or the pattern of a scene finds nothing.
            OptionError: The options do not fit each other.
        """
        entry, found = self._asked(name)
        words, options = words or self.vocabulary(entry.vocabulary), self.options(entry, told=told)
        return [Request(uri=uri, words=words, options=options, target=self.output(title)) for title, uri in found]

    def _asked(self, name: str) -> tuple[SceneEntry | CollectionEntry, list[tuple[str, str]]]:
        """Return the entry of a name, and (map name, what GDAL opens) for each raster."""
        if name not in self.collections or name in self.scenes:
            return self.scene(name), self.uris(name)
        from ovrs.collection.imagery import images  # which reads catalogs

        return self.collection(name), [(f"{name}/{image.name}", image.uri) for image in images(self, name)]

    def output(self, name: str) -> str:
        """Where the map of a scene goes."""
        return f"{self.resolve(self.outputs.root).rstrip('/')}/{name}.zarr"


def _known(entries: dict[str, E], name: str, kind: str) -> E:
    if name not in entries:
        raise CatalogError(
            f"the catalog has no {kind} {yamlfile.short(name)!r}; it has: {', '.join(sorted(entries)) or 'none'}"
        )
    return entries[name]


def require_own_names(what: str, names: list[str]) -> None:
    """Raise CatalogError where two files would give maps of one name."""
    doubles = sorted(n for n, count in Counter(names).items() if count > 1)
    if doubles:
        raise CatalogError(f"{what}: several files are called {', '.join(doubles)}; their maps would collide")


def load(path: Path) -> Catalog:
    """Read and check a catalog: fields, and that every name it refers to exists.

    Raises:
        CatalogError: Each fault with the line it stands in.
    """
    document = yamlfile.parse(yamlfile.read_text(path, CatalogError), str(path), CatalogError)
    data = document.data
    if not isinstance(data, dict) or "base" in data:
        raise CatalogError(f"{path}: expected a mapping with version, scenes, vocabularies and outputs")
    faults: list[tuple[tuple[Any, ...], str]] = []
    data = _substituted(data, (), faults)
    if not faults:
        try:
            catalog = Catalog.model_validate({**data, "base": path.parent}, context={"base": path.parent})
        except ValidationError as error:
            faults = document.faults(error)
        else:
            faults = list(_broken_references(catalog))
    if faults:
        raise CatalogError(document.told(faults))
    return catalog


def schema() -> dict[str, object]:
    """JSON schema of the file, for editors."""
    found = Catalog.model_json_schema()
    found["properties"].pop("base", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "data_catalog.yaml of ovrs"}


def _substituted(value: Any, at: tuple[Any, ...], faults: list[tuple[tuple[Any, ...], str]]) -> Any:
    """`value` with environment variables filled in, everywhere; what cannot be used is added to `faults`."""
    if isinstance(value, dict):
        for key in value:
            _check_characters(key, (*at, key), faults)
        return {k: _substituted(v, (*at, k), faults) for k, v in value.items()}
    if isinstance(value, list):
        return [_substituted(v, (*at, i), faults) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        fallback: str | None = match[2]
        found = os.environ.get(match[1], fallback)
        if found is None:
            faults.append(
                (at, f"the environment variable {match[1]} is not set; set it, or write ${{{match[1]}:-default}}")
            )
        return found or ""

    filled = _VARIABLE.sub(fill, value)
    _check_characters(filled, at, faults)
    return filled


def _check_characters(text: str, at: tuple[Any, ...], faults: list[tuple[tuple[Any, ...], str]]) -> None:
    try:
        yamlfile.visible(text, allowed="\n")
    except ValueError as error:
        faults.append((at, f"{'.'.join(yamlfile.short(part) for part in at)}: {error}"))


def _broken_references(catalog: Catalog) -> Iterator[tuple[tuple[Any, ...], str]]:
    for name in catalog.vocabularies:
        if fault := _vocabulary_fault(catalog, name):
            yield ("vocabularies", name), f"vocabulary {name}: {fault}"
    for section, entries in (("scenes", catalog.scenes), ("collections", catalog.collections)):
        kind = section.removesuffix("s")
        for name, entry in entries.items():
            own = entry.vocabulary in catalog.vocabularies
            if not own and (fault := _vocabulary_fault(catalog, entry.vocabulary)):
                yield (section, name, "vocabulary"), f"{kind} {name}: {fault}"
            if entry.model is not None and entry.model not in catalog.models:
                known = ", ".join(sorted(catalog.models)) or "none"
                yield (
                    (section, name, "model"),
                    f"{kind} {name}: no model {yamlfile.short(entry.model)!r}; the catalog has: {known}",
                )
    for name, data in catalog.datasets.items():
        own = data.vocabulary is None or data.vocabulary in catalog.vocabularies
        if not own and (fault := _vocabulary_fault(catalog, str(data.vocabulary))):
            yield ("datasets", name, "vocabulary"), f"data set {name}: {fault}"


def _vocabulary_fault(catalog: Catalog, name: str) -> str | None:
    try:
        catalog.vocabulary(name)
    except VocabularyError as error:
        return str(error)
    return None
