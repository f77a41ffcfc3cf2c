"""One run per map: the claim that a process holds on a run directory while it writes there.

The claim is taken over only when its owner is gone or gave no sign of life for `EXPIRY_SECONDS`. A holder that was
silent nearly so long gives up before its next write; one that was taken over finds a newer claim there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovrs import files
from ovrs.errors import StoreError, StoreLockedError
from ovrs.objects import owner
from ovrs.objects.claim import Generations, generation

if TYPE_CHECKING:
    from types import TracebackType

    from ovrs.objects.claim import Claim, Fence
    from ovrs.run.rundir import RunDir

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
_NAME = "lock"


class Lock:
    """Hold a run; inside, `fence` is what every writer of the run checks."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.places = Generations(run.objects)
        self.claim: Claim | None = None
        self._stop = threading.Event()
        self._folder = contextlib.ExitStack()
        self._beat = threading.Thread(target=self._heartbeat, name="ovrs-heartbeat", daemon=True)

    @property
    def fence(self) -> Fence:
        """Picklable: travels with the work.

        Raises:
            StoreLockedError: The lock is not held.
        """
        if self.claim is None:
            raise StoreLockedError(f"{self.run.path} is not locked")
        return self.claim.fence

    def __enter__(self) -> Lock:
        with contextlib.ExitStack() as stack:
            if isinstance(self.run.path, Path):
                stack.enter_context(files.folder(self.run.path))
                file = self.run.path / generation(_NAME, 1)
                if file.is_dir():
                    raise StoreLockedError(f"{file} is a folder and no lock; remove it")
            with files.writing(self.run.path / generation(_NAME, 1)):
                self.claim = self._take()
            self._folder = stack.pop_all()
        self.claim.patience = EXPIRY_SECONDS - HEARTBEAT_SECONDS
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._beat.join()
        lost = self._lost() if isinstance(value, Exception) and not isinstance(value, StoreLockedError) else None
        if self.claim is not None:
            try:
                self.claim.remove()
            except StoreError as error:  # the work is done, or its own error says more
                log.warning("the lock stays behind: %s", error)
        self._folder.__exit__(kind, value, trace)  # an empty one goes after a failure
        if lost is not None:
            raise lost from value

    def _lost(self) -> StoreLockedError | None:
        """Whether the lock was lost: whatever else went wrong then comes of it."""
        try:
            self.fence.check()
        except StoreLockedError as error:
            return error
        except StoreError as error:
            log.debug("%s", error)
        return None

    def _take(self) -> Claim:
        number = max(self.places.listed(_NAME), default=0)
        if number:
            self._require_left_behind(number)
        claim = self.places.take(_NAME, number + 1, _content)
        if claim is None:
            raise StoreLockedError(f"{self.run.path} was just taken over by another process")
        return claim

    def _require_left_behind(self, number: int) -> None:
        key = generation(_NAME, number)
        found = self.run.objects.get(key)
        holder = {} if found is None else _parsed(found.content)
        if found is None or owner.is_gone(holder) or self._is_silent(number):
            return
        who = owner.shown(holder) if "pid" in holder else "a process that cannot be told"
        raise StoreLockedError(
            f"{self.run.path} is being written by {who}; wait for it, or end it and try again: "
            f"{self.run.path / key} counts as left behind {EXPIRY_SECONDS:.0f} s after its last sign of life"
        )

    def _is_silent(self, number: int) -> bool:
        silent = self.places.silence(_NAME, number)
        if silent is not None and silent < -HEARTBEAT_SECONDS:  # its time lies ahead: only a change tells
            return self._does_not_change(number)
        return silent is None or silent > EXPIRY_SECONDS

    def _does_not_change(self, number: int) -> bool:
        """Watch a lock for three heartbeats."""
        key = generation(_NAME, number)
        log.warning("%s carries a time in the future; watching whether its owner lives", self.run.path / key)
        before, until = self.run.objects.head(key), time.monotonic() + 3 * HEARTBEAT_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, HEARTBEAT_SECONDS))
            if self.run.objects.head(key) != before:
                return False
        return True

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            if self.claim is not None and not self.claim.beat():
                return


def _content(word: str) -> bytes:
    return json.dumps({**owner.me(), "token": word}, indent=1).encode()


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):  # killed while writing it
        return {}
    return found if isinstance(found, dict) else {}
