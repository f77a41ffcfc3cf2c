"""Every error `ovrs` raises on purpose, the words for errors of others, and the exit code of each.

Library code raises leaves of `OvrsError`; `ovrs.cli.edge` prints the message and ends with the exit code.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterable

EXIT_CODES = {
    0: "done",
    1: "`ovrs prompts --check` found faults in the prompts",
    2: "a wrong command: an option, a catalog, a class list or a name that cannot work",
    3: "an input or a store cannot be used: unreadable, damaged, of another run, or locked",
    4: "not finished: blocks are missing, the disk is full, or an output cannot be written; what is done is kept",
    70: "a fault of ovrs itself; `ovrs --debug …` or OVRS_DEBUG=1 shows where",
    130: "interrupted by Ctrl-C (SIGINT); what is done is kept",
    143: "ended by SIGTERM; what is done is kept",
}
"""Every exit code of the command line with its meaning."""

FAULT_CODE = 70
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_WRITING = (*NO_SPACE, errno.EROFS, errno.EFBIG)
"""Error numbers of the system that only a writer meets."""

_ADVICE = {
    errno.ENOSPC: "free space, then give the same command again",
    errno.EDQUOT: "free space within the quota, then give the same command again",
    errno.EROFS: "choose a place that can be written to",
    errno.EFBIG: "this file system takes no file so large; choose another place",
    errno.EACCES: "choose a place where you may write, or change its permissions",
    errno.EPERM: "choose a place where you may write, or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file; choose another folder",
    errno.EISDIR: "this is a folder; name a file",
    errno.ENOENT: "choose a folder that exists",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.EIO: "check the disk or the network share",
}


_READERS = ("rasterio", "pyogrio", "pyproj", "shapely", "botocore", "aiobotocore", "zarr", "numcodecs", "safetensors")
"""Libraries that read inputs; what they say about a damaged one is an error of the input, not of the program."""


class OvrsError(Exception):
    """Base class. A message says what was asked, what was found, and what to do."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(a) if isinstance(a, str) else a for a in args))


class OptionError(OvrsError, ValueError):
    """An option has a value that cannot work."""

    exit_code = 2


class CatalogError(OvrsError, ValueError):
    """`data_catalog.yaml` is wrong or does not hold what was asked for."""

    exit_code = 2


class VocabularyError(OvrsError, ValueError):
    """A class list or prompt file cannot be used."""

    exit_code = 2


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


class OutputError(StoreError, OSError):
    """A file or store cannot be written: full disk, no permission, a name too long, a folder in its place."""

    exit_code = 4


class SchedulerLostError(StoreError):
    """The Dask scheduler went away during a run; finished blocks are kept."""

    exit_code = 4


class WorkersUnfitError(StoreError):
    """Every Dask worker was left out: none can see the scene, the model and the output, or all differ."""

    exit_code = 4


class DigestMismatchError(StoreError):
    """The store was begun by a run with other inputs or options."""


class SceneChangedError(StoreError):
    """The scene became another one during a run; the blocks that are done belong to the first."""


class StoreLockedError(StoreError):
    """Another run is writing this store."""


class FailedBlock(Protocol):
    """What an incomplete run knows of a block that failed; `ovrs.run.rundir.BlockRecord` is one."""

    @property
    def name(self) -> str:
        """`ROW_COLUMN` in the plan."""

    @property
    def error(self) -> str:
        """Class name of the error that ended the block."""


class IncompleteRunError(StoreError):
    """Some blocks are missing; the store can be resumed.

    `records` holds the failed blocks, so that a caller decides by their fields and not by the message.
    """

    exit_code = 4

    def __init__(self, message: str, records: Iterable[FailedBlock] = ()) -> None:
        super().__init__(message)
        self.records = tuple(records)

    def __reduce__(self) -> tuple[type[IncompleteRunError], tuple[object, ...]]:
        return type(self), (str(self), self.records)


class DamagedBlocksError(IncompleteRunError):
    """Finished blocks no longer hold what was written; their markers are gone, so they are computed again."""

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.names = names

    def __reduce__(self) -> tuple[type[DamagedBlocksError], tuple[object, ...]]:
        return type(self), (str(self), self.names)


def not_written(target: object, error: OSError) -> OutputError:
    """Return the error for `target` that could not be written: the system's reason, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "give the same command again when the cause is gone")
    same = error.strerror is not None and str(error.filename or target) == str(target)
    return OutputError(f"cannot write {target}: {error.strerror if same else told(error)}; {advice}")


def told(error: BaseException) -> str:
    """Return the reason of an error in one line: its own text and the texts of its causes that say more.

    rasterio says "See previous exception for details" and keeps the reason in `__cause__`; the reason is what counts.
    """
    texts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(texts) < _CAUSES:
        seen.add(id(link))
        text = _own_text(link)
        if text and not any(text in known for known in texts):
            texts = [*(known for known in texts if known not in text), text]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return _shortened(": ".join(texts) or type(error).__name__)


_CAUSES = 4
_LONGEST = 600
_EMPTY_WORDS = ("See previous exception for details.", "See previous exception for details")


def _own_text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, OvrsError):
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, (str, bytes, os.PathLike))]
        return " -> ".join(names) + ": " * bool(names) + error.strerror
    text = str(error)
    for words in _EMPTY_WORDS:
        text = text.replace(words, "")
    text = " ".join(text.split())
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) and text else text


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def outcome(error: BaseException) -> tuple[int, str]:
    """Exit code and message for an error that reached the command line.

    Errors of ours say everything themselves. Errors of the system are told with file and advice; everything else is a
    fault of the program and says its type.
    """
    if isinstance(error, OvrsError):
        return error.exit_code, str(error)
    if isinstance(error, OSError) and error.errno in NO_WRITING:
        return OutputError.exit_code, f"{told(error)}; {_ADVICE[error.errno or 0]}"
    if isinstance(error, OSError) and error.errno is not None:
        return StoreError.exit_code, told(error)
    if isinstance(error, MemoryError):
        advice = "give fewer --workers or a smaller --set run.block_pitches=…, then the same command again; what is done is kept"
        return OutputError.exit_code, f"out of memory; {advice}"
    if type(error).__module__.partition(".")[0] in _READERS:
        return SceneReadError.exit_code, f"{type(error).__name__}: {told(error)}"
    told_type = f"unexpected {type(error).__name__}: {told(error)}"
    return FAULT_CODE, f"{told_type} (a fault of ovrs; with `ovrs --debug …` or OVRS_DEBUG=1 it shows where)"
