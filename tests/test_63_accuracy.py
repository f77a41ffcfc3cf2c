"""How good a map is: samples, estimators against the papers' examples, reports, calibrated confidence."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from conftest import labelled_map
from typer.testing import CliRunner

from ovrs.assess import findings as room
from ovrs.assess import reliability
from ovrs.assess.estimators import Sample, Stratum, estimate, ratio
from ovrs.assess.points_file import write_sample
from ovrs.assess.sampling import draw
from ovrs.clean.calibrated import table, tempered
from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.store.map import open_map

NAMES = ("building", "road", "water")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A map of three classes over 120 x 100 pixels of 2 m, 10 columns without data, with graded confidence."""
    folder = tmp_path_factory.mktemp("world")
    labels = np.zeros((120, 100), np.uint8)
    labels[60:] = 1
    labels[100:110, 20:40] = 2
    labels[:, :10] = 255
    confidence = np.where(labels == 0, 160, 80).astype(np.uint8)
    confidence[labels == 255] = 255
    labelled_map(folder, labels, NAMES, confidence=confidence)
    return folder, labels


def sample_of(counts, pixels):
    """Points of a matrix `(mapped, reference)` whose strata are the mapped classes."""
    rows, cols = np.nonzero(counts)
    times = np.asarray(counts)[rows, cols]
    mapped, reference = np.repeat(rows, times), np.repeat(cols, times)
    strata = tuple(Stratum(name=str(i), pixels=n, area_m2=900.0 * n) for i, n in enumerate(pixels))
    return Sample(strata=strata, stratum=mapped, mapped=mapped, reference=reference)


def test_the_example_of_olofsson_et_al_2014():
    """Table 8 and section 5: deforestation, forest gain, stable forest, stable non-forest over ten million pixels."""
    counts = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
    sample = sample_of(counts, (200_000, 150_000, 3_200_000, 6_450_000))
    found = estimate(sample, 4)
    assert found.matrix[0] == pytest.approx([0.0176, 0, 0.0013, 0.0011], abs=5e-5)
    assert found.matrix.sum(axis=0) == pytest.approx([0.024, 0.013, 0.318, 0.646], abs=6e-4)

    def told(figures):
        return [(round(f.value, 2), round(f.half_width, 2)) for f in figures]

    assert told([found.overall]) == [(0.95, 0.02)]
    assert told([c.user for c in found.classes]) == [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    producer = [(c.producer.value, 1.96 * c.producer.error) for c in found.classes]
    # the paper prints 0.23 for forest gain and 0.01 for stable non-forest; its own equation 7 gives 0.25 and 0.02
    assert np.round(producer, 2).tolist() == [[0.75, 0.21], [0.85, 0.25], [0.93, 0.03], [0.96, 0.02]]
    hectares = [(c.share.value * 900_000, 1.96 * c.share.error * 900_000) for c in found.classes]
    expected = [(21_158, 6_158), (11_686, 3_756), (285_770, 15_510), (581_386, 16_282)]
    assert np.array(hectares) == pytest.approx(np.array(expected), rel=1.5e-3)


def test_the_example_of_stehman_2014():
    """Table 2: ten points in each of four strata that are not the classes of the map."""
    stratum = np.repeat(np.arange(4), 10)
    mapped = np.array(["ABCD".index(c) for c in "AAAAAAABBBABBBBBBBBBBBCCCCCCBBDDDDDDDDDD"])
    reference = np.array(["ABCD".index(c) for c in "AAAAACBABCABBBBBAABBCCCCCDDBBADDDDDDDCCB"])
    pixels = (40_000, 30_000, 20_000, 10_000)
    strata = tuple(Stratum(name=f"s{i}", pixels=n, area_m2=float(n)) for i, n in enumerate(pixels))
    sample = Sample(strata=strata, stratum=stratum, mapped=mapped, reference=reference)
    found = estimate(sample, 4)
    assert (found.overall.value, found.overall.error) == pytest.approx((0.63, 0.0846), abs=5e-5)
    a, b, c, _ = found.classes
    assert (a.share.value, a.share.error) == pytest.approx((0.35, 0.0822), abs=5e-5)
    assert (c.share.value, c.share.error) == pytest.approx((0.20, 0.0643), abs=5e-5)
    assert (b.user.value, b.user.error) == pytest.approx((0.574, 0.1248), abs=5e-4)
    # the paper prints 0.114 with a variance of 0 in the fourth stratum, whose point of class B gives 0.1
    assert (b.producer.value, b.producer.error) == pytest.approx((0.794, 0.1165), abs=5e-4)
    assert found.matrix[1, 2] == pytest.approx(0.08)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    """Samples of a map with strata that are not its classes; 95 % intervals of five figures."""
    rng = np.random.default_rng(3)
    truth = rng.choice(3, 30_000, p=(0.6, 0.3, 0.1))
    mapped = np.where(rng.random(30_000) < 0.8, truth, rng.integers(0, 3, 30_000))
    strata_of = np.where(rng.random(30_000) < 0.7, mapped, rng.integers(0, 3, 30_000))
    whole = np.bincount(mapped * 3 + truth, minlength=9).reshape(3, 3) / 30_000
    exact = room.exact(whole)
    pixels = np.bincount(strata_of)
    strata = tuple(Stratum(name=str(i), pixels=int(n), area_m2=float(n)) for i, n in enumerate(pixels))
    hits = np.zeros(5)
    for _ in range(250):
        drawn = np.concatenate([rng.choice(np.flatnonzero(strata_of == h), 150, replace=False) for h in range(3)])
        sample = Sample(strata=strata, stratum=strata_of[drawn], mapped=mapped[drawn], reference=truth[drawn])
        found = estimate(sample, 3)
        pairs = [(found.overall, exact.overall)]
        pairs += [
            (getattr(found.classes[1], k), getattr(exact.classes[1], k)) for k in ("user", "producer", "iou", "share")
        ]
        hits += [e.low <= t.value <= e.high for e, t in pairs]
    assert (hits / 250 > 0.90).all()
    assert (hits / 250 < 0.99).all()


def test_what_a_sample_can_not_tell_has_no_interval():
    sample = sample_of([[10, 0], [0, 1]], (100, 100))
    one = np.ones(11)
    assert ratio(sample, sample.mapped == sample.reference, one).low is None  # one point in a stratum
    agreeing = estimate(sample_of([[10, 0], [0, 10]], (100, 100)), 2)
    assert agreeing.classes[0].user.exact
    assert agreeing.classes[0].user.low == pytest.approx(0.6915, abs=1e-4)  # Clopper and Pearson, 10 of 10
    assert agreeing.classes[0].share.low is None
    assert estimate(sample, 3).classes[2].user.value is None


def test_samples_follow_their_rule_and_their_seed(world):
    folder, labels = world
    with open_map(folder / "m.zarr") as mapped:
        points = draw(mapped, per_class=30, seed=4)
        again = draw(mapped, per_class=30, seed=4)
        assert points.rows.tolist() == again.rows.tolist()
        assert draw(mapped, per_class=30, seed=5).rows.tolist() != points.rows.tolist()
        assert points.allocation.tolist() == [30, 30, 30]
        assert (labels[points.rows, points.cols] == points.stratum).all()
        assert len(set(zip(points.rows.tolist(), points.cols.tolist(), strict=True))) == 90
        assert points.inclusion[points.stratum == 2] == pytest.approx(30 / 200)
        assert points.inclusion[points.stratum == 0] == pytest.approx(30 / 5400)
        assert draw(mapped, per_class=300).allocation.tolist() == [300, 300, 200]  # all pixels of water
        shared = draw(mapped, per_class=10, total=136)
        assert shared.allocation.sum() == 136
        assert shared.allocation.min() >= 10
        assert "in proportion" in shared.rule
        with pytest.raises(OptionError, match="--total 20 is below"):
            draw(mapped, per_class=10, total=20)


@pytest.mark.slow
def test_every_pixel_of_a_class_has_its_chance(world):
    """In degrees a pixel's chance is proportional to its ground area: twice as much at the equator as at 60 degrees."""
    folder, _ = world
    (folder / "deg").mkdir(exist_ok=True)
    tall = np.zeros((1200, 12), np.uint8)
    labelled_map(
        folder / "deg", tall, ("a", "b"), crs="EPSG:4326", transform=rasterio.transform.from_origin(0, 60, 0.05, 0.05)
    )
    with open_map(folder / "deg/m.zarr") as mapped:
        drawn = np.concatenate([draw(mapped, per_class=100, seed=s).rows for s in range(40)])
    north, south = (drawn < 100).sum(), (drawn >= 1100).sum()  # 55 to 60 degrees, 0 to 5 degrees
    assert south / north == pytest.approx(1.87, rel=0.25)


def test_the_loop_from_sample_to_report(world, tmp_path):
    folder, labels = world
    run = CliRunner().invoke
    points = tmp_path / "points.gpkg"
    made = run(
        app,
        ["sample", str(folder / "m.zarr"), "--per-class", "40", "-o", str(points), "--chips", str(tmp_path / "chips")],
    )
    assert made.exit_code == 0, made.output
    assert "rule: 40 points for each class" in made.output
    frame = geopandas.read_file(points, layer="sample")
    assert len(list((tmp_path / "chips").glob("*.png"))) == len(frame) == 120
    assert frame.crs.to_epsg() == 32633
    assert frame.reference.isna().all()
    again = run(app, ["sample", str(folder / "m.zarr"), "-o", str(points)])
    assert isinstance(again.exception, OptionError)  # labels would be lost
    # the ground: the map, but for its lowest rows of road, which are water
    truth = labels.copy()
    truth[110:] = 2
    rows = ((5600000 - frame.geometry.y) / 2).astype(int)
    cols = ((frame.geometry.x - 500000) / 2).astype(int)
    frame["reference"] = [NAMES[truth[r, c]].upper() for r, c in zip(rows, cols, strict=True)]
    frame.loc[0, "reference"] = None
    frame.to_crs("EPSG:4326").to_file(points, layer="sample", driver="GPKG")
    outs = [tmp_path / f"a.{s}" for s in ("json", "md", "csv")]
    told = run(
        app, ["assess", str(folder / "m.zarr"), "--reference", str(points), *(w for o in outs for w in ("-o", str(o)))]
    )
    assert told.exit_code == 0, told.output
    content = json.loads(outs[0].read_text())
    assert content["points"] == 119
    assert content["estimator"].startswith("Olofsson")
    assert any("1 points have no label" in r for r in content["remarks"])
    water = content["per_class"][2]
    exact = ((truth == 2) & (labels < 255)).sum() * 4.0 / 1e4
    assert water["hectares"]["low"] <= exact <= water["hectares"]["high"]
    assert water["user"]["value"] == 1
    assert 0 < content["reliability"]["temperature"] < 1  # 0.8 and 0.4 stand for 1 and 0.85
    assert content["reliability"]["calibrated_error"] < content["reliability"]["error"]
    assert "## Areas with 95 % intervals" in outs[1].read_text()
    assert outs[2].read_text().startswith("measure,class,value,low,high\noverall accuracy,all classes,0.9")
    page = run(app, ["report", str(folder / "m.zarr"), "-o", str(tmp_path / "r.html"), "--accuracy", str(outs[0])])
    assert page.exit_code == 0, page.output
    assert "<h2>Accuracy</h2>" in (tmp_path / "r.html").read_text()
    stats = run(app, ["stats", str(folder / "m.zarr"), "--calibrated", str(outs[0]), "-o", str(tmp_path / "s.csv")])
    assert stats.exit_code == 0, stats.output
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0].endswith('"confidence"')
    assert float(lines[1].rsplit(",", 1)[1]) > 0.9
    export = ["export", str(folder / "m.zarr"), "--confidence", str(tmp_path / "c.tif"), "--calibrated", str(outs[0])]
    assert run(app, export).exit_code == 0
    with rasterio.open(tmp_path / "c.tif") as raster, open_map(folder / "m.zarr") as mapped:
        table_ = table(content["reliability"]["temperature"], 3)
        assert raster.read(1).tolist() == table_[np.asarray(mapped.confidence[:])].tolist()
        assert "temperature" in raster.tags()["OVRS_TREATMENT"]


def test_a_sample_of_another_map_is_stehmans_case(world, tmp_path):
    folder, labels = world
    other = labels.copy()
    other[50:60, 10:] = 1  # the second map has more road
    (tmp_path / "other").mkdir()
    labelled_map(tmp_path / "other", other, NAMES)
    with open_map(folder / "m.zarr") as mapped:
        write_sample(mapped, tmp_path / "p.gpkg", per_class=60)
    frame = geopandas.read_file(tmp_path / "p.gpkg", layer="sample")
    frame["reference"] = frame["stratum"]
    frame.to_file(tmp_path / "p.gpkg", layer="sample", driver="GPKG")
    with open_map(tmp_path / "other/m.zarr") as mapped:
        found = room.assess(mapped, str(tmp_path / "p.gpkg"))
    assert found.estimator.startswith("Stehman")
    truth = (labels[:, 10:] == 0).mean()
    assert found.estimates.classes[0].share.value == pytest.approx(truth, abs=1e-9)
    assert found.estimates.overall.low <= (labels == other)[:, 10:].mean() <= found.estimates.overall.high
    frame["stratum"] = np.where(frame["stratum"] == "water", "road", frame["stratum"])
    frame.to_file(tmp_path / "p.gpkg", layer="sample", driver="GPKG")
    with open_map(folder / "m.zarr") as mapped, pytest.raises(OptionError, match="different sizes"):
        room.assess(mapped, str(tmp_path / "p.gpkg"))


def test_points_without_a_design_give_no_areas_unless_said_random(world, tmp_path):
    folder, labels = world
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 120, 300), rng.integers(0, 100, 300)
    frame = geopandas.GeoDataFrame(
        {"class": [NAMES[labels[r, c]] if labels[r, c] < 3 else "road" for r, c in zip(rows, cols, strict=True)]},
        geometry=geopandas.points_from_xy(500000 + 2 * (cols + 0.5), 5600000 - 2 * (rows + 0.5)),
        crs="EPSG:32633",
    )
    frame.to_file(tmp_path / "p.geojson", driver="GeoJSON")
    with open_map(folder / "m.zarr") as mapped:
        alone = room.assess(mapped, str(tmp_path / "p.geojson"))
        assert alone.estimates.overall.low is None
        assert not alone.estimator
        assert any("tell no design" in r for r in alone.remarks)
        assert "(no data)" in alone.names
        random = room.assess(mapped, str(tmp_path / "p.geojson"), random=True)
    assert random.estimates.overall.value == 1
    assert random.estimates.classes[1].share.value == pytest.approx((labels[:, 10:] == 1).mean())


def test_polygons_and_rasters_are_compared_pixel_by_pixel(world, tmp_path):
    folder, labels = world
    frame = geopandas.GeoDataFrame(
        {"kind": ["building", "road", "water"]},
        geometry=[shapely.box(500040, 5599900, 500080, 5599960), shapely.box(500040, 5599840, 500080, 5599900),
                  shapely.box(500060, 5599840, 500080, 5599860)],
        crs="EPSG:32633",
    )  # fmt: skip
    frame.to_crs("EPSG:3857").to_file(tmp_path / "p.gpkg", driver="GPKG")
    with open_map(folder / "m.zarr") as mapped:
        found = room.assess(mapped, str(tmp_path / "p.gpkg"), field="kind")
        assert found.estimates.matrix[0, 0] == pytest.approx(400 / (400 + 600 + 100 - 100 - 100), abs=0.2)
        assert any("two classes" in r for r in found.remarks)
        assert found.estimates.overall.low is None
    truth = labels.copy()
    truth[50:60] = 1
    profile = {"driver": "GTiff", "height": 120, "width": 100, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "t.tif", "w", transform=rasterio.transform.from_origin(500000, 5600000, 2, 2), nodata=255, **profile) as target:  # fmt: skip
        target.write(truth, 1)
    with open_map(folder / "m.zarr") as mapped:
        with pytest.raises(OptionError, match="--legend 1=building"):
            room.assess(mapped, str(tmp_path / "t.tif"))
        found = room.assess(mapped, str(tmp_path / "t.tif"), legend="0=building,1=road,2=water")
    assert found.estimates.overall.value == pytest.approx((truth == labels)[:, 10:].mean())
    assert found.estimates.classes[1].iou.value == pytest.approx(
        ((truth == 1) & (labels == 1))[:, 10:].sum() / ((truth == 1) | (labels == 1))[:, 10:].sum()
    )
    assert found.reliability.error == pytest.approx(
        abs(0.8 - (truth == 0)[labels == 0].mean()) * (labels == 0)[:, 10:].mean() + 0.6 * (labels > 0)[:, 10:].mean()
    )


def test_labels_that_no_class_has_are_told(world, tmp_path):
    folder, _ = world
    frame = geopandas.GeoDataFrame(
        {"class": ["bulding", "road", "pool"]},
        geometry=geopandas.points_from_xy([500040, 500041, 500050], [5599960, 5599840, 5599900]),
        crs="EPSG:32633",
    )
    frame.to_file(tmp_path / "p.geojson", driver="GeoJSON")
    with open_map(folder / "m.zarr") as mapped:
        found = room.assess(mapped, str(tmp_path / "p.geojson"))
        assert any("'bulding'; is 'building' meant?" in r for r in found.remarks)
        assert found.names[3:] == ("bulding", "pool")
        frame["class"] = "nothing known"
        frame.to_file(tmp_path / "p.geojson", driver="GeoJSON")
        with pytest.raises(OptionError, match="none of its labels"):
            room.assess(mapped, str(tmp_path / "p.geojson"))


def test_a_temperature_makes_confidence_honest():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.2, 0.6, 4000)
    right = rng.random(4000) < tempered(p, 0.4, 6)
    found = reliability.measure(p, right.astype(float), np.ones(4000), 6, points=True)
    assert found.temperature == pytest.approx(0.4, rel=0.08)
    assert found.calibrated_error < 0.03 < found.error
    assert tempered(np.array([1 / 6]), 0.4, 6) == pytest.approx(1 / 6)
    assert table(1.0, 6).tolist() == list(range(256))
    few = reliability.measure(p[:20], right[:20].astype(float), np.ones(20), 6, points=True)
    assert few.temperature is None
