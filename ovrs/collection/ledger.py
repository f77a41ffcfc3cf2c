"""What has been mapped, kept beside the maps: so that no image is mapped twice, even by two watchers at once.

One small file per image in `ROOT/ledger/`, created exclusively: whoever creates it maps the image. Works in a folder and
in object storage that knows conditional writes (S3).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs.errors import StoreError
from ovrs.files import write_text
from ovrs.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

EXPIRY_SECONDS = 900.0
HEARTBEAT_SECONDS = 60.0
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Image:
    """Something that may need mapping."""

    name: str
    uri: str
    fingerprint: str
    """Changes when the content does: size and time of a file, `updated` of a STAC item."""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{redacted(self.uri)}\n{self.fingerprint}".encode()).hexdigest()[:24]


class Ledger:
    """The ledger of one output location."""

    def __init__(self, root: str) -> None:
        import fsspec

        self.files, path = fsspec.core.url_to_fs(str(root))
        self.folder = posixpath.join(path.rstrip("/"), "ledger")
        self.local = "file" in (
            self.files.protocol if isinstance(self.files.protocol, tuple) else (self.files.protocol,)
        )
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}

    def entry(self, image: Image) -> dict[str, Any] | None:
        """What is known of an image."""
        try:
            self.files.invalidate_cache()
            content: dict[str, Any] = json.loads(self.files.cat_file(self._file(image)))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return content

    def entries(self) -> list[dict[str, Any]]:
        """All entries, oldest name first."""
        self.files.invalidate_cache()
        if not self.files.exists(self.folder):
            return []
        return [
            json.loads(self.files.cat_file(f))
            for f in sorted(self.files.ls(self.folder, detail=False))
            if f.endswith(".json")
        ]

    def claim(self, image: Image) -> bool:
        """Take an image: True for exactly one caller. Done and hopeless ones, and those somebody works on, give False."""
        before = self.entry(image)
        attempt = 1
        if before is not None:
            if before["status"] == "done" or (before["status"] == "failed" and before["attempt"] >= MAX_ATTEMPTS):
                return False
            if before["status"] == "claimed" and time.time() - before["time"] < EXPIRY_SECONDS:
                return False
            attempt = int(before["attempt"]) + 1
            if not self._create(self._file(image, f".retake-{attempt}"), b"{}"):  # one of several retakers wins
                return False
            self._write(image, "claimed", attempt=attempt)
            return True
        return self._create(self._file(image), self._content(image, "claimed", attempt=attempt))

    @contextmanager
    def working_on(self, image: Image) -> Iterator[None]:
        """While inside, the claim stays fresh; leaving with an error records it and raises it on."""
        stop = threading.Event()
        attempt = int((self.entry(image) or {"attempt": 1})["attempt"])

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                self._write(image, "claimed", attempt=attempt)

        thread = threading.Thread(target=beat, name="ovrs-ledger", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            stop.set()
            thread.join()
            self._write(image, "failed", attempt=attempt, reason=redacted(f"{type(error).__name__}: {error}")[:2000])
            raise
        stop.set()
        thread.join()

    def done(self, image: Image, **facts: Any) -> None:
        """Record that an image is mapped."""
        attempt = int((self.entry(image) or {"attempt": 1})["attempt"])
        self._write(image, "done", attempt=attempt, **facts)

    def _file(self, image: Image, suffix: str = ".json") -> str:
        return posixpath.join(self.folder, f"{image.key}{suffix}")

    def _content(self, image: Image, status: str, **facts: Any) -> bytes:
        entry = {"status": status, "name": image.name, "uri": redacted(image.uri), "fingerprint": image.fingerprint}
        return json.dumps({**entry, "owner": self.owner, "time": time.time(), **facts}, indent=1).encode()

    def _write(self, image: Image, status: str, **facts: Any) -> None:
        content, file = self._content(image, status, **facts), self._file(image)
        if self.local:
            write_text(file, content.decode(), sweep=False)
        else:
            self.files.pipe_file(file, content)

    def _create(self, file: str, content: bytes) -> bool:
        """Write a file that must not exist yet; False when it does."""
        try:
            if self.local:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                with Path(file).open("xb") as stream:
                    stream.write(content)
            else:
                self.files.pipe_file(file, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if any(word in str(error) for word in ("PreconditionFailed", "pre-condition", "412")):
                return False
            raise StoreError(f"the ledger {self.folder} cannot be written: {error}") from error
        return True
