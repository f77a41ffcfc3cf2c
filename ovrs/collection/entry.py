"""What the ledger's files hold: one entry per content, and a memory of the files that were seen."""

from __future__ import annotations

from typing import Any, NotRequired, TypeAlias, TypedDict


class Entry(TypedDict):
    """The newest word on an image."""

    key: str
    """Of the image's content; the entry's file is named by it."""
    generation: int
    """How often the image has changed hands."""
    status: str
    """`claimed`, `done`, `failed`, `released` or `forgotten`."""
    name: str
    collection: str
    attempt: int
    uri: NotRequired[str]
    """Without secrets."""
    fingerprint: NotRequired[str]
    content: NotRequired[str]
    owner: NotRequired[Any]
    """As `ovrs.objects.owner.me` tells it; other versions may tell it in another form."""
    time: NotRequired[float]
    """Seconds since 1970 by the clock of whoever wrote it."""
    claim: NotRequired[str]
    out: NotRequired[str]
    map: NotRequired[str]
    """Where the map lies."""
    reason: NotRequired[str]
    """Why there is none."""


class Seen(TypedDict):
    """One file of a collection as it was seen last."""

    sign: str
    """Size and time, or the version that a store tells."""
    since: float
    """When it was first seen like this, in seconds since 1970."""
    waits: str
    """Why it waits; empty if it is whole."""
    content: NotRequired[str]
    """Hash of its bytes."""


Memory: TypeAlias = dict[str, Seen]
"""By address without secrets."""
