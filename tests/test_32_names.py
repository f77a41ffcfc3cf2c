"""Names of the table of published models: fetched from a hub on loopback, imported, cached, and said where to put by hand."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import open_clip
import pytest
import torch
from conftest import environment

from ovrs.cli import edge
from ovrs.cli.app import app
from ovrs.errors import OptionError, WeightsError
from ovrs.model.clip import fetching, known
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.footprint import footprint_of
from ovrs.model.clip.loading import load
from ovrs.options import MethodOptions, ModelOptions
from ovrs.words import vocabulary


def state(context=248):
    """Random weights as FarSLIP publishes them: text of 248 tokens in two tables, inside a checkpoint."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=24,
        quick_gelu=True,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        text_cfg={"context_length": context, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    )
    found = dict(clip.state_dict())
    if context == 248:
        found["positional_embedding_res"] = torch.randn(248, 64)
    return {"epoch": 1, "state_dict": {f"module.{n}": t for n, t in found.items()}}


class Hub(ThreadingHTTPServer):
    """`{path: content}` as huggingface_hub asks for it; what is not there is 404, what is None is gated."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.asked = content, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, *, head):
        path = (
            self.path.partition("?")[0].replace("/resolve/main/", "/").replace(f"/resolve/{'a' * 40}/", "/").strip("/")
        )
        if not head and not path.startswith("api/"):
            self.server.asked.append(path)
        content = self.server.content.get(path, b"")
        self.send_response(200 if content else 401 if content is None else 404)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        if content is None:
            self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
        if not head:
            self.wfile.write(content or b"")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("hub") / "w.pt"
    torch.save(state(), file)
    return file.read_bytes()


@pytest.fixture
def hub(weights, monkeypatch, tmp_path):
    server = Hub({"ZhenShiL/FarSLIP/FarSLIP2_ViT-B-16.pt": weights, "ZhenShiL/FarSLIP/FarSLIP1_ViT-B-16.pt": None})
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_name_is_fetched_imported_and_then_taken_from_the_cache(hub, tmp_path, caplog):
    model = load(ModelOptions(model="farslip-b16", device="cpu"))
    assert hub.asked == ["ZhenShiL/FarSLIP/FarSLIP2_ViT-B-16.pt"]
    assert (model.name, model.licence) == ("farslip-b16", "MIT")
    assert model.clip.positional_embedding.shape == (248, 64)
    assert model.facts["activation"] == {"vision": "QuickGELU()", "text": "QuickGELU()"}
    assert caplog.text.count("under this licence: MIT") == 1
    own = json.loads((tmp_path / "cache/models/farslip-b16/ovrs.json").read_text())
    assert own["source"]["file"] == "FarSLIP2_ViT-B-16.pt"
    assert own["licence"] == "MIT"
    again = load(ModelOptions(model="farslip-b16", device="cpu"))
    assert again.weights_hash == model.weights_hash
    assert len(hub.asked) == 1
    assert caplog.text.count("under this licence") == 1
    with pytest.raises(OptionError, match="brings its own weights"):
        load(ModelOptions(model="farslip-b16", pretrained="openai"))


def test_the_licence_stands_in_the_facts_of_a_segmenter(hub):
    made = build_clip_segmenter(
        ModelOptions(model="farslip-b16", device="cpu"), MethodOptions(method="none"), vocabulary.from_names(["a", "b"])
    )
    assert made.describe()["licence"] == "MIT"


def test_without_a_network_the_message_says_which_file_to_put_where(hub, tmp_path, monkeypatch, weights):
    own = tmp_path / "cache/models/FarSLIP2_ViT-B-16.pt"
    told = rf"huggingface.co/ZhenShiL/FarSLIP/resolve/main/FarSLIP2_ViT-B-16.pt and put it here as {own}"
    hub.content.clear()
    with pytest.raises(WeightsError, match=told) as caught:
        load(ModelOptions(model="farslip-b16"))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=told):
        load(ModelOptions(model="farslip-b16"))
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set.*SkyCLIP_ViT_B32_top50pct.zip"):
        load(ModelOptions(model="skyclip-b32"))
    own.parent.mkdir(parents=True)
    own.write_bytes(weights)
    assert load(ModelOptions(model="farslip-b16", device="cpu")).licence == "MIT"


def test_a_closed_repository_and_a_broken_file_are_one_line(hub):
    with pytest.raises(WeightsError, match="farslip1-b16 cannot be fetched") as caught:
        load(ModelOptions(model="farslip1-b16"))
    assert "\n" not in str(caught.value)
    hub.content["ZhenShiL/FarSLIP/FarSLIP2_ViT-B-32.pt"] = b"<!doctype html> not the weights"
    with pytest.raises(WeightsError, match="a web page, not the weights"):
        load(ModelOptions(model="farslip-b32"))


def test_a_model_of_an_address_is_fetched_by_its_address(hub, monkeypatch, tmp_path):
    import zipfile

    torch.save(state(77), tmp_path / "epoch_20.pt")
    with zipfile.ZipFile(tmp_path / "sky.zip", "w") as archive:
        archive.write(tmp_path / "epoch_20.pt", "SkyCLIP/epoch_20.pt")
    hub.content["files/SkyCLIP_ViT_B32_top50pct.zip"] = (tmp_path / "sky.zip").read_bytes()
    table = known.table()
    sky = table.models["skyclip-b32"].model_copy(update={"where": f"{hub.url}/files/SkyCLIP_ViT_B32_top50pct.zip"})
    changed = table.model_copy(update={"models": {**table.models, "skyclip-b32": sky}})
    monkeypatch.setattr(fetching, "table", lambda: changed)
    model = load(ModelOptions(model="skyclip-b32", device="cpu"))
    assert model.facts["activation"]["text"].startswith("GELU")
    assert sorted(p.name for p in (tmp_path / "cache/models").iterdir()) == [
        "SkyCLIP_ViT_B32_top50pct.zip",
        "skyclip-b32",
    ]


def test_what_is_not_published_or_not_told_is_refused_with_the_way_out(hub):
    with pytest.raises(WeightsError, match=r"georsclip-b16 has no published file.*georsclip-b32, georsclip-l14"):
        load(ModelOptions(model="georsclip-b16"))
    with pytest.raises(
        OptionError, match=r"activation of georsclip-l14.*hf download Zilun/GeoRSCLIP .*; ovrs model import"
    ):
        load(ModelOptions(model="georsclip-l14"))
    assert hub.asked == []


def test_names_of_the_table_that_open_clip_fetches_are_its_names_and_tags(monkeypatch):
    asked = []

    def fetch(published):
        asked.append(published.get("tag", published))
        raise OSError("no network")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fetch)
    for name in ("openai-b16", "openai-b32"):
        with pytest.raises(WeightsError, match=f"weights 'openai' of {known.table().models[name].architecture}"):
            load(ModelOptions(model=name))
    assert len(asked) == 2
    assert known.licence_of_tag("ViT-B-16-quickgelu", "openai") == known.licence_of_tag("ViT-B-16", "openai")
    assert known.licence_of_tag("ViT-B-16", "laion2b_s34b_b88k") is None


def test_memory_is_counted_without_memory(capsys):
    found = footprint_of("openai-b32")
    clip = open_clip.get_model_config("ViT-B-32")
    assert found.parameters == 151_277_313
    patches = 7 * 7 + 1
    hidden = 64 * patches * 3072 * 4  # 64 windows of a tile, through the first half of a feed-forward block
    assert found.weights == 4 * found.parameters
    assert 2 * hidden < found.tile < 12 * hidden
    assert footprint_of("ViT-B-32") == found
    assert clip["embed_dim"] == 512
    assert edge.run(app, ["model", "memory", "openai-b32"]) == 0
    assert "151.3 M parameters; float32 weights 0.61 GB" in capsys.readouterr().out
    assert edge.run(app, ["model", "memory", "nonsense"]) == 2


@pytest.mark.slow
def test_the_tables_figures_are_what_the_command_counts():
    for name, model in known.table().models.items():
        found = footprint_of(name)
        assert model.parameters == round(found.parameters / 1e6, 1), name
        assert model.tile_gigabytes == round(found.peak / 1e9, 1), name


@pytest.mark.slow
def test_a_map_by_name_alone(hub, noise_scene, tmp_path):
    """The command as a new user gives it, in a process of its own: progress, licence, map, record."""
    env = {**environment(tmp_path), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONWARNINGS": ""}
    scene, out = noise_scene(96, 96), tmp_path / "out.zarr"
    command = [sys.executable, "-m", "ovrs", "map", str(scene), "--model", "farslip-b16", "--classes", "tree,water"]
    done = subprocess.run([*command, "-o", str(out)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "under this licence: MIT" in done.stderr
    assert "FarSLIP2_ViT-B-16.pt" in done.stderr
    import zarr

    record = dict(zarr.open_group(out, mode="r").attrs)["ovrs"]
    assert record["model"]["licence"] == "MIT"
    assert record["model"]["model"] == "farslip-b16"
