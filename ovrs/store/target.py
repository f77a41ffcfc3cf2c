"""Where a map is made, and how it becomes a finished one: in a folder of this machine, or straight in object storage.

In a folder an unfinished map has a name of its own, `NAME.zarr.partial`, and committing renames it. Object storage
renames nothing: the map lies at its place from the first block on, but its root metadata have hidden names, so that no
reader finds a map there. Committing writes them under their own names, last of all.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ovrs import files
from ovrs.errors import OutputError, StoreError
from ovrs.objects.address import ROOT_FILES, Address, Place, is_there, objects_at
from ovrs.objects.careful import replace_known
from ovrs.objects.folder import unguarded
from ovrs.store.keys import Hidden, KeyStore, guarded_folder
from ovrs.store.layout import partial_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

    from ovrs.objects.claim import Fence
    from ovrs.objects.interface import Objects


class Target(Protocol):
    """The place of one map. Every write checks the run's claim first."""

    @property
    def is_begun(self) -> bool:
        """Whether an unfinished map is there."""

    @property
    def is_finished(self) -> bool:
        """Whether a finished map is there."""

    def unfinished(self) -> Store:
        """Return the unfinished map as zarr writes it.

        Raises:
            StoreError: It is gone.
        """

    def objects(self, *, finished: bool) -> Objects:
        """Files of the finished or the unfinished map by their names in the map."""

    def begin(self, create: Callable[[Path | Store], None]) -> None:
        """Let `create` write the schema of a new map; what is there of an unfinished one is removed."""

    def commit(self) -> None:
        """Make the unfinished map the finished one, for all readers at once."""

    def reopen(self) -> None:
        """Make the finished map an unfinished one."""

    def discard(self) -> None:
        """Remove both; readers see a whole map until it is gone for them.

        Raises:
            StoreError: Something of it cannot be removed.
        """


@dataclass(frozen=True)
class FolderTarget:
    """See `Target`."""

    out: Path
    guard: Callable[[], None] = unguarded

    @property
    def partial(self) -> Path:
        """Where the map lies until it is committed."""
        return partial_path(self.out)

    @property
    def is_begun(self) -> bool:
        return self.partial.exists()

    @property
    def is_finished(self) -> bool:
        return self.out.exists()

    def unfinished(self) -> Store:
        if not self.partial.is_dir():  # opening would make it
            raise StoreError(f"{self.partial} was removed while the map was made; the same command goes on")
        return guarded_folder(self.partial, self.guard)

    def objects(self, *, finished: bool) -> Objects:
        return objects_at(self.out if finished else self.partial, self.guard)

    def begin(self, create: Callable[[Path | Store], None]) -> None:
        self.guard()
        shutil.rmtree(self.partial, ignore_errors=True)
        with files.atomic_folder(self.partial) as temporary:
            create(temporary)
            self.guard()

    def commit(self) -> None:
        self.guard()
        self.partial.rename(self.out)

    def reopen(self) -> None:
        self.guard()
        self.out.rename(self.partial)

    def discard(self) -> None:
        self.guard()
        if self.out.is_dir() and not self.out.is_symlink():  # gone for readers at once, then for the disk
            files.sweep_leftovers(self.out)
            aside = files.temporary_path(self.out, keep_suffix=False)
            self.out.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        remove_folder(self.out)
        self.guard()
        remove_folder(self.partial)


@dataclass(frozen=True)
class ObjectTarget:
    """See `Target`."""

    out: Address
    guard: Callable[[], None] = unguarded

    @property
    def is_begun(self) -> bool:
        hidden = self.objects(finished=False)
        return any(hidden.head(name) is not None for name in ROOT_FILES)

    @property
    def is_finished(self) -> bool:
        return is_there(self.out)

    def unfinished(self) -> Store:
        return KeyStore(self.objects(finished=False))

    def objects(self, *, finished: bool) -> Objects:
        below = objects_at(self.out, self.guard)
        return below if finished else Hidden(below, ROOT_FILES)

    def begin(self, create: Callable[[Path | Store], None]) -> None:
        self.discard()
        create(self.unfinished())

    def commit(self) -> None:
        source, target = self.objects(finished=False), self.objects(finished=True)
        for name, content in self._root(source).items():
            if not target.put_if_absent(name, content):
                raise OutputError(f"{self.out} was finished by another process with another content; look at it first")
        for name in ROOT_FILES:
            source.delete(name)

    def reopen(self) -> None:
        source, target = self.objects(finished=True), self.objects(finished=False)
        for name, content in self._root(source).items():
            replace_known(target, name, content)
        for name in ROOT_FILES:
            source.delete(name)

    def _root(self, source: Objects) -> dict[str, bytes]:
        """Root metadata; readers find a map by the first of the files, which comes last."""
        return {name: found.content for name in reversed(ROOT_FILES) if (found := source.get(name)) is not None}

    def discard(self) -> None:
        whole = self.objects(finished=True)
        for name in ROOT_FILES:
            whole.delete(name)
        whole.delete_prefix("")


def target_of(out: Place, fence: Fence | None = None) -> Target:
    """Return the place of the map `out`; with a fence every write is refused once the run's claim is lost."""
    guard = unguarded if fence is None else fence.check
    return FolderTarget(out, guard) if isinstance(out, Path) else ObjectTarget(out, guard)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it.

    Raises:
        StoreError: Something of it cannot be removed.
    """
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise StoreError(f"{path} cannot be removed; remove it by hand")
