"""How files are written and read: whole or not at all, and with words for what went wrong."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import socket
import stat
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs.errors import OutputError, OvrsError, StoreError, not_written, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_MARK = "ovrs-part"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_PROCESS = [""]
EXPIRY_SECONDS = 86_400.0
"""After so long without a change a temporary file of another machine counts as left behind."""
_LONGEST = 120
"""Bytes of a target's name that stand in its temporary name; file systems allow 255 in all."""


@contextmanager
def atomic(
    path: str | os.PathLike[str],
    *,
    sweep: bool = True,
    keep_suffix: bool = True,
    check: Callable[[], None] | None = None,
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` when the body ends, and vanishes when it fails.

    The temporary name is unique and hidden. A symbolic link stays a link: its target is replaced. Missing folders are
    made, and removed again after a failure.

    Args:
        path: The file to write.
        sweep: Also remove what killed processes left of `path`; lists its folder, so not for thousands of small files.
        keep_suffix: Give the temporary name the suffix of `path`, by which drivers choose their format.
        check: Called directly before the file takes its name; raises where it may not.

    Raises:
        OutputError: The system refuses: no space, no permission, a name too long, a folder in its place.
    """
    with writing(path):
        target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    with writing(path), _folder(target.parent):
        _check(target)
        if sweep:
            sweep_leftovers(target)
        temporary = temporary_path(target, keep_suffix=keep_suffix)
        try:
            yield temporary
            _sync(temporary)
            if check is not None:
                check()
            temporary.replace(target)
        finally:
            _remove(temporary, siblings=sweep)


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a copy that only saves time; where it cannot be written, a warning says so."""
    try:
        with atomic(file, sweep=False) as temporary:
            write(temporary)
    except OutputError as error:
        log.warning("not kept for the next run: %s", error)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` for a folder; it takes the name `path` when the body ends.

    Args:
        path: Must not exist.

    Raises:
        OutputError: As `atomic`.
    """
    with writing(path), _folder(path.parent):
        sweep_leftovers(path)
        temporary = temporary_path(path, keep_suffix=False)
        try:
            yield temporary
            temporary.rename(path)
        finally:
            _remove(temporary, siblings=False)


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder that is removed again, if it is empty, when the body fails; errors of the body stay as they are.

    Raises:
        OutputError: The folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with writing(path):
            stack.enter_context(_folder(path))
        yield


@contextmanager
def writing(target: object) -> Iterator[None]:
    """Turn refusals of the system inside the body into an `OutputError` that names `target`.

    Raises:
        OutputError: Any `OSError` that is not an error of ours.
    """
    try:
        yield
    except OvrsError:
        raise
    except OSError as error:
        raise not_written(target, error) from error


def write_text(path: str | os.PathLike[str], text: str, *, sweep: bool = True) -> None:
    """Write UTF-8 text, whole or not at all (errors as `atomic`)."""
    with atomic(path, sweep=sweep, keep_suffix=False) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def read_text(path: Path, error: type[OvrsError], limit: int = 1 << 24) -> str:
    """UTF-8 text of a file people write; a byte order mark is left out.

    Args:
        path: The file.
        error: What is raised, with the reason.
        limit: Largest size in bytes.

    Raises:
        OvrsError: `error`, when the file cannot be read, is larger than `limit`, or is in another encoding.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or told(problem)}") from problem
    if len(content) > limit:
        raise error(f"{path} is larger than {limit >> 20} MiB; is it the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from problem


def named(path: Path) -> Path:
    """Return a path whose last part is a name: `.` and `..` are resolved.

    Raises:
        StoreError: It is the root folder.
    """
    if path.name not in ("", ".."):
        return path
    whole = path.resolve()
    if not whole.name:
        raise StoreError(f"{whole} is the root folder, not a map; name a store, NAME.zarr")
    return whole


def require_possible(path: Path) -> None:
    """Refuse a name that cannot be written, before any work: too long, or below a file.

    Raises:
        OutputError: The system does not take the name.
    """
    with writing(path), contextlib.suppress(FileNotFoundError):
        path.lstat()


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there; False, not an error, for URLs and for names that no file can have."""
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises for names that are too long)


def temporary_path(target: Path, *, keep_suffix: bool = True) -> Path:
    """Return a new hidden name beside `target` that tells its process, so that leftovers of dead ones can be removed."""
    suffix = target.suffix if keep_suffix and len(target.suffix) <= 12 else ""
    return target.with_name(f"{_prefix(target)}{_process()}-{uuid.uuid4().hex[:6]}{suffix}")


def sweep_leftovers(target: Path) -> None:
    """Remove temporary files and folders of `target` whose process on this machine is gone."""
    _sweep(target.parent, _prefix(target))


def sweep_folder(folder: Path) -> None:
    """Remove every temporary file in `folder` whose process on this machine is gone."""
    _sweep(folder, "")


def _sweep(folder: Path, prefix: str) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be listed is the writer's problem, not the sweeper's
        for entry in os.scandir(folder):
            name = entry.name
            if name.startswith(prefix or ".") and (_is_dead(name) or _is_old(entry)):
                _remove(Path(entry.path), siblings=False)


def _is_dead(name: str) -> bool:
    _, mark, rest = name.partition(f".{_MARK}-")
    host, process, start = [*rest.split("-"), "", "", ""][:3]
    if not mark or host != _HOST or not process.isdigit():
        return False
    if int(process) == os.getpid():  # an earlier process of the same number, as in containers, is gone
        return not _process().endswith(f"-{start}")
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _is_old(entry: os.DirEntry[str]) -> bool:
    return f".{_MARK}-" in entry.name and time.time() - entry.stat().st_mtime > EXPIRY_SECONDS


def _process() -> str:
    """Name this process: machine, number, and a word that no other process has."""
    if f"-{os.getpid()}-" not in _PROCESS[0]:  # forked
        _PROCESS[0] = f"{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return _PROCESS[0]


def _prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        name = os.fsencode(name)[:80].decode("utf-8", "ignore") + digest
    return f".{name}.{_MARK}-"


def _check(target: Path) -> None:
    """Refuse what `replace` would refuse, or destroy, after all the work."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {target}: it is a device or a pipe; name a file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a folder; after a failure remove what was made, as far as it is empty."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    above = [p for p in (folder, *folder.parents) if p.exists()]
    if above and not above[0].is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _sync(file: Path) -> None:
    """Wait until the content is on the disk; a full or failing disk often says so only here."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _remove(temporary: Path, *, siblings: bool) -> None:
    """Remove a temporary file, or folder, and with `siblings` the side files that drivers put beside it."""
    import shutil

    paths = [temporary]
    if siblings:
        with contextlib.suppress(OSError):
            paths += [Path(e.path) for e in os.scandir(temporary.parent) if e.name.startswith(temporary.name)]
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
