"""Models as STAC's extension for machine learning (MLM 1.5) describes them: the one behind a map, and the bundled one.

A map's Item has the fields of MLM and an asset for the weights. Weights without a public address are named by the
SHA-256 of their tensors (`urn:ovrs:weights:…`), which is the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from ovrs import __version__
from ovrs.export import target
from ovrs.export.product import ITEM
from ovrs.methods import recommended
from ovrs.model.clip.known import hub_address, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.store.record import RunRecord

SCHEMA = "https://stac-extensions.github.io/mlm/v1.5.0/schema.json"
_FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_TASKS = ["semantic-segmentation"]
_WEIGHTS = "application/octet-stream; application=safetensors"
_LONGEST = 60
"""Letters of a model's name that its folder gives."""


def has_model(record: RunRecord) -> bool:
    """Whether a network made the map."""
    return record.model.weights not in (None, "none")


def fields(record: RunRecord, classes: Sequence[dict[str, object]]) -> dict[str, object]:
    """Properties of a map's Item.

    Args:
        record: Of the map.
        classes: Entries of the classification extension.
    """
    crop = record.plan.crop
    sam3 = record.model.model.startswith("sam3")
    version = record.versions.get("torch")
    return {
        "mlm:name": name_of(record.model.model),
        "mlm:architecture": "SAM 3" if sam3 else "Vision Transformer",
        "mlm:tasks": _TASKS,
        "mlm:framework": "PyTorch",
        **({"mlm:framework_version": version} if version and re.match(r"\d+\.\d+", version) else {}),
        "mlm:pretrained": True,
        "mlm:input": [
            {"name": "RGB", "bands": [], "input": _tensor([-1, 3, crop, crop], "channel"), "resize_type": None}
        ],
        "mlm:output": [
            {
                "name": "class",
                "tasks": _TASKS,
                "result": _tensor([-1, len(classes), crop, crop], "class"),
                "classification:classes": [_as_mlm_wants(entry) for entry in classes],
            }
        ],
        "mlm:hyperparameters": {"method": record.model.method, "stride": record.plan.stride},
    }


def asset(record: RunRecord) -> dict[str, object]:
    """Return the weights behind a map, as an asset of its Item."""
    known = table().models.get(record.model.model)
    published = known is not None and known.file is not None and known.where != "nowhere"
    return {
        "href": hub_address(known) if known is not None and published else f"urn:ovrs:weights:{record.model.weights}",
        "title": f"Weights of {name_of(record.model.model)}",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "torch.save"
        if known is not None and (known.file or "").endswith((".pt", ".pth", ".bin"))
        else "safetensors.torch.save_file",
    }


def name_of(model: str) -> str:
    """Return a model's name as MLM takes it: letters, digits, `_`, `.`, `-`; of a folder the last part."""
    last = "ovrs-bundled" if model == recommended.BUNDLED else re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-._")[:_LONGEST].rstrip("-._")
    return plain if re.match(r"[A-Za-z]..", plain) else f"model-{plain or 'unnamed'}"


def check(out: Path, *, overwrite: bool = False) -> None:
    """Refuse a file that the Item of a model must not replace; errors as `target.check_alone`."""
    target.check_alone(out, ITEM, overwrite=overwrite)


def write_bundled(out: Path, *, overwrite: bool = False) -> Path:
    """Write the Item of the bundled model as `out` (JSON). It is the same in every installation but for its links.

    Raises:
        OptionError: The file may not be replaced.
        OutputError: It cannot be written.
    """
    check(out, overwrite=overwrite)
    target.write_text(out, json.dumps(bundled(out.parent), indent=1, allow_nan=False) + "\n")
    return out


def bundled(base: Path) -> dict[str, object]:
    """Return the bundled model's Item; links are relative to `base`. Reads the file's header, loads no weights."""
    folder = recommended.place_of(recommended.BUNDLED)
    assert folder is not None  # it comes with the program
    config: Any = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
    own = recommended.read(folder)
    weights = folder / "open_clip_model.safetensors"
    parameters = count(weights)
    side = config["model_cfg"]["vision_cfg"]["image_size"]
    crop = round(side / own.windows.zoom)
    colours = config["preprocess_cfg"]
    outline = [[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [SCHEMA, _FILE, "https://stac-extensions.github.io/processing/v1.2.0/schema.json"],
        "id": name_of(recommended.BUNDLED),
        "geometry": {"type": "Polygon", "coordinates": [outline]},
        "bbox": [-180, -90, 180, 90],
        "properties": {
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "title": "The bundled model of ovrs: land classes from plain words",
            "description": "A small CLIP for optical imagery of 0.1 to 1 m. Its maps are sketches: not for decisions. "
            "Classes are words that the user gives.",
            "license": "other",
            "processing:software": {"ovrs": __version__},
            "mlm:name": name_of(recommended.BUNDLED),
            "mlm:architecture": "Vision Transformer",
            "mlm:tasks": _TASKS,
            "mlm:framework": "PyTorch",
            "mlm:total_parameters": parameters,
            "mlm:memory_size": 4 * parameters,
            "mlm:pretrained": True,
            "mlm:accelerator_constrained": False,
            "mlm:input": [
                {
                    "name": "RGB, 8 bits",
                    "description": f"Red, green, blue: windows of {crop} x {crop} pixels of the scene, enlarged.",
                    "bands": [],
                    "input": _tensor([-1, 3, side, side], "channel"),
                    "value_scaling": [
                        {"type": "z-score", "mean": round(255 * mean, 6), "stddev": round(255 * std, 6)}
                        for mean, std in zip(colours["mean"], colours["std"], strict=True)
                    ],
                    "resize_type": "interpolation-linear",
                }
            ],
            "mlm:output": [
                {
                    "name": "scores of the classes that were asked for",
                    "tasks": _TASKS,
                    "result": _tensor([-1, -1, crop, crop], "class"),
                    "classification:classes": [],
                }
            ],
            "mlm:hyperparameters": {"stride": own.windows.stride, "zoom": own.windows.zoom, **_plain(own.head)},
        },
        "links": [],
        "assets": {
            "model": {
                "href": target.relative(weights, base),
                "type": _WEIGHTS,
                "title": f"Weights and configuration in open_clip's format; tensors {own.sha256}",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "file:size": weights.stat().st_size,
                "file:checksum": "1220" + hashlib.sha256(weights.read_bytes()).hexdigest(),
            },
            "card": {
                "href": target.relative(folder / "MODEL_CARD.md", base),
                "type": "text/markdown",
                "title": "Use, limits, data, licence and results",
                "roles": ["metadata"],
            },
        },
    }


def count(weights: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with weights.open("rb") as stream:
        header: Any = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for key, entry in header.items():
        if key != "__metadata__":
            size = 1
            for length in entry["shape"]:
                size *= length
            total += size
    return total


def _as_mlm_wants(entry: dict[str, object]) -> dict[str, object]:
    """Return a class in the older form of the classification extension, to which MLM 1.5 refers: with a description."""
    return {**{k: entry[k] for k in ("value", "name", "color_hint")}, "description": entry["title"]}


def _plain(settings: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in settings.items() if isinstance(v, (bool, int, float, str))}


def _tensor(shape: list[int], second: str) -> dict[str, object]:
    return {"shape": shape, "dim_order": ["batch", second, "height", "width"], "data_type": "float32"}
