"""A finished map as a value: what it tells, how it opens in xarray and in notebooks, and what is refused."""

import functools
import http.server
import json
import re
import shutil
import threading

import numpy as np
import pytest
import rioxarray  # noqa: F401  (registers `.rio`)
import zarr
from odc.geo.xr import ODCExtension  # noqa: F401  (registers `.odc`)

import ovrs
from ovrs import pipeline
from ovrs.errors import OptionError, StoreError
from ovrs.run import begin, publish, work
from ovrs.store import layout
from ovrs.store.picture import CARD_CLASSES, thumbnail
from ovrs.store.record import RESULTS, RunDescription, RunRecord
from ovrs.words.vocabulary import ClassEntry, Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    import rasterio
    from conftest import smooth
    from rasterio.transform import from_origin

    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.6e6, 0.5, 0.5)}
    with rasterio.open(path, "w", driver="GTiff", height=400, width=300, count=3, dtype="uint8", **place) as out:
        out.write(smooth(400, 300, 0))
    return path


@pytest.fixture(scope="module")
def made(scene, tmp_path_factory):
    """The same map in both formats of Zarr, with scores."""
    from ovrs import options

    folder = tmp_path_factory.mktemp("made")
    for version in (2, 3):
        run = {"block_pitches": 1, "zarr_format": version, "store_scores": True}
        chosen = options.build(model={"model": "trivial"}, run=run)
        pipeline.map_scene(scene, ovrs.load_vocabulary("demo"), folder / f"{version}.zarr", chosen)
    return folder


@pytest.fixture(params=[2, 3])
def path(made, request):
    return made / f"{request.param}.zarr"


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "3.zarr", tmp_path / "m.zarr")


def test_a_map_tells_what_its_pixels_mean(path, scene, words):
    with ovrs.open(path) as mapped:
        assert mapped.names == words.class_names
        assert mapped.colours == words.colours
        assert (mapped.name, mapped.path, mapped.nodata, mapped.factors) == (path.name, path, 255, (1, 2))
        assert mapped.grid.shape == mapped.label.shape == mapped.confidence.shape == (400, 300)
        assert mapped.grid.crs.epsg == 32633
        assert mapped.scores.shape == (6, 400, 300)
        scores = mapped.scores[:]
        np.testing.assert_array_equal(np.take_along_axis(scores, mapped.label[:][None], 0)[0], scores.max(0))
        assert mapped.layer("label", 2).shape == (200, 150)
        assert sum(c.pixels for c in mapped.classes) == mapped.record.valid_pixels == 120000
        assert mapped.record.uri == str(scene)
        assert mapped.scene().geobox == mapped.grid
        assert repr(mapped) == f"<ovrs.Map {path.name}: 300 x 400 px, EPSG:32633, 6 classes, trivial with none>"
    assert ovrs.open(str(path)).path == path


def test_xarray_gets_integers_crs_and_legend_from_both_formats(path, words):
    mapped = ovrs.open(path)
    data = mapped.to_xarray()
    assert data.label.dtype == np.uint8
    np.testing.assert_array_equal(data.label, mapped.label[:])
    assert (data.label.rio.crs.to_epsg(), data.label.rio.nodata) == (32633, 255)
    assert data.odc.geobox == mapped.grid
    flags = data.label.attrs
    assert flags["flag_values"].dtype == np.uint8
    assert flags["flag_values"].tolist() == list(range(6))
    assert len(flags["flag_meanings"].split()) == len(flags["flag_colors"].split()) == 6
    assert (data.confidence.dtype, data.score.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(data.confidence, mapped.confidence[:] / 200, rtol=1e-6)
    assert data["class"].values.tolist() == list(words.class_names)
    np.testing.assert_allclose(data.score.sel({"class": "tree"}), mapped.scores[3] / 200, rtol=1e-6)
    half = mapped.to_xarray(2)
    assert half.odc.geobox.affine.a == 1.0
    assert "score" not in half
    with pytest.raises(StoreError, match="no level 3; it has 1, 2"):
        mapped.to_xarray(3)


def test_xarray_reads_only_what_is_asked_for_and_tells_of_damage(copy):
    for chunk in (copy / "label" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"x")
    data = ovrs.open(copy).to_xarray()
    assert float(data.confidence[:10, :10].max()) <= 1
    with pytest.raises(StoreError, match="damaged chunk"):
        data.label.load()
    card = ovrs.open(copy)._repr_html_()
    assert "no picture" in card
    assert "hectares" in card


def test_a_map_without_a_place_and_with_one_class(noise_scene, trivial, tmp_path):
    scene = noise_scene(200, 200, crs=None, transform=None)
    one = Vocabulary(name="one", classes=(ClassEntry(name="a <b> & c", colour="#102030"),))
    pipeline.map_scene(scene, one, tmp_path / "m.zarr", trivial(scene={"allow_ungeoreferenced": True}))
    mapped = ovrs.open(tmp_path / "m.zarr")
    assert mapped.grid.crs is None
    assert "no CRS, 1 classes" in repr(mapped)
    assert mapped.names == ("a <b> & c",)
    assert mapped.scores is None
    data = mapped.to_xarray()
    assert data.rio.crs is None
    assert (data.label.values == 0).all()
    card = mapped._repr_html_()
    assert "a &lt;b&gt; &amp; c" in card
    assert "#102030" in card


def test_holes_are_told(scene, words, trivial, tmp_path):
    job = begin.prepare(scene, words, tmp_path / "m.zarr", trivial(allow_holes=True))
    list(work.run_blocks(job, job.missing()[:1]))
    pipeline.finish.finish(job)
    mapped = ovrs.open(tmp_path / "m.zarr")
    holes = len(mapped.record.holes)
    assert holes == job.plan.block_count - 1
    assert f"INCOMPLETE: {holes} blocks are missing" in mapped._repr_html_()
    assert np.isnan(mapped.to_xarray().confidence).any()
    assert (mapped.label[-1] == mapped.nodata).all()


def test_a_card_shows_a_picture_and_the_largest_areas(path):
    card = ovrs.open(path)._repr_html_()
    assert re.search(r'<img alt="map" src="data:image/png;base64,[\w+/=]+">', card)
    shares = [float(s) for s in re.findall(r"<td>(\d+\.\d+)</td></tr>", card)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert "<script" not in card


def test_a_card_of_many_classes_stays_short(noise_scene, trivial, tmp_path):
    many = Vocabulary(name="many", classes=tuple(ClassEntry(name=f"c{i}") for i in range(CARD_CLASSES + 5)))
    pipeline.map_scene(noise_scene(100, 100), many, tmp_path / "m.zarr", trivial())
    assert "and 5 more classes" in ovrs.open(tmp_path / "m.zarr")._repr_html_()


# ---------- the record


def test_the_record_describes_the_whole_attribute(path):
    attribute = dict(zarr.open_group(path, mode="r").attrs["ovrs"])
    record = ovrs.open(path).record
    assert record.dump() == attribute
    for part in (record, record.scene, record.grid, record.radiometry, record.plan, record.rule, *record.classes):
        assert not part.model_extra, "a key without a field that describes it"
    assert set(RESULTS) - {"mixed_workers"} <= set(attribute)  # told only where workers differed
    begun = json.loads(path.with_suffix(".run").joinpath("run.json").read_text())
    assert not set(RESULTS) & set(begun)
    assert begun.keys() - {"check"} <= attribute.keys()
    RunDescription.model_validate(begun)


def test_a_record_keeps_keys_that_this_version_does_not_know(copy):
    group = zarr.open_group(copy, mode="r+")
    facts = dict(group.attrs["ovrs"])
    facts["model"] = {**facts["model"], "inventor": "somebody"}
    group.attrs["ovrs"] = {**facts, "mood": "good"}
    record = ovrs.open(copy).record
    assert record.dump()["mood"] == "good"
    assert record.dump()["model"]["inventor"] == "somebody"


def test_every_field_of_the_record_is_described_or_plain():
    schema = RunRecord.model_json_schema()
    assert schema["description"].startswith("What a finished map tells of itself")
    assert all(part["description"] for part in schema["$defs"].values())
    assert "UTC" in schema["properties"]["finished"]["description"]


# ---------- what is refused


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seconds", "a while", "seconds"),
        ("classes", [], "areas of 0 classes, the labels have 6"),
        ("vocabulary", None, "vocabulary"),
    ],
)
def test_a_damaged_record_is_refused(copy, key, value, told):
    group = zarr.open_group(copy, mode="r+")
    group.attrs["ovrs"] = {**dict(group.attrs["ovrs"]), key: value}
    with pytest.raises(StoreError, match=told) as refused:
        ovrs.open(copy)
    assert "ovrs repair" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_half_finished_run_says_how_to_go_on(scene, words, trivial, tmp_path):
    out = tmp_path / "m.zarr"
    begin.prepare(scene, words, out, trivial())
    for place in (out, str(out), layout.partial_path(out)):
        with pytest.raises(StoreError, match=r"m\.zarr is not finished; .*`ovrs resume .*m\.zarr` goes on") as refused:
            ovrs.open(place)
        assert "\n" not in str(refused.value)


def test_what_is_no_map_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        ovrs.open(tmp_path / "no.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="not one that ovrs wrote"):
        ovrs.open(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="no store at"):
        ovrs.open(f"file://{tmp_path}/no.zarr")
    with pytest.raises(OptionError, match="fsspec"):
        ovrs.open("nowhere://bucket/m.zarr")


def test_a_scene_that_is_gone_or_of_another_version_is_told(copy):
    group = zarr.open_group(copy, mode="r+")
    facts = dict(group.attrs["ovrs"])
    group.attrs["ovrs"] = {**facts, "options": {**facts["options"], "scene": {"colour": "warm"}}}
    with pytest.raises(StoreError, match="options for scenes this version does not know"):
        ovrs.open(copy).scene()


# ---------- maps of URLs


@pytest.fixture
def web(made):
    """A plain file server over the maps; answers 500 below `broken/`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path.startswith("/broken/"):
                self.send_error(500)
            else:
                super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=made))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("version", [2, 3])
def test_a_map_opens_from_a_web_server(web, made, version):
    pytest.importorskip("aiohttp")
    with ovrs.open(f"{web}/{version}.zarr") as mapped:
        assert mapped.path is None
        assert mapped.name == f"{version}.zarr"
        np.testing.assert_array_equal(mapped.label[:], ovrs.open(made / f"{version}.zarr").label[:])
        assert mapped.to_xarray().rio.crs.to_epsg() == 32633
        assert "<img" in mapped._repr_html_()


def test_a_server_that_fails_is_told_in_one_line(web):
    pytest.importorskip("aiohttp")
    for place in (f"{web}/no.zarr", f"{web}/broken/3.zarr", "http://127.0.0.1:9/m.zarr?sig=topsecret0"):
        with pytest.raises(StoreError, match="no map at") as refused:
            ovrs.open(place)
        assert "topsecret0" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_map_that_is_only_partly_published_says_so(made, tmp_path, monkeypatch):
    real, sent = publish._put, []

    def cut(files, source, target):
        if len(sent) == 5:
            raise ConnectionError("the line went dead")
        sent.append(target)
        real(files, source, target)

    monkeypatch.setattr(publish, "_put", cut)
    url = f"file://{tmp_path}/there.zarr"
    with pytest.raises(StoreError):
        publish.publish(made / "3.zarr", url)
    with pytest.raises(StoreError, match="only partly published; the same `ovrs publish` goes on"):
        ovrs.open(url)
    monkeypatch.setattr(publish, "_put", real)
    publish.publish(made / "3.zarr", url)
    np.testing.assert_array_equal(ovrs.open(url).label[:], ovrs.open(made / "3.zarr").label[:])


def test_ovrs_shows_ten_public_names():
    names = [n for n in dir(ovrs) if not n.startswith("_")]
    assert names == [
        "Map", "MapOptions", "OvrsError", "Segmenter", "TileScores", "Vocabulary", "load_vocabulary", "map_scene", "open", "resume",
    ]  # fmt: skip
    assert ovrs.open.__module__ == ovrs.Map.__module__ == "ovrs.store.map"


def test_a_thumbnail_reads_a_small_level_at_once_and_a_large_one_by_rows(path, monkeypatch):
    reads = []
    with ovrs.open(path) as mapped:
        level = mapped.layer("label", mapped.factors[-1])
        kind, read = type(level), type(level).__getitem__
        monkeypatch.setattr(kind, "__getitem__", lambda self, key: reads.append(key) or read(self, key))
        longest = max(level.shape)
        for side, whole in ((longest // 2, True), (longest // 4, True), (longest // 8, False)):
            reads.clear()
            small = thumbnail(mapped, side)
            assert max(small.shape[:2]) == side
            assert len(reads) == (1 if whole else small.shape[0])
