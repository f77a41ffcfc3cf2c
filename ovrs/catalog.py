"""`data_catalog.yaml`: the scenes, vocabularies and outputs a person works with, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ovrs import vocabulary
from ovrs.errors import CatalogError, VocabularyError
from ovrs.options import SceneOptions

if TYPE_CHECKING:
    from ovrs.vocabulary import Vocabulary


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SceneEntry(_Entry):
    """One raster and how it is to be read."""

    path: str
    """File relative to the catalog, or anything GDAL opens (`/vsicurl/…`, `s3://…`)."""
    vocabulary: str
    """A name from `vocabularies`, or a shipped one."""
    title: str = ""
    read: SceneOptions = SceneOptions()


class Outputs(_Entry):
    """Where products go."""

    root: Path = Path("maps")


class Catalog(_Entry):
    """The whole file."""

    version: int = Field(ge=1, le=1)
    outputs: Outputs = Outputs()
    vocabularies: dict[str, Path] = {}
    scenes: dict[str, SceneEntry] = {}
    base: Path = Path()
    """Directory of the catalog file: relative paths start here."""

    def scene(self, name: str) -> SceneEntry:
        """One scene by name.

        Raises:
            CatalogError: There is none; the message lists those there are.
        """
        if name not in self.scenes:
            raise CatalogError(f"the catalog has no scene {name!r}; it has: {', '.join(sorted(self.scenes)) or 'none'}")
        return self.scenes[name]

    def uri(self, entry: SceneEntry) -> str:
        """What GDAL opens for a scene."""
        if "://" in entry.path or entry.path.startswith("/"):
            return entry.path
        return str(self.base / entry.path)

    def vocabulary(self, name: str) -> Vocabulary:
        """A vocabulary by catalog name, else by shipped name."""
        file = self.vocabularies.get(name)
        return vocabulary.load(name if file is None else self.base / file)

    def output(self, name: str) -> Path:
        """Where the map of a scene goes."""
        return self.base / self.outputs.root / f"{name}.zarr"


def load(path: Path) -> Catalog:
    """Read and check a catalog: fields, and that every vocabulary a scene names exists.

    Raises:
        CatalogError: Each fault with the line it stands in.
    """
    if not path.is_file():
        raise CatalogError(f"no catalog at {path}")
    text = path.read_text("utf-8")
    try:
        data, lines = yaml.safe_load(text), _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise CatalogError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(data, dict) or "base" in data:
        raise CatalogError(f"{path}: expected a mapping with version, scenes, vocabularies and outputs")
    try:
        catalog = Catalog.model_validate({**data, "base": path.parent})
    except ValidationError as error:
        raise CatalogError(
            "\n".join(
                f"{path}:{_line(lines, e['loc'])}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
            )
        ) from error
    faults = [
        f"{path}:{_line(lines, ('scenes', name, 'vocabulary'))}: scene {name}: {fault}"
        for name, entry in catalog.scenes.items()
        if (fault := _vocabulary_fault(catalog, entry.vocabulary))
    ]
    if faults:
        raise CatalogError("\n".join(faults))
    return catalog


def _vocabulary_fault(catalog: Catalog, name: str) -> str | None:
    try:
        catalog.vocabulary(name)
    except VocabularyError as error:
        return str(error)
    return None


def _lines(node: Any, prefix: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """Line number (from 1) of every key of a composed YAML document."""
    found = {prefix: node.start_mark.line + 1} if node is not None else {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found |= _lines(value, (*prefix, key.value))
            found[(*prefix, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found |= _lines(value, (*prefix, index))
    return found


def _line(lines: dict[tuple[Any, ...], int], location: tuple[Any, ...]) -> int:
    while location and location not in lines:
        location = location[:-1]
    return lines.get(location, 1)
