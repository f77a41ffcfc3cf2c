"""What has been mapped, kept beside the maps: so that no image is mapped twice, even by two watchers at once.

An image is held by the generations of `ovrs.objects.claim`: `ROOT/ledger/KEY.json`, `KEY.2.json`, … None is ever removed, so
the newest also tells how often the image was tried. Works in a folder and in object storage that knows conditional writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ovrs.errors import SchedulerLostError, StoreLockedError
from ovrs.objects import owner
from ovrs.objects.address import objects_at, place_of
from ovrs.objects.claim import Claim, Generations, generation
from ovrs.objects.many import each
from ovrs.objects.remote import Remote
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovrs.collection.entry import Entry, Memory

log = logging.getLogger(__name__)

EXPIRY_SECONDS = 900.0
HEARTBEAT_SECONDS = 60.0
MAX_ATTEMPTS = 3
_GENERATION = re.compile(r"([0-9a-f]{24})(?:\.([0-9]+))?\.json")
NO_ATTEMPT = (SchedulerLostError, StoreLockedError)
"""Errors that say nothing about the image."""


@dataclass(frozen=True)
class Image:
    """Something that may need mapping."""

    name: str
    uri: str
    fingerprint: str
    """What can be told without reading: size and time of a file, tag of an object, `updated` of a STAC item."""
    collection: str = ""
    content: str = ""
    """Hash of the bytes, where they were read: what decides whether it is mapped."""

    @property
    def key(self) -> str:
        """The name of its folder in the ledger: a hash of collection and content, else of address and fingerprint."""
        known = f"{self.collection}\n{self.content}" if self.content else f"{redacted(self.uri)}\n{self.fingerprint}"
        return hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:24]


_HELD: dict[tuple[str, str], tuple[Ledger, Image]] = {}


def release_held() -> None:
    """Give back every image that this process holds: for cancels and restarts, which are no attempts."""
    for key, (ledger, image) in list(_HELD.items()):
        try:
            ledger.release(image)
        except Exception as error:  # noqa: BLE001  (the process ends: one place that does not answer keeps no other)
            _HELD.pop(key, None)
            log.warning("%s stays claimed until its claim expires: %s", image.name, redacted(str(error)))


class _Held(NamedTuple):
    """An image that a ledger holds."""

    claim: Claim
    attempt: int


class Ledger:
    """The ledger of one output location."""

    def __init__(self, root: str) -> None:
        self.folder = place_of(str(root)) / "ledger"
        self.objects = objects_at(self.folder)
        self.places = Generations(self.objects)
        self._held: dict[str, _Held] = {}

    # ---- reading

    def entry(self, image: Image) -> Entry | None:
        """Return what is known of an image."""
        return self._latest(image.key)[1]

    def entries(self) -> list[Entry]:
        """Return the newest entry of every image, by key. Each holds `key`, `status`, `name`, `collection`, `attempt`."""
        newest: dict[str, int] = {}
        for entry in self.objects.list(deep=False):
            if found := _GENERATION.fullmatch(entry.key):
                newest[found[1]] = max(newest.get(found[1], 0), int(found[2] or 1))
        names = {generation(key, number): key for key, number in sorted(newest.items())}
        read = each(self.objects, names, self.objects.get)
        return [_parsed(c.content, names[f], newest[names[f]]) for f, c in read if c is not None]

    def state(self, entry: Entry | None) -> str:
        """Return `new`, `busy`, `failed` (is tried again), `hopeless` (is not), `done`, or `forgotten`."""
        if entry is None:
            return "new"
        status, left = entry["status"], entry["attempt"] < MAX_ATTEMPTS
        if status in ("done", "forgotten"):
            return str(status)
        if status == "released":
            return "new"
        if status == "claimed" and not self._stale(entry):
            return "busy"
        return "failed" if left else "hopeless"

    def reason(self, entry: Entry) -> str:
        """Why an image is not mapped, in one line."""
        if entry["status"] == "claimed":
            return f"{owner.shown(entry.get('owner'))} ended while it mapped the image"
        return " ".join(str(entry.get("reason", "its entry is damaged")).split())

    # ---- taking and giving back

    def claim(self, image: Image, **facts: Any) -> bool:
        """Take an image: True for exactly one caller. Done and hopeless ones, and those somebody works on, give False."""
        if isinstance(self.objects, Remote):
            self.objects.require_conditional()
        number, before = self._latest(image.key)
        if self.state(before) not in ("new", "failed"):
            return False
        attempt = 1 + (before["attempt"] if before else 0)
        kept = {"out": before["out"]} if before and "out" in before else {}
        told = {"attempt": attempt, **kept, **facts}
        claim = self.places.take(
            image.key, number + 1, lambda word: self._content(image, "claimed", claim=word, **told)
        )
        if claim is None:
            return False
        self._held[image.key] = _Held(claim, attempt)
        _HELD[str(self.folder), image.key] = (self, image)
        return True

    @contextmanager
    def working_on(self, image: Image, no_attempt: tuple[type[BaseException], ...] = NO_ATTEMPT) -> Iterator[None]:
        """While inside, the claim stays fresh; leaving with an error records it and raises it on.

        Args:
            image: One that `claim` has given.
            no_attempt: Errors that give the image back; so do those that end a process.
        """
        held = self._held.get(image.key)
        if held is not None and held.claim.beat():
            held.claim.patience = max(EXPIRY_SECONDS - HEARTBEAT_SECONDS, HEARTBEAT_SECONDS)
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(image, stop), name="ovrs-ledger", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self._rest(image, stop, thread)
            if isinstance(error, no_attempt) or not isinstance(error, Exception):
                self.release(image)
            else:
                self._finish(image, "failed", reason=redacted(f"{type(error).__name__}: {error}")[:2000])
            raise
        self._rest(image, stop, thread)

    def _rest(self, image: Image, stop: threading.Event, thread: threading.Thread) -> None:
        """End the heartbeat; from then on a claim is lost by another one alone."""
        stop.set()
        thread.join()
        if image.key in self._held:
            self._held[image.key].claim.patience = float("inf")

    def note(self, image: Image, **facts: Any) -> None:
        """Add facts to the claim that is held.

        Raises:
            StoreLockedError: Another process has taken the image over.
        """
        self.require_held(image)
        held = self._held[image.key]
        told = {"attempt": held.attempt, "claim": held.claim.word, **facts}
        held.claim.write(self._content(image, "claimed", **told))

    def require_held(self, image: Image) -> None:
        """Refuse to go on with an image that another process has taken over.

        Raises:
            StoreLockedError: It has, or the claim was removed.
        """
        if not self._holds(image):
            raise StoreLockedError(f"{image.name} was taken over by another process; nothing of it is recorded here")

    def done(self, image: Image, **facts: Any) -> None:
        """Record that an image is mapped.

        Raises:
            StoreLockedError: Another process has taken the image over.
        """
        if image.key in self._held:
            self.require_held(image)
            self._finish(image, "done", **facts)
        else:  # recorded by somebody who never held it
            number, before = self._latest(image.key)
            attempt = before["attempt"] if before else 1
            content = self._content(image, "done", attempt=attempt, **facts)
            self.objects.put(generation(image.key, max(number, 1)), content)

    def release(self, image: Image) -> None:
        """Give an image back as it was taken: no attempt is counted."""
        held = self._held.get(image.key)
        if held is not None:
            self._finish(image, "released", attempt=held.attempt - 1)

    def decide(self, entry: Entry, status: str) -> None:
        """Write what a person decides: `released` (try again from the first attempt) or `forgotten` (leave out).

        Raises:
            StoreLockedError: Somebody works on the image.
        """
        if self.state(entry) == "busy":
            raise StoreLockedError(
                f"{entry['name']} is being mapped by {owner.shown(entry.get('owner'))}; wait for it, or end it first"
            )
        facts = {k: v for k, v in entry.items() if k not in ("key", "generation")}
        facts |= {"status": status, "attempt": 0, "owner": owner.me(), "time": time.time()}
        key = generation(entry["key"], entry["generation"] + 1)
        if not self.objects.put_if_absent(key, json.dumps(facts, indent=1).encode()):
            raise StoreLockedError(f"{entry['name']} was just taken by another process; look again")

    def update(self, entry: Entry, **facts: Any) -> None:
        """Change facts of a finished entry, such as where its map lies."""
        content = {k: v for k, v in entry.items() if k not in ("key", "generation")}
        key = generation(entry["key"], entry["generation"])
        self.objects.put(key, json.dumps({**content, **facts}, indent=1).encode())

    # ---- a small memory that only saves time

    def remembered(self, collection: str) -> Memory:
        """Return what `remember` kept; empty when there is nothing or it cannot be read."""
        try:
            kept = self.objects.get(self._memory(collection))
            found = json.loads(b"{}" if kept is None else kept.content)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, collection: str, content: Memory) -> None:
        """Keep the contents of the files of a collection by their signs, so that they are not read again."""
        self.objects.put(self._memory(collection), json.dumps(content).encode())

    def _memory(self, collection: str) -> str:
        return f"contents-{hashlib.sha256(collection.encode()).hexdigest()[:12]}.cache"

    # ---- files

    def _latest(self, key: str) -> tuple[int, Entry | None]:
        """Return number and content of the newest generation; 0 and None when there is none."""
        number, content = self.places.latest(key)
        return number, None if content is None else _parsed(content, key, number)

    def _content(self, image: Image, status: str, **facts: Any) -> bytes:
        entry = {
            "status": status,
            "name": image.name,
            "collection": image.collection,
            "uri": redacted(image.uri),
            "fingerprint": image.fingerprint,
            "content": image.content,
        }
        return json.dumps({**entry, "owner": owner.me(), "time": time.time(), **facts}, indent=1).encode()

    def _holds(self, image: Image) -> bool:
        """Whether this ledger's claim is still the newest."""
        held = self._held.get(image.key)
        try:
            if held is not None:
                held.claim.check()
        except StoreLockedError as error:
            log.debug("%s", error)
            return False
        return held is not None

    def _finish(self, image: Image, status: str, **facts: Any) -> None:
        """Write the last word of a claim; nothing when it is lost or given back already."""
        held = self._held.pop(image.key, None)
        _HELD.pop((str(self.folder), image.key), None)
        if held is None:
            return
        before = self._latest(image.key)[1]
        kept = {"out": before["out"]} if before is not None and "out" in before else {}
        told = {"attempt": held.attempt, "claim": held.claim.word, **kept, **facts}
        try:
            held.claim.write(self._content(image, status, **told))
        except StoreLockedError:
            log.warning("%s was taken over by another process; its entry is left as it is", image.name)
        finally:
            held.claim.drop()

    def _beat(self, image: Image, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            held = self._held.get(image.key)
            if held is None or not held.claim.beat():
                log.warning("%s was taken over by another process", image.name)
                return

    def _stale(self, entry: Entry) -> bool:
        """Whether the holder of a claim is gone, or gave no sign of life for so long by the clock of the store."""
        if owner.is_gone(entry.get("owner")):
            return True
        silent = self.places.silence(entry["key"], entry["generation"])
        return silent is not None and silent > EXPIRY_SECONDS


def _parsed(content: bytes, key: str, number: int) -> Entry:
    """Return an entry; one that cannot be read counts as an attempt that somebody did not live to record."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "status" not in found:
        found = {"status": "failed", "name": "?", "reason": "its entry in the ledger is damaged", "attempt": number}
    entry: Any = {"collection": "", "attempt": 1, "name": "?", **found, "key": key, "generation": number}
    told: Entry = entry
    return told
