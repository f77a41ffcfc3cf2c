"""Hyper-parameters of the papers as data: one YAML file per paper in `presets/`, one entry per data set or ablation."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ovrs import yamlfile
from ovrs.errors import OptionError
from ovrs.methods import registry
from ovrs.methods import told as telling
from ovrs.methods.base import Settings

if TYPE_CHECKING:
    from ovrs.methods.base import Fields


class Preset(BaseModel):
    """One file."""

    model_config = yamlfile.STRICT

    title: str
    source: str
    """Repository and commit, or paper, that the numbers come from."""
    tuned_on_labels: bool
    """Whether constants were probably chosen on the labels of the very sets they are used on: then not zero-shot."""
    note: str
    words: str | None = None
    """List of published words (`presets/words`) that the preset asks for; without one, the vocabulary's are asked."""
    sentences: str = ""
    """Where the descriptions come from, if the preset asks for them."""
    common: dict[str, Any]
    datasets: dict[str, dict[str, Any]]


def names() -> list[str]:
    """All presets, `file/entry`."""
    return [f"{file}/{entry}" for file in _files() for entry in load(file).datasets]


def load(file: str) -> Preset:
    """One preset file by name.

    Raises:
        OptionError: There is none of that name.
    """
    if file not in _files():
        raise OptionError(f"there is no preset {file!r}; choose one of {', '.join(_files())}")
    text = (resources.files("ovrs.methods") / "presets" / f"{file}.yaml").read_text("utf-8")
    return Preset.model_validate(yamlfile.parse(text, f"preset {file}", OptionError).data)


def method_options(name: str) -> dict[str, Any]:
    """Return the method options of `file/entry`.

    Raises:
        OptionError: Unknown file or entry.
    """
    file, _, entry = name.partition("/")
    preset = load(file)
    if entry not in preset.datasets:
        told = f"{entry!r} is none of its entries" if entry else "an entry is needed"
        raise OptionError(f"preset {file}: {told}; choose one of {', '.join(f'{file}/{e}' for e in preset.datasets)}")
    return {**telling.flat(preset.common), **telling.flat(preset.datasets[entry])}


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs of the command line as method options; `method.key` and `sam3.key` say the same as `key`.

    Raises:
        OptionError: No equals sign, an unknown key, or a value that does not fit it.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"--set wants KEY=VALUE, got {pair!r}")
        section, dot, own = key.partition(".")
        option = own if dot and section in ("method", telling.SECTION_OF_SAM3) else key
        if option != "method" and not registry.readers(option):
            known = sorted({name for found in registry.METHODS.values() for name in found.fields})
            raise OptionError(f"--set {key}: no such option; choose one of {', '.join(known)}")
        if option in found:
            raise OptionError(f"--set {key} is given twice")
        kind = Settings if option == "method" else registry.METHODS[registry.readers(option)[0]].settings
        found[option] = read_value(kind, option, value, f"--set {key}")
    try:
        telling.checked(found)
    except ValidationError as error:
        raise OptionError(f"--set: {registry.faults(error)}") from error
    return found


def read_value(kind: type[Fields], name: str, text: str, where: str) -> Any:
    """Return the value of a `KEY=VALUE` pair, read as YAML; values of a list may stand in it, or be separated by commas.

    Args:
        kind: The class that has the option.
        name: Of the option.
        text: The value as it is written.
        where: What is named in errors.

    Raises:
        OptionError: There is none, or it is no YAML.
    """
    if not text.strip():
        raise OptionError(f"{where}= has no value; write {where.partition(' ')[2] or name}=null for the default")
    found = yamlfile.parse(text, where, OptionError).data
    several = _parts_of(kind.model_fields[name].annotation) is not None
    return listed(kind, name, text.strip(), where) if several and isinstance(found, (str, int, float)) else found


def listed(kind: type[Fields], name: str, text: str, where: str) -> Any:
    """`text` for an option; for one that takes several values, its parts between commas (`none` has no part).

    Raises:
        OptionError: Another number of parts than the option takes, or a part that is no number.
    """
    shape = _parts_of(kind.model_fields[name].annotation)
    if shape is None:
        return text
    parts = () if text == "none" else tuple(part.strip() for part in text.split(","))
    if Ellipsis not in shape and len(parts) != len(shape):
        raise OptionError(f"{where} takes {len(shape)} numbers separated by commas, got {text!r}")
    if not all(_is_number(part) for part in parts):
        raise OptionError(f"{where} takes numbers separated by commas, got {text!r}")
    return parts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the only values that a type takes, as text; none for a type with many."""
    if annotation is bool or bool in get_args(annotation):
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return next((found for own in get_args(annotation) if (found := choices(own))), ())


def _parts_of(annotation: Any) -> tuple[Any, ...] | None:
    """Return what a tuple's type holds; None for other types."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)
    return next((shape for own in get_args(annotation) if (shape := _parts_of(own)) is not None), None)


def _files() -> list[str]:
    folder = resources.files("ovrs.methods") / "presets"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
