"""Classes in plain words, with the prompts that stand for them. A vocabulary is one YAML file."""

from __future__ import annotations

import colorsys
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ovrs.errors import VocabularyError

if TYPE_CHECKING:
    from collections.abc import Sequence

HexColour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]

COMPOSED = "composed"
"""Marks prompts that were put together from the bare name because no library entry exists."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(_Model):
    """One class of the map."""

    name: str = Field(min_length=1)
    """How the class is called in the legend; also its first text query."""
    synonyms: tuple[str, ...] = ()
    """Other words for the same ground; each is a query of its own."""
    descriptions: tuple[str, ...] = ()
    """One-sentence context prompts about what is visible from above."""
    phrases: tuple[str, ...] = ()
    """Short singular nouns for detectors that are asked for concepts (SAM 3), the best first. Default: name and synonyms."""
    colour: HexColour | None = None
    prompt_source: str = "library"
    """`library`, `composed`, or the language model that wrote the descriptions."""

    @field_validator("name")
    @classmethod
    def _strip(cls, value: str) -> str:
        return value.strip()

    @property
    def concepts(self) -> tuple[str, ...]:
        """What a detector is asked for: `phrases`, else name and synonyms; lower case, none twice."""
        return tuple(dict.fromkeys(w.strip().lower() for w in self.phrases or (self.name, *self.synonyms)))

    @property
    def queries(self) -> tuple[str, ...]:
        """Every text of this class: name, synonyms, descriptions."""
        return (self.name, *self.synonyms, *self.descriptions)


class BackgroundRule(_Model):
    """Pixels whose best class probability stays below `threshold` become `class_name`."""

    class_name: str
    threshold: float = Field(ge=0, le=1)


class Vocabulary(_Model):
    """The ordered classes of a map."""

    name: str
    title: str = ""
    imagery: str = ""
    """Sensor, region and resolution that the descriptions were written for."""
    provenance: dict[str, str] = {}
    background: BackgroundRule | None = None
    classes: tuple[ClassEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Vocabulary:
        names = [c.name.lower() for c in self.classes]
        doubles = sorted({n for n in names if names.count(n) > 1})
        if doubles:
            raise ValueError(f"class names must differ, found twice: {', '.join(doubles)}")
        if self.background and self.background.class_name not in self.class_names:
            raise ValueError(
                f"background class {self.background.class_name!r} is not among the classes {', '.join(self.class_names)}"
            )
        if len(self.classes) > 65534:
            raise ValueError(f"at most 65534 classes fit a label array, got {len(self.classes)}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """RGB 0..255 per class; classes without a colour get one spread over the hue circle."""
        out = []
        for i, entry in enumerate(self.classes):
            if entry.colour:
                out.append((int(entry.colour[1:3], 16), int(entry.colour[3:5], 16), int(entry.colour[5:7], 16)))
            else:
                red, green, blue = colorsys.hsv_to_rgb(
                    (0.61803 * i) % 1, 0.55 + 0.35 * (i % 2), 0.85 - 0.2 * (i % 3) / 2
                )
                out.append((round(red * 255), round(green * 255), round(blue * 255)))
        return tuple(out)

    @property
    def composed_classes(self) -> tuple[str, ...]:
        """Classes whose prompts are composed fallbacks."""
        return tuple(c.name for c in self.classes if c.prompt_source == COMPOSED)

    @property
    def background_index(self) -> int | None:
        return None if self.background is None else self.class_names.index(self.background.class_name)

    def digest(self) -> str:
        """SHA-256 over everything that can change the map (not colours, not provenance)."""
        content = [
            [c.name, list(c.synonyms), list(c.descriptions), *([list(c.phrases)] if c.phrases else [])]
            for c in self.classes
        ]
        rule = None if self.background is None else [self.background.class_name, self.background.threshold]
        return hashlib.sha256(json.dumps([content, rule]).encode()).hexdigest()


def shipped() -> list[str]:
    """Names of the vocabularies in the package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("ovrs.vocabularies").iterdir() if p.name.endswith(".yaml")
    )


def load(source: str | Path) -> Vocabulary:
    """Read a vocabulary by shipped name or from a YAML file.

    Raises:
        VocabularyError: No such name or file, no valid YAML, or a field is wrong (the message names it).
    """
    text = str(source)
    if text in shipped():
        return parse(resources.files("ovrs.vocabularies").joinpath(f"{text}.yaml").read_text("utf-8"), text)
    path = Path(source)
    if not path.is_file():
        raise VocabularyError(
            f"no vocabulary {text!r}: neither a file nor one of the shipped ones ({', '.join(shipped())})"
        )
    return parse(path.read_text("utf-8"), text)


def parse(text: str, origin: str) -> Vocabulary:
    """Build a vocabulary from YAML text; `origin` is named in errors."""
    try:
        data: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise VocabularyError(f"{origin} is no valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise VocabularyError(f"{origin} must hold a mapping with 'name' and 'classes', found {type(data).__name__}")
    try:
        return Vocabulary.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise VocabularyError(f"{origin}: {faults}") from error


def dump(words: Vocabulary) -> str:
    """YAML text that `parse` reads back to the same vocabulary."""
    content = words.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def from_names(names: Sequence[str]) -> Vocabulary:
    """A vocabulary from bare class names: entries of the shipped land-cover library where the name or a synonym is
    known there, composed prompts elsewhere.

    Raises:
        VocabularyError: No names, or one twice.
    """
    wanted = [n.strip() for n in names if n.strip()]
    if not wanted:
        raise VocabularyError(
            'no class names given; write them separated by commas, as in --classes "building, road, water"'
        )
    library = {q.lower(): entry for entry in load("landcover").classes for q in (entry.name, *entry.synonyms)}
    entries = []
    for name in wanted:
        known = library.get(name.lower())
        if known is None:
            entries.append(composed(name))
        else:
            others = tuple(q for q in (known.name, *known.synonyms) if q.lower() != name.lower())
            entries.append(known.model_copy(update={"name": name, "synonyms": others}))
    try:
        return Vocabulary(name="command-line", classes=tuple(_without_borrowed(entries)))
    except ValidationError as error:
        raise VocabularyError("; ".join(e["msg"] for e in error.errors())) from error


def _without_borrowed(entries: list[ClassEntry]) -> list[ClassEntry]:
    """Drop a library synonym that the user named as a class of its own ("tree" beside "forest")."""
    names = {e.name.lower() for e in entries}
    return [e.model_copy(update={"synonyms": tuple(s for s in e.synonyms if s.lower() not in names)}) for e in entries]


def composed(name: str) -> ClassEntry:
    """Fallback prompts for a class that no library knows. They carry no knowledge beyond the name."""
    return ClassEntry(
        name=name,
        descriptions=(
            f"{name} seen from above in an aerial photograph",
            f"the surface of {name} in a satellite image",
            f"an overhead view of {name}",
            f"an orthophoto showing {name}",
            f"{name} as it appears from the air",
        ),
        prompt_source=COMPOSED,
    )
