"""The directory that an import of weights writes: free, or one of the same kind that is replaced when the new one is whole."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from ovrs import files
from ovrs.errors import OptionError
from ovrs.foreign import is_directory, is_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor


def require_free(out: Path, source: Path, marker: str, *, overwrite: bool) -> None:
    """Refuse to replace what is not asked for, or is no model directory.

    Args:
        out: The directory to be written.
        source: What is read; it must not lie in `out`.
        marker: The file that tells a model directory.
        overwrite: Whether the user wants a directory that is there replaced.

    Raises:
        OptionError: Says what is in the way.
    """
    if not files.exists(out) and not out.is_symlink():
        return
    if not overwrite:
        raise OptionError(f"{out} is there already; choose another -o, or replace it with --overwrite")
    if not is_directory(out) or not (is_file(out / marker) or not any(out.iterdir())):
        raise OptionError(f"--overwrite replaces a model directory; {out} holds no {marker}")
    if source.resolve().is_relative_to(out.resolve()):
        raise OptionError(f"{source} lies in {out}, which would be replaced; choose another -o")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the name `out`, and the place of what is there, when the body ends.

    Raises:
        OutputError: It cannot be written.
    """
    aside = files.temporary_path(out, keep_suffix=False)
    with files.atomic_folder(out) as folder:
        folder.mkdir()
        yield folder
        if files.exists(out):
            out.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def write_tensors(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, readable for whom the other files of the folder are.

    Args:
        folder: Holds one file at least; the library makes its own readable for the user alone.
        name: Of the new file.
        tensors: By their names.
    """
    beside = next(folder.iterdir())
    save_file({n: tensor.contiguous() for n, tensor in tensors.items()}, folder / name, {"format": "pt"})
    shutil.copymode(beside, folder / name)


def sha256(sources: Sequence[Path]) -> str | dict[str, str]:
    """Return the hash of the one file that was read, or of each of several by its name."""
    found = {}
    for file in sources:
        with file.open("rb") as stream:
            found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found[sources[0].name] if len(sources) == 1 else found
