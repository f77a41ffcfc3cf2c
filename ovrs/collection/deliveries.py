"""What is to be done for a collection: what was delivered, compared by content with what the ledger knows.

The same content is done, whatever its time stamp or name. New content under a known name is a new version. A file that is
still being delivered waits.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.collection import imagery, whole
from ovrs.errors import SceneReadError
from ovrs.redact import redacted
from ovrs.scene import identity, vsi
from ovrs.scene.contents import contents_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovrs.collection.catalog import Catalog
    from ovrs.collection.entry import Entry, Memory, Seen
    from ovrs.collection.ledger import Image, Ledger

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3600.0
"""A file that cannot be read to its end, and has not changed for so long, is tried as it is."""
TO_DO = ("new", "failed", "returned")


@dataclass(frozen=True)
class Delivery:
    """One image of a collection, and how it stands."""

    image: Image
    state: str
    """`new`, `failed` (is tried again), `returned` (an older content came back), `busy`, `done`, `hopeless` (its attempts
    are used up), `forgotten` (somebody said so), or `waiting` (not whole yet)."""
    reason: str = ""
    map: str = ""
    """Where the map of a done image lies."""
    same_as: str = ""
    """Name of another image with the same bytes, whose map is this one's."""

    @property
    def to_do(self) -> bool:
        """Whether a run has to map it."""
        return self.state in TO_DO and not self.same_as


def look(catalog: Catalog, collection: str, ledger: Ledger, *, read: bool = True) -> list[Delivery]:
    """Look at a collection once. Files that are new are looked at twice and read; the others are not opened.

    Args:
        catalog: The catalog.
        collection: A name in it.
        ledger: The ledger of its output root.
        read: Without, no file is opened and nothing is written: new files are `new`, whatever they hold.

    Returns:
        One delivery per image, in the order of names.

    Raises:
        CatalogError: As `ovrs.collection.imagery.images`.
    """
    found = imagery.images(catalog, collection)
    memory = ledger.remembered(collection)
    waiting, known = _contents(found, memory, read)
    if read and known != memory:
        ledger.remember(collection, known)
    entries = {e["key"]: e for e in ledger.entries()}
    out: list[Delivery] = []
    images = [_with_content(i, known) for i in found if i.name not in waiting]
    names: dict[str, set[str]] = {}
    for image in images:
        names.setdefault(image.key, set()).add(image.name)
    first = {k: entries[k]["name"] if k in entries and entries[k]["name"] in n else min(n) for k, n in names.items()}
    for image in images:
        entry = entries.get(image.key) or _adopted(catalog, image, entries, ledger)
        out.append(_delivery(catalog, image, entry, first[image.key], ledger))
    out += [Delivery(i, "waiting", waiting[i.name]) for i in found if i.name in waiting]
    return sorted(out, key=lambda d: d.image.name)


def _delivery(catalog: Catalog, image: Image, entry: Entry | None, first: str, ledger: Ledger) -> Delivery:
    state = ledger.state(entry)
    same_as = "" if first == image.name else first
    if entry is None:
        return Delivery(image, state, same_as=same_as)
    if state == "done":
        if entry["name"] != image.name:
            same_as = entry["name"]
        elif entry.get("map") != target(catalog, image):
            state = "returned"
    reason = ledger.reason(entry) if state in ("failed", "hopeless") else ""
    return Delivery(image, state, reason, str(entry.get("map", "")), same_as)


def target(catalog: Catalog, image: Image) -> str:
    """Where the map of the newest content of an image goes."""
    return catalog.output(f"{image.collection}/{image.name}")


def _contents(found: Sequence[Image], memory: Memory, read: bool) -> tuple[dict[str, str], Memory]:
    """Why images wait, by name; and `{address: {sign, content, since}}` of all that were found."""
    known: Memory = {}
    waiting: dict[str, str] = {}
    fresh = []
    for image in found:
        kept = memory.get(redacted(image.uri))
        if isinstance(kept, dict) and kept.get("sign") == image.fingerprint:
            known[redacted(image.uri)] = kept
            if kept.get("content"):
                continue
        fresh.append(image)
    if not read:
        return {i.name: s["waits"] for i in fresh if (s := known.get(redacted(i.uri))) and s.get("waits")}, known
    unseen = [i for i in fresh if redacted(i.uri) not in known]
    if any(vsi.local_path(i.uri) for i in unseen):
        time.sleep(imagery.SETTLE_SECONDS)  # the second look
    for image in fresh:
        seen = known.setdefault(redacted(image.uri), {"sign": image.fingerprint, "since": time.time(), "waits": ""})
        content, reason = _looked_at(image, time.time() - seen["since"])
        if reason:
            log.warning("%s waits: %s", image.name, reason)
            waiting[image.name] = reason
        settled: Seen = {**seen, "waits": reason}
        if content:
            settled["content"] = content
        known[redacted(image.uri)] = settled
    return waiting, known


def _looked_at(image: Image, unchanged: float) -> tuple[str, str]:
    """Content of an image that is whole, or why it waits; neither for a remote one that cannot be reached."""
    path = vsi.local_path(image.uri)
    if path is None:
        try:
            return content_of(image), ""
        except SceneReadError as error:
            log.warning("%s cannot be compared by content: %s", image.name, error)
            return "", ""
    if not _is_still(path, image):
        return "", "it is still changing"
    reason = whole.fault(image.uri)
    if reason and unchanged < PATIENCE_SECONDS:
        return "", reason
    try:
        content = content_of(image)
    except SceneReadError as error:
        return "", str(error)
    return (content, "") if _is_still(path, image) else ("", "it is still changing")


def _is_still(path: Path, image: Image) -> bool:
    try:
        return imagery.fingerprint(path.stat()) == image.fingerprint
    except OSError:
        return False


def content_of(image: Image) -> str:
    """Hash of an image's bytes, as `ovrs.scene.identity` has it; of the file's own bytes where GDAL cannot open it.

    Of a large remote file only pieces are read, so its tag or time of change counts, too.

    Raises:
        SceneReadError: A file cannot be read.
    """
    name = vsi.name_of(image.uri)
    if vsi.local_path(name) is None and not vsi.is_remote(name):
        return identity.origin_of(image.uri).sha256
    with vsi.environment(image.uri):
        opens = bool(vsi.listed(name))
        if not opens:
            return contents_of((name,)).sha256
    origin = identity.origin_of(image.uri)
    if origin.sampled and vsi.is_remote(name):
        return hashlib.sha256(f"{origin.sha256}\n{image.fingerprint}".encode()).hexdigest()
    return origin.sha256


def _with_content(image: Image, known: Memory) -> Image:
    seen = known.get(redacted(image.uri))
    return replace(image, content="" if seen is None else seen.get("content", ""))


def _adopted(catalog: Catalog, image: Image, entries: dict[str, Entry], ledger: Ledger) -> Entry | None:
    """Return an entry that names the file by size and time, written anew under its content."""
    old = entries.get(replace(image, collection="", content="").key)
    if not image.content or old is None or old["status"] != "done" or old.get("map") != target(catalog, image):
        return None
    ledger.done(image, map=old["map"], out=old["map"], digest=old.get("digest", ""))
    return ledger.entry(image)
