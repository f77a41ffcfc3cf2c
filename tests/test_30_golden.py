"""Parity with the authors' code on the tiny random CLIP (tolerances as in the golden set's README)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA

from ovrs.engine.tiling import crop_starts
from ovrs.methods.tmpa import TmpaCompat
from ovrs.model.adapt import tmpa_compat
from ovrs.model.clip.dense import dense_tokens
from ovrs.model.clip.gem import gem_tokens
from ovrs.model.clip.head import class_scores
from ovrs.model.clip.inputs import CropInputs
from ovrs.model.clip.proxy import proxy_tokens
from ovrs.model.clip.sums import accumulate
from ovrs.model.clip.text import TextBank, embed, imagenet_templates
from ovrs.model.clip.upsample import Bilinear, JointBilateral, load_jbu
from ovrs.scene.grid import Window


@pytest.fixture(scope="module")
def bank(golden):
    return TextBank(torch.from_numpy(golden["queries_avg80"]), torch.tensor(golden["query_idx"]), 5)


def tile_features(clip, image, crop, stride, variant="segearth"):
    """Features of an already normalised image `(3, H, W)`."""
    image = torch.from_numpy(image)
    height, width = image.shape[-2:]
    crops = tuple(
        Window(r, c, min(crop, height), min(crop, width))
        for r in crop_starts(height, crop, stride)
        for c in crop_starts(width, crop, stride)
    )
    stack = torch.stack([image[:, c.row_off : c.row_end, c.col_off : c.col_end] for c in crops])
    with torch.no_grad():
        tokens = dense_tokens(clip.visual, stack, variant)
    everywhere = torch.ones(height, width, dtype=torch.bool)
    inputs = CropInputs(
        stack, (0, 0), (stack.shape[-2], stack.shape[-1]), crops, everywhere, torch.ones_like(stack[:, :1])
    )
    return inputs.features(tokens.patches, tokens.cls, tokens.grid)


@pytest.mark.parametrize("variant", ["vanilla", "maskclip", "sclip", "clearclip", "segearth"])
@pytest.mark.parametrize("image", ["img64", "img80x112"])
def test_dense_tokens(golden, tiny_clip, variant, image):
    with torch.no_grad():
        found = dense_tokens(tiny_clip.visual, torch.from_numpy(golden[image]), variant)
    np.testing.assert_allclose(found.patches.numpy(), golden[f"{variant}_{image}_tokens"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.cls.numpy(), golden[f"{variant}_{image}_cls"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("ablation", ["kk", "nonly", "vanilla", "residual"])
def test_naclip_ablations(golden, tiny_clip, ablation):
    with torch.no_grad():
        found = dense_tokens(tiny_clip.visual, torch.from_numpy(golden["img80x112"]), f"naclip_{ablation}")
    tokens = torch.cat([found.cls[:, None], found.patches], 1)
    np.testing.assert_allclose(tokens.numpy(), golden[f"naclip_{ablation}"], atol=1e-4, rtol=0)


def test_naclip_at_patch_8(golden, tiny_clip_p8):
    with torch.no_grad():
        found = dense_tokens(tiny_clip_p8.visual, torch.from_numpy(golden["img80x112"]), "naclip")
    np.testing.assert_allclose(found.patches.numpy(), golden["naclip"][:, 1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("patch", "name", "arguments"),
    [
        (16, "p16_depth4_iter2_tempNone", (4, 2, None)),
        (8, "p8_depth3_iter1_tempNone", (3, 1, None)),
        (8, "p8_depth4_iter1_temp4.0", (4, 1, 4.0)),
    ],
)
def test_gem(golden, tiny_clip, tiny_clip_p8, patch, name, arguments):
    clip = tiny_clip if patch == 16 else tiny_clip_p8
    with torch.no_grad():
        found = gem_tokens(clip.visual, torch.from_numpy(golden["img80x112"]), *arguments)
    tokens = torch.cat([found.cls[:, None], found.patches], 1)
    np.testing.assert_allclose(tokens.numpy(), golden[f"gem_{name}"], atol=1e-4, rtol=0)


def test_proxyclip(golden, tiny_clip_p8):
    """The authors' similarity mean runs over the batch; ours is each image's own, which is theirs for single images."""
    images, external = torch.from_numpy(golden["proxy_images"]), torch.from_numpy(golden["proxy_external"])
    with torch.no_grad():
        found = proxy_tokens(tiny_clip_p8.visual, images, external, batch_mean=True)
        alone = torch.cat(
            [proxy_tokens(tiny_clip_p8.visual, i[None], e[None]).patches for i, e in zip(images, external, strict=True)]
        )
        together = proxy_tokens(tiny_clip_p8.visual, images, external).patches
    np.testing.assert_allclose(found.patches.numpy(), golden["proxy_tokens"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-5)
    assert found.grid == (12, 12)


@pytest.mark.parametrize("kind", ["jbu_one", "jbu_stack"])
def test_joint_bilateral_upsampling(golden, kind):
    net = load_jbu(kind, DATA / f"{kind}.safetensors", 32, torch.device("cpu")).eval()
    source, guide = torch.from_numpy(golden[f"{kind}_source"]), torch.from_numpy(golden[f"{kind}_guide"])
    with torch.no_grad():
        np.testing.assert_allclose(net.stages()[0](source, guide).numpy(), golden[f"{kind}_stage1"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(net(source, guide)[..., ::4, ::4].numpy(), golden[f"{kind}_out"], atol=1e-4, rtol=0)


def test_naclip_equals_a_loop_in_numpy(tiny_clip):
    """The prior is added to the scaled key-key logits, row by row; CLS has none."""
    torch.manual_seed(0)
    block = tiny_clip.visual.transformer.resblocks[-1]
    from ovrs.model.clip.dense import encode_prelude, last_block

    with torch.no_grad():
        x, grid = encode_prelude(tiny_clip.visual, torch.randn(1, 3, 48, 64))
        found = last_block(tiny_clip.visual, x, grid, "naclip").patches[0].double().numpy()
        y = block.ln_1(x)[0].double().numpy()
        w, b = block.attn.in_proj_weight.double().numpy(), block.attn.in_proj_bias.double().numpy()
        _, k, v = np.split(y @ w.T + b, 3, axis=1)
        omega = np.zeros((13, 13))
        for i in range(12):
            for j in range(12):
                omega[1 + i, 1 + j] = np.exp(-((i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2) / 50)
        heads = []
        for h in (slice(0, 64), slice(64, 128)):
            logits = k[:, h] @ k[:, h].T / 8 + omega
            p = np.exp(logits - logits.max(1, keepdims=True))
            heads.append(p / p.sum(1, keepdims=True) @ v[:, h])
        out = torch.from_numpy(np.concatenate(heads, 1)).float()
        want = (tiny_clip.visual.ln_post(block.attn.out_proj(out)) @ tiny_clip.visual.proj)[1:].numpy()
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_text_embeddings(golden, tiny_clip):
    import open_clip

    found = embed(tiny_clip, open_clip.get_tokenizer("ViT-B-16"), golden["queries"], imagenet_templates())
    np.testing.assert_allclose(found.numpy(), golden["queries_avg80"], atol=1e-4, rtol=0)


def test_cut_text_encoding_equals_open_clips_own(tiny_clip):
    import open_clip

    from ovrs.model.clip.text import encode_sentences

    tokenize = open_clip.get_tokenizer("ViT-B-16")
    sentences = ["a roof", "water " * 120, "a small grove of dark trees beside a road", "a roof"]
    with torch.no_grad():
        want = F.normalize(tiny_clip.encode_text(tokenize(sentences)), dim=-1)
    np.testing.assert_allclose(encode_sentences(tiny_clip, tokenize, sentences).numpy(), want.numpy(), atol=1e-6)


@pytest.mark.parametrize(("kind", "tag"), [("bilinear", "segmentor"), ("jbu_one", "segmentor_up")])
def test_segearth_segmentor(golden, tiny_clip, bank, kind, tag):
    """The whole chain: windows, upsampler, global bias, averaging of cosines, one resize, softmax, synonyms."""
    features = tile_features(tiny_clip, golden["img150x130"][0], 96, 48)
    device = torch.device("cpu")
    up = Bilinear() if kind == "bilinear" else JointBilateral(load_jbu(kind, DATA / f"{kind}.safetensors", 32, device))
    total, hits = accumulate(features, up(features, bank.vectors, bank.vectors, -0.3))
    logits = total / hits
    np.testing.assert_allclose(logits.numpy()[:, ::3, ::3], golden[f"{tag}_slide"], atol=1e-4, rtol=0)
    logits = F.interpolate(logits[None], size=(180, 156), mode="bilinear")[0]
    np.testing.assert_allclose(
        class_scores(logits, bank, 50)[:, ::3, ::3].numpy(), golden[f"{tag}_probs"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("run", ["tmpa_alpha", "tmpa_shift"])
def test_tmpa_compat(golden, tiny_clip, bank, run):
    weight, scale, threshold, background, by_max, lr, alpha_only, _ = golden[f"{run}_params"]
    settings = TmpaCompat(
        logit_scale=float(scale),
        cls_weight=float(weight),
        threshold=float(threshold),
        aggregate="max" if by_max else "mean",
        lr_shift=float(lr),
    )
    background = int(background)
    features = tile_features(tiny_clip, golden["tmpa_image"][0], 224, 112)
    prototypes, anchors = tmpa_compat.window_prototypes(features, bank.vectors, bank, settings, background)
    np.testing.assert_array_equal(np.sort(anchors[0].numpy()), np.sort(golden[f"{run}_anchors_first_window"]))
    np.testing.assert_allclose(
        prototypes[0][bank.class_of].numpy(), golden[f"{run}_prototypes_first_window"], atol=1e-4
    )
    shape = tuple(int(v) for v in golden[f"{run}_ori_shape"])
    with torch.no_grad():
        before = tmpa_compat.forward(
            features, bank, torch.full((8, 1), 0.02), torch.zeros(8, 32), settings, Bilinear(), background, shape
        )
    np.testing.assert_allclose(before[:, ::5, ::5].numpy(), golden[f"{run}_probs_before"], atol=1e-3)
    result = tmpa_compat.adapt(features, bank, settings, Bilinear(), background, shape, alpha_only=bool(alpha_only))
    np.testing.assert_allclose(result.losses, golden[f"{run}_losses"], atol=1e-4)
    np.testing.assert_allclose(result.scores[:, ::5, ::5].numpy(), golden[f"{run}_probs_after"], atol=1e-3)
    np.testing.assert_allclose(result.shift.numpy(), golden[f"{run}_shift_after"], atol=1e-4)
    all_prototypes, _ = tmpa_compat.window_prototypes(features, bank.vectors, bank, settings, background)
    moved = (all_prototypes.abs().sum(-1) > 0).any(0)[bank.class_of].numpy()
    assert moved.any()
    np.testing.assert_allclose(result.alpha.numpy()[moved], golden[f"{run}_alpha_after"][moved], atol=1e-4)
