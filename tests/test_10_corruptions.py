"""Corruptions: repeatable, stronger with severity, and each what it says."""

import numpy as np
import pytest

from ovrs.bench.corruptions import CORRUPTIONS, corrupt
from ovrs.demo.synth import World
from ovrs.errors import OptionError


@pytest.fixture(scope="module")
def image():
    return np.ascontiguousarray(np.moveaxis(World(seed=5, gsd=0.5).render(0, 0, 120, 150)[0], 0, -1))


def test_there_are_fifteen():
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption(image, name):
    before = image.copy()
    out = {severity: corrupt(image, name, severity, seed=3) for severity in (1, 3, 5)}
    assert np.array_equal(image, before)
    for severity, found in out.items():
        assert found.shape == image.shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, corrupt(image, name, severity, seed=3))
    off = {s: np.abs(f.astype(int) - image).mean() for s, f in out.items()}
    assert off[1] > 0.5
    assert off[5] > 1.0
    if name not in ("elastic_transform", "snow", "frost", "fog"):  # their severities trade one effect for another
        assert off[5] > off[1]


def test_known_values(image):
    noise = corrupt(np.full((200, 200, 3), 128, np.uint8), "gaussian_noise", 1, 0)
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.05)
    hit = corrupt(np.full((200, 200, 3), 128, np.uint8), "impulse_noise", 5, 0) != 128
    assert hit.mean() == pytest.approx(0.27, abs=0.01)
    flat = corrupt(image, "contrast", 5, 0).reshape(-1, 3).std(0)
    np.testing.assert_allclose(flat, 0.05 * image.reshape(-1, 3).std(0), atol=0.5)
    bright = corrupt(np.full((40, 40, 3), (100, 50, 0), np.uint8), "brightness", 1, 0)[0, 0]
    np.testing.assert_allclose(bright, [125, 62, 0], atol=1)
    blocks = corrupt(np.ascontiguousarray(image[:120, :120]), "pixelate", 5, 0)
    assert (blocks[:4, :4] == blocks[0, 0]).all()


def test_blurs_keep_the_mean(image):
    for name in ("defocus_blur", "glass_blur", "motion_blur"):
        assert corrupt(image, name, 5, 1).mean() == pytest.approx(image.mean(), abs=3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("magic", 1), "choose one of"), (("fog", 6), "between 1 and 5"), (("fog", 0), "between 1 and 5")],
)
def test_wrong_requests_are_named(image, arguments, told):
    with pytest.raises(OptionError, match=told):
        corrupt(image, *arguments, 0)
    with pytest.raises(OptionError, match="at least 32"):
        corrupt(image[:20], "fog", 1, 0)
