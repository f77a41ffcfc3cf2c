"""Generated bad inputs of every kind: refused in one line with a documented exit code, nothing left behind, no hang.

A sample runs with the other tests; `make test-bad` runs all. A case is made from its kind and number alone.
"""

import random
import shutil

import pytest
from bad_inputs import options, places, runner, stores, words

KINDS = {
    "vocabulary": (words.vocabulary, 320, 24),
    "classes": (words.class_list, 40, 6),
    "catalog": (words.catalog, 320, 24),
    "area": (places.area, 270, 20),
    "store": (stores.store, 320, 0),
    "model": (stores.model, 110, 0),
    "option": (options.option, 260, 0),
    "header": (options.header, 220, 0),
}
"""Maker, number of cases in all, number of them that run with the other tests."""

ALL = [(kind, number) for kind, (_, count, _) in KINDS.items() for number in range(count)]
SAMPLE = [(kind, number) for kind, (_, _, few) in KINDS.items() for number in range(1000, 1000 + few)]


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """What cases damage: a scene and what was made of it. Copied for each case."""
    return places.make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def maps(material):
    """A finished and an unfinished map of the scene, and a tiny model directory."""
    return places.make_maps(material)


def judge(kind, number, material, tmp_path):
    maker, rng = KINDS[kind][0], random.Random(f"{kind} {number}")
    folder = tmp_path / "case"
    shutil.copytree(material / "scene", folder)
    if (material / "maps").exists():
        (tmp_path / "maps").symlink_to(material / "maps")
    case = maker(rng, folder)
    outcome = runner.run(case, folder)
    told = runner.complaint(case, outcome)
    assert not told, f"{kind} {number}: {case.about}\novrs {' '.join(case.arguments)!r}\n{told}"


@pytest.mark.parametrize(("kind", "number"), SAMPLE)
def test_a_sample_of_bad_inputs_is_refused(kind, number, material, tmp_path):
    judge(kind, number, material, tmp_path)


@pytest.mark.bad
@pytest.mark.parametrize(("kind", "number"), ALL)
def test_every_bad_input_is_refused(kind, number, material, maps, tmp_path):
    judge(kind, number, material, tmp_path)
