"""TPT, CLIPArTT and WATT: parity with the authors' code, and batches that equal single images."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from ovrs.errors import OptionError
from ovrs.methods.norms import Clipartt, ClipArttCompat, Watt, WattCompat
from ovrs.methods.tpt import Tpt
from ovrs.model.adapt import tpt
from ovrs.model.adapt.mlmp import MLMP_TEMPLATES
from ovrs.model.adapt.pseudo import agreement, clipartt, released_choice, released_rows, watt
from ovrs.model.adapt.tuning import forward, initial_norms, project
from ovrs.model.clip.text import encode_sentences

tokenize = open_clip.get_tokenizer("ViT-B-32")


@pytest.fixture(scope="module")
def encode(tiny_clip_p8):
    return lambda sentences: encode_sentences(tiny_clip_p8, tokenize, sentences)


@pytest.fixture(scope="module")
def scale(tiny_clip_p8):
    return float(tiny_clip_p8.logit_scale.exp())


@pytest.fixture(scope="module")
def reference(encode, golden):
    return encode([f"a photo of a {n}" for n in golden["classes"]])


@pytest.fixture(scope="module")
def stack(encode, golden):
    return torch.stack([encode([t.format(n) for n in golden["classes"]]) for t in MLMP_TEMPLATES])


def pixels(adapted, text, scale):
    logits = (scale * adapted.patches @ text.T).transpose(1, 2).unflatten(-1, adapted.grid)
    return F.interpolate(logits, (64, 64), mode="bilinear")[..., ::4, ::4].detach().numpy()


PUBLISHED = {"dense": "naclip", "logit_scale": 100.0}


def run_clipartt(clip, images, reference, golden, encode, *, compat=False, sets=None, **told):
    settings = (ClipArttCompat if compat else Clipartt)(**{**PUBLISHED, **told})
    return clipartt(clip.visual, images, reference, golden["classes"], encode, settings, sets=sets)


def test_clipartt_as_released(golden, tiny_clip_p8, reference, encode, scale):
    images = torch.from_numpy(golden["clipartt_image"])
    found = run_clipartt(
        tiny_clip_p8, images, reference, golden, encode, logit_scale=scale, steps=3, compat=True, sets=1
    )
    np.testing.assert_allclose(found.losses[:, 0].numpy(), golden["clipartt_losses"], atol=5e-4)
    np.testing.assert_allclose(pixels(found, reference, scale), golden["clipartt_logits"], atol=5e-4)
    np.testing.assert_allclose(found.norms.weights["ln_post"][0, 0], golden["clipartt_ln_post"], atol=1e-4)


def test_watt_as_released(golden, tiny_clip_p8, stack, scale):
    images = torch.from_numpy(golden["watt_image"])
    settings = WattCompat(**{**PUBLISHED, "logit_scale": scale}, rounds=2)
    found = watt(tiny_clip_p8.visual, images, stack, settings, sets=1)
    np.testing.assert_allclose(found.losses[:, 0].numpy(), golden["watt_losses"], atol=5e-4)
    text = F.normalize(stack.mean(0), dim=-1)
    np.testing.assert_allclose(pixels(found, text, scale), golden["watt_logits"], atol=5e-4)
    np.testing.assert_allclose(found.norms.weights["ln_post"][0, 0], golden["watt_ln_post"], atol=1e-4)


@pytest.fixture(scope="module")
def two(golden, tiny_clip):
    """The published batch size, patches of 16 pixels: images, encoder of sentences, scale."""
    return (
        torch.from_numpy(golden["norm_image"]),
        lambda sentences: encode_sentences(tiny_clip, tokenize, sentences),
        float(tiny_clip.logit_scale.exp()),
    )


def test_clipartt_as_released_with_two_images(golden, tiny_clip, two):
    """The released reshapes mix the two images; both share one set of parameters."""
    images, encode, scale = two
    reference = encode([f"a photo of a {n}" for n in golden["classes"]])
    found = run_clipartt(tiny_clip, images, reference, golden, encode, logit_scale=scale, steps=3, compat=True, sets=1)
    np.testing.assert_allclose(found.losses[:, 0].numpy(), golden["clipartt_two_losses"], atol=5e-5)
    np.testing.assert_allclose(pixels(found, reference, scale), golden["clipartt_two_logits"], atol=5e-4)
    np.testing.assert_allclose(found.norms.weights["ln_post"][0, 0], golden["clipartt_two_ln_post"], atol=5e-5)


def test_watt_as_released_with_two_images(golden, tiny_clip, two):
    images, encode, scale = two
    stack = torch.stack([encode([t.format(n) for n in golden["classes"]]) for t in MLMP_TEMPLATES])
    settings = WattCompat(**{**PUBLISHED, "logit_scale": scale}, rounds=2)
    found = watt(tiny_clip.visual, images, stack, settings, sets=1)
    np.testing.assert_allclose(found.losses[:, 0].numpy(), golden["watt_two_losses"], atol=5e-5)
    text = F.normalize(stack.mean(0), dim=-1)
    np.testing.assert_allclose(pixels(found, text, scale), golden["watt_two_logits"], atol=5e-4)
    np.testing.assert_allclose(found.norms.weights["ln_post"][0, 0], golden["watt_two_ln_post"], atol=5e-5)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_released_layouts_against_the_shapes_of_the_released_arrays(images):
    """Laid out as the released code has them, arrays are cut into rows by a reshape alone."""
    each, ranks = 4, 3
    n = images * each
    choice = torch.arange(images * ranks * each).view(images, ranks, each)  # image, rank, patch
    ours = choice.transpose(1, 2).reshape(1, n, ranks)
    assert torch.equal(released_choice(ours, images)[0], choice.reshape(-1, ranks))
    scores = torch.arange(images * n * each).view(images, n, each)  # image, text, patch
    ours = scores.permute(1, 0, 2).reshape(1, n, n)
    assert torch.equal(released_rows(ours, images)[0], scores.reshape(-1, n))


def test_tpt_as_released(golden, tiny_clip_p8, scale):
    images = torch.from_numpy(golden["tpt_image"])
    norms = initial_norms(tiny_clip_p8.visual, len(images)).detached()
    with torch.no_grad():
        layers = forward(tiny_clip_p8.visual, images, norms, "naclip", (3,)).layers
        patches = project(tiny_clip_p8.visual, layers[0], norms)[:, 1:]
    learner = tpt.PromptLearner(tiny_clip_p8, tokenize, golden["classes"])
    found = tpt.tune(learner, [patches.flatten(0, 1)], Tpt(logit_scale=scale, steps=3, lr=5e-3))
    np.testing.assert_allclose(found.losses[:, 0], golden["tpt_losses"], atol=1e-4)
    np.testing.assert_allclose(found.context[0].numpy(), golden["tpt_context"], atol=1e-4)
    np.testing.assert_allclose(found.text[0].numpy(), golden["tpt_text"], atol=1e-4)


def test_tpt_starts_from_the_plain_sentence(tiny_clip_p8, golden, reference):
    learner = tpt.PromptLearner(tiny_clip_p8, tokenize, golden["classes"])
    with torch.no_grad():
        np.testing.assert_allclose(learner(learner.context()[None])[0].numpy(), reference.numpy(), atol=1e-6)
    with pytest.raises(OptionError, match="text tower"):
        tpt.PromptLearner(torch.nn.Identity(), tokenize, ["a"])


def test_agreement_is_the_cross_entropy_of_each_patch_over_texts():
    """Against a loop over patches; the released layout runs over texts instead."""
    torch.manual_seed(0)
    f, t = (F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1) for _ in range(2))
    target = np.exp((f @ f.T + t @ t.T).numpy() / 2 / 0.01)
    target /= target.sum(1, keepdims=True)
    logits = 10 * (t @ f.T).numpy()
    over_texts = [
        -sum(target[k, i] * (logits[k, i] - np.log(np.exp(logits[:, i]).sum())) for k in range(5)) for i in range(5)
    ]
    np.testing.assert_allclose(agreement(f[None], t[None], 10)[0], np.mean(over_texts), rtol=1e-9)
    over_patches = [-(target[k] * (logits[k] - np.log(np.exp(logits[k]).sum()))).sum() for k in range(5)]
    np.testing.assert_allclose(agreement(f[None], t[None], 10, released=1)[0], np.mean(over_patches), rtol=1e-9)


@pytest.mark.parametrize("method", ["clipartt", "watt", "watt_parallel"])
def test_a_batch_equals_single_images(golden, tiny_clip_p8, reference, stack, encode, method):
    """In float64; entries whose gradient is rounding noise are left out: Adam blows them up to full steps."""
    import copy

    clip = copy.deepcopy(tiny_clip_p8).double()
    images = torch.from_numpy(golden["img80x112"]).double()
    images = torch.cat([images, images.flip(-1) * 0.8 + 0.1])

    def singly(sentences):
        """One by one: the text tower is float32, and its rounding depends on what is encoded together."""
        return torch.cat([encode([s]) for s in sentences]).double()

    def run(batch):
        if method == "clipartt":
            return run_clipartt(clip, batch, reference.double(), golden, singly, steps=3)
        mode = "parallel" if method.endswith("parallel") else "sequential"
        return watt(clip.visual, batch, stack.double(), Watt(**PUBLISHED, lr=1e-3, rounds=2, mode=mode))

    both, single = run(images), [run(images[i : i + 1]) for i in range(2)]
    start = initial_norms(clip.visual, 1, dtype=torch.float64)
    for name, values in both.norms.weights.items():
        alone = torch.cat([s.norms.weights[name] for s in single])
        moved = (alone - start.weights[name]).abs() > 1e-9
        torch.testing.assert_close(values[moved], alone[moved], atol=1e-8, rtol=0)
    # a weight's 1e-8 becomes some 1e-7 in a patch, on one processor more than on another
    torch.testing.assert_close(both.patches, torch.cat([s.patches for s in single]), atol=1e-6, rtol=0)
    torch.testing.assert_close(both.losses, torch.cat([s.losses for s in single], 1), atol=1e-8, rtol=0)


def test_fewer_classes_than_joined_in_a_prompt(tiny_clip_p8, golden, reference, encode):
    images = torch.from_numpy(golden["clipartt_image"])
    found = clipartt(
        tiny_clip_p8.visual, images, reference[:2], golden["classes"][:2], encode, Clipartt(**PUBLISHED, steps=1)
    )
    assert torch.isfinite(found.patches).all()
