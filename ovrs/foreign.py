"""Files that other programs or people made: looked for without raising, and read with faults of one line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 4 << 20
"""Bytes. Configurations of models have a few thousand."""


def is_file(path: Path | str) -> bool:
    """Whether a file is there. Names that no file can have, and places closed to this user, hold none."""
    return os.path.isfile(path)  # noqa: PTH113  (pathlib's raises on these)


def is_directory(path: Path | str) -> bool:
    """Whether a directory is there, as `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ValueError: The file cannot be read, is too large, or holds something else. The message has one line.
    """
    if not is_file(path):
        raise ValueError(f"{path} is no file")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{path} has {size} bytes; a configuration has at most {LARGEST}")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text") from error
    try:
        content = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} holds a number that JSON or Python cannot hold: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__} where an object, {{…}}, is expected")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
