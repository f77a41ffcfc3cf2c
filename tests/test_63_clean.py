"""The second decision: majority, minimum mapping unit, right-angled outlines, changes between two maps."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from conftest import labelled_map
from pyproj import Transformer
from scipy import ndimage
from typer.testing import CliRunner

from ovrs.assess.change import compared
from ovrs.clean.cleaning import Cleaning, area_of
from ovrs.clean.regions import Regions
from ovrs.clean.stage import cleaned
from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.export.vectors import write_vectors
from ovrs.store.map import open_map

NAMES = ("building", "road", "water", "tree")


def speckled(height, width, seed=0, nodata=True):
    """Patches of four classes with speckle, and some no data that cuts off an island of speckle."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (height // 12 + 2, width // 12 + 2))
    labels = np.kron(coarse, np.ones((12, 12), int))[:height, :width]
    labels = np.where(rng.random((height, width)) < 0.12, rng.integers(0, 4, (height, width)), labels)
    if nodata:
        labels[10:30, 40:60] = 255
        labels[15:20, 45:50] = rng.integers(0, 4, (5, 5))
    return labels.astype(np.uint8)


def polygons(path):
    return geopandas.read_file(path, layer="classes")


def components(labels):
    """Sizes of the 4-connected areas of each class."""
    sizes = []
    for value in np.unique(labels[labels < 255]):
        ids, count = ndimage.label(labels == value)
        sizes += np.bincount(ids.ravel(), minlength=count + 1)[1:].tolist()
    return sizes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    labels = speckled(150, 130)
    labelled_map(folder, labels, NAMES)
    return folder, labels


def result(folder, cleaning, block=2048):
    with open_map(folder / "m.zarr") as mapped, cleaned(mapped, cleaning, block) as made:
        return np.asarray(made.label[:]), made.classes, made.nodata


def test_no_area_is_smaller_than_the_unit_and_no_hole_is_left(world):
    folder, labels = world
    after, classes, _ = result(folder, Cleaning(unit_m2=81.0))  # 20.2 pixels of about 4 m²
    assert ((after == 255) == (labels == 255)).all()
    small = [s for s in components(after) if s < 20.2]
    assert small == []
    ids, _ = ndimage.label(labels < 255)
    island = ids == ids[17, 47]
    assert island.sum() == 25
    counts = np.bincount(labels[island])
    assert (after[island] == counts.argmax()).all()  # only small areas, cut off: the class that covers most
    sizes = {c.name: c.pixels for c in classes}
    assert sum(sizes.values()) == (labels < 255).sum()
    assert sizes["road"] == (after == 1).sum()


def test_large_areas_keep_every_pixel(world):
    folder, labels = world
    after, _, _ = result(folder, Cleaning(unit_m2=81.0))
    for value in range(4):
        ids, count = ndimage.label(labels == value)
        sizes = np.bincount(ids.ravel(), minlength=count + 1)
        kept = (sizes >= 21)[ids] & (ids > 0)
        assert (after[kept] == value).all()


@pytest.mark.parametrize("cleaning", [Cleaning(unit_m2=200.0), Cleaning(majority=5), Cleaning(majority=3, unit_m2=100)])
def test_blocks_change_nothing(world, cleaning, monkeypatch):
    folder, _ = world
    whole, _, _ = result(folder, cleaning)
    monkeypatch.setattr("ovrs.clean.sieve.HALO", 3)  # many rounds
    np.testing.assert_array_equal(result(folder, cleaning, 37)[0], whole)


def test_the_unit_is_ground_area_in_degrees(tmp_path):
    """The same 3 x 3 pixels are too small at 60 degrees and large enough at the equator."""
    labels = np.zeros((1202, 20), np.uint8)
    labels[4:7, 5:8] = labels[1195:1198, 5:8] = 1
    labelled_map(
        tmp_path, labels, ("a", "b"), crs="EPSG:4326", transform=rasterio.transform.from_origin(0, 60, 0.05, 0.05)
    )
    area = 9 * 5565.97 * 5528.7  # at the equator
    after, _, _ = result(tmp_path, Cleaning(unit_m2=0.8 * area))
    assert after[5, 6] == 0
    assert after[1196, 6] == 1


def test_the_majority_is_the_most_frequent_class_of_the_square(world):
    folder, labels = world
    after, _, _ = result(folder, Cleaning(majority=5))
    for row, col in [(0, 0), (149, 129), (70, 70), (14, 44), (33, 61), (100, 7)]:
        if labels[row, col] == 255:
            assert after[row, col] == 255
            continue
        part = labels[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3]
        counts = np.bincount(part[part < 255], minlength=4)
        expected = labels[row, col] if counts[labels[row, col]] == counts.max() else counts.argmax()
        assert after[row, col] == expected


def test_regions_sum_over_block_borders():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (61, 47)) - 1

    def read(window):
        part = values[window.row_off : window.row_end, window.col_off : window.col_end]
        return part, np.ones((1, *part.shape))

    whole = np.zeros(values.shape)
    for value in (0, 1):
        ids, count = ndimage.label(values == value)
        whole += np.where(ids > 0, np.bincount(ids.ravel(), minlength=count + 1)[ids], 0)
    found = np.zeros(values.shape)
    for window, ids, sums in Regions(values.shape, 10, read).blocks():
        found[window.row_off : window.row_end, window.col_off : window.col_end] = np.where(ids > 0, sums[0][ids], 0)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    ("text", "area"), [("50m2", 50), ("50", 50), ("0.5ha", 5000), ("1 km2", 1e6), ("2e3 m²", 2000)]
)
def test_areas_have_units(text, area):
    assert area_of(text, "--x") == area


@pytest.mark.parametrize("text", ["", "-5", "0", "5 acres", "m2", "inf", "nan", "1e999"])
def test_what_is_no_area_is_refused(text):
    with pytest.raises(OptionError, match="--x takes a positive area"):
        area_of(text, "--x")


def house(angle, size=(40, 26), shape=(120, 120), notch=True):
    """A turned L-shaped house, ragged at the edge, as labels: 0 house, 1 around, 2 a road along one side."""
    rows, cols = np.indices(shape) + 0.5
    x, y = cols - shape[1] / 2, rows - shape[0] / 2
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    rng = np.random.default_rng(1)
    ragged = ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 3
    inside = (np.abs(u) + ragged < size[0] / 2) & (np.abs(v) + ragged < size[1] / 2)
    if notch:
        inside &= ~((u > 4) & (v > 1))
    ids, _ = ndimage.label(inside)
    inside = ids == np.bincount(ids[ids > 0]).argmax()
    inside = ndimage.binary_fill_holes(inside)
    labels = np.where(inside, 0, np.where(v > size[1] / 2, 2, 1)).astype(np.uint8)
    labels[:6] = 255
    return labels


def corner_angles(polygon):
    ring = np.asarray(polygon.exterior.coords)[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    dot = (before * after).sum(axis=1)
    return np.degrees(np.arctan2(np.abs(cross), dot))


@pytest.mark.parametrize("degrees", [0, 38])
def test_outlines_get_right_angles_and_neighbours_follow(tmp_path, degrees):
    labels = house(np.radians(degrees))
    labelled_map(tmp_path, labels, ("house", "ground", "road"))
    with open_map(tmp_path / "m.zarr") as mapped:
        write_vectors(mapped, tmp_path / "raw.gpkg")
        made = write_vectors(mapped, tmp_path / "v.gpkg", regularise=["house"], tolerance=8.0)  # four pixels
    raw, after = polygons(tmp_path / "raw.gpkg"), polygons(tmp_path / "v.gpkg")
    old, new = (f[f["class"] == "house"].geometry.iloc[0] for f in (raw, after))
    angles = corner_angles(shapely.simplify(new, 0.02))
    assert 4 <= len(angles) <= 8
    assert np.abs(angles - 90).max() < 0.5
    assert shapely.hausdorff_distance(new.exterior, old.exterior) <= 8.01
    assert new.intersection(old).area / new.union(old).area > 0.85
    assert f"IoU with the map's own {new.intersection(old).area / new.union(old).area:.3f}" in made.remark
    assert after.geometry.is_valid.all()
    assert after.union_all().area == pytest.approx(raw.union_all().area, rel=1e-9)  # no hole, nothing over no data
    assert after.geometry.area.sum() == pytest.approx(after.union_all().area, rel=1e-9)  # no overlap
    assert shapely.coverage_is_valid(after.geometry.values)  # borders are shared, vertex by vertex
    assert after.area_m2.sum() == pytest.approx(raw.area_m2.sum(), rel=1e-6)


def test_shared_walls_stay_shared(tmp_path):
    """Two houses of different classes wall to wall, both squared."""
    labels = house(np.radians(25), notch=False)
    _, cols = np.indices(labels.shape)
    labels[(labels == 0) & (cols > 62)] = 3
    labelled_map(tmp_path, labels, ("house", "ground", "road", "garage"))
    with open_map(tmp_path / "m.zarr") as mapped:
        write_vectors(mapped, tmp_path / "v.gpkg", regularise=["house", "garage"], tolerance=10.0)
    after = polygons(tmp_path / "v.gpkg")
    house_, garage = (after[after["class"] == n].geometry.union_all() for n in ("house", "garage"))
    assert house_.intersection(garage).area < 1e-6
    assert house_.boundary.intersection(garage.boundary).length > 30
    assert shapely.coverage_is_valid(after.geometry.values)


def test_an_outline_that_can_not_be_squared_stays(tmp_path):
    rows, cols = np.indices((120, 120))
    labels = (np.hypot(rows - 60, cols - 60) > 40).astype(np.uint8)  # a round tank
    labelled_map(tmp_path, labels, ("tank", "ground"))
    with open_map(tmp_path / "m.zarr") as mapped:
        made = write_vectors(mapped, tmp_path / "v.gpkg", regularise=["tank"], tolerance=3.0)
        write_vectors(mapped, tmp_path / "raw.gpkg")
        assert "IoU with the map's own" in made.remark
        with pytest.raises(OptionError, match="'roof' is no class"):
            write_vectors(mapped, tmp_path / "v.gpkg", regularise=["roof"])
        with pytest.raises(OptionError, match="exclude each other"):
            write_vectors(mapped, tmp_path / "v.gpkg", regularise=["tank"], simplify=1.0)
    after, raw = (polygons(tmp_path / n) for n in ("v.gpkg", "raw.gpkg"))
    tank, old = (f[f["class"] == "tank"].geometry.iloc[0] for f in (after, raw))
    assert shapely.hausdorff_distance(tank.exterior, old.exterior) <= 3.01


def test_every_product_of_an_export_is_cleaned_alike(world, tmp_path):
    folder, labels = world
    arguments = ["export", str(folder / "m.zarr"), "--cog", str(tmp_path / "c.tif"), "--vectors", str(tmp_path / "v.gpkg"),
                 "--png", str(tmp_path / "p.png"), "--stac", str(tmp_path / "s.json"), "--min-mapping-unit", "81m2",
                 "--majority", "3"]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    frame = polygons(tmp_path / "v.gpkg")
    with rasterio.open(tmp_path / "c.tif") as raster:
        pixels = raster.read(1)
        assert "minimum mapping unit 81 m²" in raster.tags()["OVRS_TREATMENT"]
    assert frame.area_m2.min() >= 81
    assert len(frame) == len(components(pixels))
    sizes = frame.groupby("class_id").pixels.sum()
    assert sizes.to_dict() == dict(zip(*np.unique(pixels[pixels < 255], return_counts=True), strict=True))
    with open_map(folder / "m.zarr") as mapped:
        np.testing.assert_array_equal(np.asarray(mapped.label[:]), labels)  # the store stays raw
    for wrong in (["--majority", "4"], ["--min-mapping-unit", "0"], ["--regularise", "roof"], ["--tolerance", "1"]):
        refused = CliRunner().invoke(app, [*arguments[:4], "--vectors", str(tmp_path / "w.gpkg"), *wrong])
        assert isinstance(refused.exception, OptionError), wrong
        assert not (tmp_path / "w.gpkg").exists()


@pytest.fixture(scope="module")
def years(tmp_path_factory):
    """Two maps of one place; the newer one has other classes in another order, a coarser grid in another CRS, or the same."""
    folder = tmp_path_factory.mktemp("years")
    before = np.zeros((80, 60), np.uint8)
    before[40:] = 1
    before[:, :5] = 255
    after = np.where(before == 255, 255, 1 - before.astype(int)).astype(np.uint8)  # the order of the classes is turned
    after[30:40, 20:30] = 2
    after[70:, 50:] = 255
    sure = np.full((80, 60), 180, np.uint8)
    sure[30:35] = 60
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    labelled_map(folder / "a", before, ("grass", "road"), confidence=np.full((80, 60), 160, np.uint8))
    labelled_map(folder / "b", after, ("road", "grass", "house"), confidence=sure)
    return folder


def test_changes_are_told_by_name_with_areas_raster_polygons_and_mask(years, tmp_path):
    arguments = ["diff", str(years / "a/m.zarr"), str(years / "b/m.zarr"), "--areas", str(tmp_path / "c.csv"),
                 "--raster", str(tmp_path / "c.tif"), "--vectors", str(tmp_path / "c.gpkg"),
                 "--mask", str(tmp_path / "s.tif"), "--sure", "0.5"]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "changed: 0.04 of 1.72 hectares" in done.output
    rows = [line.split(",") for line in (tmp_path / "c.csv").read_text().replace('"', "").splitlines()]
    assert rows[0] == ["from", "to", "pixels", "hectares", "percent", "sure_hectares"]
    assert rows[1][:3] == ["grass", "house", "100"]
    assert float(rows[1][5]) == pytest.approx(float(rows[1][3]) / 2, rel=1e-3)
    assert {tuple(r[:3]) for r in rows[2:]} == {("grass", "grass", "2100"), ("road", "road", "2100")}
    with rasterio.open(tmp_path / "c.tif") as raster, rasterio.open(tmp_path / "s.tif") as mask:
        pixels, sure = raster.read(1), mask.read(1)
        assert raster.tags(1) == {"CLASS_0": "grass → house", "CLASS_1": "unchanged"}
    assert (pixels == 0).sum() == 100
    assert (pixels[30:40, 20:30] == 0).all()
    assert (pixels == 255).sum() == 80 * 5 + 100
    assert (sure[30:35, 5:] == 0).all()
    assert (sure[36:60, 5:] == 1).all()
    frame = geopandas.read_file(tmp_path / "c.gpkg", layer="changes")
    assert frame["class"].tolist() == ["grass → house"]
    assert frame.pixels.tolist() == [100]
    assert frame.confidence.iloc[0] == pytest.approx((0.3 + 0.8) / 2)
    assert CliRunner().invoke(app, arguments).exit_code == 0  # our own files are replaced
    same = CliRunner().invoke(
        app, ["diff", str(years / "a/m.zarr"), str(years / "a/m.zarr"), "--vectors", str(tmp_path / "n.gpkg")]
    )
    assert same.exit_code == 0, same.output
    assert "changed: 0.00 of 1.76" in same.output
    assert "(0 polygons)" in same.output


def test_maps_of_other_grids_meet_on_the_coarser_one(years, tmp_path):
    with open_map(years / "a/m.zarr") as mapped:
        left, top = mapped.grid.affine @ (0, 0)
    coarse = np.zeros((22, 20), np.uint8)  # 12 m in UTM 32, the neighbouring zone, turned by some degrees
    x, y = Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True).transform(left, top)
    place = rasterio.transform.from_origin(x - 30, y + 30, 12, 12)
    labelled_map(tmp_path, coarse, ("grass", "road"), crs="EPSG:32632", transform=place)
    with (
        open_map(years / "a/m.zarr") as first,
        open_map(tmp_path / "m.zarr") as second,
        compared(first, second, sure=0) as change,
    ):
        assert change.raster.grid == second.grid
        found = {(r["from"], r["to"]): r["hectares"] for r in change.rows}
    assert found["grass", "grass"] == pytest.approx(0.88, abs=0.15)
    assert found["road", "grass"] == pytest.approx(0.88, abs=0.15)
    with (
        open_map(years / "a/m.zarr") as first,
        pytest.raises(OptionError, match="--sure"),
        compared(first, first, sure=2),
    ):
        pass
    (tmp_path / "far").mkdir()
    far = rasterio.transform.from_origin(700000, 5600000, 2, 2)
    labelled_map(tmp_path / "far", coarse, ("grass", "road"), transform=far)
    with (
        open_map(years / "a/m.zarr") as first,
        open_map(tmp_path / "far/m.zarr") as second,
        pytest.raises(OptionError, match="no pixel in common"),
        compared(first, second, sure=0),
    ):
        pass
