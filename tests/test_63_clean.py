"""The second decision: majority, minimum mapping unit, right-angled outlines, changes between two maps."""

import numpy as np
import pytest
import rasterio
from conftest import labelled_map
from scipy import ndimage

from ovrs.clean.cleaning import Cleaning, area_of
from ovrs.clean.regions import Regions
from ovrs.clean.stage import cleaned
from ovrs.errors import OptionError
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
    for block in (64, 37):
        np.testing.assert_array_equal(result(folder, cleaning, block)[0], whole)


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
