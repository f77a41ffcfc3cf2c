"""Which scene it is: bytes decide; a change in mid-run is refused, a new time stamp is not; servers and buckets alike."""

import os
import pickle
import shutil
import zipfile
from email.utils import formatdate
from functools import partial

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import zarr
from conftest import smooth
from webserver import Web

from ovrs import pipeline
from ovrs.errors import DigestMismatchError, SceneChangedError, SceneReadError
from ovrs.options import SceneOptions
from ovrs.run import begin, finish, work
from ovrs.run.rundir import RunDir
from ovrs.scene import contents, vsi
from ovrs.scene.opening import open_scene

SIZE = (500, 420)


def digest(uri):
    return open_scene(uri, SceneOptions()).source["sha256"]


@pytest.fixture
def pair(write_raster):
    """A scene of several blocks, and the bytes of another one of the same size."""
    other = write_raster(smooth(*SIZE, 5), "other.tif").read_bytes()
    scene = write_raster(smooth(*SIZE, 4))
    assert scene.stat().st_size == len(other)
    return scene, other


def in_place(scene, content):
    with scene.open("r+b") as stream:
        stream.write(content)


def by_rename(scene, content):
    scene.with_suffix(".new").write_bytes(content)
    scene.with_suffix(".new").replace(scene)


def in_place_with_the_old_time(scene, content):
    stat = scene.stat()
    in_place(scene, content)
    os.utime(scene, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def begun(scene, words, out, options):
    """A run whose first two blocks are done, with the scene open."""
    this = begin.prepare(scene, words, out, options)
    done = list(work.run_blocks(this, this.missing()[:2]))
    assert all(r.finished for r in done)
    return this


@pytest.mark.parametrize("how", [in_place, by_rename, in_place_with_the_old_time])
@pytest.mark.parametrize("executor", ["serial", "threads", "worker"])
def test_a_scene_that_changes_in_mid_run_is_refused(pair, words, trivial, tmp_path, how, executor):
    (scene, content), out = pair, tmp_path / "map.zarr"
    first = scene.read_bytes()
    this = begun(scene, words, out, trivial(executor="serial" if executor == "worker" else executor))
    how(scene, content)
    elsewhere = pickle.loads(pickle.dumps(work.Worker(this)))  # as a worker gets it, which opens the scene itself
    go_on = partial(elsewhere, this.missing()) if executor == "worker" else partial(pipeline.run, this)
    with pytest.raises(SceneChangedError, match=r"scene\.tif changed while it was being mapped"):
        go_on()
    assert len(RunDir(out).records()) == 2
    assert not out.exists()
    with pytest.raises(DigestMismatchError, match="another scene"):
        pipeline.resume(out)
    in_place(scene, first)
    pipeline.resume(out)
    in_place(scene, content)
    pipeline.map_scene(scene, words, out, trivial(), overwrite=True)
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    np.testing.assert_array_equal(
        zarr.open_group(out)["label"][:], zarr.open_group(tmp_path / "quiet.zarr")["label"][:]
    )


def test_a_scene_that_changes_after_its_last_block_is_refused(pair, words, trivial, tmp_path):
    scene, content = pair
    this = begin.prepare(scene, words, tmp_path / "map.zarr", trivial())
    list(work.run_blocks(this, this.missing()))
    by_rename(scene, content)
    with pytest.raises(SceneChangedError):
        finish.finish(this)
    assert not (tmp_path / "map.zarr").exists()


def test_the_same_bytes_are_the_same_scene(pair, words, trivial, tmp_path):
    """Touched in mid-run, copied over itself, or under another name elsewhere: the run goes on."""
    scene, out = pair[0], tmp_path / "map.zarr"
    this = begun(scene, words, out, trivial())
    os.utime(scene, (1, 1))
    list(work.run_blocks(this, this.missing()[:1]))
    by_rename(scene, scene.read_bytes())
    pipeline.resume(out)
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copyfile(scene, tmp_path / "elsewhere/renamed.tif")
    facts = pipeline.map_scene(copy, words, out, trivial())
    assert facts["scene"]["name"] == "scene.tif"  # complete already: what was mapped first


def test_another_picture_of_the_same_size_and_time_is_another_scene(pair, words, trivial, tmp_path):
    scene, content = pair
    pipeline.map_scene(scene, words, tmp_path / "map.zarr", trivial())
    in_place_with_the_old_time(scene, content)
    with pytest.raises(DigestMismatchError, match="another scene"):
        pipeline.map_scene(scene, words, tmp_path / "map.zarr", trivial())


def test_files_that_belong_to_a_scene_count(write_raster, words, trivial, tmp_path):
    """Sources of a VRT also through another VRT, masks beside it, the two files of ENVI."""
    scene = write_raster(smooth(*SIZE))
    with rasterio.open(scene) as source:
        rasterio.shutil.copy(source, tmp_path / "inner.vrt", driver="VRT")
        rasterio.shutil.copy(source, tmp_path / "envi.dat", driver="ENVI")
    with rasterio.open(tmp_path / "inner.vrt") as source:
        rasterio.shutil.copy(source, tmp_path / "outer.vrt", driver="VRT")
    before = {n: digest(tmp_path / n) for n in ("outer.vrt", "envi.dat")}
    this = begun(tmp_path / "outer.vrt", words, tmp_path / "map.zarr", trivial())
    in_place(scene, write_raster(smooth(*SIZE, 9), "b.tif").read_bytes())
    with pytest.raises(SceneChangedError):
        pipeline.run(this)
    assert digest(tmp_path / "outer.vrt") != before["outer.vrt"]
    header = tmp_path / "envi.hdr"
    header.write_text(header.read_text() + "data ignore value = 7\n")
    assert digest(tmp_path / "envi.dat") != before["envi.dat"]
    this = begun(scene, words, tmp_path / "second.zarr", trivial())
    scene.with_name("scene.tif.msk").write_bytes(b"a mask that appears")
    with pytest.raises(SceneChangedError):
        pipeline.run(this)


def test_statistics_that_a_viewer_leaves_do_not_make_another_scene(write_raster):
    scene = write_raster(smooth(90, 80))
    before = digest(scene)
    side = scene.with_name("scene.tif.aux.xml")
    side.write_text(
        "<PAMDataset><PAMRasterBand band='1'><Histograms><HistItem/></Histograms><Metadata>"
        "<MDI key='STATISTICS_MEAN'>3</MDI></Metadata></PAMRasterBand></PAMDataset>"
    )
    assert digest(scene) == before
    side.write_text("<PAMDataset><PAMRasterBand band='1'><NoDataValue>3</NoDataValue></PAMRasterBand></PAMDataset>")
    assert digest(scene) != before


def test_large_files_are_compared_by_pieces(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(contents, "LOCAL", contents._Sample(1000, 100, 12))
    file = tmp_path / "a.bin"
    content = np.random.default_rng(0).bytes(100_000)
    file.write_bytes(content)
    found = contents.contents_of((str(file),))
    assert found.sampled
    starts = [s for s, _ in contents._pieces(100_000, 100, 12)]
    assert (starts[0], starts[-1], len(starts)) == (0, 99_900, 12)
    for at, same in ((starts[5] + 7, False), (99_999, False), (starts[5] + 150, True)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert (contents.contents_of((str(file),)).sha256 == found.sha256) is same
    file.write_bytes(content[:-1])
    assert contents.contents_of((str(file),)).sha256 != found.sha256


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("/vsizip//d/a.zip/s.tif", "/d/a.zip"),
        ("/vsizip/{/d/a.bin}/s.tif", "/d/a.bin"),
        ("/vsizip/vsicurl/https://h/a.zip/b/s.tif", "/vsicurl/https://h/a.zip"),
        ("/vsitar//d/a.tar.gz/s.tif", "/d/a.tar.gz"),
        ("/vsigzip//d/a.tif.gz", "/d/a.tif.gz"),
        ("/vsisubfile/10_20,/d/a.ntf", "/d/a.ntf"),
        ("/vsicurl/https://h/a.tif", "/vsicurl/https://h/a.tif"),
        ("/d/a.zip/s.tif", "/d/a.zip/s.tif"),
    ],
)
def test_a_member_of_an_archive_changes_with_the_archive(name, whole):
    assert vsi.container(name) == whole


@pytest.mark.parametrize("form", ["/vsizip/{}/s.tif", "zip://{}!s.tif"])
def test_a_scene_in_an_archive_has_an_identity(pair, words, trivial, tmp_path, form):
    (scene, content), archive, out = pair, tmp_path / "a.zip", tmp_path / "map.zarr"
    with zipfile.ZipFile(archive, "w") as target:
        target.write(scene, "s.tif")
    uri = form.format(archive)
    assert digest(uri) == digest(scene) == digest(f"file://{scene}")
    this = begun(uri, words, out, trivial())
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("s.tif", content)
    with pytest.raises(SceneChangedError):
        pipeline.run(this)


@pytest.fixture
def web(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    shutil.copyfile(pair[0], folder / "scene.tif")
    server = Web(folder)
    yield server
    server.stop()


@pytest.mark.parametrize("says", [{"ETag": '"1"'}, {"Last-Modified": formatdate(1e9, usegmt=True)}, {}], ids=str)
def test_another_picture_at_the_same_address_is_another_scene(web, pair, words, trivial, tmp_path, says):
    web.set(says=says)
    out, there = tmp_path / "map.zarr", web.folder / "scene.tif"
    assert digest(web.url) == digest(pair[0])
    this = begun(web.url, words, out, trivial())
    web.set(says={k: '"2"' if k == "ETag" else formatdate(1.1e9, usegmt=True) for k in says})
    list(work.run_blocks(this, this.missing()[:1]))  # uploaded again: the same bytes
    by_rename(there, pair[1])
    web.set(says={k: '"3"' if k == "ETag" else formatdate(usegmt=True) for k in says})
    with pytest.raises(SceneChangedError):
        pipeline.run(this)
    assert len(RunDir(out).records()) == 3
    with pytest.raises(DigestMismatchError, match="another scene"):
        pipeline.map_scene(web.url, words, out, trivial())
    pipeline.map_scene(web.url, words, out, trivial(), overwrite=True)
    pipeline.map_scene(pair[0].with_name("other.tif"), words, tmp_path / "quiet.zarr", trivial())
    np.testing.assert_array_equal(
        zarr.open_group(out)["label"][:], zarr.open_group(tmp_path / "quiet.zarr")["label"][:]
    )


def test_a_server_without_ranges_is_named_as_the_cause(web):
    web.set(ranges=False)
    with pytest.raises(SceneReadError, match="Range downloading not supported by this server"):
        open_scene(web.url, SceneOptions())


def test_a_server_that_went_away_is_no_change(web, words, trivial, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    this = begun(web.url, words, tmp_path / "map.zarr", trivial())
    web.set(signature="nobody has this")
    with pytest.raises(SceneReadError, match="it is gone, or the server does not answer"):
        this.scene.require_unchanged()
    web.set(signature="")
    pipeline.run(this)


def test_what_gdal_remembers_of_an_address_is_not_believed(web, pair):
    first = open_scene(web.url, SceneOptions()).decimated(64).rgb
    by_rename(web.folder / "scene.tif", pair[1])
    second = open_scene(web.url, SceneOptions()).decimated(64).rgb
    assert not np.array_equal(first, second)
