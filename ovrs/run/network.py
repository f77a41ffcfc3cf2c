"""What a plan knows of the network: asked where the blocks are computed, so that planning itself loads none.

With a standing Dask scheduler a worker answers. The process that plans then needs neither weights nor GPU, and the run's
digest holds the weights and the device of the workers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ovrs.engine import execute
from ovrs.engine.contract import SceneAdaptive
from ovrs.errors import DigestMismatchError, OvrsError, SchedulerLostError
from ovrs.methods.base import SceneSettings
from ovrs.provenance import canonical
from ovrs.redact import guard_logs, redacted
from ovrs.run import adaptation, segmenters, teaching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from ovrs.engine.contract import Learned, Segmenter
    from ovrs.engine.tiling import TileGeometry
    from ovrs.options import RunOptions
    from ovrs.run.job import Job
    from ovrs.run.segmenters import SegmenterSpec

    Answer = TypeVar("Answer")

_OF_THE_MACHINE = ("threads",)
"""Facts that differ between machines which compute the same numbers."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A segmenter as a plan and a digest see it. Picklable."""

    geometry: TileGeometry
    """Crops and stride in pixels, and crops per tile."""
    facts: Mapping[str, object]
    """`Segmenter.describe()`, without what differs between machines that compute the same numbers."""
    adapts: bool
    """Whether it can learn from the scene as a whole."""


def describe(spec: SegmenterSpec, run: RunOptions) -> Network:
    """Describe the network that `spec` leads to, by a worker of `run.scheduler`, else by this process.

    Raises:
        OvrsError: The segmenter cannot be built there, or there are fewer GPUs here than local workers.
        SchedulerLostError: The workers die while they build it.
    """
    found = _asked(partial(_described, spec), run)
    if found.facts.get("device") == "cuda" and run.executor == "dask" and not execute.is_elsewhere(run):
        from ovrs.model.clip.cards import require_cards

        require_cards(spec.model.device, run.workers)
    return found


def learn(job: Job) -> Learned:
    """Learn what the segmenter of `job` takes from a sample of its scene, computed where the blocks are (errors as `describe`)."""
    return _asked(partial(_learned, job), job.options.run)


def require_same(job: Job) -> None:
    """Refuse to compute with another network than the run was begun with.

    Raises:
        DigestMismatchError: Names the facts that differ, such as `weights` or `device`.
    """
    unadapted = replace(job.spec, state=None)  # what is learned from the scene is no fact of the network
    found, wanted = _facts(segmenters.build(unadapted)), job.facts
    different = sorted(k for k in found.keys() | wanted.keys() if canonical(found.get(k)) != canonical(wanted.get(k)))
    if different:
        told = ", ".join(f"{k} {found.get(k)!r} instead of {wanted.get(k)!r}" for k in different)[:400]
        raise DigestMismatchError(
            f"this worker has another network than the run was begun with: {told}; give all workers the same weights and "
            "the same kind of device"
        )


def _facts(segmenter: Segmenter) -> dict[str, object]:
    return {k: v for k, v in segmenter.describe().items() if k not in _OF_THE_MACHINE}


def _described(spec: SegmenterSpec) -> Network:
    segmenter = segmenters.build(spec)
    return Network(geometry=segmenter.geometry, facts=_facts(segmenter), adapts=isinstance(segmenter, SceneAdaptive))


def _learned(job: Job) -> Learned:
    segmenter = segmenters.build(job.spec)
    require_same(job)
    state = adaptation.nothing()
    if job.spec.adapts_to_scene:
        assert isinstance(segmenter, SceneAdaptive)  # whoever plans has looked
        assert isinstance(job.spec.method, SceneSettings)
        state = segmenter.adapt_scene(adaptation.sample_tiles(job.scene, job.plan, job.spec.method.scene_tiles))
        segmenter = segmenter.with_state(state)
    return state if job.places is None else {**state, **teaching.learn(segmenter, job, job.places)}


def _asked(question: Callable[[], Answer], run: RunOptions) -> Answer:
    if not execute.is_elsewhere(run):
        return question()
    answer = execute.ask(run, partial(_answered, question), lost=_lost)
    if isinstance(answer, OvrsError):
        answer.args = (redacted(f"{answer} (said by a worker of {run.scheduler})"),)
        raise answer
    return answer


def _answered(question: Callable[[], Answer]) -> Answer | OvrsError:
    """Return the answer, or an error of ours as a value: Dask would ask again after one that is raised."""
    guard_logs()
    try:
        return question()
    except OvrsError as error:
        return error


def _lost(error: Exception) -> OvrsError:
    return SchedulerLostError(
        f"the workers died that were to load the model ({str(error).splitlines()[0]}); look at their logs and memory"
    )
