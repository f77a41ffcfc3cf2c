"""Examples: where they lie, what they teach, and what a run keeps of them."""

import geopandas
import numpy as np
import pytest
import shapely
import torch
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin
from typer.testing import CliRunner

from ovrs import options, pipeline
from ovrs.cli.app import app
from ovrs.errors import DigestMismatchError, OptionError
from ovrs.model.adapt.taught import Examples, TeachSettings, teach
from ovrs.model.clip.text import TextBank
from ovrs.run.again import taught_request
from ovrs.scene.examples import read_examples
from ovrs.store.map import open_map
from ovrs.words import vocabulary

BOX = GeoBox((80, 100), from_origin(500000, 5600000, 2, 2), "EPSG:32633")
NAMES = ("building", "road")


def write_points(path, rows, cols, classes, crs="EPSG:32633", field="class"):
    frame = geopandas.GeoDataFrame(
        {field: classes},
        geometry=geopandas.points_from_xy(500000 + 2 * (np.array(cols) + 0.5), 5600000 - 2 * (np.array(rows) + 0.5)),
        crs="EPSG:32633",
    )
    frame.to_crs(crs).to_file(path, driver="GPKG")
    return path


def test_points_and_polygons_become_pixels(tmp_path):
    file = write_points(
        tmp_path / "p.gpkg", [3, 40, 79, 500], [5, 50, 99, 2], ["Road", "building", "road", "road"], "EPSG:4326"
    )
    found = read_examples(BOX, file, NAMES)
    assert found.rows.tolist() == [3, 40, 79]  # the last one lies beside the map
    assert found.cols.tolist() == [5, 50, 99]
    assert found.labels.tolist() == [1, 0, 1]
    frame = geopandas.GeoDataFrame(
        {"what": ["road", "building"]},
        geometry=[shapely.box(500020, 5599940, 500060, 5599980), shapely.box(500101, 5599901, 500101.5, 5599901.5)],
        crs="EPSG:32633",
    )
    frame.to_file(tmp_path / "q.gpkg", driver="GPKG")
    found = read_examples(BOX, tmp_path / "q.gpkg", NAMES)
    assert 9 <= (found.labels == 1).sum() <= 25
    inside = found.labels == 1
    assert (found.rows[inside] >= 10).all()
    assert (found.rows[inside] < 30).all()
    assert (found.labels == 0).sum() == 1
    assert found.features.tolist() == sorted(found.features.tolist())


@pytest.mark.parametrize(
    ("classes", "field", "message"),
    [
        (["road", "sausage"], "class", "'sausage' in attribute 'class' is no class of the map"),
        ([None, None], "class", "no example with a class"),
    ],
)
def test_examples_that_can_not_be_used_are_refused(tmp_path, classes, field, message):
    file = write_points(tmp_path / "p.gpkg", [3, 4], [5, 6], classes, field=field)
    with pytest.raises(OptionError, match=message):
        read_examples(BOX, file, NAMES)
    far = GeoBox((80, 100), from_origin(600000, 5600000, 2, 2), "EPSG:32633")
    with pytest.raises(OptionError, match=message if "sausage" in message else "no example"):
        read_examples(far, file, NAMES)


def scene_of(seed=0, count=3000, dim=24):
    """Patches of three classes, and a text that knows one of them badly."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(3, dim, generator=rng), dim=1)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), count, replacement=True, generator=rng)
    patches = torch.nn.functional.normalize(centres[labels] + 0.28 * torch.randn(count, dim, generator=rng), dim=1)
    text = centres.clone()
    text[1] *= 0.1
    return patches, labels, text


def accuracy(patches, labels, text, offsets, scale=30.0):
    guess = (scale * patches @ text.T + offsets).argmax(dim=1)
    return [float((guess[labels == c] == c).float().mean()) for c in range(3)]


def test_examples_mend_a_class_that_the_text_misses():
    patches, labels, text = scene_of()
    bank = TextBank(text, torch.arange(3), 3)
    chosen = torch.cat([torch.nonzero(labels == c)[:10, 0] for c in range(3)])
    regions = torch.arange(len(chosen)) % 10
    found = teach(text, bank, patches, Examples(patches[chosen], labels[chosen], regions), TeachSettings(), 30.0)
    assert found.event == "taught"
    before, after = accuracy(patches, labels, text, 0), accuracy(patches, labels, found.text, found.offsets)
    assert before[1] < 0.8
    assert after[1] > before[1] + 0.1
    assert min(after) > 0.85


def test_examples_that_teach_nothing_change_nothing():
    patches, labels, _ = scene_of(1)
    patches = torch.nn.functional.normalize(patches + torch.eye(24)[labels], dim=1)  # classes far apart
    centres = torch.stack([patches[labels == c].mean(dim=0) for c in range(3)])
    text = torch.nn.functional.normalize(centres, dim=1)
    bank = TextBank(text, torch.arange(3), 3)
    chosen = torch.cat([torch.nonzero(labels == c)[:10, 0] for c in range(3)])
    found = teach(
        text, bank, patches, Examples(patches[chosen], labels[chosen], torch.arange(30)), TeachSettings(), 30.0
    )
    assert found.event == "no_gain"
    assert torch.equal(found.text, text)
    one = Examples(patches[chosen], labels[chosen], torch.zeros(30, dtype=torch.long))
    assert teach(text, bank, patches, one, TeachSettings(), 30.0).event == "one_region"
    same = Examples(patches[:5], torch.zeros(5, dtype=torch.long), torch.arange(5))
    assert teach(text, bank, patches, same, TeachSettings(), 30.0).event == "one_class"


def test_a_class_that_the_text_loses_weighs_by_what_was_taught():
    """Most of the scene is class 0, and the text calls it class 2: what the calibration finds of class 0 is no measure of it.

    Of class 2 there are examples elsewhere in the features, as tracks beside fields are bare soil, too.
    """
    rng = torch.Generator().manual_seed(3)
    centres = torch.nn.functional.normalize(torch.randn(3, 24, generator=rng), dim=-1)
    labels = torch.multinomial(torch.tensor([0.55, 0.4, 0.05]), 3000, replacement=True, generator=rng)
    patches = torch.nn.functional.normalize(centres[labels] + 0.28 * torch.randn(3000, 24, generator=rng), dim=-1)
    text = torch.stack([0.5 * centres[0], centres[1], 0.8 * centres[0] + 0.3 * centres[2]])
    rows = torch.cat([(labels == c).nonzero().flatten()[: (10, 10, 6)[c]] for c in range(3)])
    examples = Examples(patches[rows], labels[rows], torch.arange(len(rows)) % 8)
    bank = TextBank(text, torch.arange(3), 3)
    assert accuracy(patches, labels, text, torch.zeros(3))[0] < 0.05
    found = {}
    for lost in (0.0, TeachSettings().lost):
        taught = teach(text, bank, patches, examples, TeachSettings(lost=lost), 30.0)
        assert taught.event == "taught"
        found[lost] = accuracy(patches, labels, taught.text, taught.offsets)
    by_calibration, by_taught = found.values()
    assert by_calibration[0] < 0.4
    assert by_taught[0] > 0.75
    assert min(by_taught[1:]) > 0.8


def test_teaching_is_done_once_where_the_text_knows_every_class():
    patches, labels, text = scene_of()
    text[1] *= 6  # as long as before: known
    rows = torch.cat([(labels == c).nonzero().flatten()[:10] for c in range(3)])
    examples = Examples(patches[rows], labels[rows], torch.arange(len(rows)) % 10)
    bank = TextBank(text, torch.arange(3), 3)
    once, again = (teach(text, bank, patches, examples, TeachSettings(rounds=r), 30.0) for r in (0, 2))
    torch.testing.assert_close(once.text, again.text)
    torch.testing.assert_close(once.offsets, again.offsets)


def chosen(folder, **method):
    return options.build(model={"model": str(folder)}, method=method, run={"block_pitches": 1})


@pytest.mark.parametrize("method", [{"method": "none"}, {"method": "tmpa"}, {"method": "tmpa", "adaptation": "tile"}])
def test_a_run_is_taught_once_and_says_so(directory, noise_scene, tmp_path, method):
    scene = noise_scene(150, 170)
    words = vocabulary.from_names(NAMES)
    pipeline.map_scene(scene, words, tmp_path / "a.zarr", chosen(directory, **method))
    with open_map(tmp_path / "a.zarr") as mapped:
        plain = np.asarray(mapped.label[:])
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(5, 145, 24), rng.integers(5, 165, 24)
    bright = np.asarray([(r + c) % 2 for r, c in zip(rows, cols, strict=True)])
    frame = geopandas.GeoDataFrame(
        {"class": [NAMES[b] for b in bright]},
        geometry=geopandas.points_from_xy(500000 + 0.5 * (cols + 0.5), 5600000 - 0.5 * (rows + 0.5)),
        crs="EPSG:32633",
    )
    frame.to_file(tmp_path / "p.gpkg", driver="GPKG")
    request = taught_request(tmp_path / "a.zarr", tmp_path / "p.gpkg", tmp_path / "b.zarr")
    facts = pipeline.map(request)
    assert facts["scene_adaptation"]["taught"]["places"] == 24
    assert facts["scene_adaptation"]["taught"]["event"] in ("taught", "no_gain")
    assert "examples" in facts["digest"]
    with open_map(tmp_path / "b.zarr") as mapped:
        same = (np.asarray(mapped.label[:]) == plain).mean()
    assert (same == 1) == (facts["scene_adaptation"]["taught"]["event"] == "no_gain")
    frame["class"] = frame["class"].iloc[::-1].to_numpy()
    frame.to_file(tmp_path / "p.gpkg", driver="GPKG")
    with pytest.raises(DigestMismatchError):
        pipeline.map(request)  # other examples are another run


def test_what_can_not_be_taught_is_refused(noise_scene, tmp_path, trivial):
    scene = noise_scene(80, 80)
    file = write_points(tmp_path / "p.gpkg", [3, 4], [5, 6], ["road", "building"])
    words = vocabulary.from_names(NAMES)
    taught = options.build(model={"model": "trivial"}, method={"examples": str(file)}, run={"block_pitches": 1})
    with pytest.raises(OptionError, match="only methods on CLIP"):
        pipeline.map_scene(scene, words, tmp_path / "a.zarr", taught)
    pipeline.map_scene(scene, words, tmp_path / "a.zarr", trivial())
    done = CliRunner().invoke(
        app, ["teach", str(tmp_path / "a.zarr"), "--examples", str(file), "-o", str(tmp_path / "a.zarr")]
    )
    assert isinstance(done.exception, OptionError)
    assert "the map itself" in str(done.exception)
