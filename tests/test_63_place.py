"""Where products lie: outlines in longitude and latitude, roles and grids in STAC, and targets of a reprojection."""

import json
import math

import numpy as np
import pytest
import rasterio
import shapely
import zarr
from affine import Affine
from conftest import smooth
from odc.geo.geobox import GeoBox
from typer.testing import CliRunner

import ovrs
from ovrs import options, pipeline
from ovrs.cli.app import app
from ovrs.errors import OptionError, StoreError
from ovrs.export import stac
from ovrs.export.cog import write_cog, write_confidence
from ovrs.export.footprint import footprint, union_of_boxes
from ovrs.export.warp import target_grid

LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1]]'
MOON = "+proj=longlat +a=1737400 +b=1737400 +no_defs"


def grid(crs, x, y, size, width=420, height=360):
    return GeoBox((height, width), Affine(size, 0, x, 0, -size, y), crs)


UTM = grid("EPSG:32633", 500000, 5600000, 0.3)
OVER_180 = grid("EPSG:32660", 833978.557 - 63, 54, 0.3)


@pytest.mark.parametrize(
    ("box", "bbox", "kind"),
    [
        (grid("EPSG:32633", 500000, 5600000, 0.3), [15, 50.55096, 15.00178, 50.55193], "Polygon"),
        (OVER_180, [179.99943, -0.00049, -179.99943, 0.00049], "MultiPolygon"),
        (grid("EPSG:3857", 20037508 - 50, 100, 1, 100, 100), [179.99955, 0, -179.99955, 0.0009], "MultiPolygon"),
        (grid("EPSG:4326", 179.9, 10, 0.01, 20, 10), [179.9, 9.9, -179.9, 10], "MultiPolygon"),
        (grid("EPSG:4326", 179.9, 10, 0.01, 10, 10), [179.9, 9.9, 180, 10], "Polygon"),
        (grid("EPSG:4326", 190, 50, 1e-5, 420, 360), [-170, 49.9964, -169.9958, 50], "Polygon"),
        (grid("EPSG:4326", 359.9, 1, 0.001, 200, 100), [-0.1, 0.9, 0.1, 1], "Polygon"),
        (grid("EPSG:4326", -180, 90, 1, 360, 180), [-180, -90, 180, 90], "Polygon"),
        (grid("EPSG:4326", -180.5, 90.5, 1, 360, 181), [-180, -90, 180, 90], "Polygon"),
        (grid("EPSG:4807", 1.0, 54.0, 1e-5), [3.23655, 48.59671, 3.24033, 48.59994], "Polygon"),
        (grid("EPSG:3413", -63, 54, 0.3), [-180, 89.99923, 180, 90], "Polygon"),
        (grid("EPSG:3413", 0, 100, 1, 100, 100), [-180, 89.99869, 180, 90], "Polygon"),
        (grid("EPSG:3031", -50, 100, 1), [-180, -90, 180, -89.99584], "Polygon"),
        (grid("EPSG:32633", 500000, 5600000, 0.1, 1, 1), [15, 50.55193, 15, 50.55193], "Polygon"),
    ],
    ids=["utm", "utm over 180", "mercator over 180", "degrees over 180", "up to 180", "190", "359.9", "world",
         "world by centres", "grads", "pole", "pole in the corner", "south pole", "one pixel"],
)  # fmt: skip
def test_outlines_in_longitude_and_latitude(box, bbox, kind):
    found = footprint(box)
    np.testing.assert_allclose(found.bbox, bbox, atol=2e-5)
    assert len(found.bbox) == 4
    assert found.geometry["type"] == kind
    shape = shapely.geometry.shape(found.geometry)
    assert shape.is_valid
    assert shape.area > 0
    west, south, east, north = shape.bounds
    assert -180 <= west <= east <= 180
    assert -90 <= south <= north <= 90
    for ring in shapely.get_parts(shape):
        assert ring.exterior.is_ccw
        assert (np.abs(np.diff(np.array(ring.exterior.coords)[:, 0])) <= 360).all()
    if found.bbox[0] > found.bbox[2]:
        assert (west, east) == (-180, 180)


def test_the_outline_holds_the_maps_own_points():
    from pyproj import Transformer

    rng = np.random.default_rng(0)
    for box in (
        OVER_180,
        grid("EPSG:3413", -63, 54, 0.3),
        grid("EPSG:3035", 4e6, 3e6, 500),
        grid("EPSG:3571", -2e5, 3e5, 1e3),
    ):
        shape = shapely.buffer(shapely.geometry.shape(footprint(box).geometry), 1e-4)
        cols, rows = rng.uniform(0.01, 0.99, (2, 200)) * [[box.width], [box.height]]
        x, y = box.affine.c + box.affine.a * cols, box.affine.f + box.affine.e * rows
        lon, lat = Transformer.from_crs(box.crs.proj, "OGC:CRS84", always_xy=True).transform(x, y)
        assert shapely.contains_xy(shape, (np.array(lon) + 180) % 360 - 180, lat).all()


@pytest.mark.parametrize(
    ("crs", "told"), [(LOCAL, "site grid"), (MOON, "on Earth"), ("ESRI:54009", "outside the domain"), (None, "no CRS")]
)
def test_maps_without_a_place_on_earth_are_refused(crs, told):
    with pytest.raises(StoreError, match=told) as refused:
        footprint(grid(crs, -1e5, 9020047, 1000, 200, 50) if crs == "ESRI:54009" else grid(crs, 0, 0, 1, 9, 9))
    assert "\n" not in str(refused.value)


def test_other_bodies_have_longitudes_of_their_own():
    found = footprint(grid("ESRI:104903", 10, 50, 1e-3, 100, 100))
    assert (found.body, found.bbox) == ("Moon", [10, 49.9, 10.1, 50])
    esri = 'GEOGCS["Moon 2000",DATUM["D_Moon_2000",SPHEROID["Moon_2000_IAU_IAG",1737400,0]],PRIMEM["Greenwich",0],UNIT["Decimal_Degree",0.0174532925199433]]'
    assert footprint(grid(esri, 10, 50, 1e-3, 100, 100)).bbox == found.bbox
    assert footprint(UTM).body == "Earth"


@pytest.mark.parametrize(
    ("boxes", "union"),
    [
        ([[0, 0, 1, 1], [5, -1, 6, 2]], [0, -1, 6, 2]),
        ([[179, 0, -179, 1]], [179, 0, -179, 1]),
        ([[179, 0, -179, 1], [170, 0, 171, 1]], [170, 0, -179, 1]),
        ([[-179, 0, -178, 1], [178, 0, 179, 1]], [178, 0, -178, 1]),
        ([[179, 0, -170, 1], [-175, 0, -160, 1]], [179, 0, -160, 1]),
        ([[10, 0, 20, 1], [100, 0, 110, 1], [-100, 0, -90, 1]], [-100, 0, 110, 1]),
        ([[-180, 0, 180, 1], [5, 0, 6, 2]], [-180, 0, 180, 2]),
    ],
)
def test_boxes_of_a_collection(boxes, union):
    assert union_of_boxes(boxes) == union


# ---------- reprojection


@pytest.mark.parametrize(
    ("crs", "resolution", "told"),
    [
        ("nonsense", None, "is no CRS"), ("", None, "is no CRS"), ("EPSG:1", None, "is no CRS"),
        ("EPSG:5773", None, "Vertical CRS"), ("EPSG:4978", None, "Geocentric CRS"), ("EPSG:7415", None, "3 axes"),
        ("EPSG:4979", None, "3 axes"), (LOCAL, None, "Engineering CRS"), (MOON, None, "no way is known"),
        (None, 0.0, "positive number"), (None, -1.0, "positive number"), (None, math.nan, "positive number"),
        (None, math.inf, "positive number"), (None, 1e9, "larger than the whole map: the unit of .* is the metre"),
        ("EPSG:4326", 10.0, "larger than the whole map: the unit of .* is the degree"),
        (None, 1e-5, "far from the map's pixels"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_are_refused_in_one_line(crs, resolution, told):
    with pytest.raises(OptionError, match=told) as refused:
        target_grid(UTM, crs, resolution)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_metres_meant_for_degrees_are_refused_on_large_maps_too():
    with pytest.raises(OptionError, match="far from the map's pixels: the unit of WGS 84 is the degree"):
        target_grid(grid("EPSG:32633", 5e5, 5.6e6, 0.5, 400_000, 400_000), "EPSG:4326", 0.5)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("box", [OVER_180, grid("EPSG:32660", 833978.557 - 1000, 9000, 0.5, 5000, 30000)])
def test_targets_that_tear_the_map_are_refused(crs, box):
    with pytest.raises(OptionError, match="lies across that CRS's edge"):
        target_grid(box, crs, None)
    assert target_grid(OVER_180, "EPSG:3832", None).shape == (360, 420)


def test_long_strips_and_high_latitudes_are_not_taken_for_torn():
    for box in (grid("EPSG:32633", 3e5, 5.6e6, 1, 100_000, 1), grid("EPSG:32633", 5e5, 9.2e6, 1, 2000, 2000)):
        assert target_grid(box, "EPSG:4326", None) is not None
        assert target_grid(box, "EPSG:3035", None) is not None


def test_targets_made_for_another_area_are_told(caplog):
    assert target_grid(UTM, "EPSG:3035", None) is not None
    assert not caplog.records
    assert target_grid(UTM, "EPSG:3031", None) is not None
    assert "outside the area of WGS 84 / Antarctic Polar Stereographic" in caplog.text


def test_maps_without_a_crs_are_not_reprojected():
    with pytest.raises(OptionError, match="need a map with a CRS"):
        target_grid(grid(None, 0, 0, 1), "EPSG:4326", None)


# ---------- roles


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    return make(folder, "EPSG:32633", rasterio.transform.from_origin(500000, 5600000, 2, 2))


def make(folder, crs, transform):
    from ovrs.words import vocabulary

    with rasterio.open(
        folder / "s.tif", "w", driver="GTiff", height=60, width=40, count=3, dtype="uint8", crs=crs, transform=transform
    ) as target:
        target.write(np.random.default_rng(0).integers(1, 255, (3, 60, 40), np.uint8))
    chosen = options.build(model={"model": "trivial", "crop": 32}, run={"block_pitches": 2})
    pipeline.map_scene(folder / "s.tif", vocabulary.load("demo"), folder / "m.zarr", chosen)
    return folder / "m.zarr"


def test_roles_are_told_and_never_read_from_names(world, tmp_path):
    made = [
        write_cog(ovrs.open(world), tmp_path / "high-confidence.tif"),
        write_confidence(ovrs.open(world), tmp_path / "x-conf.TIF"),
        write_cog(ovrs.open(world), tmp_path / "confidence.tiff"),
    ]
    assets = stac.item(ovrs.open(world), tmp_path, made)["assets"]
    assert {k: a["href"] for k, a in assets.items() if k != "map"} == {
        "classes": "./high-confidence.tif",
        "confidence": "./x-conf.TIF",
        "classes-2": "./confidence.tiff",
    }
    assert len(assets["classes"]["classification:classes"]) == 6
    assert "classification:classes" not in assets["confidence"]
    assert (assets["confidence"]["data_type"], assets["confidence"]["raster:scale"]) == ("uint8", 0.005)
    assert {a["type"] for k, a in assets.items() if k != "map"} == {
        "image/tiff; application=geotiff; profile=cloud-optimized"
    }
    assert not any(key.startswith("proj:") for key in assets["classes"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reprojected_products_carry_their_own_place(world, tmp_path):
    import pystac

    made = [write_cog(ovrs.open(world), tmp_path / "o.tif", crs="EPSG:3857", resolution=10.0)]
    content = stac.item(ovrs.open(world), tmp_path, made)
    asset = content["assets"]["classes"]
    with rasterio.open(tmp_path / "o.tif") as source:
        assert asset["proj:code"] == "EPSG:3857"
        assert asset["proj:shape"] == list(source.shape)
        assert asset["proj:transform"] == list(source.transform)[:6]
        assert asset["proj:bbox"] == list(source.bounds)
    assert content["properties"]["proj:code"] == "EPSG:32633"
    assert content["assets"]["map"]["raster:spatial_resolution"] == pytest.approx(2, rel=1e-3)
    assert asset["raster:spatial_resolution"] > 3 * content["assets"]["map"]["raster:spatial_resolution"]
    pystac.Item.from_dict({**content, "stac_extensions": []}).validate()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_items_over_the_180_meridian_are_valid_and_join_a_collection(tmp_path):
    import pystac

    path = make(tmp_path, "EPSG:32660", rasterio.transform.from_origin(833978.557 - 40, 60, 2, 2))
    file = stac.write_item(ovrs.open(path), tmp_path / "m.json")
    content = json.loads(file.read_text())
    item = pystac.Item.from_dict({**content, "stac_extensions": []})
    item.validate()
    assert content["bbox"][0] > 179.99
    assert content["bbox"][2] < -179.99
    collection = json.loads(stac.write_collection([file], tmp_path / "c.json", name="all").read_text())
    assert collection["extent"]["spatial"]["bbox"] == [content["bbox"]]


@pytest.mark.parametrize(
    "wrong",
    [["--stac", "o.json"], ["--cog", "o.tif", "--stac", "o.json", "--crs", "EPSG:4978"], ["--cog", "o.tif", "--vectors", "o.shp"],
     ["--cog", "o.tif", "--vectors", "o.gpkg", "--min-area", "inf"], ["--cog", "o.tif", "--vectors", "o.gpkg", "--simplify", "inf"],
     ["--cog", "o.tif", "--png", "o.jpg"], ["--cog", "o.tif", "--resolution", "0"], ["--cog", "o.tif", "--layer", "x"],
     ["--vectors", "o.parquet", "--layer", "x"]],
)  # fmt: skip
def test_nothing_is_written_where_one_product_is_refused(world, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    if wrong == ["--stac", "o.json"]:
        wrong = ["--cog", "o.tif", "--png", "o.png", *wrong]
        world = make(tmp_path, "EPSG:32633", rasterio.transform.from_origin(500000, 5600000, 2, 2))
        group = zarr.open_group(world, mode="r+", use_consolidated=False)
        group["spatial_ref"].attrs["crs_wkt"] = LOCAL
    before = sorted(p.name for p in tmp_path.iterdir())
    done = CliRunner().invoke(app, ["export", str(world), *wrong])
    assert isinstance(done.exception, OptionError | StoreError), done.output
    assert "\n" not in str(done.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_item_tells_when_the_imagery_was_recorded(write_raster, tmp_path, words, trivial):
    """The option, else the sensor's side file, else the TIFF tag; the time of processing has a place of its own."""
    scene = write_raster(smooth(64, 64))

    def made(name, **given):
        out = tmp_path / f"{name}.zarr"
        pipeline.map_scene(scene, words, out, trivial(scene=given))
        with ovrs.open(out) as mapped:
            return stac.item(mapped, tmp_path)["properties"], mapped.record

    told, record = made("nothing")
    assert (record.acquired, told["datetime"]) == (None, told["created"])
    with rasterio.open(scene, "r+") as target:
        target.update_tags(TIFFTAG_DATETIME="2021:07:04 09:30:00")
    told, _ = made("tag")
    assert told["datetime"] == "2021-07-04T09:30:00Z"
    assert told["processing:datetime"] == told["created"] != told["datetime"]
    told, record = made("option", acquired="2020-06-01T12:00+02:00")
    assert told["datetime"] == "2020-06-01T10:00:00Z"
    assert record.scene.acquired == "2021-07-04T09:30:00+00:00"
    with pytest.raises(OptionError, match="acquired"):
        trivial(scene={"acquired": "last summer"})


def test_a_run_that_goes_on_keeps_its_time_of_recording(write_raster, tmp_path, words, trivial):
    """Another time is refused, not ignored; the same one, and none, go on."""
    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    pipeline.map_scene(scene, words, out, trivial(scene={"acquired": "2020-06-01"}))
    for same in ({}, {"acquired": "2020-06-01T00:00Z"}):
        assert pipeline.map_scene(scene, words, out, trivial(scene=same))["acquired"] == "2020-06-01T00:00:00+00:00"
    for given, begun in (({"acquired": "2021-01-01"}, "2020-06-01"), ({"acquired": "2021-01-01"}, "no time")):
        with pytest.raises(OptionError, match=f"was begun with {begun}"):
            pipeline.map_scene(scene, words, out, trivial(scene=given))
        pipeline.map_scene(scene, words, out, trivial(), overwrite=True)
    pipeline.resume(out)
    assert pipeline.map_scene(scene, words, out, trivial(scene=given), overwrite=True)["acquired"].startswith("2021")


@pytest.mark.parametrize("side", [100, 1000, 20000])
def test_a_rectangle_has_five_vertices(side):
    found = footprint(grid("EPSG:32632", 360000, 5640000, 0.5, side, side)).geometry
    assert [len(ring) for ring in found["coordinates"]] == [5]
