"""How good a map is, as one value: figures with their intervals, what the sample cannot carry, and the temperature."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from ovrs import __version__
from ovrs.assess import reliability
from ovrs.assess.estimators import Estimates, estimate, exact
from ovrs.assess.reference import read
from ovrs.errors import OptionError
from ovrs.foreign import read_object
from ovrs.redact import redacted

if TYPE_CHECKING:
    from pathlib import Path

    from ovrs.assess.estimators import ClassEstimates, Estimate
    from ovrs.assess.found import Found
    from ovrs.assess.names import Legend
    from ovrs.assess.reliability import Reliability
    from ovrs.store.map import Map

log = logging.getLogger(__name__)

KIND = "accuracy"
FEW_POINTS = 25
"""Points of a mapped class below which its user's accuracy is hardly known."""
WIDE = 0.5
"""Half of an interval of an area, as a share of the area, from which the area is hardly known."""
_FEW_OMITTED = 2
_HEAVY = 0.25


class _ToldMap(BaseModel):
    """The map that a file tells of."""

    name: str
    classes: int
    digest: dict[str, str]


class _Told(BaseModel):
    """What must be in a file that `to_json` wrote."""

    map: _ToldMap
    classes: list[str]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a reference tells of a map."""

    map_name: str
    digest: dict[str, str]
    """Of the run that made the map."""
    reference: str
    kind: str
    """`points`, `polygons` or `raster`."""
    estimator: str
    """Whose formulas; empty where figures hold for the reference alone."""
    legend: Legend
    points: int
    """0 for polygons and rasters."""
    mapped_m2: tuple[float, ...]
    """Area of each class on the map."""
    total_m2: float
    """Area that shares are shares of; 0 where there are no estimates of areas."""
    estimates: Estimates
    reliability: Reliability | None
    warnings: tuple[str, ...]
    """What the sample cannot carry."""
    remarks: tuple[str, ...]
    """What was done with the reference."""

    @property
    def names(self) -> tuple[str, ...]:
        """All classes; those that only the reference has come after the map's."""
        return self.legend.names


def assess(
    mapped: Map, reference: str, *, field: str | None = None, random: bool = False, legend: str | None = None
) -> Findings:
    """Compare a map with a reference.

    Args:
        mapped: The map.
        reference: Points (`ovrs sample`), polygons, or a raster of labels.
        field: Attribute with the class.
        random: Points without a design are a simple random sample of the map.
        legend: Classes of a raster's values, `1=building,2=road`.

    Raises:
        OptionError: The reference cannot be used, or does not meet the map.
        StoreError: The map is damaged.
    """
    found = read(mapped, reference, field, random=random, legend=legend)
    classes = len(found.legend.names)
    if found.sample is not None:
        estimates = estimate(found.sample, classes)
        total = sum(s.area_m2 for s in found.sample.strata)
    else:
        matrix = np.zeros((classes, classes))
        np.add.at(matrix, (found.mapped, found.reference), found.weight)
        estimates = exact(matrix)
        if found.kind == "points":
            estimates = Estimates(
                overall=estimates.overall,
                classes=estimates.classes,
                matrix=estimates.matrix,
                counts=matrix.astype(np.int64),
            )
        total = 0.0
    known = np.isfinite(found.confidence)
    trusted = reliability.measure(
        found.confidence[known],
        (found.mapped == found.reference)[known].astype(np.float64),
        found.weight[known],
        len(mapped.names),
        points=found.kind == "points",
    )
    areas = [c.hectares * 1e4 for c in mapped.classes]
    return Findings(
        map_name=mapped.name,
        digest=dict(mapped.record.digest),
        reference=redacted(reference),
        kind=found.kind,
        estimator=_estimator(found, mapped),
        legend=found.legend,
        points=len(found.mapped) if found.kind == "points" else 0,
        mapped_m2=tuple(areas + [0.0] * (classes - len(areas))),
        total_m2=total,
        estimates=estimates,
        reliability=trusted,
        warnings=tuple(_warnings(found, estimates, trusted)),
        remarks=tuple(found.remarks),
    )


def _estimator(found: Found, mapped: Map) -> str:
    if found.sample is None:
        return ""
    names = np.array([s.name for s in found.sample.strata])
    same = all(
        names[h] == found.legend.names[m] for h, m in zip(found.sample.stratum, found.sample.mapped, strict=True)
    )
    sizes = {c.name: c.pixels for c in mapped.classes}
    same = same and all(sizes.get(s.name) == s.pixels for s in found.sample.strata)
    return (
        "Olofsson et al. 2014 (strata are the classes of the map)"
        if same
        else "Stehman 2014 (strata differ from the classes of the map)"
    )


def _warnings(found: Found, estimates: Estimates, trusted: Reliability | None) -> list[str]:
    """Return warnings of figures for which the sample is too small."""
    told: list[str] = []
    if found.sample is not None:
        sample = found.sample
        points = np.bincount(sample.stratum, minlength=len(sample.strata))
        lonely = [s.name for s, n in zip(sample.strata, points, strict=True) if n < 2]
        if lonely:
            told.append(
                f"one labelled point only in {', '.join(lonely)}: no interval can be given for what it touches; label more"
            )
        for index, name in enumerate(found.legend.names):
            told += _class_warnings(name, index, found, estimates.classes[index])
    if trusted is not None and trusted.temperature is None:
        told.append(f"fewer than {reliability.FEWEST} points: no temperature is fitted")
    return told


def _class_warnings(name: str, index: int, found: Found, figures: ClassEstimates) -> list[str]:
    sample = found.sample
    assert sample is not None  # the caller has looked
    told = []
    on_map, on_ground = int((sample.mapped == index).sum()), int((sample.reference == index).sum())
    if 0 < on_map < FEW_POINTS:
        told.append(
            f"{name}: {on_map} points on the map are few for a user's accuracy; {FEW_POINTS} and more are usual"
        )
    if on_map and not on_ground:
        told.append(f"{name}: no point is {name} in the reference; its area and producer's accuracy are not known")
    missed = (sample.reference == index) & (sample.mapped != index)
    share = figures.share
    if share.value:
        heavy = float(sample.weights[missed].sum()) / share.value
        if 0 < missed.sum() <= _FEW_OMITTED and heavy > _HEAVY:
            told.append(
                f"{name}: {int(missed.sum())} missed points make {heavy:.0%} of its area; more points in the classes that "
                "they lie in would tell"
            )
        half = share.half_width
        if half is not None and half > WIDE * share.value:
            told.append(f"{name}: its area is known to ± {half / share.value:.0%} only")
    if any(e.exact for e in (figures.user, figures.producer)):
        told.append(f"{name}: all its points agree; the interval is the exact binomial one")
    return told


def dump(findings: Findings) -> dict[str, Any]:
    """Return findings as plain data for JSON; `temperature_for` and the report read them."""
    found = findings.estimates
    hectares = findings.total_m2 / 1e4

    def area(share: Estimate) -> dict[str, float | None] | None:
        return (
            None
            if not hectares or share.value is None
            else {
                key: None if value is None else value * hectares
                for key, value in (
                    ("value", share.value),
                    ("low", share.low),
                    ("high", share.high),
                    ("error", share.error),
                )
            }
        )

    trusted = findings.reliability
    return {
        "ovrs": KIND,
        "version": __version__,
        "map": {"name": findings.map_name, "digest": findings.digest, "classes": findings.legend.own},
        "reference": findings.reference,
        "kind": findings.kind,
        "estimator": findings.estimator or None,
        "points": findings.points,
        "classes": list(findings.names),
        "overall": asdict(found.overall),
        "per_class": [
            {
                "class": name,
                "mapped_hectares": findings.mapped_m2[i] / 1e4,
                "hectares": area(found.classes[i].share),
                **asdict(found.classes[i]),
            }
            for i, name in enumerate(findings.names)
        ],
        "matrix_points": found.counts.tolist() if findings.points else None,
        "matrix_shares": found.matrix.tolist(),
        "reliability": None if trusted is None else asdict(trusted),
        "warnings": list(findings.warnings),
        "remarks": list(findings.remarks),
    }


def to_json(findings: Findings) -> str:
    """Return the text of `FILE.json`."""
    return json.dumps(dump(findings), indent=1, ensure_ascii=False) + "\n"


def load_for(mapped: Map, path: Path, option: str) -> dict[str, object]:
    """Read a file of `to_json`, for the map that it tells of or a map with as many classes.

    Args:
        mapped: The map.
        path: `FILE.json`.
        option: How messages call it.

    Raises:
        OptionError: Another file, or of a map with other classes.
    """
    try:
        found = read_object(path)
        if found.get("ovrs") != KIND:
            raise ValueError(f"{path} is no assessment; `ovrs assess … -o FILE.json` writes one")
        told = _Told.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OptionError(f"{option} {path} is damaged: {where}: {first['msg']}") from error
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from error
    own = list(mapped.names)
    if told.map.classes != len(own) or told.classes[: len(own)] != own:
        raise OptionError(f"{option}: {path} tells of {told.map.name}, whose classes are others")
    if told.map.digest != mapped.record.digest:
        log.warning(
            "%s tells of %s, another run than %s; its figures may not hold here", path, told.map.name, mapped.name
        )
    return found


def temperature_for(mapped: Map, path: Path) -> float:
    """Read the temperature that `ovrs assess` fitted.

    Raises:
        OptionError: See `load_for`, or none was fitted.
    """
    told = load_for(mapped, path, "--calibrated").get("reliability")
    value = None if not isinstance(told, dict) else told.get("temperature")
    if not isinstance(value, float | int) or not value > 0:
        raise OptionError(
            f"--calibrated {path} holds no temperature; it takes {reliability.FEWEST} labelled points or more"
        )
    return float(value)
