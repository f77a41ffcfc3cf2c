"""Our TMPA: each line of the table of degenerate cases (`docs/methods.md#tmpa-tmpa_shift-and-tmpa_compat`), the optimisation, and its guards."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_30_golden import tile_features

from ovrs.methods.tmpa import Tmpa, TmpaShift
from ovrs.model.adapt import tmpa
from ovrs.model.adapt.tmpa import EVENTS, Stack, calibrate, calibrate_tiles, find_prototypes
from ovrs.model.clip.head import class_scores, entropy
from ovrs.model.clip.inputs import CropInputs
from ovrs.model.clip.text import TextBank
from ovrs.scene.grid import Window

SETTINGS = Tmpa(logit_scale=40.0, cls_weight=-0.3)


@pytest.fixture(scope="module")
def bank(golden):
    return TextBank(torch.from_numpy(golden["queries_avg80"]), torch.tensor(golden["query_idx"]), 5)


@pytest.fixture(scope="module")
def features(golden, tiny_clip):
    return tile_features(tiny_clip, golden["tmpa_image"][0], 224, 112)


def changed(features, **fields):
    return type(features)(**{**{n: getattr(features, n) for n in features.__dataclass_fields__}, **fields})


def loss_of(features, bank, text, base, settings=SETTINGS):
    """Mean entropy of renormalised class scores, straight from the definition."""
    logits = features.patches @ text.T + settings.cls_weight * (features.cls @ base.T)[:, None]
    scores = class_scores(logits.flatten(0, 1).T, bank, settings.scale)
    return entropy(scores / scores.sum(0)).mean()


def test_entropy_falls_and_only_anchored_queries_move(features, bank):
    result = calibrate(features, bank, SETTINGS)
    assert result.events == ("adapted",)
    before, after = (loss_of(features, bank, t, bank.vectors) for t in (bank.vectors, result.text))
    assert after < before
    found = find_prototypes(Stack.of([features]), bank, SETTINGS).found[0, bank.class_of]
    assert found.any()
    assert (result.alpha[~found] == 0).all()
    assert torch.equal(result.text[~found], bank.vectors[~found])
    assert (result.alpha[found] != 0.02).any()
    np.testing.assert_allclose(result.text.norm(dim=-1).numpy(), 1, atol=1e-5)


def test_the_two_precomputed_maps_equal_the_feature_product(features, bank):
    stack = Stack.of([features])
    problem = tmpa._Problem(stack, bank, find_prototypes(stack, bank, SETTINGS), SETTINGS)
    theta = torch.linspace(0.01, 0.5, len(bank.vectors))[None]
    text = problem.text(theta, None)[0][0]
    assert float(problem.loss(theta, None)) == pytest.approx(
        float(loss_of(features, bank, text, bank.vectors)), abs=1e-6
    )
    delta = 0.01 * torch.randn(1, *bank.vectors.shape, generator=torch.Generator().manual_seed(0))
    shifted, base, _ = problem.text(theta, delta)
    assert float(problem.loss(theta, delta)) == pytest.approx(
        float(loss_of(features, bank, shifted[0], base[0])), abs=1e-6
    )


def test_gradient_of_alpha_against_finite_differences(features, bank):
    double = changed(features, patches=features.patches.double(), cls=features.cls.double())
    words = TextBank(bank.vectors.double(), bank.class_of, 5)
    stack = Stack.of([double])
    problem = tmpa._Problem(stack, words, find_prototypes(stack, words, SETTINGS), SETTINGS)
    theta = torch.full((1, 8), 0.05, dtype=torch.float64, requires_grad=True)
    problem.loss(theta, None).backward()
    for m in range(8):
        step = torch.zeros(1, 8, dtype=torch.float64)
        step[0, m] = 1e-6
        with torch.no_grad():
            slope = (problem.loss(theta + step, None) - problem.loss(theta - step, None)) / 2e-6
        assert float(theta.grad[0, m]) == pytest.approx(float(slope), abs=1e-6)


def test_alpha_zero_equals_the_base_bit_for_bit(features, bank):
    result = calibrate(features, bank, Tmpa(logit_scale=40.0, cls_weight=-0.3, alpha_init=0.0, steps=0))
    assert torch.equal(result.text, bank.vectors)


def test_no_steps_keeps_the_fixed_visual_bias(features, bank):
    result = calibrate(features, bank, Tmpa(logit_scale=40.0, cls_weight=-0.3, steps=0))
    assert set(np.unique(result.alpha.numpy()).round(6)) == {0.0, np.float32(0.02).round(6)}


def test_alpha_stays_inside_its_bounds(features, bank):
    wild = Tmpa(logit_scale=40.0, cls_weight=-0.3, lr=5.0, steps=5, alpha_max=0.3)
    stack = Stack.of([features])
    theta, _, _ = tmpa._optimise(tmpa._Problem(stack, bank, find_prototypes(stack, bank, wild), wild), wild)
    assert theta.min() >= 0
    assert theta.max() <= 0.3


def test_repeated_calls_are_identical_and_leave_the_bank_alone(features, bank):
    vectors = bank.vectors.clone()
    first, second = calibrate(features, bank, SETTINGS), calibrate(features, bank, SETTINGS)
    assert torch.equal(first.text, second.text)
    assert first.losses == second.losses
    assert torch.equal(bank.vectors, vectors)


def test_shift_moves_text_and_the_global_term(features, bank):
    result = calibrate(features, bank, TmpaShift(logit_scale=40.0, cls_weight=-0.3, lr_shift=1e-3))
    assert result.events == ("adapted",)
    moved = (result.base_text - bank.vectors).abs().max()
    assert 1e-4 < moved < 1e-2


def test_class_absent_from_the_tile_keeps_its_text(features, bank):
    far = -F.normalize(features.patches.mean(dim=(0, 1)), dim=0)
    words = TextBank(torch.cat([bank.vectors, far[None]]), torch.cat([bank.class_of, torch.tensor([5])]), 6)
    result = calibrate(features, words, SETTINGS)
    assert result.alpha[-1] == 0
    assert torch.equal(result.text[-1], far)


def test_no_class_with_prototype_skips_the_optimisation(features, bank):
    flat = changed(
        features,
        patches=features.patches[:, :1].expand_as(features.patches).clone()[:1].expand(len(features.patches), -1, -1),
    )
    result = calibrate(flat, bank, SETTINGS)  # equal entropies everywhere: nothing lies below the mean
    assert result.events == ("no_prototype",)
    assert torch.equal(result.text, bank.vectors)


@pytest.mark.parametrize("queries", [1, 3])
def test_a_single_class_is_skipped(features, bank, queries):
    words = TextBank(bank.vectors[:queries], torch.zeros(queries, dtype=torch.int64), 1)
    assert calibrate(features, words, SETTINGS).events == ("single_class",)


def test_nothing_valid_is_skipped(features, bank):
    empty = changed(features, patch_valid=torch.zeros_like(features.patch_valid))
    assert calibrate(empty, bank, SETTINGS).events == ("no_valid_patch",)


def test_invalid_patches_give_no_anchor_and_no_loss(features, bank):
    half = features.patch_valid.clone()
    half[:, :98] = False
    spoiled = features.patches.clone()
    spoiled[:, :98] = F.normalize(torch.randn(len(spoiled), 98, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    first = calibrate(changed(features, patch_valid=half), bank, SETTINGS)
    second = calibrate(changed(features, patch_valid=half, patches=spoiled), bank, SETTINGS)
    assert torch.equal(first.text, second.text)


def clear_tile(sure: int, doubtful: int):
    """Orthogonal words for four classes; a tile whose first patches are surely class 2 and whose others are undecided."""
    words = TextBank(torch.eye(8), torch.arange(8) // 2, 4)
    certain = F.normalize(torch.eye(8)[4] + 0.2 * torch.eye(8)[7], dim=0)
    patches = torch.stack([certain] * sure + [torch.full((8,), 8**-0.5)] * doubtful)[None]
    side = len(patches[0])
    valid = torch.ones(1, side, dtype=torch.bool)
    pixels = torch.ones(16, 16 * side, dtype=torch.bool)
    crops, images = (Window(0, 0, 16, 16 * side),), torch.zeros(1, 3, 16, 16 * side)
    inputs = CropInputs(images, (0, 0), (16, 16 * side), crops, pixels, torch.ones(1, 1, 16, 16 * side))
    tile = changed(inputs.features(patches, patches[:, -1], (1, side)), patch_valid=valid)
    return tile, words, certain


def test_ties_take_the_lowest_flat_index():
    """Twelve patches of equal entropy: the first three make the prototype, the marked fourth one does not."""
    tile, words, certain = clear_tile(12, 4)
    marked = tile.patches.clone()
    marked[0, 3] = F.normalize(torch.eye(8)[4] + 0.2 * torch.eye(8)[6], dim=0)  # the same entropy, another direction
    found = find_prototypes(Stack.of([changed(tile, patches=marked)]), words, SETTINGS)
    assert found.found.tolist() == [[False, False, True, False]]
    np.testing.assert_allclose(found.vectors[0, 2].numpy(), certain.numpy(), atol=1e-6)


def test_fewer_candidates_than_wanted_are_used_as_they_are():
    tile, words, certain = clear_tile(1, 5)
    found = find_prototypes(Stack.of([tile]), words, SETTINGS)
    np.testing.assert_allclose(found.vectors[0, 2].numpy(), certain.numpy(), atol=1e-6)


def test_uphill_steps_are_reverted_and_logged(features, bank, monkeypatch):
    """Driven towards higher entropy, the run ends with the plain text."""
    monkeypatch.setattr(
        tmpa._Problem, "loss", lambda self, theta, delta: -entropy(self.probabilities(theta, delta)).mean(dim=1)
    )
    result = calibrate(features, bank, Tmpa(logit_scale=40.0, cls_weight=-0.3, alpha_init=0.0, steps=3))
    assert result.events == ("reverted_entropy",)
    assert torch.equal(result.text, bank.vectors)


def test_collapse_into_one_class_is_called_harm():
    mixed = torch.tensor([[0.9] * 50 + [0.2] * 50, [0.1] * 50 + [0.8] * 50])[:, None]
    alone = torch.tensor([[0.99] * 100, [0.01] * 100])[:, None]

    class Problem:
        stack = Stack(
            torch.ones(1, 100, 2), torch.ones(1, 1, 2), torch.ones(1, 100, dtype=torch.bool), torch.tensor([100])
        )

        def probabilities(self, theta, delta):
            return alone if theta.any() else mixed

    for theta, event in ((torch.ones(1, 2), "reverted_collapse"), (torch.zeros(1, 2), "reverted_entropy")):
        assert [EVENTS[i] for i in tmpa._harm(Problem(), theta, None)] == [event]


OWN = {"logit_scale": 40.0, "cls_weight": -0.3}


@pytest.mark.parametrize(
    "settings",
    [Tmpa(**OWN), TmpaShift(**OWN, lr_shift=1e-3), Tmpa(**OWN, absent="mean", keep_shares=50.0, aggregate="mean")],
    ids=["alpha", "shift", "mean"],
)
def test_tiles_at_once_equal_one_by_one(features, bank, settings):
    """In double precision: tiles of other sizes, one without valid patch, one where nothing stands out."""
    words = TextBank(bank.vectors.double(), bank.class_of, 5)
    whole = changed(features, patches=features.patches.double(), cls=features.cls.double())
    half = whole.patch_valid.clone()
    half[:, :98] = False
    flat = whole.patches[:, :1].expand_as(whole.patches)[:1].expand(len(whole.patches), -1, -1)
    tiles = [
        whole,
        changed(whole, patches=whole.patches[:1], cls=whole.cls[:1], patch_valid=whole.patch_valid[:1]),
        changed(whole, patch_valid=half),
        changed(whole, patch_valid=torch.zeros_like(half)),
        changed(whole, patches=flat),
    ]
    together = calibrate_tiles(tiles, words, settings)
    for index, tile in enumerate(tiles):
        alone = calibrate(tile, words, settings)
        assert alone.events == (EVENTS[together.event[index]],)
        for name in ("text", "base_text", "alpha"):
            np.testing.assert_allclose(getattr(together, name)[index], getattr(alone, name), atol=1e-8)
        if alone.losses:
            np.testing.assert_allclose(together.losses[:, index], alone.losses, atol=1e-10)
