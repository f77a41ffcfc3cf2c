"""TENT and MLMP: parity with the authors' code, and adaptation of many images at once equal to one by one."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovrs.methods.norms import Mlmp
from ovrs.model.adapt.mlmp import adapt, layer_weights, mean_entropy
from ovrs.model.adapt.tuning import forward, initial_norms, project
from ovrs.model.clip.dense import dense_tokens


def published(**more):
    """MLMP with the features and the temperature of its paper."""
    return Mlmp(**{"dense": "naclip", "logit_scale": 100.0, **more})


SCALE = float(np.exp(np.float64(np.float16(np.log(100)))))
RUNS = {
    "tent_naclip": published(dense="naclip", layers=1, image_weight=0, logit_scale=SCALE, steps=3),
    "tent_vanilla": published(dense="vanilla", layers=1, image_weight=0, logit_scale=SCALE, steps=3),
    "mlmp_naclip_3": published(dense="naclip", layers=3, logit_scale=SCALE, steps=3),
    "mlmp_sclip_1": published(dense="sclip", layers=1, logit_scale=SCALE, steps=2),
    "mlmp_naclip_4": published(dense="naclip", layers=4, logit_scale=SCALE, steps=10),
    "mlmp_text_2": published(dense="naclip", layers=2, logit_scale=SCALE, steps=2, templates="mean", image_weight=0),
}


@pytest.mark.parametrize("run", RUNS)
def test_parity_with_the_released_code(golden, tiny_visual_p8, tiny_clip, run):
    """Batch of two sharing one set of parameters, as released; `text`: one vector per query, no image-level term."""
    text, images = torch.from_numpy(golden[f"{run}_text"]), torch.from_numpy(golden["norm_image"])
    prompts, mean = (text[:-1], text[-1]) if run.startswith("mlmp") else (text[None], text)
    if run == "mlmp_text_2":
        result = adapt(tiny_clip.visual, images, mean[None], mean, RUNS[run], sets=1)
    else:
        result = adapt(tiny_visual_p8, images, prompts, mean, RUNS[run], sets=1)
    np.testing.assert_allclose(result.losses.mean(dim=1).numpy(), golden[f"{run}_losses"], atol=1e-4)
    logits = (SCALE * (result.patches @ mean.T)).transpose(1, 2).unflatten(-1, result.grid)
    logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")[:, :, ::4, ::4]
    np.testing.assert_allclose(logits.numpy(), golden[f"{run}_logits"], atol=5e-4)
    np.testing.assert_allclose(result.norms.weights["ln_post"][0, 0].numpy(), golden[f"{run}_ln_post"], atol=1e-4)
    ln_1 = result.norms.biases["transformer.resblocks.2.ln_1"][0, 0].numpy()
    np.testing.assert_allclose(ln_1, golden[f"{run}_ln_1"], atol=1e-4)
    if f"{run}_layers" in golden:
        np.testing.assert_allclose(result.layer_weights.numpy(), golden[f"{run}_layers"], atol=1e-4)


@pytest.fixture
def words():
    generator = torch.Generator().manual_seed(0)
    prompts = F.normalize(torch.randn(3, 5, 32, generator=generator, dtype=torch.float64), dim=-1)
    return prompts, F.normalize(prompts.mean(dim=0), dim=-1)


@pytest.mark.parametrize(
    "settings",
    [published(layers=3, steps=5, logit_scale=40.0), published(layers=1, image_weight=0, steps=5, logit_scale=40.0)],
    ids=["mlmp", "tent"],
)
def test_three_images_at_once_equal_one_by_one(tiny_visual_p8, words, settings):
    prompts, mean = words
    visual = copy.deepcopy(tiny_visual_p8).double()
    images = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = adapt(visual, images, prompts, mean, settings)
    for b in range(3):
        alone = adapt(visual, images[b : b + 1], prompts, mean, settings)
        np.testing.assert_allclose(together.patches[b].numpy(), alone.patches[0].numpy(), atol=1e-8)
        np.testing.assert_allclose(together.losses[:, b].numpy(), alone.losses[:, 0].numpy(), atol=1e-8)
        for name, weight in alone.norms.weights.items():
            moved = (
                alone.norms.weights[name] - initial_norms(visual, 1, dtype=torch.float64).weights[name]
            ).abs() > 1e-6
            difference = (together.norms.weights[name][b] - weight[0]).abs()
            assert not moved.any() or float(difference[moved[0]].max()) < 1e-8


def test_each_image_lowers_its_own_entropy(tiny_visual_p8, words):
    prompts, mean = (w.float() for w in words)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    result = adapt(tiny_visual_p8, images, prompts, mean, published(layers=3, steps=6, logit_scale=20.0))
    assert (result.losses[-1] < result.losses[0]).all()


def test_averaged_weights_are_the_mean_of_what_each_prompt_alone_gives(tiny_visual_p8, words):
    """The paper's way "Params": no state passes from one prompt to the next."""
    prompts, mean = (w.float() for w in words)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    settings = published(layers=1, image_weight=0, steps=3, templates="weights")
    found = adapt(tiny_visual_p8, images, prompts, mean, settings, sets=1)
    alone = [
        adapt(tiny_visual_p8, images, p[None], mean, settings.model_copy(update={"templates": "separate"}), sets=1)
        for p in prompts
    ]
    for name, weight in found.norms.weights.items():
        want = sum(a.norms.weights[name] for a in alone) / len(alone)
        np.testing.assert_allclose(weight.numpy(), want.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.losses.numpy(), torch.stack([a.losses for a in alone]).mean(0).numpy(), atol=1e-6)
    together = adapt(
        tiny_visual_p8, images, prompts, mean, settings.model_copy(update={"templates": "separate"}), sets=1
    )
    assert not torch.allclose(found.norms.weights["ln_post"], together.norms.weights["ln_post"], atol=1e-5)
    single = adapt(tiny_visual_p8, images, prompts[:1], mean, settings, sets=1)
    assert torch.equal(single.patches, alone[0].patches)


def test_the_tower_is_never_changed(tiny_visual_p8, words):
    prompts, mean = (w.float() for w in words)
    before = {k: v.clone() for k, v in tiny_visual_p8.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    first = adapt(tiny_visual_p8, images, prompts, mean, published(steps=2))
    second = adapt(tiny_visual_p8, images, prompts, mean, published(steps=2))
    assert all(torch.equal(v, before[k]) for k, v in tiny_visual_p8.state_dict().items())
    assert torch.equal(first.patches, second.patches)


@pytest.mark.parametrize("variant", ["vanilla", "maskclip", "sclip", "clearclip", "naclip", "segearth"])
def test_without_steps_the_last_layer_equals_the_dense_features(tiny_visual_p8, words, variant):
    prompts, mean = (w.float() for w in words)
    images = torch.randn(2, 3, 40, 72, generator=torch.Generator().manual_seed(3))
    result = adapt(tiny_visual_p8, images, prompts, mean, published(dense=variant, layers=1, steps=0))
    with torch.no_grad():
        want = F.normalize(dense_tokens(tiny_visual_p8, images, variant).patches, dim=-1)
    np.testing.assert_allclose(result.patches.numpy(), want.numpy(), atol=1e-5)


def test_layer_weights_follow_the_definition(tiny_visual_p8, words):
    _, mean = (w.float() for w in words)
    norms = initial_norms(tiny_visual_p8, 2)
    settings = published(layers=3, beta=2.0)
    with torch.no_grad():
        branches = forward(tiny_visual_p8, torch.randn(2, 3, 64, 64), norms, "naclip", settings.depths(4))
        found = layer_weights(tiny_visual_p8, branches, norms, mean, settings)
        each = [
            mean_entropy(project(tiny_visual_p8, r, norms)[:, 1:], mean[None], settings.scale).numpy()
            for r in branches.layers
        ]
    want = np.exp(-2.0 * np.stack(each))
    np.testing.assert_allclose(found.numpy(), want / want.sum(axis=0), atol=1e-6)


def test_depths_are_the_deepest_share():
    assert published().depths(24) == tuple(range(6, 24))
    assert published(layers=1).depths(12) == (11,)
    assert published().depths(1) == (0,)
