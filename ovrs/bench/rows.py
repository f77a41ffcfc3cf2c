"""The rows of a benchmark: a method with options, or a preset, which brings words and protocol of its paper for each set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ovrs.bench import protocols
from ovrs.errors import OptionError
from ovrs.methods import preset, published

if TYPE_CHECKING:
    from ovrs.bench.layouts import LabelledSet
    from ovrs.bench.protocols import Protocol


@dataclass(frozen=True)
class Row:
    """One method with its options."""

    label: str
    method: dict[str, object] = field(hash=False)
    tuned_on_labels: bool = False
    preset: str | None = None
    """`file/entry`, with the options that replace some of its own."""
    protocol: Protocol | None = None
    """How the preset's paper shows the images of the set; None shows them as they are."""


def parse_row(text: str) -> Row:
    """`tmpa`, or `none+prompts=names`: a method with options.

    Raises:
        OptionError: An option that does not exist.
    """
    name, *rest = text.split("+")
    return Row(text, {"method": name, **preset.parse_settings(rest)})


def preset_row(text: str, data: LabelledSet, *, as_published: bool = True) -> tuple[Row, LabelledSet]:
    """Return a preset as a row of one set, and the set with the words of the preset's paper.

    Args:
        text: `segearth/loveda`; `segearth` is the entry called after the set. Options may follow: `mlmp/full+layers=1`.
        data: The set.
        as_published: Show images as the paper does, where it reports the set; else as they are.

    Raises:
        OptionError: No such preset or option, or no entry for this set.
    """
    name, *rest = text.split("+")
    full = entry_for(name, data.benchmark, data.name)
    method = {**preset.method_options(full), **preset.parse_settings(rest)}
    tuned = preset.load(full.partition("/")[0]).tuned_on_labels
    protocol = protocols.of_preset(full, data.benchmark) if as_published else None
    known = data.benchmark is not None
    words = published.with_words(data.words, full, data.benchmark) if known else published.given(data.words, full)
    data = replace(data, words=words)
    if protocol is not None and protocol.split is not None and data.split == data.layout.split:
        data = replace(data, split=protocol.split)
    return Row(text, method, tuned, "+".join([full, *rest]), protocol), data


def entry_for(name: str, benchmark: str | None, data: str) -> str:
    """`file/entry` of a preset on a set: of `file` alone the entry called after the set.

    Raises:
        OptionError: The file has no such entry; says which it has.
    """
    file, slash, _ = name.partition("/")
    if slash:
        return name
    entries = preset.load(file).datasets
    if benchmark not in entries:
        raise OptionError(
            f"preset {file} has no entry for data set {data}; name one of {', '.join(f'{file}/{e}' for e in entries)}"
        )
    return f"{file}/{benchmark}"
