"""A request: one map that somebody asks for, as one value. Command line, catalog, flow and Python all make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ovrs.errors import OptionError
from ovrs.options import MapOptions
from ovrs.words import vocabulary as vocabularies

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ovrs.words.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Request:
    """One map to be made; `ovrs.pipeline.map` makes it. Picklable."""

    uri: str | Path
    """The scene: anything GDAL can open, or a folder or pattern of files that are one scene."""
    words: Vocabulary
    """The classes and their prompts."""
    options: MapOptions = field(default_factory=MapOptions)
    target: str | Path
    """Where the map goes: `NAME.zarr`, or a URL such as `s3://bucket/NAME.zarr`."""
    others: tuple[str | Path, ...] = ()
    """Further files of the same scene; later ones lie on top (`ovrs.scene.mosaic`)."""

    @classmethod
    def from_names(
        cls,
        uri: str | Path,
        target: str | Path,
        *,
        classes: str | Iterable[str] | None = None,
        vocabulary: str | None = None,
        options: MapOptions | None = None,
    ) -> Request:
        """Return a request whose classes are given by name.

        Args:
            uri: The scene.
            target: Where the map goes.
            classes: Class names, as a sequence or separated by commas; or
            vocabulary: the name of a shipped vocabulary or of a YAML file.
            options: Default: the bundled model with its recommended settings.

        Raises:
            OptionError: Both or neither of `classes` and `vocabulary` are given.
            VocabularyError: The classes cannot be used.
        """
        words = words_from_names(classes, vocabulary)
        return cls(uri=uri, words=words, options=options or MapOptions(), target=target)


def words_from_names(classes: str | Iterable[str] | None, vocabulary: str | None) -> Vocabulary:
    """Return the vocabulary that class names, or the name of a vocabulary, stand for (arguments and errors as `from_names`)."""
    if (classes is None) == (vocabulary is None):
        raise OptionError(
            'name the classes, either --classes "building, road, water" or --vocabulary NAME|FILE.yaml '
            "(presets named after a data set bring its words)"
        )
    if vocabulary is not None:
        return vocabularies.load(vocabulary)
    return vocabularies.from_names(classes.split(",") if isinstance(classes, str) else list(classes or ()))
