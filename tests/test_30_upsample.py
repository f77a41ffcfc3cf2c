"""Scores through the upsampler equal the cosines of upsampled features; refinement and CASS by their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from test_30_golden import tile_features

from ovrs.engine.contract import TileScores
from ovrs.errors import WeightsError
from ovrs.methods.clip import FrozenClip
from ovrs.model.adapt import cass
from ovrs.model.clip.jbu import apply_kernel, correlate
from ovrs.model.clip.refine import Refined, drop_small, pamr
from ovrs.model.clip.upsample import JointBilateral, load_jbu

CPU = torch.device("cpu")


def laid_out(taps):
    """`(B, Δ², H, W)` as the strips want it."""
    return F.pad(taps, (0, -taps.shape[-1] % 16)).permute(0, 2, 3, 1).contiguous()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(6, 40), st.integers(6, 40), st.integers(1, 5))
def test_neighbourhood_products_equal_a_loop(channels, height, width, radius):
    torch.manual_seed(height * 100 + width)
    x = torch.randn(2, channels, height, width)
    padded = F.pad(x, (radius,) * 4, mode="reflect")
    offsets = [(i, j) for i in range(2 * radius + 1) for j in range(2 * radius + 1)]
    around = [padded[..., i : i + height, j : j + width] for i, j in offsets]
    want = torch.stack([(x * a).sum(1) for a in around], 1)
    found = correlate(x, radius)[:, :, :width].permute(0, 3, 1, 2)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    taps = torch.randn(2, len(offsets), height, width)
    want = sum(taps[:, n : n + 1] * a for n, a in enumerate(around))
    torch.testing.assert_close(apply_kernel(x, laid_out(taps), radius), want, atol=1e-3, rtol=1e-4)


@pytest.fixture(scope="module")
def net():
    return load_jbu("jbu_one", DATA / "jbu_one.safetensors", 32, CPU).eval()


@pytest.fixture(scope="module")
def features(golden, tiny_clip):
    return tile_features(tiny_clip, golden["img150x130"][0], 96, 48)


def test_scores_equal_cosines_of_upsampled_features(net, features, golden):
    text = torch.from_numpy(golden["queries_avg80"])
    raw = (features.patches * features.lengths[..., None]).transpose(1, 2).unflatten(-1, features.grid)
    with torch.no_grad():
        full = F.normalize(net(raw, features.images), dim=1)
        want = torch.einsum("md,bdhw->bmhw", text, full)
        found = JointBilateral(net)(features, text, text, 0.0)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
    assert (found.argmax(1) == want.argmax(1)).float().mean() >= 0.9999


def test_a_low_rank_changes_lengths_only_a_little(net, features, golden):
    """The label of a pixel does not depend on its length at all; the cosine does, by what the basis leaves out."""
    text = torch.from_numpy(golden["queries_avg80"])
    with torch.no_grad():
        full, low = (JointBilateral(net, rank)(features, text, text, 0.0) for rank in (None, 16))
    assert (full.argmax(1) == low.argmax(1)).float().mean() >= 0.9999
    assert (full - low).abs().max() < 0.1


def test_gradients_reach_the_text(net, features, golden):
    text = torch.from_numpy(golden["queries_avg80"]).requires_grad_(True)
    JointBilateral(net)(features, text, text, 0.0)[:, 0].mean().backward()
    assert text.grad[0].abs().max() > 1e-3
    assert text.grad[1:].abs().max() == 0


def test_odd_crops_are_cut_back(net, golden, tiny_clip):
    from ovrs.model.clip.inputs import CropInputs
    from ovrs.scene.grid import Window

    images = F.pad(torch.from_numpy(golden["img150x130"][:, :, :90, :93]), (1, 2, 3, 3))
    inputs = CropInputs(
        images,
        (3, 1),
        (90, 93),
        (Window(0, 0, 90, 93),),
        torch.ones(90, 93, dtype=torch.bool),
        torch.ones_like(images[:, :1]),
    )
    features = inputs.features(torch.randn(1, 36, 32), torch.randn(1, 32), (6, 6))
    with torch.no_grad():
        assert JointBilateral(net)(features, torch.eye(32)[:3], torch.eye(32)[:3], -0.3).shape == (1, 3, 90, 93)


def test_too_small_a_grid_is_refused(net):
    with pytest.raises(ValueError, match="more than 5 pixels"):
        net(torch.zeros(1, 32, 2, 2), torch.zeros(1, 3, 32, 32))


def test_wrong_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no file"):
        load_jbu("jbu_one", tmp_path / "absent.ckpt", 32, CPU)
    with pytest.raises(WeightsError, match="its own have 32"):
        load_jbu("jbu_one", DATA / "jbu_one.safetensors", 512, CPU)
    with pytest.raises(WeightsError, match="no jbu_one"):
        load_jbu("jbu_one", DATA / "jbu_stack.safetensors", 32, CPU)


def test_a_published_checkpoint_has_a_prefix_and_never_runs_code(tmp_path, net):
    torch.save({"state_dict": {f"upsampler.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "good.ckpt")
    again = load_jbu("jbu_one", tmp_path / "good.ckpt", 32, CPU)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())

    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state_dict": Trap()}, tmp_path / "bad.ckpt")
    with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
        load_jbu("jbu_one", tmp_path / "bad.ckpt", 32, CPU)


def test_pamr_follows_edges_and_keeps_flat_maps():
    """Two flat halves: scores move within a half, hardly across its edge; a constant map stays what it is."""
    image = torch.zeros(1, 3, 48, 48)
    image[..., 24:] = 1.0
    maps = torch.rand(1, 2, 48, 48)
    maps[..., 24:] += 5
    out = pamr(maps, image, 10)
    assert out[..., :24].max() < 1.2
    assert out[..., 24:].min() > 4.8
    assert out[..., :24].std() < 0.5 * maps[..., :24].std()
    torch.testing.assert_close(pamr(torch.full((1, 1, 48, 48), 0.3), image, 3), torch.full((1, 1, 48, 48), 0.3))


def test_pamr_step_equals_its_definition_at_one_pixel():
    torch.manual_seed(0)
    image, maps = torch.rand(1, 3, 40, 40), torch.rand(1, 1, 40, 40)
    y = x = 20
    ring = [(dy * d, dx * d) for d in (8, 16) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    near = np.array([image[0, :, y + i, x + j].numpy() for i, j in ring])
    spread = near.std(0, ddof=1)
    others = [(i, j) for i, j in ring if (i, j) != (0, 0)]
    k = np.array(
        [
            -(np.abs(image[0, :, y, x].numpy() - image[0, :, y + i, x + j].numpy()) / (1e-8 + 0.1 * spread)).mean()
            for i, j in others
        ]
    )
    w = np.exp(k - k.max()) / np.exp(k - k.max()).sum()
    want = sum(wi * float(maps[0, 0, y + i, x + j]) for wi, (i, j) in zip(w, others, strict=True))
    assert float(pamr(maps, image, 1)[0, 0, y, x]) == pytest.approx(want, abs=1e-6)


def test_small_classes_are_dropped_but_not_the_background():
    scores = torch.zeros(3, 10, 10)
    scores[0, :5], scores[1, 5:9], scores[2, 9:] = 0.9, 0.8, 0.7
    scores[1, 9:] = 0.5
    everywhere = np.ones((10, 10), bool)
    kept = drop_small(scores, everywhere, 0.3, 0)
    assert kept[2].max() == 0
    assert torch.equal(kept[:2], scores[:2])
    assert torch.equal(drop_small(scores, everywhere, 0.1, 0), scores)
    assert torch.equal(drop_small(scores, everywhere, 1.0, None), scores)  # nothing would be left


def test_refined_wraps_any_segmenter():
    from ovrs.engine.testing import ColourSegmenter
    from ovrs.engine.tiling import TileGeometry

    inner = ColourSegmenter(3, TileGeometry(crop=32, stride=16))
    refined = Refined(inner, FrozenClip(pamr=2))
    rgb, valid = np.random.default_rng(0).integers(0, 255, (3, 80, 80), dtype=np.uint8), np.ones((80, 80), bool)
    from ovrs.scene.grid import Window

    crops = tuple(Window(r, c, 32, 32) for r in (0, 16, 32, 48) for c in (0, 16, 32, 48))
    before, after = inner.segment(rgb, valid, crops), refined.segment(rgb, valid, crops)
    assert isinstance(after, TileScores)
    assert after.scores.shape == before.scores.shape
    assert after.scores.std() < before.scores.std()
    assert refined.describe()["pamr"] == 2


def test_cass_pairs_dissimilar_heads():
    spectra = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    pairs = cass.pair_heads(spectra, spectra)
    assert sorted(p[:2] for p in pairs) == [(0, 1), (1, 0)]
    assert all(p[2] == 2 for p in pairs)


def test_cass_text_moves_one_class_per_cluster():
    text = F.normalize(torch.tensor([[1.0, 0.1, 0, 0], [1.0, 0.12, 0, 0], [0, 0, 1.0, 0]]), dim=-1)
    clusters = cass.cluster_classes(text, 0.1)
    assert clusters[0] == clusters[1] != clusters[2]
    patches = F.normalize(torch.tensor([[0.9, 0.5, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 0.5, 0.5]]), dim=-1)
    cls = F.normalize(torch.tensor([0.9, 0.4, 0.2, 0.0]), dim=0)
    moved = cass.move_text(text, patches, cls, clusters, 0.05)
    assert torch.equal(moved[0], text[0])  # its neighbour is more like the image
    toward = F.normalize(patches[:2].mean(0), dim=0)
    torch.testing.assert_close(moved[1], F.normalize(0.95 * text[1] + 0.05 * toward, dim=0))


def test_cass_features_repeat_and_keep_shape(tiny_clip, golden):
    torch.manual_seed(0)
    keys = torch.randn(1, 80, 128)
    image = torch.from_numpy(golden["img80x112"])
    with torch.no_grad():
        first, second = (cass.cass_tokens(tiny_clip.visual, image, keys, (8, 10)) for _ in range(2))
        swapped = cass.cass_tokens(tiny_clip.visual, image, keys, (8, 10), swapped=True)
    assert first.patches.shape == (1, 35, 32)
    assert torch.equal(first.patches, second.patches)
    assert torch.isfinite(swapped.patches).all()
