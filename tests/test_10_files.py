"""Files are written whole or not at all; refusals of the system become one error with file, reason and advice."""

import ast
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ovrs import files
from ovrs.errors import OutputError, StoreError, VocabularyError

ROOT = Path(__file__).parents[1]
HAND_MADE = {"ovrs/export", "ovrs/qgis/plugin", "ovrs/view", "ovrs/run/publish.py"}
"""Rooms with a writer of their own; QGIS runs its plugin without `ovrs`."""


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one_whole(tmp_path):
    out = tmp_path / "a.txt"
    out.write_text("old")
    with files.atomic(out) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert out.read_text() == "old"
    assert out.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    out = tmp_path / "a.gpkg"
    out.write_text("old")

    def write():
        with files.atomic(out) as temporary:
            temporary.write_text("half")
            temporary.with_name(temporary.name + "-journal").write_text("side file of a driver")
            raise failure

    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        write()
    assert out.read_text() == "old"
    assert names(tmp_path) == ["a.gpkg"]


def test_folders_that_were_made_for_a_failed_file_go_again(tmp_path):
    with pytest.raises(ValueError, match="x"), files.atomic(tmp_path / "a" / "b" / "c.txt"):
        raise ValueError("x")
    assert names(tmp_path) == []
    files.write_text(tmp_path / "a" / "b" / "c.txt", "ä")
    assert (tmp_path / "a" / "b" / "c.txt").read_text("utf-8") == "ä"


@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.EIO],
    ids=errno.errorcode.get,
)
def test_refusals_name_the_file_the_reason_and_what_to_do(tmp_path, code, monkeypatch):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError) as caught:
        files.write_text(tmp_path / "a.txt", "x")
    message = str(caught.value)
    assert "a.txt" in message
    assert os.strerror(code) in message
    assert ";" in message
    assert caught.value.exit_code == 4
    assert names(tmp_path) == []


def test_targets_that_can_not_be_files_are_refused_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for target, told in (("folder", "folder"), ("file/a.txt", "directory"), ("pipe", "pipe"), ("n" * 300, "too long")):
        with pytest.raises(OutputError, match=told), files.atomic(tmp_path / target):
            pytest.fail("the body must not run")
    assert names(tmp_path) == ["file", "folder", "pipe"]


def test_a_long_name_that_is_allowed_is_written(tmp_path):
    out = tmp_path / ("ä" * 120 + ".txt")
    files.write_text(out, "x")
    assert out.read_text() == "x"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "disk" / "real.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "disk" / "real.txt").read_text() == "new"


def test_leftovers_of_killed_processes_go_with_the_next_writing(tmp_path):
    out = tmp_path / "a.txt"
    code = (
        "import os, sys, pathlib; from ovrs import files\n"
        "with files.atomic(sys.argv[1]) as t: t.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, out], check=False, cwd=ROOT).returncode == 9
    (left,) = names(tmp_path)
    mine = files.temporary_path(out)
    mine.write_text("of a thread of this process")
    (tmp_path / ".a.txt.other").write_text("not ours")
    elsewhere = tmp_path / ".a.txt.ovrs-part-000000-1-abcdef-abcdef.txt"
    elsewhere.write_text("of another machine")
    files.write_text(out, "x")
    assert left not in names(tmp_path)
    assert {mine.name, ".a.txt.other", elsewhere.name, "a.txt"} == set(names(tmp_path))
    os.utime(elsewhere, (time.time() - 2 * files.EXPIRY_SECONDS,) * 2)
    files.write_text(out, "x")
    assert elsewhere.name not in names(tmp_path)


def test_a_cache_that_can_not_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    files.keep(tmp_path / "file" / "a.npy", lambda _: pytest.fail("the body must not run"))
    assert "not kept for the next run" in caplog.text


def test_texts_of_people_are_read_as_utf8_or_refused(tmp_path):
    text = tmp_path / "a.yaml"
    text.write_bytes(b"\xef\xbb\xbfname: \xc3\xa4\n")
    assert files.read_text(text, VocabularyError) == "name: ä\n"
    text.write_bytes("a: 1\nname: ž\n".encode("cp1250"))
    with pytest.raises(VocabularyError, match=r"a\.yaml:2: not UTF-8"):
        files.read_text(text, VocabularyError)
    with pytest.raises(VocabularyError, match="larger"):
        files.read_text(text, VocabularyError, limit=3)
    with pytest.raises(StoreError, match="No such file"):
        files.read_text(tmp_path / "no", StoreError)


def test_nobody_writes_by_hand():
    """`Path.write_text`, `write_bytes` and `replace` of a hand-made name belong to `ovrs.files` alone."""
    found = []
    for file in sorted((ROOT / "ovrs").rglob("*.py")):
        relative = file.relative_to(ROOT).as_posix()
        if relative == "ovrs/files.py" or any(relative.startswith(room) for room in HAND_MADE):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, owner = node.func.attr, getattr(node.func.value, "id", "")
                if name in ("write_text", "write_bytes") and owner not in ("files", "temporary"):
                    found.append(f"{relative}:{node.lineno} {name}")
                if name == "replace" and owner in ("temporary", "partial"):
                    found.append(f"{relative}:{node.lineno} {name}")
    assert found == []
