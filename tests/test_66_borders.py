"""The figure for straight borders: what it counts, and what chance gives."""

import numpy as np
import pytest

from benchmarks.borders import measure, overlaps, straight


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).parents[1])


def test_runs_of_one_pair_of_classes_are_counted():
    labels = np.zeros((60, 80), np.uint8)
    labels[:30, 40:] = 1
    labels[30:50, 40:] = 2
    labels[50:, 70:] = 255
    found = straight(labels, 1, 25)
    assert found[40] == 30  # the run of 20 beside class 2 is too short, no data does not count
    assert found.sum() == 30
    assert straight(labels, 0, 25)[30] == 40


def test_overlaps_are_where_windows_change_hands():
    inside = overlaps(256, 96, 80)
    assert np.flatnonzero(inside).tolist() == [*range(80, 97), *range(160, 177)]


def test_borders_of_windows_are_beyond_chance_and_others_are_not():
    rng = np.random.default_rng(0)
    windows = np.repeat(np.repeat(rng.integers(0, 5, (10, 10)), 80, 0), 80, 1)[8:, 8:].astype(np.uint8)
    shown = measure(np.pad(windows, ((88, 0), (88, 0)), mode="edge")[:800, :800], 96, 80)
    assert shown.on == 1.0
    assert not shown.by_chance
    other = np.zeros((800, 800), np.uint8)
    for value in range(1, 200):
        y, x = rng.integers(0, 760, 2)
        h, w = rng.integers(25, 90, 2)
        other[y : y + h, x : x + w] = value % 7
    assert measure(other, 96, 80).by_chance
