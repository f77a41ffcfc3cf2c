"""Classes in plain words, with the prompts that stand for them. A vocabulary is one YAML file."""

from __future__ import annotations

import colorsys
import hashlib
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from ovrs import yamlfile
from ovrs.errors import VocabularyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

log = logging.getLogger(__name__)

COMPOSED = "composed"
"""Marks descriptions that were put together from the bare name because somebody asked for them (`composed`)."""

BY_NAME = "name"
"""Marks a class that no library knows: it is asked for by its name and synonyms alone."""

LONGEST_NAME = 5000
"""Characters of a class name."""


def _visible(text: str) -> str:
    """`text` without blanks around it; empty or invisible characters raise ValueError."""
    text = yamlfile.visible(text.strip(" "))
    if all(unicodedata.category(c) in ("Zs", "Mn", "Me", "Cf") for c in text):
        raise ValueError("it is empty; write a word")
    return text.strip()


def _on_one_line(text: str) -> str:
    """Return a sentence with single blanks instead of line breaks and tabs (errors as `_visible`)."""
    return _visible(" ".join(text.split()))


def _colour(text: str) -> str:
    if not (len(text) == 7 and text[0] == "#" and all(c in "0123456789abcdefABCDEF" for c in text[1:])):
        raise ValueError(f'{text[:20]!r} is no colour; write six hexadecimal digits in quotes, "#203a7a"')
    return text


Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_visible)]
Sentence = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_on_one_line)]
HexColour = Annotated[str, AfterValidator(_colour)]


class _Model(BaseModel):
    model_config = yamlfile.STRICT

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: object) -> object:
        return yamlfile.numbers_are_numbers(cls, data)


class ClassEntry(_Model):
    """One class of the map."""

    name: Name
    """How the class is called in the legend; also its first text query."""
    synonyms: tuple[Sentence, ...] = ()
    """Other words for the same ground; each is a query of its own."""
    descriptions: tuple[Sentence, ...] = ()
    """One-sentence context prompts about what is visible from above."""
    phrases: tuple[Sentence, ...] = ()
    """Short singular nouns for detectors that are asked for concepts (SAM 3), the best first. Default: name and synonyms."""
    asked: tuple[Sentence, ...] = ()
    """What models are asked for instead of name and synonyms: a paper's own words for this class. The name stays the legend's."""
    colour: HexColour | None = None
    """`#RRGGBB`."""
    prompt_source: str = "library"
    """`library`, `name` (no library knows it), `composed`, or the language model that wrote the descriptions."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words a model is asked for, the first one foremost: `asked`, else name and synonyms."""
        return self.asked or (self.name, *self.synonyms)

    @property
    def concepts(self) -> tuple[str, ...]:
        """What a detector is asked for: `phrases`, else `words`; lower case, none twice."""
        return tuple(dict.fromkeys(w.strip().lower() for w in self.phrases or self.words))

    @property
    def queries(self) -> tuple[str, ...]:
        """Every text of this class: its words and descriptions."""
        return (*self.words, *self.descriptions)


class BackgroundRule(_Model):
    """Pixels whose best class probability stays below `threshold` become `class_name`."""

    class_name: Name
    threshold: float = Field(ge=0, le=1)


class Vocabulary(_Model):
    """The ordered classes of a map."""

    name: Name
    title: Sentence | Literal[""] = ""
    imagery: Sentence | Literal[""] = ""
    """Sensor, region and resolution that the descriptions were written for."""
    provenance: dict[str, str] = {}
    background: BackgroundRule | None = None
    classes: tuple[ClassEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Vocabulary:
        if doubles := sorted(_doubles(_same_word(n) for n in self.class_names)):
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
        """Names of all classes, in the order of their numbers."""
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
        """Classes whose descriptions are composed from their names."""
        return tuple(c.name for c in self.classes if c.prompt_source == COMPOSED)

    @property
    def unknown_classes(self) -> tuple[str, ...]:
        """Classes that no library knows and nobody described: names and synonyms are all that is asked."""
        return tuple(c.name for c in self.classes if c.prompt_source == BY_NAME and not c.descriptions)

    @property
    def background_index(self) -> int | None:
        """Number of the background class; None without one."""
        return None if self.background is None else self.class_names.index(self.background.class_name)

    def digest(self) -> str:
        """SHA-256 over everything that can change the map (not colours, not provenance)."""
        content = [
            [
                *(c.name, list(c.synonyms), list(c.descriptions)),
                *([list(c.phrases)] if c.phrases else []),
                *([{"asked": list(c.asked)}] if c.asked else []),
            ]
            for c in self.classes
        ]
        rule = None if self.background is None else [self.background.class_name, self.background.threshold]
        return hashlib.sha256(json.dumps([content, rule]).encode()).hexdigest()


def shipped() -> list[str]:
    """Names of the vocabularies in the package."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files("ovrs.words.shipped").iterdir()
        if p.name.endswith(".yaml")
    )


def load(source: str | Path) -> Vocabulary:
    """Read a vocabulary by shipped name or from a YAML file.

    Raises:
        VocabularyError: No such name or file, no valid YAML, or a field is wrong (the message names file and line).
    """
    text = str(source)
    if text in shipped():
        return parse(resources.files("ovrs.words.shipped").joinpath(f"{text}.yaml").read_text("utf-8"), text)
    path = Path(source)
    if not os.path.lexists(path):
        told = yamlfile.short(text)
        raise VocabularyError(
            f"no vocabulary {told!r}: neither a file nor one of the shipped ones ({', '.join(shipped())})"
        )
    return parse(yamlfile.read_text(path, VocabularyError), text)


def parse(text: str, origin: str) -> Vocabulary:
    """Build a vocabulary from YAML text; `origin` is named in errors.

    Raises:
        VocabularyError: As for `load`.
    """
    document = yamlfile.parse(text, origin, VocabularyError)
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else f"a {type(document.data).__name__}"
        raise VocabularyError(f"{origin} must hold a mapping with 'name' and 'classes', found {found}")
    if lost := [place for place, word in document.words.items() if place[-1:] == ("colour",) and not word]:
        told = 'no colour is given; `#` begins a comment, so write it in quotes, "#203a7a"'
        raise VocabularyError(document.told([(place, told) for place in lost]))
    try:
        words = Vocabulary.model_validate(document.data)
    except ValidationError as error:
        raise VocabularyError(document.told(document.faults(error))) from error
    if alike := sorted(_doubles(_same_question(n) for n in words.class_names)):
        log.warning(
            "%s: models cannot tell apart what differs by blanks, '-', '_', '/' only: %s", origin, ", ".join(alike)
        )
    return words


def _same_word(name: str) -> str:
    """Equal for names that readers take for one: case, blanks and composition of accents do not count."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).split())


def _same_question(name: str) -> str:
    """Equal for names that become the same text query."""
    return " ".join(re.sub(r"[-/_]", " ", _same_word(name)).rstrip(".").split())


def _doubles(words: Iterable[str]) -> set[str]:
    return {word for word, count in Counter(words).items() if count > 1}


def dump(words: Vocabulary) -> str:
    """YAML text that `parse` reads back to the same vocabulary."""
    content = words.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def from_names(names: Sequence[str]) -> Vocabulary:
    """Return a vocabulary from bare class names.

    A name that the shipped land-cover library knows, as name or synonym, gets that entry's words and descriptions. Every
    other name is asked for as it is, without descriptions (`prompt_source` is `name`).

    Raises:
        VocabularyError: No names, one twice, or one with characters that cannot be seen.
    """
    wanted = [n for n in names if n.strip(" \t")]
    if not wanted:
        raise VocabularyError(
            'no class names given; write them separated by commas, as in --classes "building, road, water"'
        )
    library = {_same_word(q): entry for entry in load("landcover").classes for q in (entry.name, *entry.synonyms)}
    try:
        entries = [_entry(ClassEntry(name=name, prompt_source=BY_NAME), library) for name in wanted]
        return Vocabulary(name="command-line", classes=tuple(_without_borrowed(entries)))
    except ValidationError as error:
        told = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise VocabularyError(f"--classes: {told}") from error


def _entry(asked: ClassEntry, library: dict[str, ClassEntry]) -> ClassEntry:
    """Return the library's entry under the name that was asked for, else the entry as asked."""
    known = library.get(_same_word(asked.name))
    if known is None:
        return asked
    others = tuple(q for q in (known.name, *known.synonyms) if _same_word(q) != _same_word(asked.name))
    return known.model_copy(update={"name": asked.name, "synonyms": others})


def _without_borrowed(entries: list[ClassEntry]) -> list[ClassEntry]:
    """Drop a library synonym that the user named as a class of its own ("tree" beside "forest")."""
    names = {_same_word(e.name) for e in entries}
    return [
        e.model_copy(update={"synonyms": tuple(s for s in e.synonyms if _same_word(s) not in names)}) for e in entries
    ]


def composed(name: str) -> ClassEntry:
    """Descriptions put together from a name, for those who ask for them.

    They carry no knowledge beyond the name and cost accuracy with the bundled model.
    """
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
