"""Published weights, where somebody has them: `make test-weights`. Nothing is downloaded; what is not there is skipped.

`OVRS_WEIGHTS` names a folder. A model of the table is tried if the folder holds its file (`FarSLIP2_ViT-B-16.pt`) or a directory of its
name (`tipsv2-b14`). `OVRS_SAM3_DIR` names SAM 3's directory, in either layout.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ovrs.model.clip.importing import Choices, import_model
from ovrs.model.clip.inputs import normalise
from ovrs.model.clip.known import table
from ovrs.model.clip.loading import load
from ovrs.model.sam3 import importing
from ovrs.model.sam3.build import build_sam3_segmenter
from ovrs.model.sam3.weights import load as load_sam3
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

pytestmark = [
    pytest.mark.weights,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers"),
]
COLOURS = {"green": (30, 140, 40), "blue": (20, 40, 200), "red": (200, 30, 30)}


def folder(variable):
    """The directory that a variable names; skips, and says why, where it names none."""
    told = os.environ.get(variable)
    if not told:
        pytest.skip(f"{variable} is not set: it names the folder with published weights")
    if not Path(told).is_dir():
        pytest.skip(f"{variable} names {told}, which is no directory")
    return Path(told)


@pytest.mark.parametrize("name", [n for n, m in table().models.items() if m.where != "nowhere"])
def test_a_published_model_is_what_the_table_says_and_sees_colours(name, tmp_path):
    """Architecture, length of texts and size are those of the table; a picture of one colour is nearest to that colour's word."""
    known, held = table().models[name], folder("OVRS_WEIGHTS")
    place = held / name
    if not place.is_dir():
        file = held / str(known.basename)
        if known.basename is None or not file.is_file():
            pytest.skip(f"OVRS_WEIGHTS holds neither {name}/ nor {known.basename or 'a file of it'}")
        gelu = True if known.quick_gelu is None else known.quick_gelu
        place = tmp_path / name
        done = import_model(file, place, Choices(quick_gelu=gelu, licence=known.licence))
        assert done.architecture == known.architecture
    model = load(ModelOptions(model=str(place), device="cpu"))
    if known.parameters is not None:
        assert sum(p.numel() for p in model.clip.parameters()) / 1e6 == pytest.approx(known.parameters, rel=0.01)
    words = model.tokenize([f"a {colour} picture" for colour in COLOURS])
    if known.tokens is not None:
        assert words.shape[1] == known.tokens
    flat = [
        np.broadcast_to(np.uint8(value)[:, None, None], (3, known.pixels, known.pixels)) for value in COLOURS.values()
    ]
    valid = np.ones((known.pixels, known.pixels), bool)
    images = torch.stack([normalise(model, np.ascontiguousarray(rgb), valid) for rgb in flat])
    with torch.no_grad():
        seen = model.clip.encode_image(images, normalize=True)
        asked = model.clip.encode_text(words, normalize=True)
    assert (seen @ asked.T).argmax(dim=1).tolist() == [0, 1, 2]


def test_sam3_finds_what_is_plain():
    """A blue square on grass: every pixel well inside of it is the square's."""
    folder("OVRS_SAM3_DIR")
    made = build_sam3_segmenter(
        ModelOptions(model="sam3"),
        MethodOptions(method="segearth_ov3"),
        vocabulary.from_names(["grass", "blue square"]),
    )
    rgb = np.zeros((3, 504, 504), np.uint8)
    rgb[1] = 120
    rgb[:, 150:350, 150:350] = np.array([20, 40, 220])[:, None, None]
    scores = made.segment(rgb, np.ones((504, 504), bool), (Window(0, 0, 504, 504),)).scores
    assert (scores.argmax(0)[200:300, 200:300] == 1).mean() > 0.9


def test_both_published_files_of_sam3_are_one_network(tmp_path):
    """`sam3.pt` of the authors, and `model.safetensors` for transformers."""
    held = folder("OVRS_SAM3_DIR")
    if not (held / "sam3.pt").is_file() or not any(held.glob("*.safetensors")):
        pytest.skip(f"{held} does not hold both sam3.pt and model.safetensors")
    shutil.copy(held / "config.json", tmp_path)
    (tmp_path / "sam3.pt").symlink_to((held / "sam3.pt").resolve())
    theirs, _ = load_sam3(str(tmp_path), torch.float32)
    other, _ = load_sam3(str(held), torch.float32)
    assert importing.theirs_in(tmp_path)
    wanted = other.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
