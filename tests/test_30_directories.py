"""Model directories as people have them: damaged, odd, or of another program. Each is one line, and no hub is asked."""

import json
import random
import socket
import struct
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from ovrs.errors import OptionError, WeightsError
from ovrs.model.clip.loading import load
from ovrs.options import ModelOptions

CONFIG, WEIGHTS, OWN = "open_clip_config.json", "open_clip_model.safetensors", "ovrs.json"
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    "quick_gelu": True,
}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return open_clip.CLIP(**MODEL).state_dict()


@pytest.fixture
def place(tmp_path, state):
    """A whole directory, small."""
    (tmp_path / "net").mkdir()
    write(tmp_path / "net", MODEL)
    save_file(state, tmp_path / "net" / WEIGHTS)
    return tmp_path / "net"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a directory's model asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(directory, model, **more):
    (directory / CONFIG).write_text(json.dumps({"model_cfg": model, **more}))


def given(directory):
    return load(ModelOptions(model=str(directory)))


def changed(*path, **values):
    """Another `model_cfg`: keys under `path` with other values, or without those that are `...`."""

    def apply(directory):
        model = json.loads(json.dumps(MODEL))
        part = model
        for key in path:
            part = part[key]
        part |= {k: v for k, v in values.items() if v is not ...}
        for key in [k for k, v in values.items() if v is ...]:
            del part[key]
        write(directory, model)

    return apply


def config_is(content):
    return lambda d: (d / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())


def own_is(content):
    return lambda d: (d / OWN).write_text(content if isinstance(content, str) else json.dumps(content))


def more_config(**values):
    return lambda d: write(d, MODEL, **values)


def weights_are(change):
    """The bytes of the weights, changed."""
    return lambda d: (d / WEIGHTS).write_bytes(change((d / WEIGHTS).read_bytes()))


def tensors(**values):
    """Some tensors replaced, or left out if None; dots are written as two underscores."""

    def apply(directory):
        from safetensors.torch import load_file

        state = load_file(directory / WEIGHTS)
        for name, change in values.items():
            key = name.replace("__", ".")
            state[key] = change(state[key]) if key in state else change(None)
        save_file({k: v for k, v in state.items() if v is not None}, directory / WEIGHTS)

    return apply


def only(name, content=b"x" * 100):
    """Another file in the place of the weights."""

    def apply(directory):
        (directory / WEIGHTS).unlink()
        (directory / name).write_bytes(content)

    return apply


def folder(name):
    def apply(directory):
        (directory / name).unlink(missing_ok=True)
        (directory / name).mkdir()

    return apply


def gone(*names):
    return lambda d: [(d / name).unlink() for name in names]


def torchscript(directory):
    (directory / WEIGHTS).unlink()
    with zipfile.ZipFile(directory / "open_clip_pytorch_model.bin", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", "")
        archive.writestr("net/data.pkl", b"")


def pickled(value):
    def apply(directory):
        (directory / WEIGHTS).unlink()
        torch.save(value, directory / "open_clip_pytorch_model.bin")

    return apply


def of_transformers(directory):
    gone(CONFIG)(directory)
    (directory / "config.json").write_text('{"model_type": "clip"}')


def dangling(name):
    def apply(directory):
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(directory / "nowhere")

    return apply


def looping(directory):
    (directory / CONFIG).unlink()
    (directory / CONFIG).symlink_to(directory / CONFIG)


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


BROKEN = {
    "empty directory": (gone(CONFIG, WEIGHTS), "open_clip_config.json is missing"),
    "no configuration": (gone(CONFIG), "open_clip_config.json is missing"),
    "transformers": (of_transformers, "config.json is transformers' format"),
    "configuration is no JSON": (config_is("{'a': 1}"), "is no JSON: .* in line 1"),
    "configuration is empty": (config_is(""), "is no JSON"),
    "configuration is cut": (config_is(json.dumps({"model_cfg": MODEL})[:90]), "is no JSON"),
    "configuration is a list": (config_is("[1, 2]"), "holds a JSON list"),
    "configuration is a number": (config_is("7"), "holds a JSON int"),
    "configuration is null": (config_is("null"), "holds a JSON NoneType"),
    "configuration is Latin-1": (config_is('{"model_cfg": "é"}'.encode("latin-1")), "is no UTF-8 text"),
    "configuration is binary": (config_is(bytes(range(256))), "is no UTF-8 text"),
    "configuration is deep": (config_is('{"a":' * 100_000), "nested too deeply"),
    "configuration is huge": (config_is(" " * (5 << 20)), "at most"),
    "configuration is a folder": (folder(CONFIG), "is no file"),
    "configuration points nowhere": (dangling(CONFIG), "is no file"),
    "configuration points at itself": (looping, "is no file"),
    "configuration holds NaN": (config_is('{"model_cfg": {"embed_dim": NaN}}'), "cannot hold: NaN"),
    "configuration holds a long number": (
        config_is('{"model_cfg": {"embed_dim": ' + "9" * 5000 + "}}"),
        "number that JSON or Python cannot hold",
    ),
    "preprocess_cfg is a number": (more_config(preprocess_cfg=0), "preprocess_cfg: content"),
    "unknown key beside": (more_config(preproces_cfg={"mean": [0, 0, 0]}), "unknown keys .'preproces_cfg'."),
    "model_cfg is missing": (config_is(json.dumps(MODEL)), "unknown keys .'embed_dim'"),
    "model_cfg is a list": (config_is('{"model_cfg": []}'), "model_cfg must be an object"),
    "no vision_cfg": (changed(vision_cfg=...), "model_cfg lacks vision_cfg"),
    "no text_cfg": (changed(text_cfg=...), "model_cfg lacks text_cfg"),
    "no embed_dim": (changed(embed_dim=...), "model_cfg lacks embed_dim"),
    "vision_cfg is text": (changed(vision_cfg="ViT-B-16"), "vision_cfg must be an object"),
    "unknown key": (changed(image_size=32), "unknown keys .'image_size'."),
    "unknown key of the vision tower": (changed("vision_cfg", patchsize=16), "vision_cfg.patchsize"),
    "unknown key of the text tower": (changed("text_cfg", depth=16), "text_cfg.depth"),
    "width is text": (changed("vision_cfg", width="wide"), "vision_cfg.width: .* valid integer"),
    "width is a list": (changed("text_cfg", width=[16]), "text_cfg.width"),
    "embed_dim is text": (changed(embed_dim="many"), "model_cfg.embed_dim: .* valid integer"),
    "quick_gelu is a number": (changed(quick_gelu=7), "model_cfg.quick_gelu"),
    "layers are text": (changed("vision_cfg", layers="2"), "vision_cfg.layers"),
    "layers are true": (changed("text_cfg", layers=True), "text_cfg.layers: .* valid integer"),
    "a name of two lines": (changed("text_cfg", hf_model_name="a\nb"), "never contacts a hub"),
    "a key of two lines": (changed("text_cfg", **{"a\nb": 1}), "text_cfg.a.nb"),
    "no layers": (changed("vision_cfg", layers=0), "layers must lie above 0"),
    "negative width": (changed("text_cfg", width=-16), "width must lie above 0"),
    "endless layers": (changed("text_cfg", layers=10**9), "layers must lie above 0 and at most at"),
    "endless words": (changed("text_cfg", vocab_size=10**15), "vocab_size must lie above 0 and at most at"),
    "endless text": (changed("text_cfg", context_length=10**7), "context_length must lie above 0 and at most at"),
    "huge width": (changed("vision_cfg", width=65536), "do not fit"),
    "width of a fraction": (changed("vision_cfg", width=32.5), "vision_cfg.width"),
    "a number too large for floats": (config_is('{"model_cfg": {"embed_dim": 1e999}}'), "model_cfg"),
    "patch larger than the image": (changed("vision_cfg", patch_size=64), "0 x 0 patches"),
    "oblong image": (changed("vision_cfg", image_size=[32, 64]), "2 x 4 patches"),
    "heads that do not divide": (changed("text_cfg", heads=3), "no network can be built"),
    "heads wider than the tower": (changed("vision_cfg", head_width=64), "no network can be built"),
    "another width": (
        changed("vision_cfg", width=64),
        "visual.class_embedding is .32,. in the file and .64,. in the network",
    ),
    "another image size": (changed("vision_cfg", image_size=64), "visual.positional_embedding is"),
    "another text length": (changed("text_cfg", context_length=40), "positional_embedding is .77, 16. in the file"),
    "more layers": (changed("vision_cfg", layers=3), "12 tensors are missing"),
    "fewer layers": (changed("vision_cfg", layers=1), "12 tensors belong to another network"),
    "a ResNet": (changed("vision_cfg", layers=[1, 1, 1, 1]), "this one is a ResNet"),
    "timm's tower": (
        changed("vision_cfg", timm_model_name="vit_base_patch16_224", timm_model_pretrained=True),
        "timm's vit_base",
    ),
    "mean pooling": (changed("vision_cfg", pool_type="avg"), "pools by attention or mean"),
    "attention pooling": (changed("vision_cfg", attentional_pool=True), "pools by attention or mean"),
    "another attention": (changed("vision_cfg", qk_norm=True), "standard attention blocks"),
    "unknown pooling": (changed("text_cfg", pool_type="middle"), "no network can be built"),
    "a text tower of a hub": (changed("text_cfg", hf_model_name="roberta-base"), "never contacts a hub"),
    "a tokenizer of a hub": (changed("text_cfg", hf_tokenizer_name="roberta-base"), "put its tokenizer.json"),
    "no tokenizer of so many words": (changed("text_cfg", vocab_size=1000), "do not fit"),
    "tokenizer's arguments": (
        changed("text_cfg", tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
        "tokenizer_kwargs has 'bpe_path'",
    ),
    "tokenizer's cleaning": (changed("text_cfg", tokenizer_kwargs={"clean": "magic"}), "make no tokenizer"),
    "no projection of text": (changed("text_cfg", proj_type="none"), "do not fit"),
    "a stem without a name": (more_config(stem={}), "stem must be an object"),
    "a stem of a hub": (more_config(stem={"timm_model": "hf-hub:a/b"}), "must be one of timm's names"),
    "a stem that timm lacks": (more_config(stem={"timm_model": "magic"}), "must be one of timm's names"),
    "a stem of another kind": (more_config(stem={"timm_model": "resnet18"}), "no network can be built"),
    "a stem without weights": (more_config(stem={"timm_model": "efficientnet_lite0"}), "do not fit"),
    "mean of two": (more_config(preprocess_cfg={"mean": [0.5, 0.5]}), "preprocess_cfg: mean"),
    "mean is text": (more_config(preprocess_cfg={"mean": "grey"}), "preprocess_cfg: mean"),
    "no deviation": (more_config(preprocess_cfg={"std": [0.2, 0.2, 0]}), "preprocess_cfg: std"),
    "colours of another order": (more_config(preprocess_cfg={"mode": "BGR"}), "preprocess_cfg: mode"),
    "preprocessing's slip": (more_config(preprocess_cfg={"means": [0, 0, 0]}), "preprocess_cfg: means"),
    "no weights": (gone(WEIGHTS), "open_clip_model.safetensors is missing"),
    "weights are empty": (weights_are(lambda b: b""), "the file is empty"),
    "weights are cut": (weights_are(lambda b: b[: len(b) // 2]), "cannot be loaded"),
    "weights are cut in the header": (weights_are(lambda b: b[:100]), "cannot be loaded"),
    "weights' header is no JSON": (weights_are(lambda b: struct.pack("<Q", 8) + b"x" * 80), "cannot be loaded"),
    "weights' header is endless": (weights_are(lambda b: struct.pack("<Q", 1 << 60) + b[8:]), "cannot be loaded"),
    "weights hold too much": (weights_are(lambda b: b + b"more"), "cannot be loaded"),
    "weights are a folder": (folder(WEIGHTS), "is no file"),
    "weights point nowhere": (dangling(WEIGHTS), "is no file"),
    "weights are a pointer": (
        weights_are(lambda b: b"version https://git-lfs.github.com/spec/v1\noid"),
        "git lfs pull",
    ),
    "weights are a page": (weights_are(lambda b: b"<!DOCTYPE html><html>"), "are a web page"),
    "weights of no tensors": (lambda d: save_file({}, d / WEIGHTS), "tensors are missing"),
    "a tensor less": (tensors(ln_final__bias=lambda t: None), "1 tensors are missing, such as ln_final.bias"),
    "a tensor more": (tensors(extra=lambda t: torch.ones(1)), "1 tensors belong to another network, such as extra"),
    "transformers' names": (tensors(vision_model__proj=lambda t: torch.ones(1)), "the layout of transformers"),
    "a tensor of another shape": (
        tensors(visual__proj=lambda t: t.T.contiguous()),
        "visual.proj is .16, 32. in the file",
    ),
    "whole numbers": (tensors(visual__proj=lambda t: t.to(torch.int8)), "not floating-point numbers"),
    "NaN": (tensors(visual__proj=lambda t: t * torch.nan), "NaN or infinite values in visual.proj"),
    "infinity in one place": (
        tensors(ln_final__bias=lambda t: t.index_fill(0, torch.tensor([3]), torch.inf)),
        "in ln_final.bias",
    ),
    "huge weights": (tensors(visual__proj=lambda t: t.fill_(3e38)), "not finite in float32"),
    "huge words": (tensors(text_projection=lambda t: t.fill_(3e38)), "text tower gives values that are not finite"),
    "a pickle with code": (pickled({"trap": Trap()}), "cannot be loaded"),
    "a pickled list": (pickled([1, 2]), "cannot be loaded"),
    "an empty pickle": (pickled({}), "cannot be loaded"),
    "a pickle of other things": (pickled({"epoch": 3, "lr": 0.1}), "epoch is no tensor"),
    "a pickle that is none": (only("open_clip_pytorch_model.bin"), "cannot be loaded"),
    "TorchScript": (torchscript, "TorchScript archive"),
    "two files of weights": (
        lambda d: [only("a.pt")(d), (d / "b.pt").write_bytes(b"x" * 100)],
        "holds 2 files of weights",
    ),
    "another hash": (own_is({"sha256": "0" * 64}), "damaged"),
    "no hash": (own_is({"sha256": "abc"}), "ovrs.json: sha256"),
    "recommendations are no JSON": (own_is("{"), "ovrs.json is no JSON"),
    "recommendations are a list": (own_is([1]), "ovrs.json holds a JSON list"),
    "recommendations are a folder": (folder(OWN), "ovrs.json is no file"),
    "unknown recommendations": (own_is({"default": {}}), "ovrs.json: default"),
    "recommended options are a list": (own_is({"defaults": [1]}), "ovrs.json: defaults"),
    "an unknown option": (own_is({"defaults": {"magic": 1}}), "defaults has .'magic'."),
    "an option that is no model's": (own_is({"defaults": {"method": "tent"}}), "defaults has .'method'."),
    "an option of another type": (own_is({"defaults": {"logit_scale": "hot"}}), "defaults: logit_scale"),
    "an option out of range": (own_is({"defaults": {"cls_weight": 9}}), "defaults: cls_weight"),
    "an endless option": (own_is('{"defaults": {"logit_scale": 1e999}}'), "logit_scale"),
    "an unknown variant": (own_is({"defaults": {"dense": "magic"}}), "defaults.dense is 'magic'; choose one of"),
    "an unknown upsampler": (own_is({"defaults": {"upsampler": "magic"}}), "defaults.upsampler is 'magic'"),
    "an unknown window": (own_is({"windows": {"size": 3}}), "windows.size"),
    "a window of nothing": (own_is({"windows": {"zoom": 0}}), "windows.zoom"),
    "a window of text": (own_is({"windows": {"stride": "half"}}), "windows.stride"),
    "pixels of nothing": (own_is({"windows": {"pixel_sizes": [0.1, -1]}}), "windows.pixel_sizes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_are_one_line_with_the_exit_code_of_weights(place, no_network, case):
    spoil, told = BROKEN[case]
    spoil(place)
    with pytest.raises((WeightsError, OptionError), match=told) as caught:
        given(place)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200
    assert caught.value.exit_code in (2, 3)


def test_the_directory_that_the_broken_ones_come_from_loads(place, no_network):
    model = given(place)
    assert model.facts["activation"] == {"vision": "QuickGELU()", "text": "QuickGELU()"}
    assert model.facts["tokenizer"] == "clip"


ODD = (None, True, -1, 0, 3, 1.5, 1e308, 10**30, "", "x", "16", "a\nb", "\0", [], [16, 16], {}, {"a": 1})


def mutated(rng, content):
    """One value of a document replaced, removed or renamed."""
    part = content
    while True:
        key = rng.choice(sorted(part))
        if not isinstance(part[key], dict) or not part[key] or rng.random() < 0.2:
            break
        part = part[key]
    action = rng.random()
    if action < 0.2:
        del part[key]
    elif action < 0.3:
        part[f"{key}_"] = part.pop(key)
    else:
        part[key] = rng.choice(ODD)
    return content


@pytest.mark.parametrize("seed", range(40))
def test_mutated_directories_load_or_say_why(place, no_network, seed):
    rng = random.Random(seed)
    whole = {
        CONFIG: {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}},
        OWN: {"defaults": {"dense": "naclip", "logit_scale": 40}, "windows": {"zoom": 1, "pixel_sizes": [0.1]}},
    }
    name = rng.choice([CONFIG, CONFIG, OWN, WEIGHTS])
    if name == WEIGHTS:
        content = bytearray((place / name).read_bytes())
        for _ in range(3):
            content[rng.randrange(2000)] = rng.randrange(256)
        (place / name).write_bytes(content)
    else:
        (place / name).write_text(json.dumps(mutated(rng, json.loads(json.dumps(whole[name])))))
    told = outcome(place)
    assert "\n" not in told


def outcome(directory):
    """What a user is told; nothing if the model loads. Any other error is the test's."""
    try:
        given(directory)
    except (WeightsError, OptionError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a JSON list"),
        ('{"model_type": ' * 100_000, "nested too deeply"),
        (b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_a_broken_config_json_is_one_line_before_anything_is_loaded(tmp_path, content, told):
    """`config.json` tells SAM 3 from others."""
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OptionError, match=told) as caught:
        _ = ModelOptions(model=str(tmp_path)).family
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "family"), [("sam3_video", "sam3"), ("clip", "clip"), (7, "clip"), (None, "clip")])
def test_config_json_tells_the_family(tmp_path, kind, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert ModelOptions(model=str(tmp_path)).family == family
    assert ModelOptions(model="x" * 5000).family == "clip"


def test_unreadable_files_are_named(place, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(place), "read_bytes", refuse)
    with pytest.raises(WeightsError, match=r"open_clip_config.json cannot be read: Permission denied"):
        given(place)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "clip.pt").write_bytes(b"x")
    with pytest.raises(
        WeightsError, match=r"is a file; .*ovrs model import .*name its architecture too: --model ViT-B-32 --pretrained"
    ):
        given(tmp_path / "clip.pt")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_too_large_for_an_arithmetic_are_refused_in_it(place, dtype):
    """Half precision ends at 65504; loading looks once before a map is begun."""
    tensors(visual__proj=lambda t: t.sign() * 6e4, visual__ln_post__weight=lambda t: t * 8)(place)
    options = ModelOptions(model=str(place), dtype=dtype)
    if dtype == "bfloat16":
        assert load(options).mean
        return
    with pytest.raises(WeightsError, match=r"not finite in float16; use --set model\.dtype=float32 or bfloat16"):
        load(options)


@pytest.fixture
def multilingual(place, state):
    """A directory whose text tower has words of its own, read at their end token, as MetaCLIP's worldwide ones."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "arbre", "eau", "route", "photo"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(place)
    text = {**MODEL["text_cfg"], "vocab_size": 8, "context_length": 12, "pool_type": "eos", "eos_id": 2}
    model = {**MODEL, "text_cfg": {**text, "hf_tokenizer_name": "somebody/words"}}
    write(place, model)
    torch.manual_seed(1)
    save_file(open_clip.CLIP(**model).state_dict(), place / WEIGHTS)
    return place


def test_a_tokenizer_beside_the_weights_is_used_and_no_hub_is_asked(multilingual, no_network):
    from ovrs.model.clip.text import encode_sentences

    model = given(multilingual)
    sentences = ["photo arbre", "eau", "route"]
    assert model.tokenize(sentences)[:, :4].tolist() == [[0, 7, 4, 2], [0, 5, 2, 1], [0, 6, 2, 1]]
    reference = open_clip.create_model(f"local-dir:{multilingual}").eval()
    with torch.no_grad():
        wanted = reference.encode_text(open_clip.get_tokenizer(f"local-dir:{multilingual}")(sentences), normalize=True)
    torch.testing.assert_close(encode_sentences(model.clip, model.tokenize, sentences), wanted, atol=1e-5, rtol=0)
    assert len(model.facts["tokenizer"]) == 64


def test_another_tokenizer_is_another_model(multilingual):
    before = given(multilingual).facts
    file = multilingual / "tokenizer.json"
    file.write_text(file.read_text().replace('"arbre": 4', '"eau": 4').replace('"eau": 5', '"arbre": 5'))
    after = given(multilingual).facts
    assert before["tokenizer"] != after["tokenizer"]
    assert {k: v for k, v in before.items() if k != "tokenizer"} == {k: v for k, v in after.items() if k != "tokenizer"}


def text_is(**values):
    def apply(directory):
        config = json.loads((directory / CONFIG).read_text())
        config["model_cfg"]["text_cfg"] |= values
        (directory / CONFIG).write_text(json.dumps(config))

    return apply


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (gone("tokenizer.json"), "put its tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "the tokenizer cannot be loaded"),
        (lambda d: (d / "tokenizer.json").write_text("[]"), "the tokenizer cannot be loaded"),
        (lambda d: (d / "tokenizer_config.json").write_text("{"), "the tokenizer cannot be loaded"),
        (text_is(eos_id=6), "never gives token 6"),
        (text_is(hf_tokenizer_name=None), "tokens and CLIP's tokenizer 49408|8 tokens"),
        (text_is(tokenizer_kwargs={"trust_remote_code": True}), "has 'trust_remote_code', unknown"),
        (text_is(tokenizer_kwargs={"subfolder": "x"}), "has 'subfolder', unknown"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(multilingual, no_network, spoil, told):
    spoil(multilingual)
    with pytest.raises(WeightsError, match=told) as caught:
        given(multilingual)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_words_than_the_tower_is_refused(multilingual, no_network):
    file = multilingual / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["pont"] = 8
    file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="the tokenizer has 9 tokens and the text tower only 8"):
        given(multilingual)


def test_a_tokenizer_brings_no_code(multilingual, no_network):
    """`auto_map` names a Python file that transformers could be told to run."""
    (multilingual / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    (multilingual / "own.py").write_text("raise SystemExit('executed')")
    with pytest.raises(WeightsError, match="the tokenizer cannot be loaded"):
        given(multilingual)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "weights.pt"])
@pytest.mark.parametrize("custom", [False, True])
def test_pickled_weights_and_towers_of_their_own_load_as_in_open_clip(place, state, no_network, name, custom):
    """`custom_text` keeps the text tower's parts under `text.`; weights saved either way fit it."""
    write(place, {**MODEL, "custom_text": custom}, preprocess_cfg={"mean": [0.1, 0.2, 0.3]})
    (place / WEIGHTS).unlink()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, place / name)
    model = given(place)
    from ovrs.model.clip.text import encode_sentences

    reference = open_clip.CLIP(**MODEL).eval()
    reference.load_state_dict(state)
    tokens = open_clip.tokenize(["a tree", "water"])
    with torch.no_grad():
        wanted = reference.encode_text(tokens, normalize=True)
    torch.testing.assert_close(
        encode_sentences(model.clip, model.tokenize, ["a tree", "water"]), wanted, atol=1e-5, rtol=0
    )
    assert (model.mean, model.facts["activation"]["text"]) == ((0.1, 0.2, 0.3), "QuickGELU()")


@pytest.mark.parametrize("name", ["jbu_one.safetensors", "jbu_one.ckpt"])
@pytest.mark.parametrize("content", [b"", b"broken", b"x" * 1000, b"version https://git-lfs.github.com/spec/v1"])
def test_damaged_upsamplers_are_one_line(tmp_path, name, content):
    from ovrs.model.clip.upsample import load_jbu

    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as plain tensors") as caught:
        load_jbu("jbu_one", tmp_path / name, 16, torch.device("cpu"))
    assert "\n" not in str(caught.value)
