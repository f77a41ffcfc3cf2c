"""Faults of other libraries on foreign files, as one line."""

from __future__ import annotations

import pickle

from safetensors import SafetensorError

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
)
"""What readers and builders raise on damaged, odd or hostile input."""

_LONGEST = 300


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, cut to 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
