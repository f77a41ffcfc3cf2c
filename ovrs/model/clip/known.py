"""Published models that people map with: a table as data (`known.yaml`), each line with its source. Needs no PyTorch."""

from __future__ import annotations

import functools
from importlib import resources

from pydantic import BaseModel

from ovrs import yamlfile
from ovrs.errors import OptionError

_HUB = "hf:"


class Known(BaseModel):
    """One published model."""

    model_config = yamlfile.STRICT

    title: str
    architecture: str
    """open_clip's name."""
    pixels: int
    """Side of the images it saw in training."""
    where: str
    """`hf:ORG/NAME` on Hugging Face, an address, or `open_clip` for one that open_clip fetches."""
    quick_gelu: bool | None
    """None: no public code tells."""
    licence: str
    source: str
    """Where activation and licence are told."""
    file: str | None = None
    """Path in `where`."""
    also: str | None = None
    """Another name of the file, without its ending."""
    tag: str | None = None
    """open_clip's."""
    megabytes: int | None = None
    miou: float | None = None
    """Percent, dense, mean over eight sets (`Table.measured`)."""

    @property
    def basename(self) -> str | None:
        """Name of the file without its folder."""
        return self.file and self.file.rpartition("/")[2]


class Table(BaseModel):
    """All of them."""

    model_config = yamlfile.STRICT

    measured: str
    """Who measured `miou`."""
    models: dict[str, Known]


@functools.cache
def table() -> Table:
    """The table of published models."""
    text = (resources.files("ovrs.model.clip") / "known.yaml").read_text("utf-8")
    return Table.model_validate(yamlfile.parse(text, "known.yaml", OptionError).data)


def of_file(name: str) -> tuple[str, Known] | None:
    """The published model whose file has this name, whatever its case and its ending (`.pt`, `.safetensors`)."""
    stem = _stem(name)
    for key, model in table().models.items():
        if stem in (_stem(model.basename or ""), _stem(model.also or "")) and stem:
            return key, model
    return None


def _stem(name: str) -> str:
    return name.lower().removesuffix("." + name.lower().rpartition(".")[2]) if "." in name else name.lower()


def commands(name: str) -> list[str]:
    """The commands that lead to a map with a model of the table."""
    model = table().models[name]
    if model.file is None:
        return [f"ovrs map SCENE.tif --model {model.architecture} --pretrained {model.tag} …"]
    hub = model.where.startswith(_HUB)
    fetch = (
        f"hf download {model.where.removeprefix(_HUB)} {model.file} --local-dir weights"
        if hub
        else f"curl --create-dirs -o weights/{model.file} {model.where}"
    )
    asks = "" if model.quick_gelu is not None else " --quick-gelu|--no-quick-gelu"
    return [
        fetch,
        f"ovrs model import weights/{model.file} -o weights/{name}{asks}",
        f"ovrs map SCENE.tif --model weights/{name} …",
    ]


def listing() -> str:
    """The table for people: one paragraph a model."""
    found = table()
    lines = []
    for name, model in found.models.items():
        act = {True: "QuickGELU", False: "GELU", None: "activation not told"}[model.quick_gelu]
        size = f", {model.megabytes} MB" if model.megabytes else ""
        miou = "" if model.miou is None else f", mIoU {model.miou:.1f}"
        lines.append(f"{name:15} {model.architecture}, {model.pixels} px, {act}{miou}{size}; licence: {model.licence}")
        lines.append(f"{'':15} {model.title}  [{model.source}]")
        lines += [f"{'':19}{command}" for command in commands(name)]
    return "\n".join(
        [*lines, f"mIoU: {found.measured}, percent. Licences are those of the weights where not said otherwise."]
    )
