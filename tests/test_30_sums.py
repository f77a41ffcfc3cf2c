"""Windows into a tile: by matrices as by window, for every layout of windows that there is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovrs.engine.tiling import crop_starts, ramp_weights, taper
from ovrs.model.clip import sums
from ovrs.model.clip.features import TileFeatures
from ovrs.model.clip.head import STRIP_BYTES, class_scores, class_scores_of_sums
from ovrs.model.clip.text import TextBank
from ovrs.model.clip.upsample import Bilinear, on_pixels
from ovrs.scene.grid import Window

D = 8
LAYOUTS = {
    # tile, crop, stride, grid of patches, padding, what of the input shows the crop, input
    "straight": ((104, 104), (32, 32), 24, (4, 4), (0, 0), (64, 64), (64, 64)),
    "moved back": ((61, 70), (32, 32), 24, (4, 4), (0, 0), (32, 32), (32, 32)),
    "padded": ((62, 104), (32, 40), 24, (4, 5), (3, 0), (58, 80), (64, 80)),
    "padded, not enlarged": ((90, 30), (30, 30), 20, (2, 2), (1, 1), (30, 30), (32, 32)),
    "one window": ((20, 33), (20, 33), 24, (2, 3), (6, 0), (20, 48), (32, 48)),
}


def layer(name, seed=0, tiles=1, own_text=False, ramp=8):
    shape, crop, stride, grid, pad, inner, seen = LAYOUTS[name]
    crops = tuple(
        Window(r, c, *crop)
        for r in crop_starts(shape[0], crop[0], stride)
        for c in crop_starts(shape[1], crop[1], stride)
    )
    generator = torch.Generator().manual_seed(seed)
    count, patches = len(crops) * tiles, grid[0] * grid[1]
    unit = [F.normalize(torch.randn(*s, D, generator=generator), dim=-1) for s in ((count, patches), (count,), (5,))]
    part = TileFeatures(
        patches=unit[0],
        cls=unit[1],
        grid=grid,
        pad=pad,
        inner=inner,
        crops=crops,
        shape=shape,
        patch_valid=torch.ones(count, patches, dtype=torch.bool),
        valid=torch.ones(shape, dtype=torch.bool),
        images=torch.zeros(count, 3, *seen),
        lengths=torch.ones(count, patches),
    )
    text = unit[2] if not own_text else unit[2] + 0.1 * torch.randn(count, 5, D, generator=generator)
    return sums.Layer(part, text, unit[2] if not own_text else text, ramp)


def both(scales, tiles=1):
    """Sums by matrices and by window."""

    def low(found):
        return Bilinear().scores(found.part, found.text, found.base_text, -0.3)

    by_window = sums.by_window(scales, tiles, lambda found: on_pixels(found.part, low(found)))
    return sums.by_matrices(scales, tiles, low), by_window


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ramp", [0, 8])
@pytest.mark.parametrize(("tiles", "own_text"), [(1, False), (1, True), (3, False), (3, True)])
def test_matrices_sum_as_windows_one_by_one_do(name, ramp, tiles, own_text):
    (total, weights), (want, want_weights) = both([[layer(name, tiles=tiles, own_text=own_text, ramp=ramp)]], tiles)
    torch.testing.assert_close(total, want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(weights, want_weights)


def test_scales_are_averaged_at_the_weights_of_the_crops():
    fine = layer("straight")
    wide = replace(
        layer("straight", seed=1).part, crops=tuple(Window(r, c, 56, 56) for r in (0, 24, 48) for c in (0, 24, 48))
    )
    wide = replace(wide, patches=wide.patches[:9], cls=wide.cls[:9], images=wide.images[:9])
    (total, weights), (want, want_weights) = both([[fine], [sums.Layer(wide, fine.text, fine.base_text, 28)]])
    torch.testing.assert_close(total, want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(weights, want_weights)
    alone = both([[fine]])[0][0]
    assert (total - alone).abs().max() > 0.01


def test_windows_in_any_order_find_their_place():
    """Images that are adapted together stand side by side in a tile; their windows come image after image."""
    found = layer("straight")
    order = np.random.default_rng(0).permutation(len(found.part.crops)).tolist()
    part = replace(found.part, crops=tuple(found.part.crops[i] for i in order))
    other = sums.Layer(part, found.text, found.base_text, 8)
    (total, _), (want, _) = both([[other]])
    torch.testing.assert_close(total, want, atol=2e-6, rtol=1e-5)
    assert (total - both([[found]])[0][0]).abs().max() > 0.01


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 5, 10)])
def test_windows_that_form_no_grid_are_summed_one_by_one(kept):
    found = layer("straight")
    part = replace(
        found.part,
        crops=tuple(found.part.crops[i] for i in kept)
        if kept[1] == 5
        else (*found.part.crops[:2], found.part.crops[4]),
        patches=found.part.patches[:3],
        cls=found.part.cls[:3],
        images=found.part.images[:3],
    )
    other = sums.Layer(part, found.text, found.base_text, 0)
    by_matrices, (want, want_weights) = both([[other]])
    assert by_matrices is None
    total, weights = Bilinear().sums([[other]], 1, -0.3)
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(weights, want_weights)


def test_layers_of_one_scale_that_are_of_two_shapes_are_summed_one_by_one():
    pair = [layer("straight"), layer("straight", seed=1)]
    by_matrices, (want, _) = both([[layer("straight")], pair])
    assert by_matrices is None
    torch.testing.assert_close(Bilinear().sums([[layer("straight")], pair], 1, -0.3)[0], want)


def test_weights_of_a_window_are_those_of_its_sides():
    window = Window(0, 0, 40, 23)
    np.testing.assert_array_equal(
        taper(window, 9), np.outer(ramp_weights(40, 9), ramp_weights(23, 9)).astype(np.float32)
    )


@pytest.mark.parametrize("max_share", [1.0, 0.4, 0.0])
def test_scores_of_strips_are_scores_of_the_whole(max_share):
    """A softmax over all queries, the maximum or the mean of each class; no strip knows of another."""
    generator = torch.Generator().manual_seed(0)
    height, width = 2 * STRIP_BYTES // (4 * 6 * 700) + 3, 700
    total, weights = (
        torch.randn(6, height, width, generator=generator),
        torch.rand(height, width, generator=generator) + 0.5,
    )
    bank = TextBank(torch.zeros(6, D), torch.tensor([0, 0, 0, 1, 2, 2]), 3)
    chance = (50 * total / weights).softmax(0)
    want = torch.stack(
        [max_share * g.amax(0) + (1 - max_share) * g.mean(0) for g in (chance[:3], chance[3:4], chance[4:])]
    )
    torch.testing.assert_close(class_scores_of_sums(total, weights, bank, 50.0, max_share), want, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(class_scores(total / weights, bank, 50.0, max_share), want, atol=2e-6, rtol=1e-4)
    extreme = class_scores(torch.tensor([1e4, 0, -1e4, 1e4, 0, 0])[:, None], bank, 50.0)
    assert torch.isfinite(extreme).all()
