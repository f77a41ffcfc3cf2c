"""Does a prior space carry signal? A check on unlabelled images, and the closed-form fit of the `aligned` space.

Agreement with SAM 3's own masks is what is measured, not truth. The verdict is a file; nothing is probed silently.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ovrs.errors import OptionError
from ovrs.model.sam3.fuse import resize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from ovrs.model.sam3.prior import PriorSpace, View
    from ovrs.model.sam3.segmenter import CocoSegmenter
    from ovrs.model.sam3.verdict import Identity, Judged, Verdict

log = logging.getLogger(__name__)

MIN_AUC, MIN_PAIRS, MAX_COLLAPSE = 0.60, 30, 0.20
SHARE = (0.01, 0.99)
"""A mask takes part when it covers more than 1 % and less than 99 % of the image."""

Image = tuple["NDArray[np.uint8]", "NDArray[np.bool_]"]


@dataclass(frozen=True)
class SpaceReport:
    """What the probe saw of one space."""

    space: str
    auc: float
    """Mean over pairs: chance that a pixel inside a class's mask is likelier for the class than one outside."""
    pairs: int
    collapse: float
    """Share of images where one class is likeliest everywhere."""

    @property
    def passed(self) -> bool:
        return self.auc >= MIN_AUC and self.pairs >= MIN_PAIRS and self.collapse < MAX_COLLAPSE


def auc(values: Tensor, inside: Tensor) -> float:
    """Area under the ROC curve of `values` for the mask `inside`, ties counted half (Mann–Whitney)."""
    from scipy.stats import rankdata

    truth = inside.flatten().cpu().numpy()
    ranks = rankdata(values.flatten().double().cpu().numpy())
    positives = int(truth.sum())
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (truth.size - positives)))


def probe(segmenter: CocoSegmenter, spaces: Sequence[PriorSpace], images: Iterable[Image]) -> Verdict:
    """Compare each space with SAM 3's confident masks on unlabelled images.

    Returns:
        The verdict: one report per space and the name of the accepted one (None: the prior stays off).
    """
    found: dict[str, list[float]] = {s.name: [] for s in spaces}
    collapsed: dict[str, int] = {s.name: 0 for s in spaces}
    count = 0
    for rgb, valid in images:
        view = segmenter.observe(rgb, valid)
        count += 1
        masks = view.evidence > 0
        share = masks.float().mean(dim=(1, 2))
        confident = (view.presence > 0) & (share > SHARE[0]) & (share < SHARE[1])
        for space in spaces:
            cosines = space.cosines(view, segmenter.bank, segmenter.groups)
            u = resize(torch.stack([c.amax(dim=0) for c in cosines]), (masks.shape[1], masks.shape[2]))
            collapsed[space.name] += int(len(u.argmax(dim=0).unique()) == 1)
            found[space.name] += [auc(u[c], masks[c]) for c in torch.nonzero(confident)[:, 0].tolist()]
    reports = [
        SpaceReport(n, float(np.mean(v)) if v else 0.5, len(v), collapsed[n] / max(count, 1)) for n, v in found.items()
    ]
    return _verdict(segmenter, reports, count)


def _verdict(segmenter: CocoSegmenter, reports: list[SpaceReport], images: int) -> Verdict:
    passed = sorted((r for r in reports if r.passed), key=lambda r: -r.auc)
    return {
        "what": "agreement of prior spaces with SAM 3's own masks on unlabelled images; not accuracy",
        **identity(segmenter),
        "images": images,
        "limits": {"auc": MIN_AUC, "pairs": MIN_PAIRS, "collapse": MAX_COLLAPSE},
        "spaces": [_judged(r) for r in reports],
        "accepted": passed[0].space if passed else None,
    }


def _judged(report: SpaceReport) -> Judged:
    return {
        "space": report.space,
        "auc": report.auc,
        "pairs": report.pairs,
        "collapse": report.collapse,
        "passed": report.passed,
    }


def identity(segmenter: CocoSegmenter) -> Identity:
    """Return what a verdict holds for."""
    backend, options = segmenter.backend, segmenter.options
    return {
        "weights": backend.weights_hash,
        "layer": backend.layer,
        "preset": options.prior_preset,
        "prior_model": options.prior_model,
        "classes": list(segmenter.prompted),
    }


def allowed_weight(segmenter: CocoSegmenter, verdict: Verdict | None) -> tuple[float, str]:
    """λ that may be used, and why: the wanted one only when the verdict accepts this very space."""
    options = segmenter.options
    space, wanted = options.prior_space, options.prior_weight
    if wanted == 0 or space == "none":
        return 0.0, "no prior was asked for"
    if not options.require_probe:
        return wanted, "not probed, as asked (require_probe: false)"
    if verdict is None:
        reason = f"prior space {space} was not probed: `ovrs sam3 probe` or --set adaptation=scene does it"
    else:
        other = [k for k, v in identity(segmenter).items() if verdict.get(k) != v]
        report = next((r for r in verdict["spaces"] if r["space"] == space), None)
        if other:
            reason = f"the verdict is about another {', another '.join(other)}"
        elif report is None:
            reason = f"the verdict does not speak of space {space}"
        elif report["passed"]:
            return wanted, f"space {space} passed: AUC {report['auc']:.3f} over {report['pairs']} pairs"
        else:
            reason = (
                f"space {space} did not pass: AUC {report['auc']:.3f} (needs {MIN_AUC}), {report['pairs']} pairs (needs "
                f"{MIN_PAIRS}), collapse {report['collapse']:.0%} (below {MAX_COLLAPSE:.0%})"
            )
    log.warning("the semantic prior stays off (lambda 0): %s", reason)
    return 0.0, reason


def read_verdict(path: Path) -> Verdict:
    """Read a stored verdict.

    Raises:
        OptionError: No such file, or no verdict.
    """
    if not path.is_file():
        raise OptionError(f"no probe verdict at {path}; `ovrs sam3 probe IMAGES … -o {path.name}` writes one")
    content: Verdict = json.loads(path.read_text("utf-8"))
    if "spaces" not in content:
        raise OptionError(f"{path} is no probe verdict: it has no 'spaces'")
    return content


def align(segmenter: CocoSegmenter, images: Iterable[Image], ridge: float = 0.1) -> dict[str, NDArray[Any]]:
    """Fit W with W · phrase ≈ mean feature under the phrase's confident mask: ridge regression, no labels.

    Raises:
        OptionError: Fewer than three confident pairs were found.
    """
    phrases, features = [], []
    for rgb, valid in images:
        view: View = segmenter.observe(rgb, valid)
        layer = F.layer_norm(view.state.layer, view.state.layer.shape[-1:])
        chance = F.adaptive_avg_pool2d(view.evidence.sigmoid()[None], (layer.shape[0], layer.shape[1]))[0]
        area = chance.sum(dim=(1, 2))
        for c in torch.nonzero((view.presence.sigmoid() > 0.9) & (area > 16))[:, 0].tolist():
            phrases.append(segmenter.bank.vectors[segmenter.groups[c][0]])
            features.append(torch.einsum("hw,hwd->d", chance[c], layer) / area[c])
    if len(phrases) < 3:
        raise OptionError(f"{len(phrases)} confident masks on these images; give more images or other classes")
    e, v = torch.stack(phrases).double(), torch.stack(features).double()
    text_mean, vision_mean = e.mean(dim=0), v.mean(dim=0)
    e, v = e - text_mean, v - vision_mean
    gram = e.T @ e
    matrix = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram), e.T @ v).T
    arrays = {"matrix": matrix, "text_mean": text_mean, "vision_mean": vision_mean}
    return {
        **{k: a.float().cpu().numpy() for k, a in arrays.items()},
        "weights": np.array(segmenter.backend.weights_hash),
        "layer": np.array(segmenter.backend.layer),
        "pairs": np.array(len(phrases)),
        "classes": np.array(segmenter.prompted),
    }
