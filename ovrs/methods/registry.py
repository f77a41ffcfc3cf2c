"""The methods there are, and the one place where an option gets its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ovrs.errors import OptionError
from ovrs.methods import cass, clip, coninfer, norms, sam3, tmpa, tpt
from ovrs.methods.base import Method, Only, Settings

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        clip.FROZEN,
        tmpa.TMPA,
        tmpa.TMPA_SHIFT,
        tmpa.TMPA_COMPAT,
        norms.TENT,
        norms.MLMP,
        tpt.TPT,
        norms.CLIPARTT,
        norms.CLIPARTT_COMPAT,
        norms.WATT,
        norms.WATT_COMPAT,
        cass.CASS,
        sam3.SAM3,
        sam3.SEGEARTH_OV3,
        sam3.PROC_SAM3,
        sam3.COCO_SAM3,
        coninfer.CONINFER,
    )
}
"""By name."""


@dataclass(frozen=True)
class Entry:
    """One dense variant."""

    name: str
    what: str
    source: str
    proof: str
    """As `ovrs.methods.base.Method.proof`."""


DENSE = (
    Entry("segearth", "q-q + k-k + v-v, no skip connection", "arXiv 2410.01768", "golden"),
    Entry("vanilla", "unchanged CLIP", "arXiv 2103.00020", "golden"),
    Entry("maskclip", "own value only", "arXiv 2112.01071", "golden"),
    Entry("sclip", "q-q + k-k", "arXiv 2312.01597", "golden"),
    Entry("clearclip", "q-q, no skip connection", "arXiv 2407.12442", "golden"),
    Entry("naclip", "k-k with a Gaussian neighbourhood, no skip connection", "arXiv 2404.08181", "golden"),
    Entry("naclip_residual", "naclip with skip connection and feed-forward", "NACLIP's ablation", "golden"),
    Entry("naclip_kk", "naclip without the neighbourhood", "NACLIP's ablation", "golden"),
    Entry("naclip_nonly", "the neighbourhood alone", "NACLIP's ablation", "golden"),
    Entry("naclip_vanilla", "q-k, no skip connection", "NACLIP's ablation", "golden"),
    Entry("gem", "self-self attention in the last half of the blocks", "arXiv 2312.00878", "golden"),
    Entry("proxyclip", "values mixed by another network's features", "arXiv 2408.04883", "golden"),
    Entry("cass", "attention fused with another network's", "arXiv 2411.17150", "equations"),
)


def of_family(family: Literal["clip", "sam3"]) -> tuple[str, ...]:
    """Names of the methods on one kind of network."""
    return tuple(name for name, method in METHODS.items() if method.family == family)


METHOD_NAMES, SAM3_METHOD_NAMES = of_family("clip"), of_family("sam3")
NORM_METHODS = frozenset(name for name, method in METHODS.items() if clip.LAST_BLOCK in method.needs)
"""Methods that tune the vision tower's LayerNorms."""


def method(name: str) -> Method:
    """One method by name.

    Raises:
        OptionError: There is none of that name.
    """
    if name not in METHODS:
        raise OptionError(f"method {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def readers(option: str) -> list[str]:
    """Names of the methods that read an option."""
    return [name for name, found in METHODS.items() if option in found.fields]


def require_read(name: str, told: Mapping[str, Any]) -> None:
    """Refuse options that another method reads, and this one does not.

    Raises:
        OptionError: Names each option and its readers.
    """
    foreign = {n: users for n in sorted(told.keys() - method(name).fields) if (users := readers(n))}
    if foreign:
        listed = "; ".join(f"{option} belongs to {', '.join(users)}" for option, users in foreign.items())
        raise OptionError(f"method {name} does not use {', '.join(foreign)}: {listed}")


def resolve(name: str, *told: Mapping[str, Any], recommended: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a method: class defaults < `recommended` < what follows from others < the layers of `told`.

    Args:
        name: The method.
        told: Option to value, such as of a preset, a catalog and the command line. Later layers win; None asks for the
            default.
        recommended: What the model's makers recommend; options that the method does not read are left out.

    Raises:
        OptionError: An unknown method, an option that nothing would read, or values that do not fit.
    """
    found = method(name)
    said = {k: v for k, v in {k: v for layer in told for k, v in layer.items()}.items() if v is not None}
    require_read(name, said)
    own = {k: v for k, v in (recommended or {}).items() if k in found.fields}
    fixed = {k: fix.value for k, fix in found.fixed.items() if k in found.fields}
    _require_free(found, said)
    values = {**own, **found.settings.implied(said, own), **said, **fixed}
    try:
        settings = found.settings.model_validate({**values, "method": name})
    except ValidationError as error:
        raise OptionError(f"method {name}: {faults(error)}") from error
    _require_used(settings, said)
    for need in found.needs:
        value = getattr(settings, need.field)
        if value not in need.values:
            raise OptionError(
                f"method {name} {need.why}, which {need.field} {value} does not fit: choose {need.field} "
                f"{', '.join(need.values)}"
            )
    return settings


def faults(error: ValidationError) -> str:
    """Return what pydantic found, in one line: each field, the limit, and the value that was given."""
    listed = ((".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "), e) for e in error.errors())
    return "; ".join(f"{where}: {told}{_given(entry)}" if where else told for where, told, entry in listed)


def _given(fault: Any) -> str:
    """Tell the value that was typed; a section of options is none."""
    return "" if isinstance(fault["input"], (dict, BaseModel)) else f" (got {fault['input']!r})"


def _require_free(found: Method, told: Mapping[str, Any]) -> None:
    for option, fix in found.fixed.items():
        if option in told and told[option] != fix.value:
            raise OptionError(f"method {found.name} {fix.why}; leave {option} out")


def require_free(name: str, told: Mapping[str, Any]) -> dict[str, object]:
    """Return what a method imposes on options of other sections, such as the model's windows.

    Raises:
        OptionError: Something else was told.
    """
    found = method(name)
    _require_free(found, {k: v for k, v in told.items() if v})
    return {k: fix.value for k, fix in found.fixed.items() if k in told}


def _require_used(settings: Settings, told: Mapping[str, Any]) -> None:
    """Refuse options that are read only beside others which were not chosen."""
    unread: dict[Only, list[str]] = {}
    for option in told:
        for only in type(settings).model_fields[option].metadata:
            if isinstance(only, Only) and getattr(settings, only.field, only.values[0]) not in only.values:
                unread.setdefault(only, []).append(option)
    for only, options in unread.items():
        raise OptionError(
            f"{' and '.join(options)} would be ignored: only {only} uses it; leave it out, or choose that "
            f"(--set {only.field}={only.values[0]})"
        )
