"""Every error `ovrs` raises on purpose. The command line prints the message and maps the class to an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovrs.vocabulary import Vocabulary


class OvrsError(Exception):
    """Base class. A message says what was asked, what was found, and what to do."""

    exit_code = 1


class OptionError(OvrsError, ValueError):
    """An option has a value that cannot work."""

    exit_code = 2


class CatalogError(OvrsError, ValueError):
    """`data_catalog.yaml` is wrong or does not hold what was asked for."""

    exit_code = 2


class VocabularyError(OvrsError, ValueError):
    """A class list or prompt file cannot be used."""

    exit_code = 2


class PromptError(OvrsError):
    """A language model could not be made to write prompts; what was good is kept."""

    exit_code = 3
    partial: Vocabulary | None = None
    """The vocabulary with the classes that could be written."""


class SceneReadError(OvrsError, OSError):
    """The input raster cannot be read, or cannot be placed on the ground."""

    exit_code = 3


class GridMismatchError(OvrsError, ValueError):
    """Two things that must share a grid do not."""

    exit_code = 3


class WeightsError(OvrsError):
    """Model weights are missing, of the wrong kind, or unsafe to load."""

    exit_code = 3


class Sam3WeightsMissing(WeightsError, FileNotFoundError):  # noqa: N818  (the name that users of SAM 3 look for)
    """SAM 3's gated weights are not where they were looked for; the message says how to get them."""

    exit_code = 2


class StoreError(OvrsError):
    """The output store cannot be created, opened or finished."""

    exit_code = 3


class SchedulerLostError(StoreError):
    """The Dask scheduler went away during a run; finished blocks are kept."""

    exit_code = 4


class DigestMismatchError(StoreError):
    """The store was begun by a run with other inputs or options."""


class StoreLockedError(StoreError):
    """Another run is writing this store."""


class IncompleteRunError(StoreError):
    """Some blocks are missing; the store can be resumed."""

    exit_code = 4


class DamagedBlocksError(IncompleteRunError):
    """Finished blocks no longer hold what was written; their markers are gone, so they are computed again."""

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.names = names

    def __reduce__(self) -> tuple[type[DamagedBlocksError], tuple[str, list[str]]]:
        return type(self), (str(self), self.names)
