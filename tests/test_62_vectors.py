"""Polygons, statistics, STAC, reprojection, report and viewer of a finished map."""

import csv
import json
import threading
import urllib.error
import urllib.request

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import ovrs
from ovrs import options, pipeline
from ovrs.cli.app import app
from ovrs.errors import GridMismatchError, OptionError, OvrsError, SceneReadError, StoreError
from ovrs.export import stac, stats
from ovrs.export.cog import write_cog, write_confidence
from ovrs.export.quicklook import scale_length
from ovrs.export.vectors import write_vectors
from ovrs.view.page import warnings_of, write_report
from ovrs.view.server import open_viewer
from ovrs.words import vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A map with known labels: stripes, a ring with a hole, single pixels and no data."""
    folder = tmp_path_factory.mktemp("world")
    rgb = np.full((3, 150, 130), 90, np.uint8)
    rgb[:, :, :5] = 0
    with rasterio.open(
        folder / "s.tif", "w", driver="GTiff", height=150, width=130, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.transform.from_origin(500000, 5600000, 2, 2), nodata=0,
    ) as target:  # fmt: skip
        target.write(rgb)
    words = vocabulary.load("demo")
    chosen = options.build(model={"model": "trivial", "crop": 32}, run={"block_pitches": 1, "store_scores": True})
    pipeline.map_scene(folder / "s.tif", words, folder / "m.zarr", chosen)
    labels = np.zeros((150, 130), np.uint8)
    labels[40:] = 1
    labels[60:120, 30:100] = 2
    labels[80:100, 50:80] = 3
    labels[85, 60] = labels[86, 61] = 4  # touch at a corner only
    labels[:, :5] = 255
    zarr.open_group(folder / "m.zarr", mode="r+")["label"][:] = labels
    return folder, labels


@pytest.mark.parametrize("block", [4096, 64, 33])
@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_polygons_are_the_components_whatever_the_block(world, tmp_path, block, suffix):
    folder, labels = world
    out = tmp_path / f"v.{suffix}"
    count = write_vectors(ovrs.open(folder / "m.zarr"), out, block=block).features
    frame = geopandas.read_parquet(out) if suffix == "parquet" else geopandas.read_file(out, layer="classes")
    assert len(frame) == count == 6
    assert frame.crs.to_epsg() == 32633
    assert frame.geometry.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"}
    assert frame.pixels.sum() == (labels != 255).sum()
    np.testing.assert_allclose(frame.geometry.area, frame.pixels * 4)
    ring = frame[frame["class"] == "water"].iloc[0]
    assert len(ring.geometry.interiors) == 1
    assert len(frame[frame["class"] == "tree"].iloc[0].geometry.interiors) == 2  # two single pixels, each a hole
    back = rasterio.features.rasterize(
        zip(frame.geometry, frame.class_id, strict=True),
        labels.shape,
        fill=255,
        transform=rasterio.transform.from_origin(5e5, 5.6e6, 2, 2),
    )
    np.testing.assert_array_equal(back, labels)
    corners = len(shapely.get_coordinates(ring.geometry))
    assert corners == 10  # two closed rectangles: no vertices are left where blocks met


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.integers(3, 40))
def test_random_labels_come_back_from_their_polygons(world, tmp_path, seed, block):
    folder, before = world
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (15, 13)), 10, 0), 10, 1).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.02] = 255
    array = zarr.open_group(folder / "m.zarr", mode="r+")["label"]
    array[:] = labels
    try:
        write_vectors(ovrs.open(folder / "m.zarr"), tmp_path / "r.gpkg", block=block)
    finally:
        array[:] = before
    frame = geopandas.read_file(tmp_path / "r.gpkg", layer="classes")
    assert frame.geometry.is_valid.all()
    place = rasterio.transform.from_origin(5e5, 5.6e6, 2, 2)
    back = rasterio.features.rasterize(
        zip(frame.geometry, frame.class_id, strict=True), labels.shape, fill=255, transform=place
    )
    np.testing.assert_array_equal(back, labels)
    np.testing.assert_allclose(frame.geometry.area.sum(), (labels != 255).sum() * 4)


def test_small_polygons_are_left_out_and_simple_ones_share_their_borders(world, tmp_path):
    folder, _ = world
    assert write_vectors(ovrs.open(folder / "m.zarr"), tmp_path / "v.gpkg", min_area=5).features == 4
    diagonal = np.add.outer(np.arange(150), np.arange(130)) > 140
    array = zarr.open_group(folder / "m.zarr", mode="r+")["label"]
    before = array[:]
    array[:] = diagonal.astype(np.uint8)
    try:
        write_vectors(ovrs.open(folder / "m.zarr"), tmp_path / "full.gpkg")
        write_vectors(ovrs.open(folder / "m.zarr"), tmp_path / "simple.gpkg", simplify=4)
    finally:
        array[:] = before
    full, simple = (geopandas.read_file(tmp_path / f"{n}.gpkg", layer="classes").geometry for n in ("full", "simple"))
    assert len(shapely.get_coordinates(simple)) < len(shapely.get_coordinates(full)) / 10
    assert simple.iloc[0].intersection(simple.iloc[1]).area == pytest.approx(0, abs=1e-6)
    assert simple.union_all().area == pytest.approx(full.union_all().area, rel=1e-9)


def test_zones_in_another_crs_and_true_areas(world, tmp_path):
    folder, labels = world
    left, right = shapely.box(500000, 5599700, 500100, 5600000), shapely.box(500100, 5599700, 500260, 5600000)
    zones = geopandas.GeoDataFrame({"name": ["left", "right"]}, geometry=[left, right], crs="EPSG:32633").to_crs(4326)
    zones.to_file(tmp_path / "z.gpkg")
    rows = stats.zone_areas(ovrs.open(folder / "m.zarr"), tmp_path / "z.gpkg")
    assert [r["zone"] for r in rows][::6] == ["left", "right"]
    total = sum(r["pixels"] for r in rows)
    assert total == pytest.approx((labels != 255).sum(), rel=0.01)
    per = {(r["zone"], r["class"]): r for r in rows}
    assert per["left", "building"]["pixels"] == pytest.approx(40 * 45, rel=0.03)
    assert sum(r["percent"] for r in rows if r["zone"] == "left") == pytest.approx(100, abs=0.01)
    scale = per["left", "building"]["hectares"] * 1e4 / (4 * per["left", "building"]["pixels"])
    assert scale == pytest.approx(1 / 0.9996**2, rel=1e-4)  # UTM shrinks lengths by 0.9996 on its meridian
    with pytest.raises(OptionError, match="no attribute 'nam'; it has: name"):
        stats.zone_areas(ovrs.open(folder / "m.zarr"), tmp_path / "z.gpkg", "nam")
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326).to_file(tmp_path / "far.gpkg")
    with pytest.raises(OptionError, match="covers a pixel"):
        stats.zone_areas(ovrs.open(folder / "m.zarr"), tmp_path / "far.gpkg")
    (tmp_path / "no.gpkg").write_text("nothing")
    with pytest.raises(SceneReadError, match="cannot be read as vectors"):
        stats.zone_areas(ovrs.open(folder / "m.zarr"), tmp_path / "no.gpkg")


def test_statistics_on_the_command_line(world, tmp_path):
    folder, _ = world
    run = CliRunner()
    assert "building" in run.invoke(app, ["stats", str(folder / "m.zarr")]).output
    assert json.loads(run.invoke(app, ["stats", str(folder / "m.zarr"), "--json"]).output)[0]["zone"] == "map"
    for kind in ("csv", "parquet"):
        run.invoke(app, ["stats", str(folder / "m.zarr"), "-o", str(tmp_path / f"s.{kind}")], catch_exceptions=False)
    with (tmp_path / "s.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 6
    with pytest.raises(OptionError, match="or \\.parquet"):
        stats.write_table([], tmp_path / "s.xls")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stac_item_is_valid_and_says_what_the_map_is(world, tmp_path):
    import pystac

    folder, _ = world
    made = [write_cog(ovrs.open(folder / "m.zarr"), tmp_path / "m.tif")]
    file = stac.write_item(ovrs.open(folder / "m.zarr"), tmp_path / "m.json", made)
    assert (
        file.read_bytes() == stac.write_item(ovrs.open(folder / "m.zarr"), tmp_path / "again.json", made).read_bytes()
    )
    content = json.loads(file.read_text())
    core = {**content, "stac_extensions": []}  # their schemas lie on the internet; the core's come with pystac
    item = pystac.Item.from_dict(core, href=str(file))
    item.validate()
    assert content["properties"]["proj:code"] == "EPSG:32633"
    assert content["properties"]["proj:shape"] == [150, 130]
    assert content["bbox"][0] == pytest.approx(15.0, abs=0.01)
    classes = content["assets"]["classes"]["classification:classes"]
    assert [c["name"] for c in classes] == ["building", "road", "water", "tree", "field", "bare_soil"]
    assert all(len(c["color_hint"]) == 6 and c["color_hint"] == c["color_hint"].upper() for c in classes)
    assert (tmp_path / content["assets"]["classes"]["href"]).exists()
    collection = stac.write_collection([file], tmp_path / "collection.json", name="all")
    pystac.Collection.from_dict(json.loads(collection.read_text())).validate()
    with pytest.raises(StoreError, match="at least one item"):
        stac.write_collection([], tmp_path / "c.json", name="x")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_extensions_read_what_we_write(world, tmp_path):
    import pystac
    from pystac.extensions.classification import ClassificationExtension
    from pystac.extensions.projection import ProjectionExtension

    folder, _ = world
    content = stac.item(ovrs.open(folder / "m.zarr"), tmp_path)
    item = pystac.Item.from_dict(content)
    assert ProjectionExtension.ext(item).shape == [150, 130]
    assert len(ClassificationExtension.ext(item.assets["map"]).classes) == 6


@pytest.mark.parametrize(("crs", "resolution"), [("EPSG:3857", None), (None, 6.0), ("EPSG:4326", None)])
def test_reprojected_rasters_keep_classes_and_colours(world, tmp_path, crs, resolution):
    folder, labels = world
    out = write_cog(ovrs.open(folder / "m.zarr"), tmp_path / "w.tif", crs=crs, resolution=resolution).path
    with rasterio.open(out) as source:
        assert source.crs.to_epsg() == int((crs or "EPSG:32633")[5:])
        found = source.read(1)
        assert source.colormap(1)[0][:3] == vocabulary.load("demo").colours[0]
        if resolution:
            assert source.res == (6.0, 6.0)
            np.testing.assert_array_equal(found[20:38, 20:30], labels[61:115:3, 61:91:3])
    assert set(np.unique(found)) <= {0, 1, 2, 3, 4, 255}
    share = (found == 2).sum() / (found != 255).sum()
    assert share == pytest.approx((labels == 2).sum() / (labels != 255).sum(), rel=0.05)
    sure = write_confidence(ovrs.open(folder / "m.zarr"), tmp_path / "c.tif", crs=crs, resolution=resolution)
    with rasterio.open(sure.path) as source:
        assert source.scales == (0.005,)
        assert source.shape == found.shape


def test_export_command_writes_everything_and_refuses_what_makes_no_sense(world, tmp_path):
    folder, _ = world
    run, base = CliRunner(), ["export", str(folder / "m.zarr")]
    names = {
        "--cog": "m.tif",
        "--confidence": "m-confidence.tif",
        "--vectors": "m.gpkg",
        "--png": "m.png",
        "--stac": "m.json",
    }
    done = run.invoke(
        app, [*base, *[a for k, v in names.items() for a in (k, str(tmp_path / v))]], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert all((tmp_path / v).exists() for v in [*names.values(), "m.qml", "m.sld", "m.tif.aux.xml"])
    assert set(json.loads((tmp_path / "m.json").read_text())["assets"]) == {
        "map",
        "classes",
        "confidence",
        "polygons",
        "thumbnail",
    }
    for wrong, told in (
        ([], "nothing to export"),
        (["--png", "a.png", "--crs", "EPSG:3857"], "are for rasters"),
        (["--png", "a.png", "--min-area", "5"], "are for polygons"),
        (["--vectors", str(tmp_path / "a.shp")], "must end with .gpkg or .parquet"),
        (["--cog", str(tmp_path / "x.tif"), "--crs", "EPSG:1"], "is no CRS"),
    ):
        failed = run.invoke(app, [*base, *wrong])
        assert isinstance(failed.exception, OvrsError)
        assert told in str(failed.exception)
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


def test_scale_bar_lengths_are_round():
    assert [scale_length(m) for m in (0.7, 1, 37, 49.9, 50, 1234)] == [0.5, 1, 20, 20, 50, 1000]


def test_report_is_one_file_that_loads_nothing(world, tmp_path):
    folder, _ = world
    text = write_report(ovrs.open(folder / "m.zarr"), tmp_path / "r.html").read_text()
    assert "http://" not in text.split("<details>")[0]
    assert "<script" not in text
    assert "data:image/jpeg;base64," in text
    assert "bare soil" in text
    record = ovrs.open(folder / "m.zarr").record
    assert warnings_of(record) == []
    bad = record.model_copy(
        update={
            "holes": ["00000_00000"],
            "composed_prompts": ["stand"],
            "asked_by_name": ["booth"],
            "tile_events": {"adapted": 3, "no_prototype": 2},
        }
    )
    told = " ".join(warnings_of(bad))
    assert "blocks are missing" in told
    assert "composed from their names: stand" in told
    assert "asked for by name: booth" in told
    assert "no_prototype (2)" in told


@pytest.fixture
def viewer(world):
    folder, _ = world
    server = open_viewer(ovrs.open(folder / "m.zarr"), None, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.url
    server.shutdown()
    thread.join()
    server.server_close()


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read(), answer.headers


def test_viewer_serves_page_tiles_and_pixels(viewer, world):
    import io

    _, labels = world
    page, headers = get(viewer)
    assert b"viewer.js" in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert len(get(viewer + "viewer.js")[0]) > 100_000
    facts = json.loads(get(viewer + "map.json")[0])["map"]
    assert facts["shape"] == [150, 130]
    assert facts["scores"]
    tile = np.asarray(Image.open(io.BytesIO(get(viewer + "tiles/map/classes/0/0/0")[0])))
    colours = np.array(vocabulary.load("demo").colours)
    np.testing.assert_array_equal(
        tile[:150, :130][labels == 2][:, :3], np.broadcast_to(colours[2], ((labels == 2).sum(), 3))
    )
    assert (tile[:150, :5, 3] == 0).all()
    hidden = np.asarray(Image.open(io.BytesIO(get(viewer + "tiles/map/classes/0/0/0?hide=2")[0])))
    assert (hidden[:150, :130][labels == 2][:, 3] == 0).all()
    assert (hidden[:150, :130][labels == 1][:, 3] == 255).all()
    image = np.asarray(Image.open(io.BytesIO(get(viewer + "tiles/map/image/0/0/0")[0])))
    assert (image[:150, 5:130, :3] == 90).all()
    assert get(viewer + "tiles/map/confidence/0/0/0")[1]["Content-Type"] == "image/png"
    pixel = json.loads(get(viewer + "pixel/70/40")[0])["map"]
    assert pixel["class"] == "water"
    assert set(pixel["scores"]) == set(vocabulary.load("demo").class_names)
    assert json.loads(get(viewer + "pixel/0/0")[0])["map"] == {"class": None}


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "tiles/map/classes/9/0/0", "tiles/map/classes/0/9/9", "tiles/other/classes/0/0/0", "tiles/map/secret/0/0/0",
             "pixel/x/y", "static/index.html", "m.zarr/zarr.json"],
)  # fmt: skip
def test_viewer_serves_nothing_else(viewer, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(viewer + path)


def test_viewer_refuses_maps_that_do_not_fit_and_taken_ports(world, noise_scene, words, trivial, tmp_path):
    folder, _ = world
    pipeline.map_scene(noise_scene(100, 100), words, tmp_path / "o.zarr", trivial())
    with pytest.raises(GridMismatchError, match="different grids"):
        open_viewer(ovrs.open(folder / "m.zarr"), ovrs.open(tmp_path / "o.zarr"), "127.0.0.1", 0)
    server = open_viewer(ovrs.open(folder / "m.zarr"), ovrs.open(folder / "m.zarr"), "127.0.0.1", 0)
    try:
        with pytest.raises(OptionError, match="choose another --port"):
            open_viewer(ovrs.open(folder / "m.zarr"), None, "127.0.0.1", server.server_address[1])
    finally:
        server.server_close()


def raw(viewer, request, seconds=10):
    """What the server says to these bytes, until it closes or is silent."""
    import socket

    port = int(viewer.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        line.sendall(request)
        line.shutdown(socket.SHUT_WR)
        said = b""
        while part := line.recv(65536):
            said += part
    return said


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("192.0.2.7", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8642", 421),
        ("", 421),
        ("[", 400),
    ],
)
def test_viewer_answers_only_requests_that_name_it(viewer, host, code):
    said = raw(viewer, f"GET /map.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert said.split()[1] == str(code).encode()
    assert (b'"classes"' in said) == (code == 200)


def test_viewer_without_or_with_two_hosts_and_bad_requests(viewer):
    for request in (b"GET /map.json HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n"):
        assert raw(viewer, request).split()[1] == b"421"
    for request in (b"\x16\x03\x01\x00\r\n\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", b"", b"\r\n"):
        assert b" 200 " not in raw(viewer, request)[:20]


def test_viewer_bounds_connections_ends_silent_ones_and_forgets_broken_ones(world, monkeypatch, capfd):
    import socket
    import struct
    import time

    from ovrs.view import server as room

    monkeypatch.setattr(room, "CONNECTIONS", 3)
    monkeypatch.setattr(room._Handler, "timeout", 1.0)
    folder, _ = world
    with open_viewer(ovrs.open(folder / "m.zarr"), None, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = server.server_address[:2]
        silent = [socket.create_connection(address, timeout=10) for _ in range(3)]
        time.sleep(0.2)
        with socket.create_connection(address, timeout=10) as more:
            assert more.recv(10) == b""  # closed at once
        assert [line.recv(10) for line in silent] == [b""] * 3  # after their time
        for line in silent:
            line.close()
        for _ in range(3):  # broken while it is answered
            with socket.create_connection(address) as line:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line.sendall(b"GET /viewer.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.3)
        assert get(server.url)[0]
        server.shutdown()
        thread.join()
    assert "Traceback" not in capfd.readouterr().err


def test_viewer_refuses_ports_that_are_none_and_warns_of_other_hosts(world, monkeypatch, caplog):
    from ovrs.view import server as room

    folder, _ = world
    with pytest.raises(OptionError, match="99999"):
        open_viewer(ovrs.open(folder / "m.zarr"), None, "127.0.0.1", 99999)
    monkeypatch.setattr(room.Viewer, "serve_forever", lambda *_: None)
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        room.serve(ovrs.open(folder / "m.zarr"), None, host, 0, open_browser=False)
        assert ("no password" in caplog.text) == warned
