"""What has been mapped, kept beside the maps: so that no image is mapped twice, even by two watchers at once.

An image is held by *generations*: `ROOT/ledger/KEY.json`, `KEY.2.json`, `KEY.3.json`, … Each is created exclusively, with
its content, by whoever takes the image. A holder writes only its own generation and the newest one counts, so a holder that
was stopped and goes on late changes nothing. Works in a folder and in object storage that knows conditional writes (S3).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs.errors import SchedulerLostError, StoreError, StoreLockedError, not_written
from ovrs.files import write_text
from ovrs.objects import owner
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

EXPIRY_SECONDS = 900.0
HEARTBEAT_SECONDS = 60.0
MAX_ATTEMPTS = 3
_GENERATION = re.compile(r"([0-9a-f]{24})(?:\.([0-9]+))?\.json")
_LINKS_FAIL = "this file system has no hard links"
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


class Ledger:
    """The ledger of one output location."""

    def __init__(self, root: str) -> None:
        import fsspec

        self.files, path = fsspec.core.url_to_fs(str(root))
        self.folder = posixpath.join(path.rstrip("/"), "ledger")
        protocol = self.files.protocol
        self.local = "file" in (protocol if isinstance(protocol, tuple) else (protocol,))
        self._held: dict[str, tuple[int, int]] = {}
        self._clock: tuple[float, float] | None = None

    # ---- reading

    def entry(self, image: Image) -> dict[str, Any] | None:
        """What is known of an image."""
        return self._latest(image.key)[1]

    def entries(self) -> list[dict[str, Any]]:
        """The newest entry of every image, by key. Each holds `key`, `status`, `name`, `collection`, `attempt`."""
        newest: dict[str, int] = {}
        for file in self._listed():
            if found := _GENERATION.fullmatch(posixpath.basename(file)):
                newest[found[1]] = max(newest.get(found[1], 0), int(found[2] or 1))
        names = {self._file(key, number): key for key, number in sorted(newest.items())}
        if self.local:
            contents = {f: c for f in names if (c := self._bytes(f)) is not None}
        else:
            contents = self.files.cat(list(names), on_error="omit") if names else {}
        return [_parsed(contents[f], key, newest[key]) for f, key in names.items() if f in contents]

    def state(self, entry: dict[str, Any] | None) -> str:
        """`new`, `busy`, `failed` (is tried again), `hopeless` (is not), `done`, or `forgotten`."""
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

    def reason(self, entry: dict[str, Any]) -> str:
        """Why an image is not mapped, in one line."""
        if entry["status"] == "claimed":
            return f"{owner.shown(entry.get('owner'))} ended while it mapped the image"
        return " ".join(str(entry.get("reason", "its entry is damaged")).split())

    # ---- taking and giving back

    def claim(self, image: Image, **facts: Any) -> bool:
        """Take an image: True for exactly one caller. Done and hopeless ones, and those somebody works on, give False."""
        number, before = self._latest(image.key)
        if self.state(before) not in ("new", "failed"):
            return False
        attempt = 1 + (before["attempt"] if before else 0)
        kept = {"out": before["out"]} if before and "out" in before else {}
        if not self._create(
            self._file(image.key, number + 1), self._content(image, "claimed", attempt=attempt, **kept, **facts)
        ):
            return False
        self._held[image.key] = (number + 1, attempt)
        _HELD[self.folder, image.key] = (self, image)
        return True

    @contextmanager
    def working_on(self, image: Image, no_attempt: tuple[type[BaseException], ...] = NO_ATTEMPT) -> Iterator[None]:
        """While inside, the claim stays fresh; leaving with an error records it and raises it on.

        Args:
            image: One that `claim` has given.
            no_attempt: Errors that give the image back; so do those that end a process.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(image, stop), name="ovrs-ledger", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            stop.set()
            thread.join()
            if isinstance(error, no_attempt) or not isinstance(error, Exception):
                self.release(image)
            else:
                self._finish(image, "failed", reason=redacted(f"{type(error).__name__}: {error}")[:2000])
            raise
        stop.set()
        thread.join()

    def note(self, image: Image, **facts: Any) -> None:
        """Add facts to the claim that is held.

        Raises:
            StoreLockedError: Another process has taken the image over.
        """
        self.require_held(image)
        number, attempt = self._held[image.key]
        self._write(self._file(image.key, number), self._content(image, "claimed", attempt=attempt, **facts))

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
            self._write(self._file(image.key, max(number, 1)), self._content(image, "done", attempt=attempt, **facts))

    def release(self, image: Image) -> None:
        """Give an image back as it was taken: no attempt is counted."""
        attempt = self._held.get(image.key, (0, 1))[1]
        self._finish(image, "released", attempt=attempt - 1)

    def decide(self, entry: dict[str, Any], status: str) -> None:
        """What a person decides: `released` (try again from the first attempt) or `forgotten` (leave out).

        Raises:
            StoreLockedError: Somebody works on the image.
        """
        if self.state(entry) == "busy":
            raise StoreLockedError(
                f"{entry['name']} is being mapped by {owner.shown(entry.get('owner'))}; wait for it, or end it first"
            )
        facts = {k: v for k, v in entry.items() if k not in ("key", "generation")}
        facts |= {"status": status, "attempt": 0, "owner": owner.me(), "time": time.time()}
        if not self._create(self._file(entry["key"], entry["generation"] + 1), json.dumps(facts, indent=1).encode()):
            raise StoreLockedError(f"{entry['name']} was just taken by another process; look again")

    def update(self, entry: dict[str, Any], **facts: Any) -> None:
        """Change facts of a finished entry, such as where its map lies."""
        content = {k: v for k, v in entry.items() if k not in ("key", "generation")}
        self._write(self._file(entry["key"], entry["generation"]), json.dumps({**content, **facts}, indent=1).encode())

    # ---- a small memory that only saves time

    def remembered(self, collection: str) -> dict[str, Any]:
        """What `remember` kept; empty when there is nothing or it cannot be read."""
        try:
            found = json.loads(self._bytes(self._memory(collection)) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, collection: str, content: dict[str, Any]) -> None:
        """Keep the contents of the files of a collection by their signs, so that they are not read again."""
        self._write(self._memory(collection), json.dumps(content).encode())

    def _memory(self, collection: str) -> str:
        return posixpath.join(self.folder, f"contents-{hashlib.sha256(collection.encode()).hexdigest()[:12]}.cache")

    # ---- files

    def _file(self, key: str, number: int) -> str:
        return posixpath.join(self.folder, f"{key}.json" if number == 1 else f"{key}.{number}.json")

    def _listed(self) -> list[str]:
        self.files.invalidate_cache()
        try:
            return list(self.files.ls(self.folder, detail=False))
        except FileNotFoundError:
            return []

    def _latest(self, key: str) -> tuple[int, dict[str, Any] | None]:
        """Number and content of the newest generation; 0 and None when there is none."""
        number, content = 0, None
        while (found := self._bytes(self._file(key, number + 1))) is not None:
            number, content = number + 1, found
        return number, None if content is None else _parsed(content, key, number)

    def _bytes(self, file: str) -> bytes | None:
        try:
            if self.local:
                with open(file, "rb") as stream:  # noqa: PTH123  (thousands of files: a Path for each is half of the time)
                    return stream.read()
            self.files.invalidate_cache()
            return bytes(self.files.cat_file(file))
        except FileNotFoundError:
            return None

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
        number = self._held.get(image.key, (0, 0))[0]
        return number > 0 and self._latest(image.key)[0] == number

    def _finish(self, image: Image, status: str, **facts: Any) -> None:
        """Write the last word of a claim; nothing when it is lost or given back already."""
        held = self._holds(image)
        number, attempt = self._held.pop(image.key, (0, 0))
        _HELD.pop((self.folder, image.key), None)
        if held:
            before = self._latest(image.key)[1] or {}
            kept = {"out": before["out"]} if "out" in before else {}
            self._write(
                self._file(image.key, number), self._content(image, status, **{"attempt": attempt, **kept, **facts})
            )
        elif number:
            log.warning("%s was taken over by another process; its entry is left as it is", image.name)

    def _beat(self, image: Image, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            number, entry = self._latest(image.key)
            if entry is None or number != self._held.get(image.key, (0, 0))[0]:
                log.warning("%s was taken over by another process", image.name)
                return
            try:
                self.update(entry, time=time.time())
            except StoreError as error:
                log.warning("no sign of life for %s: %s", image.name, error)

    def _write(self, file: str, content: bytes) -> None:
        try:
            if self.local:
                write_text(file, content.decode(), sweep=False)
            else:
                self.files.pipe_file(file, content)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"the ledger {self.folder} cannot be written: {error}") from error

    def _create(self, file: str, content: bytes) -> bool:
        """Write a file that must not exist yet; False when it does."""
        try:
            if self.local:
                return _linked(Path(file), content)
            self.files.pipe_file(file, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if any(word in str(error) for word in ("PreconditionFailed", "pre-condition", "412")):
                return False
            raise StoreError(f"the ledger {self.folder} cannot be written: {error}") from error
        return True

    # ---- time

    def _stale(self, entry: dict[str, Any]) -> bool:
        """Whether the holder of a claim is gone, or gave no sign of life for so long by the clock of the store."""
        if owner.is_gone(entry.get("owner")):
            return True
        try:
            changed = self._modified(self._file(entry["key"], entry["generation"]))
        except FileNotFoundError:
            return False
        return self._now() - changed > EXPIRY_SECONDS

    def _modified(self, file: str) -> float:
        if self.local:
            return Path(file).stat().st_mtime
        self.files.invalidate_cache()
        return float(self.files.modified(file).timestamp())

    def _now(self) -> float:
        """Seconds now by the clock that dates the ledger's files; clocks of machines may differ."""
        if self._clock is None or time.monotonic() - self._clock[1] > HEARTBEAT_SECONDS:
            probe = posixpath.join(self.folder, f".clock-{uuid.uuid4().hex[:8]}")
            self._write(probe, b"")
            self._clock = (self._modified(probe), time.monotonic())
            self.files.rm_file(probe)
        return self._clock[0] + time.monotonic() - self._clock[1]


def _linked(file: Path, content: bytes) -> bool:
    """Create a local file together with its content; False when it exists."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        try:
            os.link(temporary, file)
        except FileExistsError:
            return False
        except OSError as error:
            log.debug("%s: %s", _LINKS_FAIL, error)
            with file.open("xb") as stream:
                stream.write(content)
    except FileExistsError:
        return False
    except OSError as error:
        raise not_written(file, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _parsed(content: bytes, key: str, number: int) -> dict[str, Any]:
    """An entry; one that cannot be read counts as an attempt that somebody did not live to record."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "status" not in found:
        found = {"status": "failed", "name": "?", "reason": "its entry in the ledger is damaged", "attempt": number}
    return {"collection": "", "attempt": 1, **found, "key": key, "generation": number}
