"""ConInfer: the equations against a slow literal NumPy form, and what they must satisfy."""

import numpy as np
import pytest
import torch
from conftest import smooth

from ovrs import options, pipeline
from ovrs.engine.contract import FrozenSegmenter
from ovrs.errors import OptionError
from ovrs.model.adapt import coninfer
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.store.map import open_map


def planted(patches=300, dim=24, seed=0, noise=0.35):
    """Unit patches around three directions, unit text that points only roughly at them, and the true class."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = rng.integers(0, 3, patches)
    found = centres[truth] + noise * rng.normal(size=(patches, dim)) / np.sqrt(dim)
    text = centres + 1.2 * rng.normal(size=(3, dim)) / np.sqrt(dim)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return found, text, truth


def literal(f, u, scale, tau, rounds, confident):
    """The equations one number at a time, float64."""
    n, d = f.shape
    k = u.shape[1]
    y = np.empty((n, k))
    for i in range(n):
        e = np.exp(scale * (u[i] - u[i].max()))
        y[i] = e / e.sum()
    mu = np.empty((k, d))
    for c in range(k):
        rows = np.argsort(-y[:, c], kind="stable")[:confident]
        mean = sum(y[i, c] * f[i] for i in rows)
        mu[c] = mean / np.linalg.norm(mean)
    sigma = np.full(d, 1 / d)
    z = np.empty_like(y)
    for turn in range(rounds + 1):
        for i in range(n):
            near = np.array([-0.5 * sum((f[i, j] - mu[c, j]) ** 2 / sigma[j] for j in range(d)) for c in range(k)])
            e = y[i] * np.exp((near - near.max()) / tau)
            z[i] = e / e.sum()
        if turn == rounds:
            return mu, sigma, z
        for c in range(k):
            mean = sum(z[i, c] * f[i] for i in range(n)) / z[:, c].sum()
            mu[c] = mean / np.linalg.norm(mean)
        for j in range(d):
            sigma[j] = sum(z[i, c] * (f[i, j] - mu[c, j]) ** 2 for i in range(n) for c in range(k)) / n
    raise AssertionError


@pytest.mark.parametrize(("tau", "rounds", "confident"), [(50.0, 10, 8), (3.0, 2, 1), (5.0, 0, 8)])
def test_the_equations_equal_a_literal_numpy_form(tau, rounds, confident):
    f, text, _ = planted(40, 12)
    u = f @ text.T
    mu, sigma, z = literal(f, u, 20.0, tau, rounds, confident)
    log_prior = torch.from_numpy(20.0 * u).float().log_softmax(dim=-1)
    mixture, found = coninfer.fit(torch.from_numpy(f).float(), log_prior, tau=tau, rounds=rounds, confident=confident)
    np.testing.assert_allclose(mixture.means, mu, atol=1e-4)
    np.testing.assert_allclose(mixture.variances, sigma, rtol=1e-3)
    np.testing.assert_allclose(found, z, atol=1e-4)


def test_z_is_the_least_of_the_joint_objective():
    """KL(z || y) - Σ z l / τ grows with every small step along the simplex, and the rounds never raise it by much."""
    f, text, _ = planted(60, 12)
    patches = torch.from_numpy(f)
    log_prior = torch.from_numpy(20.0 * f @ text.T).log_softmax(dim=-1)
    mixture = coninfer.first_mixture(patches, log_prior, 8)
    likelihood = coninfer.log_likelihood(patches, mixture)

    def objective(z):
        return float((z * (z.log() - log_prior - likelihood / 5.0)).sum())

    z = coninfer.joined(log_prior, likelihood, 5.0)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.rand(z.shape, generator=rng, dtype=z.dtype)
        other = 0.98 * z + 0.02 * step / step.sum(dim=-1, keepdim=True)
        assert objective(other) > objective(z)


def test_context_corrects_what_the_text_alone_gets_wrong():
    f, text, truth = planted()
    log_prior = torch.from_numpy(30.0 * f @ text.T).float().log_softmax(dim=-1)
    _, z = coninfer.fit(torch.from_numpy(f).float(), log_prior, tau=5.0, rounds=10, confident=8)
    alone, together = ((p.argmax(dim=-1).numpy() == truth).mean() for p in (log_prior, z))
    assert together > alone
    assert together > 0.95


def test_the_order_of_patches_does_not_matter_and_rows_are_distributions():
    f, text, _ = planted(80)
    patches = torch.from_numpy(f)
    log_prior = torch.from_numpy(30.0 * f @ text.T).log_softmax(dim=-1)
    turn = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    _, z = coninfer.fit(patches, log_prior, tau=5.0, rounds=4, confident=8)
    _, turned = coninfer.fit(patches[turn], log_prior[turn], tau=5.0, rounds=4, confident=8)
    torch.testing.assert_close(z[turn], turned)
    torch.testing.assert_close(z.sum(dim=-1), torch.ones(80, dtype=z.dtype))


def test_few_patches_absent_queries_and_equal_patches_stay_finite():
    patches = torch.nn.functional.normalize(torch.ones(2, 6), dim=-1)  # no variance at all
    log_prior = torch.tensor([[0.0, -200.0, -3.0], [0.0, -200.0, -3.0]]).log_softmax(dim=-1)
    mixture, z = coninfer.fit(patches, log_prior, tau=50.0, rounds=10, confident=8)
    assert torch.isfinite(mixture.means).all()
    assert torch.isfinite(mixture.variances).all()
    assert (mixture.variances > 0).all()
    torch.testing.assert_close(mixture.means.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(z, log_prior.exp())  # all Gaussians lie at the same place: the text decides


@pytest.fixture
def build(directory, words):
    def make(**given):
        method = MethodOptions(method="coninfer", gaussian_tau=2.0, **given)
        return build_clip_segmenter(ModelOptions(model=str(directory)), method, words)

    return make


CROPS = tuple(Window(r, c, 64, 64) for r in (0, 32) for c in (0, 32))


def tile(seed=0):
    return smooth(96, 96, seed), np.ones((96, 96), bool), CROPS


def test_a_tile_is_joined_over_its_windows_as_the_equations_say(build):
    """Windows, means over them, softmax over queries and the best query of a class, written out."""
    seg = build(adaptation="tile")
    features = seg.frozen.encode(*tile())
    text, own = seg.frozen.bank.vectors, seg.settings
    low = own.logit_scale * (features.patches @ text.T + own.cls_weight * (features.cls @ text.T)[:, None])
    flat = features.patches.flatten(0, 1), low.log_softmax(dim=-1).flatten(0, 1)
    _, z = coninfer.fit(*flat, tau=2.0, rounds=10, confident=8)
    maps = z.unflatten(0, low.shape[:2]).transpose(1, 2).unflatten(-1, features.grid)
    maps = torch.nn.functional.interpolate(maps, (64, 64), mode="bilinear")
    total, hits = torch.zeros(len(text), 96, 96), torch.zeros(96, 96)
    for crop, values in zip(CROPS, maps, strict=True):
        total[:, crop.row_off : crop.row_end, crop.col_off : crop.col_end] += values
        hits[crop.row_off : crop.row_end, crop.col_off : crop.col_end] += 1
    shares = (5.0 * total / hits).softmax(dim=0)
    wanted = torch.stack([shares[seg.frozen.bank.class_of == c].amax(dim=0) for c in range(6)])
    found = build(adaptation="tile", crop_blend="mean").segment(*tile()).scores
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_scene_is_fitted_to_its_sample_and_then_frozen(build):
    seg = build()
    state = seg.adapt_scene([tile(0), tile(1)])
    assert state["events"].tolist() == ["joined"]
    frozen = seg.with_state(state)
    assert isinstance(frozen, FrozenSegmenter)
    whole = frozen.segment(*tile(2)).scores
    parts = [frozen.evidence(*tile(2)[:2], (crop,)) for crop in CROPS]
    total, weights = (np.sum([p[i] for p in parts], axis=0) for i in (0, 1))
    np.testing.assert_allclose(
        frozen.finish(total / weights).scores, whole, atol=1e-5
    )  # frozen equals the sum of crops
    other = seg.with_state(seg.adapt_scene([tile(3)])).segment(*tile(2)).scores
    assert np.abs(other - whole).max() > 1e-3
    again = seg.with_state(seg.adapt_scene([tile(0), tile(1)])).segment(*tile(2)).scores
    assert np.array_equal(again, whole)


def test_without_a_valid_patch_the_text_alone_decides(build):
    seg = build()
    rgb, valid, crops = tile()
    nothing = seg.adapt_scene([(rgb, np.zeros_like(valid), crops)])
    assert nothing["events"].tolist() == ["no_valid_patch"]
    assert np.isfinite(seg.with_state(nothing).segment(rgb, valid, crops).scores).all()
    assert seg.with_state(seg.adapt_scene([])).segment(rgb, valid, crops).scores.shape == (6, 96, 96)


def test_an_upsampler_is_refused(build):
    with pytest.raises(OptionError, match="coninfer classifies patches, not pixels; leave upsampler out"):
        build(upsampler="jbu_one")


def test_a_scene_is_mapped_and_tells_its_method(directory, words, noise_scene, tmp_path):
    given = options.build(model={"model": str(directory)}, method={"method": "coninfer", "scene_tiles": 2})
    assert options.resolved(given.model, given.method, words).scene_level
    facts = pipeline.map_scene(noise_scene(150, 130), words, tmp_path / "o.zarr", given)
    assert facts["scene_adaptation"]["events"] == ["joined"]
    assert open_map(tmp_path / "o.zarr").label.shape == (150, 130)
