"""Published layouts, each with tiny random weights: imported, loaded, and equal to the library they come from."""

import argparse
import functools
import hashlib
import json
import logging
import re
import warnings
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from typer.main import get_command

from ovrs.cli import edge
from ovrs.cli.app import app
from ovrs.errors import OptionError, WeightsError
from ovrs.model.clip import importing, known, layouts, shapes
from ovrs.model.clip.importing import Choices, import_model
from ovrs.model.clip.loading import load
from ovrs.model.clip.text import encode_sentences
from ovrs.options import ModelOptions

SENTENCES = ["a field", "long roads " * 12, "a river between two rows of houses and trees " * 40]
QUICK = Choices(quick_gelu=True)


def described(*, context=77, text=64, vision=64, size=32, patch=16, quick=True, **more):
    return {
        "embed_dim": 24,
        "quick_gelu": quick,
        "vision_cfg": {"image_size": size, "layers": 2, "width": vision, "patch_size": patch, **more},
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": text, "heads": text // 64, "layers": 2},
    }


@functools.cache
def plain_state():
    return tiny().state_dict()


def tiny(seed=0, **config):
    torch.manual_seed(seed)
    clip = open_clip.CLIP(**described(**config)).eval().requires_grad_(False)
    with torch.no_grad():
        clip.positional_embedding.normal_(std=0.5)
        clip.token_embedding.weight.normal_(std=0.5)
    return clip


@pytest.fixture(scope="module")
def clip():
    return tiny()


@pytest.fixture(scope="module")
def long_state():
    """Long-CLIP's text tower: two tables of 248 positions, of which the forward pass adds 20 and 228 rows."""
    clip = tiny(1, context=248)
    state = dict(clip.state_dict())
    state["positional_embedding_res"] = torch.randn(248, 64, generator=torch.Generator().manual_seed(2)) * 0.5
    return state


def long_clip_text(state, tokens):
    """`encode_text` of the released code of Long-CLIP, on open_clip's blocks."""
    clip = tiny(1, context=248)
    clip.load_state_dict({n: t for n, t in state.items() if "_res" not in n and "mask" not in n})
    mask1, mask2 = torch.zeros(248, 1), torch.zeros(248, 1)
    mask1[:20], mask2[20:] = 1, 1
    x = clip.token_embedding(tokens)
    x = x + state["positional_embedding"] * mask1 + state["positional_embedding_res"] * mask2
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ clip.text_projection, dim=-1)


def loaded(directory):
    return load(ModelOptions(model=str(directory), device="cpu"))


@torch.no_grad()
def assert_same(directory, clip, tokenize=None):
    """Image and text embeddings of a directory are those of a network of open_clip."""
    model = loaded(directory)
    images = torch.randn(2, 3, *model.clip.visual.image_size, generator=torch.Generator().manual_seed(5))
    tokens = model.tokenize(SENTENCES)
    for ours, theirs in (
        (model.clip.encode_image(images), clip.encode_image(images)),
        (model.clip.encode_text(tokens), clip.encode_text(tokens)),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    return model


def said(result):
    return "\n".join(result.lines)


def nested(state):
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": nested,
    "module.": lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}},
    "model, prefix": lambda s: {"model": {f"clip_model.{n}": t for n, t in s.items()}},
    "two nestings": lambda s: {"model": {"state_dict": s}},
    "compiled": lambda s: {f"_orig_mod.module.{n}": t for n, t in s.items()},
    "text. tower": lambda s: {n if n.startswith(("visual", "logit")) else f"text.{n}": t for n, t in s.items()},
    "namespace": lambda s: {**nested(s), "args": argparse.Namespace(lr=1e-6, model="ViT-B-16", nested={"a": [1]})},
    "sizes of OpenAI": lambda s: {
        **s,
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    },
    "half": lambda s: {n: t.half().float().half() for n, t in s.items()},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_what_lies_around_the_weights_does_not_matter(clip, tmp_path, name):
    torch.save(WRAPPINGS[name](clip.state_dict()), tmp_path / "file.pt")
    done = import_model(tmp_path / "file.pt", tmp_path / "out", QUICK)
    if name == "half":
        clip = tiny()
        clip.load_state_dict({n: t.half().float() for n, t in clip.state_dict().items()})
    assert_same(tmp_path / "out", clip)
    assert ("left out: epoch, optimizer" in said(done)) == (name == "state_dict")
    assert ("args" in said(done)) == (name == "namespace")


@pytest.mark.parametrize("name", ["file.bin", "file.pth", "file.safetensors", "legacy.pt", "inside.zip", "stored.zip"])
def test_every_kind_of_file_is_read(clip, tmp_path, name):
    file = tmp_path / name
    if file.suffix == ".safetensors":
        save_file(clip.state_dict(), file)
    elif file.suffix == ".zip":
        torch.save(nested(clip.state_dict()), tmp_path / "epoch_20.pt")
        packing = zipfile.ZIP_DEFLATED if name == "inside.zip" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", packing) as archive:
            archive.write(tmp_path / "epoch_20.pt", "SkyCLIP/checkpoints/epoch_20.pt")
            archive.writestr("SkyCLIP/params.txt", "lr: 1e-9")
            archive.writestr("__MACOSX/._epoch_20.pt", "x")
    else:
        torch.save(clip.state_dict(), file, _use_new_zipfile_serialization=name != "legacy.pt")
    import_model(file, tmp_path / "out", QUICK)
    assert_same(tmp_path / "out", clip)


@pytest.mark.parametrize(("masks", "prefix"), [(False, ""), (True, "module.")], ids=["plain", "with masks"])
def test_long_clip_becomes_one_table_of_248(long_state, tmp_path, masks, prefix):
    state = dict(long_state)
    if masks:
        state["mask1"], state["mask2"] = torch.zeros(248, 1), torch.zeros(248, 1)
        state["mask1"][:20], state["mask2"][20:] = 1, 1
    torch.save({"state_dict": {prefix + n: t for n, t in state.items()}}, tmp_path / "LRSCLIP.pt")
    done = import_model(tmp_path / "LRSCLIP.pt", tmp_path / "out", QUICK)
    model = loaded(tmp_path / "out")
    tokens = model.tokenize(SENTENCES)
    assert tokens.shape == (3, 248)
    assert int((tokens[2] > 0).sum()) == 248
    ours = F.normalize(model.clip.encode_text(tokens), dim=-1)
    torch.testing.assert_close(ours, long_clip_text(long_state, tokens), atol=1e-5, rtol=0)
    torch.testing.assert_close(encode_sentences(model.clip, model.tokenize, SENTENCES), ours, atol=1e-5, rtol=0)
    assert "248 tokens of text (Long-CLIP" in said(done)


def test_the_rows_of_the_tables_are_the_published_ones(long_state, tmp_path):
    table = layouts.positions(long_state, tmp_path)
    assert torch.equal(table[:20], long_state["positional_embedding"][:20])
    assert torch.equal(table[20:], long_state["positional_embedding_res"][20:])


def test_the_directory_is_open_clips_own(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "file.pt")
    import_model(tmp_path / "file.pt", tmp_path / "out", QUICK)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    assert_same(tmp_path / "out", theirs.eval())
    assert tuple(preprocess.transforms[-1].mean) == open_clip.OPENAI_DATASET_MEAN
    assert set(load_file(tmp_path / "out/open_clip_model.safetensors")) == set(clip.state_dict())


def test_source_hash_licence_and_activation_stand_in_the_directory(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "file.pt")
    digest = hashlib.sha256((tmp_path / "file.pt").read_bytes()).hexdigest()
    choices = Choices(quick_gelu=False, licence="CC BY-NC 4.0", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    import_model(tmp_path / "file.pt", tmp_path / "out", choices)
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1  # who may read one may read all
    own = json.loads((tmp_path / "out/ovrs.json").read_text())
    assert own["source"]["file"] == "file.pt"
    assert own["source"]["sha256"] == digest
    assert own["licence"] == "CC BY-NC 4.0"
    model = loaded(tmp_path / "out")
    assert own["sha256"] == model.weights_hash
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.facts["activation"] == {"vision": "GELU(approximate='none')", "text": "GELU(approximate='none')"}


PUBLISHED = [
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-g-14",
    "ViT-B-16-plus-240",
    "ViT-S-32-alt",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_tell_the_architecture(tmp_path, name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        state = open_clip.CLIP(**config).state_dict()
        found = shapes.model_cfg(state, tmp_path)
        same = open_clip.CLIP(**found)
    assert shapes.name_of(found) == name
    assert {n: t.shape for n, t in same.state_dict().items()} == {n: t.shape for n, t in state.items()}
    heads = [block.attn.num_heads for tower in (same.visual.transformer, same.transformer) for block in tower.resblocks]
    vision, text = config["vision_cfg"], config["text_cfg"]
    wanted = [vision["width"] // vision.get("head_width", 64)] * vision["layers"] + [text["heads"]] * text["layers"]
    assert heads == wanted


def test_heads_are_asked_for_where_widths_do_not_tell(tmp_path):
    clip = tiny(text=64, vision=96, head_width=32)
    torch.save(clip.state_dict(), tmp_path / "file.pt")
    with pytest.raises(OptionError, match="a width of 96 is cut; name them: --heads VISION,TEXT"):
        import_model(tmp_path / "file.pt", tmp_path / "out", QUICK)
    with pytest.raises(OptionError, match="5 heads do not divide a width of 96"):
        import_model(tmp_path / "file.pt", tmp_path / "out", Choices(quick_gelu=True, heads=(5, 1)))
    import_model(tmp_path / "file.pt", tmp_path / "out", Choices(quick_gelu=True, heads=(3, 1)))
    assert_same(tmp_path / "out", clip)


def test_the_activation_is_asked_for(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "file.pt")
    with pytest.raises(OptionError, match=r"activation of the towers; add --quick-gelu .* or --no-quick-gelu"):
        import_model(tmp_path / "file.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("FarSLIP2_ViT-B-16.pt", True),
        ("rs5m_vit-b-16.safetensors", None),
        ("DGTRS-CLIP-ViT-B-16.bin", True),
        ("other.pt", None),
    ],
)
def test_a_published_file_is_known_by_its_name_if_its_shapes_agree(monkeypatch, tmp_path, name, quick, caplog):
    """The file of a name with other shapes is another file, so it is asked for."""
    source, config = tmp_path / name, {}
    monkeypatch.setattr(shapes, "name_of", lambda _: "ViT-B-16")
    if quick is None:
        with pytest.raises(OptionError, match="--quick-gelu"):
            importing._activation(source, config, Choices())
    else:
        assert importing._activation(source, config, Choices())[0] is quick
        with caplog.at_level(logging.WARNING):
            assert importing._activation(source, config, Choices(quick_gelu=not quick))[0] is not quick
        assert "the command counts" in caplog.text
    monkeypatch.setattr(shapes, "name_of", lambda _: "ViT-L-14")
    with pytest.raises(OptionError, match="--quick-gelu"):
        importing._activation(source, config, Choices())


def transformers_folder(folder, *, act="quick_gelu", end=49407, eps=1e-5, shards=None, safe=True):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    towers = {"intermediate_size": 160, "num_hidden_layers": 2, "hidden_act": act, "layer_norm_eps": eps}
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 32, "num_attention_heads": 2, "eos_token_id": end, **towers},
        vision_config={"hidden_size": 48, "num_attention_heads": 4, "image_size": 32, "patch_size": 8, **towers},
        projection_dim=24,
    )
    network = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim > 1 or "norm" in name:
                value.add_(torch.randn_like(value) * 0.1)
    folder.mkdir()
    config.save_pretrained(folder)
    state = {n: t.contiguous() for n, t in network.state_dict().items()}
    if shards:
        names = sorted(state)
        parts = {f"model-{i}.safetensors": names[i::shards] for i in range(shards)}
        for file, own in parts.items():
            save_file({n: state[n] for n in own}, folder / file)
        index = {"weight_map": {n: file for file, own in parts.items() for n in own}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif safe:
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    colours = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.3, 0.2], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    return network


@pytest.mark.parametrize(
    "how",
    [{}, {"act": "gelu"}, {"end": 2}, {"eps": 1e-3}, {"shards": 3}, {"safe": False}],
    ids=lambda how: "-".join(map(str, *how.items())) if how else "usual",
)
@torch.no_grad()
def test_a_folder_of_transformers_is_converted(tmp_path, how):
    network = transformers_folder(tmp_path / "hf", **how)
    done = import_model(tmp_path / "hf", tmp_path / "out")
    model = loaded(tmp_path / "out")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    tokens = model.tokenize(SENTENCES)
    theirs = network(pixel_values=images, input_ids=tokens)
    ours = model.clip.encode_image(images, normalize=True), model.clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours[0], theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], theirs.text_embeds, atol=1e-5, rtol=0)
    assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.3, 0.3, 0.2))
    assert "(transformers)" in said(done)
    assert model.facts["activation"]["text"] == ("GELU(approximate='none')" if how.get("act") else "QuickGELU()")


@torch.no_grad()
def test_a_tokenizer_of_its_own_comes_along(tmp_path):
    """Eight words, and the text tower is read at the number of the end token, which is not the highest."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {w: i for i, w in enumerate(["<s>", "<pad>", "<unk>", "</s>", "arbre", "eau", "route", "photo"])}
    torch.manual_seed(4)
    tower = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 8, "eos_token_id": 3, "max_position_embeddings": 12},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    network = transformers.CLIPModel(config).eval()
    for value in network.parameters():
        value.add_(torch.randn_like(value) * 0.3)
    network.save_pretrained(tmp_path / "hf")
    with pytest.raises(WeightsError, match="lacks the tokenizer of its 8 words"):
        import_model(tmp_path / "hf", tmp_path / "out")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 3)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "out")
    model = loaded(tmp_path / "out")
    tokens = model.tokenize(["photo arbre", "eau"])
    assert tokens[:, :4].tolist() == [[0, 7, 4, 3], [0, 5, 3, 1]]
    theirs = network.text_model(input_ids=tokens).pooler_output @ network.text_projection.weight.T
    torch.testing.assert_close(model.clip.encode_text(tokens), theirs, atol=1e-5, rtol=0)


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def pickled(content):
    return lambda path: torch.save(content, path)


def zipped(**members):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name.replace("__", "."), content)

    return write


def changed(**tensors):
    """The tiny network with tensors replaced, or left out where the value is None."""

    def write(path):
        state = dict(plain_state())
        for name, change in tensors.items():
            key = name.replace("__", ".")
            new = change(state.get(key))
            state.pop(key, None)
            if new is not None:
                state[key] = new
        torch.save(state, path)

    return write


def cut(path):
    torch.save(plain_state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


REFUSED = {
    "nothing there": (lambda path: None, "there is no file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("no weights at all, but words"), "cannot be read"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "web page"),
    "LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "cut in half": (cut, "cannot be read"),
    "TorchScript": (torchscript, "TorchScript archive, which is a program .*--model ViT-B-16 --pretrained openai"),
    "malicious": (pickled({"state_dict": Trap()}), "it holds .*print, and pickled code is never run"),
    "malicious beside": (
        lambda path: torch.save({"state_dict": plain_state(), "args": Trap()}, path),
        "pickled code is never run. Where you trust the file, save its state dictionary alone",
    ),
    "numbers": (pickled({"epoch": 3}), "no CLIP with a ViT: there are no named tensors"),
    "a list": (pickled([torch.zeros(3)]), "no named tensors"),
    "ResNet": (pickled({"visual.layer1.0.conv1.weight": torch.zeros(3)}), "a ResNet, which has no class token"),
    "timm": (pickled({"visual.trunk.norm.weight": torch.zeros(3)}), "one of timm's"),
    "another network": (pickled({"encoder.weight": torch.zeros(3)}), "names such as encoder.weight"),
    "a bare file of transformers": (
        pickled({"vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 4, 4)}),
        "has the layout of transformers.*ovrs model import FOLDER",
    ),
    "two networks": (
        lambda path: torch.save(
            {f"{w}.{n}": t for w in ("student", "teacher") for n, t in plain_state().items()}, path
        ),
        "holds 2 networks; choose one: --network student or --network teacher",
    ),
    "something beside": (
        changed(head__weight=lambda _: torch.zeros(2, 2)),
        "1 tensors belong to another network, such as head",
    ),
    "a tensor missing": (changed(ln_final__bias=lambda _: None), "1 tensors are missing, such as ln_final.bias"),
    "no text tower": (changed(token_embedding__weight=lambda _: None), "lacks the tensor token_embedding.weight"),
    "no class token": (changed(visual__positional_embedding=lambda t: t[1:]), "4 positions are no square of patches"),
    "wrong shape": (changed(visual__proj=lambda t: t[:9]), "visual.proj is .9, 24. in the file"),
    "whole numbers": (changed(visual__proj=lambda t: (t * 99).to(torch.int8)), "visual.proj holds int8"),
    "NaN": (changed(visual__proj=lambda t: t * float("nan")), "NaN or infinite values in visual.proj"),
    "other words": (changed(token_embedding__weight=lambda t: t[:100]), "has 100 words and CLIP's tokenizer 49408"),
    "tables differ": (
        changed(positional_embedding_res=lambda _: torch.zeros(248, 64)),
        "tables of positions have shapes",
    ),
    "masks overlap": (
        changed(positional_embedding_res=lambda _: torch.zeros(77, 64), mask1=lambda _: torch.ones(77, 1)),
        "mask1 and mask2 do not share the 77 positions",
    ),
    "sparse": (changed(visual__proj=lambda t: t.to_sparse()), "sparse or quantised|cannot be read"),
    "no weights in a zip": (zipped(readme__txt="words"), "holds 0 files of weights"),
    "several in a zip": (zipped(a__pt="x", b__bin="y"), "holds 2 files of weights: a.pt, b.bin; take the one"),
    "a zip in a zip": (zipped(a__pt="<html>"), "web page|empty|cannot be read"),
    "no folder of weights": (
        lambda path: path.mkdir(),
        "is no CLIPModel folder of transformers: config.json is missing",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of making a sparse tensor
@pytest.mark.parametrize("case", REFUSED)
def test_odd_sources_are_one_line_and_leave_nothing(tmp_path, capsys, case):
    write, told = REFUSED[case]
    write(tmp_path / "file.pt")
    arguments = ["model", "import", str(tmp_path / "file.pt"), "-o", str(tmp_path / "out"), "--quick-gelu"]
    code = edge.run(app, arguments)
    out, err = capsys.readouterr()
    assert code in (2, 3), err
    assert "executed" not in out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(told, err), err
    assert [p.name for p in tmp_path.iterdir()] in ([], ["file.pt"])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", "{", "is no JSON"),
        ("config.json", '{"model_type": "siglip"}', "model_type is 'siglip'"),
        ("config.json", '{"model_type": "clip", "text_config": 7}', "is no configuration of a CLIPModel"),
        ("config.json", '{"model_type": "clip"}', "do not fit each other"),
        ("config.json", '{"model_type": "clip", "vision_config": {"hidden_size": 12000000}}', "width must lie above 0"),
        ("config.json", '{"model_type": "clip", "vision_config": {"num_attention_heads": 0}}', "config.json"),
        (
            "config.json",
            '{"model_type": "clip", "vision_config": {"hidden_act": "silu"}}',
            "hidden_act is quick_gelu and silu",
        ),
        ("model.safetensors", "x" * 100, "cannot be read"),
        ("preprocessor_config.json", '{"rescale_factor": 1}', "colours from 0 to 1"),
        ("open_clip_config.json", "{}", "is in open_clip's format already"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b"}}', "must name files beside it"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "shard .* is missing"),
        ("model.safetensors.index.json", '{"weight_map": 7}', "is no index of shards"),
    ],
)
def test_odd_folders_of_transformers_are_one_line(tmp_path, capsys, name, content, told):
    folder = tmp_path / "hf"
    transformers_folder(folder)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    code = edge.run(app, ["model", "import", str(folder), "-o", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert code in (2, 3)
    assert err.count("\n") == 1
    assert re.search(told, err), err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept_unless_asked(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "file.pt")
    out = tmp_path / "out"
    import_model(tmp_path / "file.pt", out, Choices(quick_gelu=False))
    with pytest.raises(OptionError, match="is there already; choose another -o, or replace it with --overwrite"):
        import_model(tmp_path / "file.pt", out, QUICK)
    import_model(tmp_path / "file.pt", out, QUICK, overwrite=True)
    assert loaded(out).facts["activation"]["vision"] == "QuickGELU()"
    with pytest.raises(OptionError, match="--quick-gelu"):
        import_model(tmp_path / "file.pt", out, overwrite=True)
    assert loaded(out).facts["activation"]["vision"] == "QuickGELU()"
    torch.save(clip.state_dict(), out / "inside.pt")
    with pytest.raises(OptionError, match=r"lies in .*, which would be replaced"):
        import_model(out / "inside.pt", out, QUICK, overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match=r"replaces a model directory; .*home holds no open_clip_config.json"):
        import_model(tmp_path / "file.pt", tmp_path / "home", QUICK, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.pt", "home", "out"]


def test_a_checkpoint_with_a_teacher_gives_the_student(clip, tmp_path):
    other = tiny(9)
    torch.save({"state_dict": clip.state_dict(), "state_dict_teacher": other.state_dict()}, tmp_path / "both.pt")
    done = import_model(tmp_path / "both.pt", tmp_path / "out", QUICK)
    assert_same(tmp_path / "out", clip)
    assert "left out: state_dict_teacher" in said(done)
    import_model(tmp_path / "both.pt", tmp_path / "teacher", Choices(quick_gelu=True, network="state_dict_teacher"))
    assert_same(tmp_path / "teacher", other)
    with pytest.raises(WeightsError, match="has no network 'ema'; it has 'state_dict', 'state_dict_teacher'"):
        import_model(tmp_path / "both.pt", tmp_path / "ema", Choices(quick_gelu=True, network="ema"))


def test_a_wrong_conversion_is_noticed(clip, tmp_path, monkeypatch):
    torch.save(clip.state_dict(), tmp_path / "file.pt")
    monkeypatch.setattr(importing.reference, "text_vectors", lambda *_, **__: torch.zeros(3, 24))
    with pytest.raises(WeightsError, match="gives other embeddings than its tensors"):
        import_model(tmp_path / "file.pt", tmp_path / "out", QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["file.pt"]


def test_the_command_line_tells_what_it_did(clip, tmp_path, capsys):
    torch.save(nested(clip.state_dict()), tmp_path / "file.pt")
    arguments = ["model", "import", str(tmp_path / "file.pt"), "-o", str(tmp_path / "out"), "--no-quick-gelu"]
    assert edge.run(app, [*arguments, "--licence", "MIT", "--mean", "0.5,0.5,0.5", "--heads", "1,1"]) == 0
    out = capsys.readouterr().out
    assert "licence: MIT" in out
    assert "activation: GELU, as the command says" in out
    assert "compared with its source" in out
    assert f"model: {tmp_path / 'out'}" in out
    for odd in (["--mean", "1,2"], ["--heads", "12"], ["--std", "a,b,c"]):
        assert edge.run(app, [*arguments[:4], str(tmp_path / "other"), "--quick-gelu", *odd]) == 2
        assert f"{odd[0]} takes" in capsys.readouterr().err


def test_models_are_listed_with_their_facts(capsys):
    assert edge.run(app, ["models"]) == 0
    out = capsys.readouterr().out
    assert "ovrs map SCENE.tif --model sam3 --method proc_sam3 …" in out
    assert "Sources were read in November 2026." in out
    entries = known.table().models
    names = open_clip.list_models()
    for name, model in entries.items():
        assert name in out
        assert (model.where == "nowhere") == (model.file is None and model.tag is None and not model.whole)
        if not model.whole:  # a folder of transformers is no network of open_clip
            assert model.architecture in names
            vision = open_clip.get_model_config(model.architecture)["vision_cfg"]
            assert vision["image_size"] == model.pixels
        assert model.parameters > 50
        assert model.tile_gigabytes > 1
        for command in (c for c in known.commands(name) if c.startswith("ovrs ")):
            words = command.replace(" …", " --classes a").replace("--quick-gelu|", "").split()[1:]
            command = get_command(app)
            while words and hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            assert command.make_context(command.name, words).params
    for name in ("openai-b16", "openai-b32", "openai-l14", "openai-l14-336"):
        tag = open_clip.get_pretrained_cfg(entries[name].architecture, entries[name].tag)
        assert bool(tag["quick_gelu"]) == entries[name].quick_gelu
    assert known.of_file("rs5m_vit-b-32.SAFETENSORS")[0] == "georsclip-b32"
    assert known.of_file("weights.pt") is None
