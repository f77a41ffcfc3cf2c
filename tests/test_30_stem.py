"""The convolutional stem: a patch embedding to everything around it, centred on its patches, the same after fusing."""

from __future__ import annotations

import copy

import pytest
import torch

from ovrs.model.clip.stem import ConvStem


@pytest.fixture(scope="module")
def stem() -> ConvStem:
    torch.manual_seed(0)
    made = ConvStem("efficientnet_lite2", width=64, hidden=96).eval()
    for module in made.modules():  # statistics as after training, not zeros and ones
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made


def test_one_vector_for_every_patch(stem):
    with torch.inference_mode():
        assert stem(torch.randn(2, 3, 96, 160)).shape == (2, 64, 6, 10)
    assert stem.kernel_size == (16, 16)


def test_fusing_changes_no_number(stem):
    fused = copy.deepcopy(stem)
    fused.fuse()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.net.modules())
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), stem(images), atol=1e-5, rtol=1e-4)


def test_the_fine_map_looks_at_the_middle_of_each_patch(stem):
    """Where the centre of the receptive field lies: a network of ones weighs each pixel by the paths it has."""
    net = copy.deepcopy(stem.net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(1 / module.weight[0].numel())
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.zero_(), module.running_var.fill_(1)
                module.weight.fill_(1), module.bias.zero_()
    image = torch.full((1, 3, 320, 320), 1e-3, requires_grad=True)
    net(image)[0][0, 0, 10, 10].backward()
    weight = image.grad[0].sum(0)
    rows = (weight.sum(1) / weight.sum() * torch.arange(320)).sum().item()
    cols = (weight.sum(0) / weight.sum() * torch.arange(320)).sum().item()
    middle = 10 * 16 + 7.5
    assert abs(rows - middle) < 1
    assert abs(cols - middle) < 1


def test_the_mean_of_two_towers(tmp_path, monkeypatch):
    """A tower that was unpacked has counters as floats, one in training as integers."""
    from training import average

    first = {"visual": {"w": torch.zeros(3), "steps": torch.tensor(0.0)}, "dense_scale": torch.tensor(2.0)}
    second = {"visual": {"w": torch.ones(3), "steps": torch.tensor(4)}, "dense_scale": torch.tensor(4.0)}
    for name, state in (("before", first), ("after", second)):
        torch.save({**state, "image_scale": torch.tensor(1.0)}, tmp_path / f"{name}.pt")
    files = [f"{tmp_path}/{n}.pt" for n in ("before", "after", "out")]
    given = ["average", "--before", files[0], "--after", files[1], "--share", "0.25", "--out", files[2]]
    monkeypatch.setattr("sys.argv", given)
    average.main()
    mean = torch.load(files[2], weights_only=True)
    torch.testing.assert_close(mean["visual"], {"w": torch.full((3,), 0.25), "steps": torch.tensor(1.0)})
    assert (mean["dense_scale"], mean["image_scale"]) == (2.5, 1.0)
