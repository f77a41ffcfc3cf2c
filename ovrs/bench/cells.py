"""A cell of a benchmark: one set under one corruption with one row, and the facts that its numbers hang on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from ovrs.bench import dryrun
from ovrs.bench.corruptions import CORRUPTIONS
from ovrs.errors import OptionError
from ovrs.options import MethodOptions, ModelOptions
from ovrs.options import build as build_options
from ovrs.provenance import NUMERICS, canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovrs.bench.layouts import LabelledSet
    from ovrs.bench.rows import Row

PROTOCOL = 1
"""Counted up when the same options would give other numbers."""
CLEAN = "clean"


class _Shown(TypedDict, total=False):
    """What a published preset, or a dry run, brings."""

    preset: str
    benchmark: str | None
    words: str
    sentences: str | None
    shown: Mapping[str, Any] | None
    """How images are shown, where it is not as here."""
    dry_run: bool
    """A stand-in with random weights took the model's place."""


class CellFacts(_Shown):
    """What decides the numbers of a cell: content of `cell.json`."""

    protocol: int
    numerics: int
    dataset: str
    split: str | None
    held_out: list[str]
    shrink: float
    classes: list[str]
    vocabulary: str
    corruption: str
    severity: int
    part: int | None
    row: str
    tuned_on_labels: bool
    model: Mapping[str, Any]
    """`ovrs.options.ModelOptions` as JSON."""
    method: Mapping[str, object]
    """`ovrs.options.MethodOptions` as JSON, what was given."""


class ScoredFacts(CellFacts, total=False):
    """The facts of a cell with what is known after scoring."""

    left_out: int
    """Images without a usable label."""


@dataclass(frozen=True)
class Cell:
    """One set, one corruption, one method."""

    data: LabelledSet
    row: Row
    model: ModelOptions
    corruption: str
    severity: int
    part: int
    dry_run: bool = False
    """A stand-in with random weights takes the model's place (`ovrs.bench.dryrun`)."""

    def facts(self) -> CellFacts:
        """Return everything that decides the numbers of a cell."""
        method, row = self.options(), self.row
        shown: _Shown = {}
        if row.preset is not None:
            shown = {
                "preset": row.preset,
                "benchmark": self.data.benchmark,
                "words": self.data.words.provenance["words"],
                "sentences": self.data.words.provenance.get("sentences"),
                "shown": None if row.protocol is None else row.protocol.model_dump(mode="json", exclude_defaults=True),
            }
        if self.dry_run:
            shown["dry_run"] = True
        return {
            "protocol": PROTOCOL,
            "numerics": NUMERICS,
            "dataset": self.data.name,
            "split": self.data.split,
            "held_out": list(self.data.held_out),
            "shrink": 1.0 if row.protocol else self.data.shrink,
            "classes": list(self.data.words.class_names),
            "vocabulary": self.data.words.digest(),
            "corruption": self.corruption,
            "severity": self.severity,
            "part": None if row.protocol else self.part,
            "row": row.label,
            "tuned_on_labels": row.tuned_on_labels,
            **shown,
            "model": self.shown_model().model_dump(mode="json"),
            "method": method.model_dump(mode="json", exclude_unset=True),
        }

    def shown_model(self) -> ModelOptions:
        """Return the model's options with the windows of the protocol, else with the size of the shown pixels."""
        if self.row.protocol is not None:
            wanted = {n: getattr(self.row.protocol, n) for n in ("crop", "stride") if getattr(self.model, n) is None}
            return self.model.model_copy(update={n: v for n, v in wanted.items() if v is not None})
        own = self.data.pixel_size
        return self.model.told(None if own is None else own * self.data.shrink)

    def network(self) -> ModelOptions:
        """Return the name of the loaded model."""
        return dryrun.stand_in(self.shown_model()) if self.dry_run else self.shown_model()

    def options(self) -> MethodOptions:
        """Return the method's options as given by the row."""
        model = self.model.model_dump(exclude_unset=True)
        row = dryrun.with_stand_in(self.row) if self.dry_run else self.row
        return build_options(model=model, method=row.method).method

    def folder(self, results: Path) -> Path:
        """Return where the cell's numbers lie: its name holds a digest of its facts."""
        digest = hashlib.sha256(canonical(self.facts()).encode()).hexdigest()[:12]
        return results / "cells" / f"{self.data.name}-{self.corruption}-{digest}"


def corruptions(text: str) -> list[str]:
    """`none`, `all` (clean and the fifteen), or names separated by commas.

    Raises:
        OptionError: An unknown name.
    """
    if text == "all":
        return [CLEAN, *CORRUPTIONS]
    names = [CLEAN if n.strip() in ("none", CLEAN) else n.strip() for n in text.split(",")]
    wrong = [n for n in names if n != CLEAN and n not in CORRUPTIONS]
    if wrong:
        raise OptionError(f"no corruption {', '.join(wrong)}; choose all, none or of {', '.join(CORRUPTIONS)}")
    return names
