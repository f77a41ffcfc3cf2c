"""What the shell offers when Tab is pressed: names of vocabularies, methods, presets and models, keys of options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def vocabularies(incomplete: str) -> list[str]:
    """Shipped vocabularies, and YAML files of this folder."""
    from ovrs.words import vocabulary

    files = [str(p) for p in Path().glob("*.y*ml")]
    return _beginning([*vocabulary.shipped(), *sorted(files)], incomplete)


def presets(incomplete: str) -> list[str]:
    """Papers and their benchmarks."""
    from ovrs.methods import preset

    return _beginning(preset.names(), incomplete)


def methods(incomplete: str) -> list[str]:
    """Every method."""
    from ovrs.methods.registry import METHODS

    return _beginning(list(METHODS), incomplete)


def models(incomplete: str) -> list[str]:
    """Models that need no folder, and published ones."""
    from ovrs.model.clip.known import table

    return _beginning(["bundled", "sam3", "sam3-tiny", *table().models], incomplete)


def keys(incomplete: str) -> list[str]:
    """Options as `--set` takes them."""
    from ovrs import options

    return _beginning([f"{key}=" for key in options.listing()], incomplete)


OF_FIELD: dict[str, Callable[[str], list[str]]] = {"method.method": methods, "model.model": models}
"""For flags that are fields of the options."""


def many(one: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """For a list with commas: the last name is completed, the others stay."""

    def several(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in one(last)]

    return several


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
