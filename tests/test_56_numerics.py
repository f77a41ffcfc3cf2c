"""`NUMERICS` belongs to the numbers: what small requests score is recorded, and no score changes under the same number."""

import functools

import numpy as np
import pytest
from conftest import write_clip_directory
from data import make_numerics

from ovrs.methods.registry import METHOD_NAMES, SAM3_METHOD_NAMES
from ovrs.model.clip import build as clip_build
from ovrs.provenance import NUMERICS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
OFF, SHARE = 1, 0.01
"""Machines differ in the last bit and optimisers blow that up: at most this share of scores (0 to 200) is off by more."""
AGAIN = "raise NUMERICS in ovrs/provenance.py and record again: PYTHONPATH=.:tests python tests/data/make_numerics.py"


@pytest.fixture(scope="module")
def record():
    with np.load(make_numerics.RECORD) as kept:
        return dict(kept)


@pytest.fixture(scope="module")
def scores(tiny_clip, tmp_path_factory):
    """What one request scores now."""
    root, folder = (tmp_path_factory.mktemp(name) for name in ("scores", "tiny"))
    write_clip_directory(tiny_clip, folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(clip_build, "load", functools.cache(clip_build.load))
    yield lambda name: make_numerics.scores(root, [name], folder)[name]
    patch.undo()


def differ(found, kept):
    """Share of scores that are off; 1 where one is no data and the other is not."""
    if found.shape != kept.shape or not np.array_equal(found == 255, kept == 255):
        return 1.0
    return float((np.abs(found.astype(int) - kept) > OFF).mean())


@pytest.mark.parametrize("name", make_numerics.requests())
def test_scores_are_those_of_the_number(name, record, scores):
    assert name in record, f"{name} is not recorded: {AGAIN}"
    share = differ(scores(name), record[name])
    assert share <= SHARE, f"{share:.0%} of the scores of {name!r} changed under NUMERICS {NUMERICS}: {AGAIN}"


def test_the_record_is_the_numbers(record):
    assert int(record["number"]) == NUMERICS, f"the record is of another number: {AGAIN}"
    assert set(record) == {"number", *make_numerics.requests()}
    assert set(make_numerics.requests()) >= {*METHOD_NAMES, *SAM3_METHOD_NAMES}


def test_requests_score_differently(record):
    """A record whose entries are alike would hold nothing."""
    names = list(make_numerics.requests())
    for index, name in enumerate(names):
        assert not any(np.array_equal(record[name], record[other]) for other in names[:index]), name


def test_a_change_is_seen(record):
    kept = record["tmpa"]
    changed = np.where(kept == 255, 255, np.minimum(kept + 5, 200)).astype(np.uint8)
    assert differ(changed, kept) > SHARE
    assert differ(kept, kept) == 0
    assert differ(kept[:, 1:], kept) == 1
