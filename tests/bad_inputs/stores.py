"""Finished and unfinished maps whose files are damaged, and model directories that are none."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from .runner import Case

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "",
    "x",
    "\x00",
    [],
    {},
    [None],
    {"a": 1},
    "../../etc/passwd",
    "NaN",
    1e308,
]
KEEPS = ("map.zarr", "map.run")
"""Commands that heal or go on may write in the map and its run directory."""
READERS = [
    ["info", "map.zarr"],
    ["info", "map.zarr", "--json"],
    ["status", "map.zarr"],
    ["verify", "map.zarr"],
    ["stats", "map.zarr"],
]
WRITERS = [
    ["resume", "map.zarr"],
    ["export", "map.zarr", "--cog", "x.tif"],
    ["export", "map.zarr", "--vectors", "x.gpkg"],
    ["export", "map.zarr", "--png", "x.png"],
    ["export", "map.zarr", "--stac", "x.json"],
    ["report", "map.zarr", "-o", "x.html"],
    [
        "map",
        "scene.tif",
        "--classes",
        "water, road",
        "--model",
        "trivial",
        "-o",
        "map.zarr",
        "--set",
        "run.block_pitches=1",
    ],
]


def store(rng: random.Random, folder: Path) -> Case:
    """A map with one file damaged, and a command that opens it."""
    material = folder.parent / "maps" / rng.choice(["finished", "finished", "begun"])
    for part in material.iterdir():
        shutil.copytree(part, folder / part.name)
    about = _damage(rng, folder)
    command = rng.choice(READERS * 2 + WRITERS)
    return Case(command, f"{material.name} map, {command[0]}: {about}", may_pass=True, keeps=KEEPS)


def _damage(rng: random.Random, folder: Path) -> str:
    files = sorted(p for top in folder.iterdir() if top.is_dir() for p in top.rglob("*") if p.is_file())
    notes = [p for p in files if p.suffix == ".json" or p.name.startswith(".z")]
    file = rng.choice(notes if rng.random() < 0.75 else files)
    name = str(file.relative_to(folder))
    way = rng.choice(["bytes", "cut", "empty", "gone", "folder", "value", "value", "value", "key", "kind", "text"])
    if way in ("value", "key", "kind") and file not in notes:
        way = "bytes"
    if way == "gone":
        file.unlink()
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "cut":
        file.write_bytes(file.read_bytes()[: rng.randrange(max(1, file.stat().st_size))])
    elif way == "folder":
        file.unlink()
        file.mkdir()
    elif way == "bytes":
        content = bytearray(file.read_bytes() or b"x")
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
    elif way == "text":
        file.write_text(rng.choice(["null", "[]", "{}", '"x"', "1", "NaN", "{", "\x00", "[" * 5000]))
    else:
        name += f" {damage_json(rng, file, way)}"
    return f"{way} {name}"


def damage_json(rng: random.Random, file: Path, way: str) -> str:
    """Change one value, key or the kind of the whole in a JSON file."""
    content = json.loads(file.read_text("utf-8"))
    if way == "kind":
        content = rng.choice([[content], {"a": content}, str(content), None])
        file.write_text(json.dumps(content))
        return "the whole"
    places = _places(content)
    place = rng.choice(places)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    value = holder.pop(place[-1])
    if way == "value":
        odd = rng.choice(ODD)
        if isinstance(holder, list):
            holder.insert(place[-1], odd)
        else:
            holder[place[-1]] = odd
    elif rng.random() < 0.3 and isinstance(holder, dict):
        holder[f"{place[-1]}x"] = value
    file.write_text(json.dumps(content))
    return f"at {'.'.join(map(str, place))}"


def _places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inner for place in ((*at, key), *_places(value, (*at, key)))] or [
        *([at] if at else [])
    ]


def model(rng: random.Random, folder: Path) -> Case:
    """A model directory with one file damaged."""
    directory = folder / "net"
    shutil.copytree(folder.parent / "maps/net", directory)
    config, weights = directory / "open_clip_config.json", directory / "open_clip_model.safetensors"
    file, way = rng.choice(
        [
            (config, "value"),
            (config, "value"),
            (config, "value"),
            (config, "key"),
            (config, "key"),
            (config, "kind"),
            (config, "gone"),
            (config, "cut"),
            (config, "bytes"),
            (config, "folder"),
            (weights, "cut"),
            (weights, "bytes"),
            (weights, "gone"),
            (weights, "empty"),
            (weights, "folder"),
            (weights, "pickle"),
            (weights, "other"),
            (directory / "ovrs.json", "settings"),
            (directory / "config.json", "settings"),
            (config, "hub"),
            (config, "bytes"),
        ]
    )
    _damage_model(rng, file, way)
    command = [
        "map",
        "scene.tif",
        "--classes",
        "water, road",
        "--model",
        str(directory),
        "--method",
        "none",
        "-o",
        "out.zarr",
    ]
    return Case(command, f"model: {way} {file.name}", may_pass=True)


def _damage_model(rng: random.Random, file: Path, way: str) -> None:
    if way in ("value", "key", "kind"):
        damage_json(rng, file, way)
    elif way == "settings":
        file.write_text(
            rng.choice(
                ["{", "[]", "null", '{"windows": 3}', '{"logit_scale": "x"}', '{"model_type": 5}', "\x00", '{"a": 1}']
            )
        )
    elif way == "hub":
        content = json.loads(file.read_text())
        content["model_cfg"]["text_cfg"] = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}
        file.write_text(json.dumps(content))
    elif way == "gone":
        file.unlink()
    elif way == "folder":
        file.unlink()
        file.mkdir()
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "pickle":
        file.write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01x\x94.")
    elif way == "other":
        _other_weights(rng, file)
    else:
        content = bytearray(file.read_bytes())
        if way == "cut":
            content = content[: rng.randrange(len(content))]
        else:
            for _ in range(rng.randrange(1, 40)):
                content[rng.randrange(min(len(content), 3000))] = rng.randrange(256)
        file.write_bytes(content)


def _other_weights(rng: random.Random, file: Path) -> None:
    """Weights of another network, of other shapes, or that are no numbers."""
    import torch
    from safetensors.torch import load_file, save_file

    found = load_file(file)
    name = rng.choice(list(found))
    way = rng.randrange(5)
    if way == 0:
        del found[name]
    elif way == 1:
        found[name] = torch.zeros(3, 3)
    elif way == 2:
        found = {"x": torch.zeros(1)}
    elif way == 3:
        found[name] = torch.full_like(found[name], float("nan"))
    else:
        found["more"] = torch.zeros(2)
    save_file(found, file)
