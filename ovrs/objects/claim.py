"""Who holds a name: a claim of which everybody can tell whether it is still the newest.

A name is held by *generations*: `NAME.json`, `NAME.2.json`, … Each is created exclusively, with its content, by whoever
takes the name. The newest counts, and a holder writes only its own. So a holder that was stopped and goes on late finds
a newer generation, or its own gone, and may write nothing more. The age of a generation is read by the clock of the
place, so clocks of machines may differ.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovrs.errors import StoreError, StoreLockedError, told
from ovrs.objects.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovrs.objects.interface import Objects

log = logging.getLogger(__name__)

_CLOCK_SECONDS = 60.0
"""How long one look at the clock of a place is good for."""
FRESH_SECONDS = 1.0
"""How long a look at a claim in a bucket is good for: far less than any claim takes to expire."""
_held: dict[str, Claim] = {}
"""Claims of this process by their word."""
_looked: dict[str, float] = {}
"""When a claim was last seen to be the newest, by its word."""


def generation(name: str, number: int) -> str:
    """Key of a generation."""
    return f"{name}.json" if number == 1 else f"{name}.{number}.json"


class Generations:
    """The generations of all names in one place."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._clock: tuple[float, float] | None = None

    def latest(self, name: str) -> tuple[int, bytes | None]:
        """Return number and content of the newest generation where none is ever removed; 0 and None when there is none."""
        number, content = 0, None
        while (found := self.objects.get(generation(name, number + 1))) is not None:
            number, content = number + 1, found.content
        return number, content

    def listed(self, name: str) -> dict[int, str]:
        """Keys of a name by number, ascending."""
        pattern = re.compile(rf"(?:.*/)?{re.escape(name.rpartition('/')[2])}(?:\.([0-9]+))?\.json")
        keys = [entry.key for entry in self.objects.list(f"{name}.", deep=False)]
        return dict(sorted((int(found[1] or 1), key) for key in keys if (found := pattern.fullmatch(key))))

    def silence(self, name: str, number: int) -> float | None:
        """Seconds since the last sign of life of a generation, negative where its time lies ahead; None if it is gone."""
        entry = self.objects.head(generation(name, number))
        return None if entry is None else self.now() - entry.changed

    def now(self) -> float:
        """Seconds now by the clock of the place."""
        if self._clock is None or time.monotonic() - self._clock[1] > _CLOCK_SECONDS:
            probe = f".clock-{uuid.uuid4().hex[:8]}"
            self.objects.put(probe, b"")
            entry = self.objects.head(probe)
            self._clock = (time.time() if entry is None else entry.changed, time.monotonic())
            self.objects.delete(probe)
        return self._clock[0] + time.monotonic() - self._clock[1]

    def take(self, name: str, number: int, content: Callable[[str], bytes]) -> Claim | None:
        """Create a generation; None when somebody else did.

        Args:
            name: What is taken.
            number: One more than the newest.
            content: Gets a word that no other claim has, and gives the content, which holds it.
        """
        word = uuid.uuid4().hex
        made = content(word)
        tag = self.objects.put_if_absent(generation(name, number), made)
        return Claim(self, name, number, word, made, tag) if tag else None


class Claim:
    """A generation that this process holds. Written to, kept fresh, checked before each write of what it protects."""

    def __init__(self, places: Generations, name: str, number: int, word: str, content: bytes, tag: str) -> None:
        self.places, self.name, self.number, self.word = places, name, number, word
        self.content, self.tag = content, tag
        self.alive = time.monotonic()
        """When the last sign of life was given."""
        self.patience = float("inf")
        """Seconds without a sign of life after which the holder gives up."""
        self._writing = threading.Lock()
        _held[word] = self

    @property
    def key(self) -> str:
        """Return the key of the object that stands for the claim."""
        return generation(self.name, self.number)

    @property
    def fence(self) -> Fence:
        """What a worker in another process checks before its writes."""
        return Fence(self.places.objects, self.name, self.number, self.word)

    def require_alive(self) -> None:
        """Refuse to go on after a silence in which others may have taken over.

        Raises:
            StoreLockedError: The last sign of life is older than `patience`.
        """
        silent = time.monotonic() - self.alive
        if silent > self.patience:
            raise StoreLockedError(
                f"this process gave no sign of life for {silent:.0f} s, so another one may have taken over; nothing more "
                "is written by this one. The same command goes on with what is done"
            )

    def check(self) -> None:
        """Refuse to go on with a claim that is no longer the newest (errors as `Fence.check`)."""
        self.fence.check()

    def write(self, content: bytes) -> None:
        """Replace the content of the own generation; a sign of life.

        Raises:
            StoreLockedError: Another process has taken over.
        """
        place = self.places.objects
        self._renew(lambda: place.put_if_match(self.key, content, self.tag))
        self.content = content

    def _renew(self, write: Callable[[], str]) -> None:
        begun = time.monotonic()  # a stop within the call counts as silence
        with self._writing:
            self.check()
            tag = write()
            if not tag:
                raise StoreLockedError(f"{self.key} was written or removed by another process, which has taken over")
            self.tag = tag
        self.alive = begun

    def beat(self) -> bool:
        """Give a sign of life; False once the claim is lost. A place that does not answer is told and tried again."""
        place = self.places.objects
        try:
            if isinstance(place, Folder):
                self._renew(lambda: place.touch(self.key))
            else:
                self.write(self.content)
        except StoreLockedError as error:
            log.warning("%s", error)
            return False
        except (StoreError, OSError) as error:
            log.warning("no sign of life for %s: %s", self.name, told(error))
        return True

    def drop(self) -> None:
        """Forget the claim in this process; its file stays."""
        _held.pop(self.word, None)
        _looked.pop(self.word, None)

    def remove(self) -> None:
        """Give the name back: older generations go first, so that no earlier holder ever finds its own the newest."""
        found = self.places.objects.get(self.key)
        if found is not None and self.word.encode() in found.content:
            for number, key in self.places.listed(self.name).items():
                if number <= self.number:
                    self.places.objects.delete(key)
        self.drop()


@dataclass(frozen=True)
class Fence:
    """A claim as others see it. Picklable: it travels with the work that the claim protects."""

    objects: Objects
    name: str
    number: int
    word: str

    def check(self) -> None:
        """Refuse a write of what the claim protects.

        Raises:
            StoreLockedError: A newer generation is there, the claim's own is gone, or its holder was silent too long.
        """
        own = _held.get(self.word)
        if own is not None:
            own.require_alive()
        begun = time.monotonic()
        if not isinstance(self.objects, Folder) and begun - _looked.get(self.word, -math.inf) < FRESH_SECONDS:
            return
        found = self.objects.get(generation(self.name, self.number))
        newer = self.objects.head(generation(self.name, self.number + 1))
        if newer is not None or found is None or self.word.encode() not in found.content:
            raise StoreLockedError(
                f"{generation(self.name, self.number)} is no longer this run's: another process has taken over, or it was "
                "removed. Nothing more is written by this one"
            )
        if own is not None:  # also where the look itself took long
            own.require_alive()
        _looked[self.word] = begun
