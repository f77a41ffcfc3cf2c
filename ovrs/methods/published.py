"""The words that papers ask for, as data: `presets/words/NAME.yaml` holds one list of class lines per set, with its source."""

from __future__ import annotations

from functools import cache
from importlib import resources

from pydantic import BaseModel

from ovrs import yamlfile
from ovrs.errors import OptionError
from ovrs.methods import preset
from ovrs.words import vocabulary
from ovrs.words.vocabulary import BackgroundRule, ClassEntry, Vocabulary


class SetWords(BaseModel):
    """The published lines of one set."""

    model_config = yamlfile.STRICT

    file: str
    """Path in the source."""
    words: tuple[str, ...]
    """One line a class, in the order of the set's classes; words parted by commas."""

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """The words of each class, stripped."""
        return tuple(tuple(w.strip() for w in line.split(",")) for line in self.words)


class WordLists(BaseModel):
    """One file: a paper's lists."""

    model_config = yamlfile.STRICT

    title: str
    source: str
    """Repository and commit."""
    sets: dict[str, SetWords]


@cache
def word_lists(name: str) -> WordLists:
    """Return the lists of one file in `presets/words`."""
    text = (resources.files("ovrs.methods") / "presets" / "words" / f"{name}.yaml").read_text("utf-8")
    return WordLists.model_validate(yamlfile.parse(text, f"words {name}", OptionError).data)


def of_preset(name: str, benchmark: str | None) -> tuple[SetWords, dict[str, str]] | None:
    """Return the published words that preset `file/entry` asks for on a set, and what to write about them into a record.

    Args:
        name: The preset.
        benchmark: The set, as papers know it; None is a set of one's own.

    Returns:
        None where no list of that set is published with the preset.

    Raises:
        OptionError: There is no such preset file.
    """
    found = preset.load(name.partition("/")[0])
    lists = word_lists(found.words) if found.words else None
    if lists is None or benchmark not in lists.sets:
        return None
    own = lists.sets[benchmark]
    told = {"preset": name, "words": f"{lists.title}: {lists.source}, {own.file}"}
    return own, {**told, **({"sentences": found.sentences} if found.sentences else {})}


def with_words(base: Vocabulary, name: str, benchmark: str | None) -> Vocabulary:
    """Return `base` with the published words of preset `name` as questions; legend, colours, sentences and threshold rule stay.

    Without a published list the words stay as they are, and the provenance says that they are not the preset's.

    Raises:
        OptionError: The published list has another number of classes.
    """
    found = of_preset(name, benchmark)
    if found is None:
        return _noted(base, name, "the data set's own; the preset has no published list for it")
    own, told = found
    if len(own.words) != len(base.classes):
        raise OptionError(
            f"preset {name} has published words for {len(own.words)} classes of {benchmark}, "
            f"the vocabulary {base.name!r} has {len(base.classes)}"
        )
    classes = tuple(
        entry.model_copy(update={"asked": line, "synonyms": (), "phrases": ()})
        for entry, line in zip(base.classes, own.lines, strict=True)
    )
    return base.model_copy(update={"classes": classes, "provenance": {**base.provenance, **told}})


def given(words: Vocabulary, name: str) -> Vocabulary:
    """`words` of the user's own beside a preset: they are asked, and the provenance says so."""
    return _noted(words, name, "given with the run, not the preset's")


def _noted(words: Vocabulary, name: str, told: str) -> Vocabulary:
    return words.model_copy(update={"provenance": {**words.provenance, "preset": name, "words": told}})


def vocabulary_of(name: str) -> Vocabulary | None:
    """Return the vocabulary that preset `file/entry` asks for when its entry is a set; None if no list is published for it.

    Raises:
        OptionError: There is no such preset file.
    """
    entry = name.partition("/")[2]
    found = of_preset(name, entry)
    if found is None:
        return None
    if entry in vocabulary.shipped():
        return with_words(vocabulary.load(entry), name, entry)
    lines = found[0].lines
    rule = BackgroundRule(class_name="background", threshold=0.0) if lines[0] == ("background",) else None
    bare = Vocabulary(name=entry, background=rule, classes=tuple(ClassEntry(name=line[0]) for line in lines))
    return with_words(bare, name, entry)
