"""Faults of other libraries on foreign files, as one line."""

from __future__ import annotations

import lzma
import pickle
import zipfile
import zlib
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterable

FAULTS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    ImportError,
    MemoryError,
    StopIteration,
    pickle.UnpicklingError,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What readers and builders raise on damaged, odd or hostile input."""

_LONGEST = 300
_SHORT = 60


def one_line(error: BaseException) -> str:
    """Return the message of an error in printable characters, without line breaks, cut to 300 characters.

    PyTorch's advice to run code out of a pickled file is left out.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in text:
        return "it is damaged, or holds pickled objects other than tensors, which are never run"
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def shown(value: object) -> str:
    """Return a foreign value for a message: as Python writes it, in one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def place(keys: Iterable[object]) -> str:
    """Where a value stands in a document, "vision_cfg.width"; keys of any kind."""
    return ".".join(repr(key)[1:-1] if isinstance(key, str) else str(key) for key in keys)
