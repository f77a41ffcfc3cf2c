"""A map as it is exported: smoothed, sieved, calibrated; the store stays raw."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ovrs import files
from ovrs.clean.majority import majority
from ovrs.clean.scratch import Scratch
from ovrs.clean.sieve import sieve
from ovrs.store.derived import DerivedMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.clean.cleaning import Cleaning
    from ovrs.store.map import Map

BLOCK = 1024


@contextmanager
def cleaned(mapped: Map, cleaning: Cleaning, block: int = BLOCK) -> Iterator[Map]:
    """Yield a map after the majority filter and the minimum mapping unit, in this order, while the block lasts.

    Memory: a block with its surroundings (about 60 MB), and 40 bytes for each area that touches a block's border. Disk:
    up to four times the compressed labels, in a temporary folder.

    Args:
        mapped: The map.
        cleaning: What to do; nothing gives the map itself.
        block: Side of a block in pixels.

    Raises:
        StoreError: The map is damaged.
        OutputError: The temporary folder cannot be written.
    """
    if not cleaning:
        yield mapped
        return
    classes = len(mapped.names)
    with Scratch((mapped.grid.height, mapped.grid.width)) as scratch:
        with files.writing("a temporary layer (TMPDIR says where)"):
            label = mapped.label
            if cleaning.majority:
                label = majority(label, scratch, classes=classes, side=cleaning.majority, block=block)
            if cleaning.unit_m2:
                label = sieve(label, scratch, mapped.grid, classes=classes, unit_m2=cleaning.unit_m2, block=block)
            made = DerivedMap(mapped, label=label, note=cleaning.note)
        yield made
