"""The end of a run: overviews that blocks and groups write, what is compared, the manifest of a large map, markers read once."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import smooth
from test_20_store import plain_mean, plain_mode

from ovrs import options, pipeline, repair
from ovrs.engine.workers import Died
from ovrs.errors import SchedulerLostError
from ovrs.run import begin, closing, finish, verify, work
from ovrs.run.rundir import RunDir
from ovrs.store import layout, pyramid
from ovrs.words import vocabulary

WORDS = vocabulary.from_names(["building", "road", "water"])


def chosen(**run):
    """Blocks of 256 pixels a side: level 2 is theirs, level 4 is their group's."""
    return options.build(model={"model": "trivial", "crop": 64}, run={"block_pitches": 2, **run})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scene of 3 x 3 blocks, one of them without valid pixels, its finished map, and the same run without the last block."""
    import rasterio
    from rasterio.transform import from_origin

    folder = tmp_path_factory.mktemp("closing")
    pixels = np.maximum(smooth(700, 601, 4), 1)
    pixels[:, :300, :300] = 0
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "nodata": 0}
    place = from_origin(500000, 5600000, 0.3, 0.3)
    with rasterio.open(folder / "s.tif", "w", height=700, width=601, transform=place, **profile) as target:
        target.write(pixels)
    pipeline.map_scene(folder / "s.tif", WORDS, folder / "done/o.zarr", chosen())
    job = begin.prepare(folder / "s.tif", WORDS, folder / "begun/o.zarr", chosen())
    pipeline.compute(job, job.missing()[:-1])
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """`copied("done")`: a fresh copy's map."""

    def copy(name):
        shutil.copytree(made / name, tmp_path / name)
        return tmp_path / name / "o.zarr"

    return copy


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def same_but_times(one, other):
    one, other = files(one), files(other)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"zarr.json"}


def require_halved(path):
    """Every level is the one before, halved."""
    group = zarr.open_group(path, mode="r")
    label, confidence = group["label"][:], group["confidence"][:]
    for factor in (2, 4):
        label, confidence = plain_mode(label, 255), plain_mean(confidence)
        np.testing.assert_array_equal(group[f"{factor}/label"][:], label)
        np.testing.assert_array_equal(group[f"{factor}/confidence"][:], confidence)


def test_each_block_writes_its_part_of_the_overviews_before_its_marker(made, copied):
    require_halved(made / "done/o.zarr")
    records = RunDir(made / "done/o.zarr").records()
    assert len(records) == 9
    assert all(r.overviews for r in records.values())
    assert records["00000_00000"].status == "empty"
    partial = layout.partial_path(copied("begun"))
    there = set(files(partial))
    assert {"2/label/c/1/1", "2/confidence/c/2/0"} <= there
    assert not any(name.startswith("4/label/c") for name in there)


def test_lost_and_damaged_overviews_are_made_again_from_the_pixels(made, copied, monkeypatch):
    out = copied("begun")
    pipeline.compute(begin.resume(out), begin.resume(out).missing())
    partial = layout.partial_path(out)
    (partial / "2/label/c/1/1").unlink()
    damaged = bytearray((partial / "2/confidence/c/2/0").read_bytes())
    damaged[20] ^= 1
    (partial / "2/confidence/c/2/0").write_bytes(damaged)
    (partial / "2/label/zarr.json").unlink()
    (partial / "4/label/c/0").mkdir(parents=True)
    (partial / "4/label/c/0/0").write_bytes(b"of a finish that was cut off")
    monkeypatch.setattr(work, "map_block", lambda *_, **__: 1 / 0)  # nothing is computed
    pipeline.resume(out)
    same_but_times(out, made / "done/o.zarr")


def test_a_block_whose_overviews_could_not_be_written_is_no_finished_block(made, copied, monkeypatch):
    out, real = copied("begun"), pyramid.write_block
    with monkeypatch.context() as patched:
        patched.setattr(pyramid, "write_block", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        (record,) = pipeline.compute(begin.resume(out), begin.resume(out).missing())
    assert (record.finished, record.reason) == (False, "OSError: no room")
    assert pyramid.write_block is real
    pipeline.resume(out)
    same_but_times(out, made / "done/o.zarr")


def test_a_hole_is_no_data_in_every_level(copied, monkeypatch):
    out = copied("begun")
    job = begin.resume(out).allowing_holes()
    (last,) = job.missing()
    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "record", lambda _, record: record)
        pipeline.compute(job, [last])  # pixels and overviews, but no marker: killed between the two
    finish.finish(job)
    require_halved(out)
    group = zarr.open_group(out, mode="r")
    assert (group["label"][512:, 512:] == 255).all()
    assert (group["2/label"][256:, 256:] == 255).all()
    assert verify.check(out).problems == ()


@pytest.mark.parametrize("first", [False, True])
def test_overviews_may_be_asked_for_later_or_no_more(made, tmp_path, first):
    out = tmp_path / "o.zarr"
    job = begin.prepare(made / "s.tif", WORDS, out, chosen(pyramid=first))
    pipeline.compute(job, job.missing())
    pipeline.map_scene(made / "s.tif", WORDS, out, chosen(pyramid=not first))
    if first:
        assert not [name for name in files(out) if name[0].isdigit()]
        assert "multiscales" not in zarr.open_group(out, mode="r").attrs
    else:
        same_but_times(out, made / "done/o.zarr")
    assert verify.check(out).problems == ()


@pytest.fixture
def large(made, tmp_path, monkeypatch):
    """A finished map of several groups, here of one block each."""
    monkeypatch.setattr("ovrs.store.levels.GROUP", 1)
    monkeypatch.setattr("ovrs.run.closing.GROUP", 1)
    out = tmp_path / "large/o.zarr"
    out.parent.mkdir()
    pipeline.map_scene(made / "s.tif", WORDS, out, chosen())
    return out


def test_the_manifest_of_a_large_map_lies_in_parts(large, made):
    """Files, verify and repair are the same; a damaged part is told."""
    run, whole = RunDir(large), files(large)
    same_but_times(large, made / "done/o.zarr")
    parts = sorted(p.name for p in (run.path / "manifest").iterdir())
    assert len(parts) == 8  # the block without data has none
    assert verify.check(large).problems == ()
    assert verify.check(large).compared == len(whole)
    for name in ("2/label/c/1/1", "4/confidence/c/0/0", "label/c/3/3"):
        content = bytearray(whole[name])
        content[-1] ^= 1
        (large / name).write_bytes(content)
        assert [p.path for p in verify.check(large).problems] == [name]
        assert [p.path for p in repair.repair(large)] == [name]
        assert files(large) == whole
    part = run.path / "manifest" / parts[0]
    part.write_text(part.read_text().replace('"files"', '"fils"'))
    assert [p.path for p in verify.check(large).problems] == ["o.run/manifest.json"]
    repair.repair(large)
    assert verify.check(large).problems == ()
    assert files(large) == whole


def test_markers_are_listed_once_and_each_is_read_once(made, copied, monkeypatch):
    out, read = copied("begun"), []
    real = RunDir._marker
    monkeypatch.setattr("ovrs.run.markers._SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(RunDir, "_marker", lambda run, key: read.append(key) or real(run, key))
    job = begin.resume(out)
    for _ in range(5):
        assert len(job.missing()) == 1
    assert len(read) == len(set(read)) == 8
    marker = Path(str(RunDir(out).blocks)) / "00001_00001.json"
    marker.write_text("{")
    marker.with_name("00001_00002.json").unlink()
    assert job.missing() == ["00001_00001", "00001_00002", "00002_00002"]
    assert len(read) == 9


def test_a_marker_that_has_just_changed_is_read_again(copied):
    """Files that change twice within one tick of the clock have the same time and size."""
    out = copied("begun")
    marker = Path(str(RunDir(out).blocks)) / "00001_00001.json"
    whole = marker.read_text()
    assert RunDir(out).damaged() == []
    marker.write_text(whole.replace("done", "dine"))
    assert RunDir(out).damaged() == ["00001_00001"]
    marker.write_text(whole)
    assert RunDir(out).damaged() == []


def test_workers_that_end_while_they_compare_are_told_in_one_line(made, copied):
    job = begin.resume(copied("begun"))
    closer = closing.Closer(job, job.run_dir.description().begun, in_parts=False)
    again = pickle.loads(pickle.dumps(closer))
    assert again.job.out == job.out
    assert again.prepare() == {}
    group = closing.Group(row=0, col=0, blocks=())
    with pytest.raises(
        SchedulerLostError, match=r"blocks 00000_00000 of .*o\.zarr ended \(they died\); finished blocks"
    ):
        again.lost(group, Died("they died"))
    with pytest.raises(OSError, match="no room"):
        again.lost(group, OSError("no room"))
