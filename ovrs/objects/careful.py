"""Writes of a bucket that carry a condition: a request may be under way while its sender loses its claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovrs.errors import OutputError
from ovrs.objects.folder import Folder

if TYPE_CHECKING:
    from ovrs.objects.interface import Objects


def replace_known(objects: Objects, key: str, content: bytes) -> None:
    """Write a name so that nothing written meanwhile by somebody else is lost without a word.

    Raises:
        OutputError: Another process writes the same name again and again.
    """
    if isinstance(objects, Folder):
        objects.put(key, content)
        return
    for _ in range(3):
        if objects.put_if_absent(key, content):
            return
        found = objects.get(key)
        if found is not None and objects.put_if_match(key, content, found.tag):
            return
    raise OutputError(f"{key} is written by another process at the same time; end one of the two")
