"""SAM 3 in the layouts that are published: the authors' own file and transformers'. Both give what the authors' code computes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data import make_sam3_authors as theirs
from safetensors.torch import load_file, save_file

from ovrs.cli import edge
from ovrs.cli.app import app
from ovrs.errors import OptionError, Sam3WeightsMissing, WeightsError
from ovrs.model.clip import checkpoint
from ovrs.model.sam3 import authors, importing
from ovrs.model.sam3.backend import Sam3Backend
from ovrs.model.sam3.build import build_sam3_segmenter
from ovrs.model.sam3.weights import load
from ovrs.options import MethodOptions, ModelOptions
from ovrs.words import vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def state():
    """The authors' tensors, with what lies beside the detector in their file."""
    names = theirs.names()
    turned = {name: torch.zeros(shape, dtype=torch.complex64) for name, shape in names["complex"].items()}
    own = {f"detector.{n}": t for n, t in {**theirs.weights(names["shapes"]), **turned}.items()}
    return {**own, "tracker.maskmem_backbone.fuser.layers.0.gamma": torch.zeros(2)}


@pytest.fixture(scope="module")
def record():
    with np.load(theirs.RECORD) as kept:
        return {name: torch.from_numpy(kept[name]) for name in ("semantic", "masks", "objects", "presence")}


def place(folder, content, name="sam3.pt"):
    """A directory as people download it."""
    folder.mkdir(exist_ok=True)
    theirs.config().save_pretrained(folder)
    if name.endswith(".safetensors"):
        save_file({n: t for n, t in content.items() if not t.is_complex()}, folder / name, {"format": "pt"})
    else:
        torch.save(content, folder / name)
    return folder


def answers(network):
    backend = Sam3Backend(network, "x", CPU)
    backend._image = lambda rgb, valid: theirs.pixels()[0]
    seen = backend.encode_image(np.zeros((3, 64, 64), np.uint8), np.ones((64, 64), bool))
    bank = backend._encode_text(theirs.PHRASES)
    found = backend.ground(seen, bank, [0, 1], lambda d: (d.semantic, d.masks, d.objects, d.presence))
    return dict(zip(("semantic", "masks", "objects", "presence"), found, strict=True))


def require_the_authors(network, record):
    for name, found in answers(network).items():
        torch.testing.assert_close(
            found, record[name], atol=2e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("how", ["sam3.pt", pytest.param("model.safetensors", marks=pytest.mark.slow)])
def test_the_authors_layout_computes_what_their_code_computes(state, record, tmp_path, how):
    """Recorded with facebookresearch/sam3 itself (`tests/data/make_sam3_authors.py`); differences are float32 noise of sums."""
    if how == "sam3.pt":
        content = {"model": state, "epoch": 3}
    else:  # of their trainer: no prefix
        content = {n.removeprefix("detector."): t for n, t in state.items() if n.startswith("detector.")}
    folder = place(tmp_path / "w", content, how)
    network, name = load(str(folder), torch.float32)
    assert name == "w"
    require_the_authors(network, record)


def test_both_published_layouts_give_equal_outputs(state, record, tmp_path):
    """facebookresearch/sam3's `detector.…`, and facebook/sam3's `detector_model.…` beside a tracker in a configuration of videos."""
    first, _ = load(str(place(tmp_path / "a", {"model": state})), torch.float32)
    lines = importing.import_model(tmp_path / "a/sam3.pt", tmp_path / "b")
    assert any(line.startswith("left out: ") and "tracker" in line for line in lines)
    modes = {file.stat().st_mode for file in (tmp_path / "b").iterdir()}
    assert len(modes) == 1  # who may read one file may read all
    own = json.loads((tmp_path / "b/ovrs.json").read_text())
    assert own["source"]["file"] == "sam3.pt"
    assert "no military" in own["licence"]
    renamed = {f"detector_model.{n}": t for n, t in load_file(tmp_path / "b/model.safetensors").items()}
    save_file(
        {**renamed, "tracker_model.shared.weight": torch.zeros(2)}, tmp_path / "b/model.safetensors", {"format": "pt"}
    )
    content = json.loads((tmp_path / "b/config.json").read_text())
    (tmp_path / "b/config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": content}))
    second, _ = load(str(tmp_path / "b"), torch.float32)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    require_the_authors(second, record)


@torch.no_grad()
def test_without_boxes_transformers_forward_lacks_a_token_of_the_authors(state, record, tmp_path):
    """Their forward agrees once it is given a box that is masked out; without one it is another network."""
    network, _ = load(str(place(tmp_path / "w", {"model": state})), torch.float32)
    backend = Sam3Backend(network, "x", CPU)
    ids = backend._tokenize(theirs.PHRASES)
    given = {
        "pixel_values": theirs.pixels().expand(2, -1, -1, -1),
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
    }
    masked = {"input_boxes": torch.full((2, 1, 4), 0.5), "input_boxes_labels": torch.full((2, 1), -10)}
    torch.testing.assert_close(network(**given, **masked).semantic_seg[:, 0], record["semantic"], atol=2e-4, rtol=0)
    assert (network(**given).semantic_seg[:, 0] - record["semantic"]).abs().max() > 0.02


def test_a_folder_with_the_authors_file_alone_is_sam3(tmp_path):
    assert ModelOptions(model=str(tmp_path)).family == "clip"
    (tmp_path / "sam3.pt").touch()
    assert ModelOptions(model=str(tmp_path)).family == "sam3"
    (tmp_path / "open_clip_config.json").touch()
    assert ModelOptions(model=str(tmp_path)).family == "clip"


@pytest.mark.slow
def test_names_and_shapes_of_the_published_size_all_fit():
    shapes = theirs.names()["published"]
    tensors = {f"detector.{n}": torch.empty(s, device="meta") for n, s in shapes.items()}
    from transformers import Sam3Config

    sketch = importing._sketch(Sam3Config(), Path("sam3.pt"))
    found, left_out = authors.converted(tensors, Path("sam3.pt"), sketch.state_dict())
    checkpoint.require_same(sketch, found, Path("sam3.pt"))
    assert (len(found), len(left_out)) == (1468, 60)


def test_the_command_makes_a_directory_that_maps(state, tmp_path, capsys):
    place(tmp_path / "a", {"model": state})
    (tmp_path / "a/config.json").rename(tmp_path / "config.json")
    torch.save({"model": state}, tmp_path / "mine.pt")
    out = tmp_path / "b"
    assert edge.run(app, ["model", "import", str(tmp_path / "mine.pt"), "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "found: SAM 3, 3.7 M parameters, 64 px (facebookresearch/sam3)" in told
    assert "licence: SAM License" in told
    assert edge.run(app, ["sam3", "check", "--model", str(out)]) == 0
    assert "64 px" in capsys.readouterr().out
    assert edge.run(app, ["model", "import", str(tmp_path / "mine.pt"), "-o", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert edge.run(app, ["model", "import", str(tmp_path / "mine.pt"), "-o", str(tmp_path / "c"), "--quick-gelu"]) == 2
    assert edge.run(app, ["model", "import", str(out), "-o", str(tmp_path / "c")]) == 3
    assert f"--model {out}" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    made = build_sam3_segmenter(
        ModelOptions(model=str(out)), MethodOptions(method="proc_sam3"), vocabulary.from_names(["roof", "water"])
    )
    assert "no military" in made.describe()["licence"]


@pytest.mark.slow  # the published size is described
def test_a_folder_with_the_authors_file_alone_is_not_refused(state, tmp_path):
    """Sizes are those of the published network where no config.json tells others."""
    folder = place(tmp_path / "w", {"model": state})
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"tensors are missing, such as \S+.*lay config\.json beside it") as caught:
        load(str(folder), torch.float32)
    assert "\n" not in str(caught.value)
    with pytest.raises(Sam3WeightsMissing, match=r"is a file.*name its folder"):
        load(str(folder / "sam3.pt"), torch.float32)


def test_the_licence_is_told_when_the_weights_are_first_loaded(state, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path / "cache"))
    folder = place(tmp_path / "w", {"model": state})
    for _ in range(2):
        build_sam3_segmenter(
            ModelOptions(model=str(folder)), MethodOptions(method="sam3"), vocabulary.from_names(["roof", "water"])
        )
    assert caplog.text.count("SAM License") == 1


WIDTH = "detector.transformer.encoder.layers.0.self_attn."
SPOILED = {
    "unknown": ({"detector.transformer.encoder.gate.weight": torch.zeros(3)}, "no part of SAM 3's detector, such as detector.transformer.encoder.gate.weight"),
    "another network": ({"memory.conv.weight": torch.zeros(3)}, "no part of SAM 3's detector, such as memory.conv.weight"),
    "missing": ({WIDTH + "out_proj.bias": None}, "1 tensors are missing, such as detr_encoder.layers.0.self_attn.o_proj.bias"),
    "shape": ({"detector.dot_prod_scoring.hs_proj.bias": torch.zeros(5)}, r"dot_product_scoring.query_proj.bias is \(5,\) in the file"),
    "joint": ({WIDTH + "in_proj_bias": torch.zeros(95)}, r"in_proj_bias has shape \(95,\); queries, keys and values"),
    "whole numbers": ({WIDTH + "in_proj_bias": torch.zeros(96, dtype=torch.int64)}, "holds int64, not floating-point"),
    "NaN": ({"detector.dot_prod_scoring.hs_proj.bias": torch.full((32,), torch.nan)}, "NaN or infinite values in dot_product_scoring.query_proj.bias"),
    "two": ({authors.ANCHOR: torch.zeros(3)}, "holds 2 detectors of SAM 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_what_does_not_fit_is_refused_by_name(state, tmp_path, case):
    change, told = SPOILED[case]
    content = {n: t for n, t in {**state, **change}.items() if t is not None}
    folder = place(tmp_path / "w", {"model": content})
    with pytest.raises(WeightsError, match=told) as caught:
        importing.import_model(folder / "sam3.pt", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_unknown_tensor_does_not_load(state, tmp_path):
    folder = place(tmp_path / "w", {"model": {**state, "detector.gate.weight": torch.zeros(3)}})
    with pytest.raises(WeightsError, match=r"no part of SAM 3's detector, such as detector\.gate\.weight"):
        load(str(folder), torch.float32)


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickled_code_is_never_run(state, tmp_path, capsys):
    sprung = tmp_path / "sprung"
    folder = place(tmp_path / "w", {"model": state, "trap": Trap(sprung)})
    with pytest.raises(WeightsError, match="pickled code is never run"):
        load(str(folder), torch.float32)
    assert edge.run(app, ["model", "import", str(folder / "sam3.pt"), "-o", str(tmp_path / "out")]) == 3
    assert not sprung.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_archive_and_an_optimiser_beside_the_network(state, tmp_path):
    torch.save({"model": state, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}, tmp_path / "epoch_3.pt")
    with zipfile.ZipFile(tmp_path / "best.zip", "w") as archive:
        archive.write(tmp_path / "epoch_3.pt", "run/epoch_3.pt")
    theirs.config().save_pretrained(tmp_path)
    assert importing.is_source(tmp_path / "best.zip")
    lines = importing.import_model(tmp_path / "best.zip", tmp_path / "out")
    assert any("optimizer" in line for line in lines)


@pytest.mark.slow
def test_an_import_keeps_what_is_there(state, tmp_path):
    place(tmp_path / "a", {"model": state})
    importing.import_model(tmp_path / "a/sam3.pt", tmp_path / "out")
    (tmp_path / "out/mark").touch()
    with pytest.raises(OptionError, match="is there already"):
        importing.import_model(tmp_path / "a/sam3.pt", tmp_path / "out")
    importing.import_model(tmp_path / "a/sam3.pt", tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/mark").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors", "ovrs.json"]
