"""Published models that people map with: a table as data (`known.yaml`), each line with its source. Needs no PyTorch."""

from __future__ import annotations

import functools
from importlib import resources

from pydantic import BaseModel

from ovrs import yamlfile
from ovrs.errors import OptionError

HUB = "hf:"


class Known(BaseModel):
    """One published model."""

    model_config = yamlfile.STRICT

    title: str
    architecture: str
    """open_clip's name."""
    pixels: int
    """Side of the images it saw in training."""
    where: str
    """`hf:ORG/NAME` on Hugging Face, an address, `open_clip` for one that open_clip fetches, or `nowhere`."""
    quick_gelu: bool | None
    """None: no public code tells."""
    licence: str
    source: str
    """Where activation and licence are told."""
    file: str | None = None
    """Path in `where`."""
    whole: bool = False
    """The repository is a folder of transformers that is loaded as it is."""
    tokens: int | None = None
    """Length of texts, where it is not the architecture's own."""
    also: str | None = None
    """Another name of the file, without its ending."""
    tag: str | None = None
    """open_clip's."""
    megabytes: int | None = None
    miou: float | None = None
    """Percent, dense, mean over eight sets (`Table.measured`)."""
    parameters: float | None = None
    """Millions, both towers; `ovrs model memory` counts them."""
    tile_gigabytes: float | None = None
    """Most that weights and one tile take in float32, by the same command."""

    @property
    def basename(self) -> str | None:
        """Name of the file without its folder."""
        return self.file and self.file.rpartition("/")[2]


class Table(BaseModel):
    """All of them."""

    model_config = yamlfile.STRICT

    measured: str
    """Who measured `miou`."""
    read: str
    """Month in which the sources were read."""
    models: dict[str, Known]


@functools.cache
def table() -> Table:
    """Return the table of published models."""
    text = (resources.files("ovrs.model.clip") / "known.yaml").read_text("utf-8")
    return Table.model_validate(yamlfile.parse(text, "known.yaml", OptionError).data)


def of_file(name: str) -> tuple[str, Known] | None:
    """Return the published model whose file has this name, whatever its case and its ending (`.pt`, `.safetensors`)."""
    stem = _stem(name)
    for key, model in table().models.items():
        if stem in (_stem(model.basename or ""), _stem(model.also or "")) and stem:
            return key, model
    return None


def _stem(name: str) -> str:
    return name.lower().removesuffix("." + name.lower().rpartition(".")[2]) if "." in name else name.lower()


def commands(name: str) -> list[str]:
    """Return the commands that lead to a map with a model of the table; the first is all where its name is enough."""
    model = table().models[name]
    if model.file is None:
        return [f"ovrs map SCENE.tif --model {name} …"] if model.tag or model.whole else []
    if model.quick_gelu is not None:
        return [f"ovrs map SCENE.tif --model {name} …"]
    fetch = (
        f"hf download {model.where.removeprefix(HUB)} {model.file} --local-dir weights"
        if model.where.startswith(HUB)
        else f"curl --create-dirs -o weights/{model.file} {model.where}"
    )
    return [
        fetch,
        f"ovrs model import weights/{model.file} -o weights/{name} --quick-gelu|--no-quick-gelu",
        f"ovrs map SCENE.tif --model weights/{name} …",
    ]


def hub_address(model: Known) -> str:
    """Where the file of a model lies, as an address."""
    if not model.where.startswith(HUB):
        return model.where
    return f"https://huggingface.co/{model.where.removeprefix(HUB)}/resolve/main/{model.file}"


def licence_of_tag(architecture: str, tag: str | None) -> str | None:
    """Return the licence of weights that open_clip fetches, where the table tells it; names with `-quickgelu` are the same weights."""
    plain = architecture.removesuffix("-quickgelu")
    return next((m.licence for m in table().models.values() if m.tag and (m.architecture, m.tag) == (plain, tag)), None)


def listing() -> str:
    """Return the table for people: one paragraph a model."""
    found = table()
    lines = []
    for name, model in found.models.items():
        lines.append(f"{name:15} {model.architecture}, {', '.join(_facts(model))}; licence: {model.licence}")
        lines.append(f"{'':15} {model.title}  [{model.source}]")
        own = commands(name) or ["no file is published, so it cannot be loaded"]
        lines += [f"{'':19}{command}" for command in own]
    return "\n".join(
        [
            *lines,
            f"{'sam3':15} SAM 3, 1008 px; licence: SAM License, no military use; gated, so no command fetches it (docs/sam3.md)",
            f"{'':19}ovrs map SCENE.tif --model sam3 --method proc_sam3 …",
            (
                f"mIoU: {found.measured}, percent. Sources were read in {found.read}. Licences are those of the weights where not said "
                "otherwise. Memory: float32 weights and the activations of one tile (`ovrs model memory NAME`)."
            ),
        ]
    )


def _facts(model: Known) -> list[str]:
    activation = {True: "QuickGELU", False: "GELU", None: "activation not told"}[model.quick_gelu]
    told = [f"{model.pixels} px", activation]
    if model.miou is not None:
        told.append(f"mIoU {model.miou:.1f}")
    if model.megabytes:
        told.append(f"{model.megabytes} MB")
    if model.parameters:
        told.append(f"{model.parameters:.0f} M parameters")
    if model.tile_gigabytes:
        told.append(f"memory {model.tile_gigabytes:.1f} GB")
    return told
