"""Damaged stores and run directories: found, named, healed, and never a traceback."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.transform import from_origin

import ovrs
from ovrs import pipeline, repair
from ovrs.cli.app import main
from ovrs.errors import OptionError, StoreError, StoreLockedError
from ovrs.options import build
from ovrs.run import adaptation, begin, finish, verify
from ovrs.run.lock import Lock
from ovrs.run.rundir import RunDir
from ovrs.store import layout as store
from ovrs.store.map import open_map
from ovrs.words import vocabulary

CODES = (0, 2, 3, 4)
JSON = ("[]", "{}", "3", "null", '"x"', '{"a": 1}', '{"zarr_format": 3, "node_type": "group"}', "[" * 100_000)


def options(**run):
    return build(model={"model": "trivial", "crop": 80}, method={"method": "none"}, run={"block_pitches": 1, **run})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scene, and per Zarr format a finished map of it with scores and overviews, and the same run at four of six blocks."""
    folder = tmp_path_factory.mktemp("damage")
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(1, 255, (3, 22, 20)), 16, 1), 16, 2).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    place = from_origin(500000, 5600000, 0.3, 0.3)
    with rasterio.open(folder / "s.tif", "w", height=352, width=320, transform=place, **profile) as target:
        target.write(pixels)
    words = vocabulary.from_names(["building", "road", "water"])
    for form in (3, 2):
        chosen = options(store_scores=True, zarr_format=form)
        pipeline.map_scene(folder / "s.tif", words, folder / f"done{form}/o.zarr", chosen)
        begun = begin.prepare(folder / "s.tif", words, folder / f"begun{form}/o.zarr", chosen)
        pipeline.compute(begun, begun.missing()[:4])
    return folder


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def work(made, tmp_path):
    """`work("done3")` gives a fresh copy's store."""

    def copy(name):
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        shutil.copytree(made / name, tmp_path / "w")
        return tmp_path / "w/o.zarr"

    return copy


@pytest.fixture
def command(made, monkeypatch, capsys):
    """`command("verify", path)` gives exit code and output of the command line; `map` repeats the run of `made`."""
    monkeypatch.setattr("ovrs.view.server.Viewer.serve_forever", lambda *_: None)

    def call(name, out, *more):
        own = {
            "map": [made / "s.tif", "--classes", "building,road,water", "--model", "trivial", "--method", "none", "-o"]
        }
        argv = ["ovrs", name, *own.get(name, []), out, *more]
        if name == "map":
            argv += ["--set", "run.block_pitches=1", "--set", "run.store_scores=true", "--set", "model.crop=80"]
        monkeypatch.setattr("sys.argv", [str(a) for a in argv])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.mark.parametrize("form", [3, 2])
def test_every_flipped_bit_of_a_finished_store_is_found_and_named(work, form):
    """Pixels, scores, overviews, coordinates, metadata: 110 flips per format, each named by its file."""
    out = work(f"done{form}")
    whole = verify.check(out)
    assert (whole.problems, whole.finished, whole.compared) == ((), True, len(files(out)))
    kept, rng = files(out), np.random.default_rng(form)
    assert {"x", "y", "spatial_ref", "score", "2"} <= {name.split("/")[0] for name in kept}
    names = [name for name in kept if kept[name]]
    flips = [names[i % len(names)] for i in range(110)]
    manifest = verify.read_manifest(RunDir(out)).files
    for name in flips:
        damaged = bytearray(kept[name])
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        (out / name).write_bytes(damaged)
        assert [p.path for p in verify.differences(out, manifest)] == [name]
        (out / name).write_bytes(kept[name])
    assert verify.check(out).problems == ()


def test_missing_foreign_and_replaced_files_are_named(work, command):
    out = work("done3")
    (out / "2/label/c/0/0").unlink()
    (out / "x/c/0").unlink()
    (out / "x/c/0").mkdir()
    (out / "label/c/7").mkdir()
    (out / "label/c/7/7").write_bytes(b"not ours")
    code, said = command("verify", out)
    assert code == 3
    for line in ("2/label/c/0/0: missing", "x/c/0: a folder", "label/c/7/7: foreign", f"ovrs repair {out}"):
        assert line in said


def test_a_chunk_without_valid_pixels_is_no_missing_chunk(made, tmp_path):
    with rasterio.open(made / "s.tif") as source:
        profile, pixels = {**source.profile, "nodata": 0}, source.read()
    pixels[:, :200] = 0
    with rasterio.open(tmp_path / "half.tif", "w", **profile) as target:
        target.write(pixels)
    words = vocabulary.from_names(["building", "road"])
    pipeline.map_scene(tmp_path / "half.tif", words, tmp_path / "o.zarr", options())
    assert not (tmp_path / "o.zarr/label/c/0/0").exists()
    assert verify.check(tmp_path / "o.zarr").problems == ()


@pytest.mark.parametrize("form", [3, 2])
def test_repair_gives_the_undamaged_bytes(work, form):
    """A chunk, a score, an overview, coordinates, metadata of the root and of a level, a marker: all at once."""
    out = work(f"done{form}")
    whole, rng = files(out), np.random.default_rng(form)
    root = "zarr.json" if form == 3 else ".zattrs"
    chunk = "c/0/0" if form == 3 else "0.0"
    names = [f"label/{chunk}", f"2/confidence/{chunk}", "score/c/1/1/0" if form == 3 else "score/1.1.0", root]
    names += [f"2/{root}", f"label/{root}", f"y/{'c/0' if form == 3 else '0'}"]
    for name in names:
        damaged = bytearray(whole[name])
        damaged[int(rng.integers(len(damaged)))] ^= 1
        (out / name).write_bytes(damaged)
    (out / "2/x/stranger.txt").write_text("kept")
    RunDir(out).forget("00001_00001")
    found = {problem.path for problem in repair.repair(out)}
    assert found == {*names, "2/x/stranger.txt", "o.run/blocks/00001_00001.json"}
    assert files(out) == whole
    assert (RunDir(out).path / "foreign/2/x/stranger.txt").read_text() == "kept"
    assert verify.check(out).problems == ()
    assert repair.repair(out) == ()


def test_an_interrupted_repair_is_an_unfinished_run(work, monkeypatch, command):
    out = work("done3")
    whole = files(out)
    (out / "label/c/0/0").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "compute", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair.repair(out)
    assert not out.exists()
    assert command("info", out)[0] == 3
    assert command("status", out)[0] == 4
    assert command("resume", out)[0] == 0
    assert files(out) == whole


def test_zero_markers_and_a_lost_manifest_are_no_match(work, command):
    out = work("done3")
    whole = files(out)
    for marker in RunDir(out).blocks.glob("*.json"):
        marker.unlink()
    (RunDir(out).path / verify.MANIFEST).unlink()
    code, said = command("verify", out)
    assert code == 3
    assert "o.run/manifest.json: missing" in said
    assert said.count("blocks/0") == 6
    assert command("repair", out)[0] == 0
    assert files(out) == whole
    shutil.rmtree(RunDir(out).path)
    code, said = command("verify", out)
    assert (code, "nothing to compare it with" in said) == (3, True)


def test_an_unfinished_run_is_compared_by_its_markers(work, command):
    """Also scores; a finished run never keeps blocks that lost their pixels."""
    out = work("begun3")
    partial = store.partial_path(out)
    code, said = command("verify", out)
    assert (code, "4 of 6 blocks are done" in said) == (4, True)
    chunk = partial / "score/c/1/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    (partial / "label/c/1/0").unlink()
    code, said = command("verify", out)
    assert code == 3
    assert "score/c/1/0/0: cannot be unpacked" in said
    assert "block 00001_00000: differs" in said
    assert command("resume", out)[0] == 0
    assert command("verify", out)[0] == 0


def test_every_kind_of_damage_to_a_packed_chunk_is_named(work, command):
    """Header, deflate stream, checksum: each has an error of its own."""
    out = work("begun3")
    chunk = store.partial_path(out) / "label/c/0/0"
    whole = chunk.read_bytes()
    for place in (0, 3, 10, 11, 14, len(whole) // 2, len(whole) - 5):
        for flip in (0x01, 0x06, 0xFF):
            content = bytearray(whole)
            content[place] ^= flip
            chunk.write_bytes(content)
            code, said = command("verify", out)
            assert (code, "traceback" in said.lower(), "unexpected" in said) in (
                (3, False, False),
                (4, False, False),
            ), said
            assert code == 4 or "label/c/0/0" in said or "block 00000_00000" in said


def test_a_map_is_found_from_inside_and_the_root_folder_is_none(work, command, monkeypatch):
    out = work("done3")
    monkeypatch.chdir(out)
    assert "complete" in command("status", Path())[1]
    assert command("verify", Path())[0] == command("resume", Path())[0] == command("repair", Path())[0] == 0
    monkeypatch.chdir(out.parent)
    for name in ("status", "verify", "resume", "repair"):
        code, said = command(name, Path("/"))
        assert (code, "root folder" in said) == (3, True)
        code, said = command(name, Path())
        assert (code, "unexpected" in said) == (3, False)


def test_resume_after_damage_gives_the_pixels_of_an_undamaged_run(work, made):
    out = work("begun3")
    partial = store.partial_path(out)
    (partial / "y/c/0").unlink()
    (partial / "label/zarr.json").write_text("{")
    (partial / "confidence/c/0/1").write_bytes(b"x")
    (RunDir(out).blocks / "00000_00001.json").write_text('{"name": "00000_00001", "status": "done"}')
    pipeline.resume(out)
    wanted = files(made / "done3/o.zarr")
    assert {k: v for k, v in files(out).items() if k != "zarr.json"} == {
        k: v for k, v in wanted.items() if k != "zarr.json"
    }


def test_holes_that_were_allowed_are_no_damage(work):
    out = work("begun3")
    this = begin.resume(out)
    this = replace(
        this, options=this.options.model_copy(update={"run": options(allow_holes=True, store_scores=True).run})
    )
    assert len(finish.finish(this)["holes"]) == 2
    assert verify.check(out).problems == ()
    assert (np.asarray(open_map(out).label[330:]) == 255).all()


@pytest.mark.parametrize("form", [3, 2])
def test_two_runs_give_the_same_bytes_but_for_times(work, made, form):
    out = work(f"begun{form}")
    pipeline.resume(out)
    timed = {"zarr.json"} if form == 3 else {".zattrs", ".zmetadata"}
    one, other = files(out), files(made / f"done{form}/o.zarr")
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= timed


@pytest.mark.parametrize(
    "content",
    [
        *JSON,
        '{"name": "00000_00000", "status": "done", "new": 1}',
        '{"name": "00000_00000", "status": "done", "tiles": []}',
        None,
    ],
)
def test_a_damaged_marker_counts_as_not_done(work, content, caplog):
    out = work("begun3")
    run = RunDir(out)
    marker = run.blocks / "00000_00000.json"
    if content is None:
        shutil.copy(run.blocks / "00000_00001.json", marker)  # another block's
    else:
        marker.write_text(content)
    assert run.damaged() == ["00000_00000"]
    assert "00000_00000" in begin.resume(out).missing()
    assert "marker of block 00000_00000 is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip", b"\x93NUMPY\x01\x00", None])
def test_a_damaged_adaptation_file_is_one_line(tmp_path, content):
    file = tmp_path / "adaptation.npz"
    np.savez(file, tiles=np.array(3), events=np.array(["a"]), shift=np.arange(500.0))
    assert adaptation.facts_of(file)["tiles"] == 3
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(bytes(whole) if content is None else content)
    for read in (adaptation.digest_of, adaptation.facts_of):
        with pytest.raises(StoreError, match=r"adaptation\.npz is damaged"):
            read(file)
    np.savez(file, shift=np.arange(5.0))
    with pytest.raises(StoreError, match="no tiles or events"):
        adaptation.facts_of(file)


def damages(rng):
    """Ways to damage a file, by name."""
    yield "truncated", lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
    yield "empty", lambda f: f.write_bytes(b"")
    yield "random", lambda f: f.write_bytes(rng.bytes(99))
    yield "deleted", lambda f: f.unlink()
    yield "folder", lambda f: (f.unlink(), f.mkdir())
    for text in JSON:
        yield f"json {text[:9]}", lambda f, text=text: f.write_text(text)


def test_no_damage_ends_in_a_traceback(work, command, tmp_path):
    """Random files of finished and unfinished runs × ways to damage them × commands: a line and a documented code."""
    rng = np.random.default_rng(int(os.environ.get("OVRS_DAMAGE_SEED", "1")))
    cases = int(os.environ.get("OVRS_DAMAGE_CASES", "2"))
    reading = [
        ("status",),
        ("verify",),
        ("info",),
        ("stats",),
        ("view", "--no-browser", "--port", "0"),
        ("export", "--cog", tmp_path / "c.tif"),
        ("report", "-o", tmp_path / "r.html"),
    ]
    writing = [("map",), ("resume",), ("repair",)]
    for name in ("done3", "begun3", "done2"):
        out = work(name)
        everything = sorted(p.relative_to(out.parent).as_posix() for p in out.parent.rglob("*") if p.is_file())
        for file in ["o.run/run.json", *rng.choice(everything, cases - 1)]:
            way, damage = list(damages(rng))[rng.integers(13)]
            out = work(name)
            damage(out.parent / file)
            some = [reading[i] for i in rng.choice(len(reading), 3, replace=False)]
            for verb, *more in [*some, writing[int(rng.integers(3))], ("verify",)]:
                code, said = command(verb, out, *more)
                assert code in CODES, (name, file, way, verb, code, said)
                assert "Traceback" not in said


def test_locks_that_cannot_be_read_are_told_and_expire(work, command, monkeypatch):
    out = work("begun3")
    lock = RunDir(out).path / "lock.json"
    for content in ("", "[]", "{", '{"pid": "x"}', '{"host": "h", "pid": 99999999999999}', '{"host": null}'):
        lock.write_text(content)
        code, said = command("resume", out)
        assert (code, said.count("\n")) == (3, 1), said
        assert "lock.json" in said
    lock.unlink()
    lock.mkdir()
    code, said = command("resume", out)
    assert (code, "is a folder" in said) == (3, True)
    lock.rmdir()
    lock.write_text("{")
    os.utime(lock, (1, 1))
    assert command("resume", out)[0] == 0


def test_a_lock_from_the_future_is_watched(tmp_path, monkeypatch):
    """Another machine's clock may run ahead: only a change of the time tells that the owner lives."""
    monkeypatch.setattr("ovrs.run.lock.HEARTBEAT_SECONDS", 0.05)
    run = RunDir(tmp_path / "a.zarr")
    run.path.mkdir()
    lock = run.path / "lock.json"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    os.utime(lock, (4e9, 4e9))
    with Lock(run):
        pass
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    os.utime(lock, (4e9, 4e9))
    monkeypatch.setattr("time.sleep", lambda _: os.utime(lock, (4e9 + 1, 4e9 + 1)))
    with pytest.raises(StoreLockedError, match="elsewhere"), Lock(run):
        pass


def test_a_damaged_map_is_shown_without_tracebacks_and_not_published(work, capsys):
    import threading
    import urllib.error
    import urllib.request

    from ovrs.run import publish
    from ovrs.view.server import open_viewer

    out = work("done3")
    (out / "label/c/0/0").write_bytes(b"\x1f\x8b")
    with open_viewer(ovrs.open(out), None, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(urllib.error.HTTPError, match="500") as caught:
            urllib.request.urlopen(f"{server.url}pixel/3/3")
        caught.value.close()
        server.shutdown()
        thread.join()
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(StoreError, match=r"label/c/0/0: differs.*not published|not published.*label/c/0/0: differs"):
        publish.publish(out, (out.parent / "there.zarr").as_uri())
    assert not (out.parent / "there.zarr").exists()


def test_overwrite_never_removes_the_scene(work):
    out = work("done3")
    words, whole = vocabulary.from_names(["a", "b"]), files(out)
    for scene in (out, out / "label", f'ZARR:"{out}":/label', out.parent / "o.run/x.tif"):
        with pytest.raises(OptionError, match="lies in the output"):
            pipeline.map_scene(scene, words, out, options(), overwrite=True)
    assert files(out) == whole


def test_overwrite_removes_only_what_ovrs_made(made, tmp_path):
    words = vocabulary.from_names(["a", "b"])

    def again(out, overwrite=True):
        return pipeline.map_scene(made / "s.tif", words, out, options(pyramid=False), overwrite=overwrite)

    zarr.create_group(tmp_path / "zarr.zarr").attrs["mine"] = 1
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr/mine.txt").write_text("keep")
    (tmp_path / "file.zarr").write_text("keep")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "folder.zarr")
    (tmp_path / "strange.run").mkdir()
    (tmp_path / "strange.run/mine.txt").write_text("keep")
    (tmp_path / "part.zarr.partial").mkdir()
    (tmp_path / "part.zarr.partial/mine.txt").write_text("keep")
    (tmp_path / "loose.zarr").symlink_to(tmp_path / "nowhere")
    before = files(tmp_path)
    for name in ("zarr", "folder", "file", "link", "strange", "loose", "part"):
        for overwrite in (True, False):
            with pytest.raises(StoreError, match=r"remove it|move it away"):
                again(tmp_path / f"{name}.zarr", overwrite=overwrite)
    assert files(tmp_path) == before
    (tmp_path / "new.zarr").mkdir()
    again(tmp_path / "new.zarr")
    (tmp_path / "new.zarr/zarr.json").write_text("damaged")
    (tmp_path / "new.run/run.json").write_text("damaged")
    again(tmp_path / "new.zarr")
    assert verify.check(tmp_path / "new.zarr").problems == ()
