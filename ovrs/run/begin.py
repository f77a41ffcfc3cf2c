"""Begin a run, or continue it: open the scene, plan, describe, and make the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ovrs import files
from ovrs.engine.decide import DecisionRule
from ovrs.engine.tiling import Plan, check_blocks
from ovrs.errors import DigestMismatchError, OptionError, StoreError
from ovrs.objects.remote import Remote
from ovrs.options import MapOptions
from ovrs.provenance import require_same
from ovrs.run import adaptation, network, teaching
from ovrs.run import overwrite as clearing
from ovrs.run.job import Job
from ovrs.run.lock import Lock
from ovrs.run.record import describe
from ovrs.run.rundir import RunDir
from ovrs.run.segmenters import SegmenterSpec
from ovrs.scene import identity
from ovrs.scene.grid import nominal_size_m
from ovrs.scene.opening import open_scene, require_whole
from ovrs.store import layout as store
from ovrs.store.refresh import refresh
from ovrs.store.target import remove_folder, target_of
from ovrs.words.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovrs.objects.address import Place
    from ovrs.store.record import RunDescription

log = logging.getLogger(__name__)


def build_job(uri: str | Path, vocabulary: Vocabulary, out: Place, options: MapOptions) -> tuple[Job, RunDescription]:
    """Open the scene, plan, and describe the run; writes nothing. The network is described where blocks are computed.

    Returns:
        The job and what its `run.json` says.
    """
    require_store_name(out)
    if options.run.shards and options.run.zarr_format == 2:
        raise OptionError("run.shards needs Zarr format 3: leave out run.zarr_format=2 or run.shards")
    if isinstance(out, Path):
        out = out.absolute()  # workers may stand in another folder
        files.require_possible(out)
    if files.exists(uri):
        uri = Path(uri).absolute()  # for `ovrs resume` from any directory; links stay, as files may lie beside them
    scene = open_scene(uri, options.scene)
    known = None if scene.geobox.crs is None else max(nominal_size_m(scene.geobox))
    spec = SegmenterSpec.of(options.model.told(known), options.method, vocabulary)
    found = network.describe(spec, options.run)
    if spec.adapts_to_scene and not found.adapts:
        raise OptionError(f"method {options.method.method} does not adapt to a whole scene; use --set adaptation=tile")
    plan = Plan(
        height=scene.geobox.height,
        width=scene.geobox.width,
        geometry=found.geometry,
        block_pitches=options.run.block_pitches,
    )
    check_blocks(plan)
    job = Job(
        scene=scene,
        spec=spec,
        plan=plan,
        rule=_rule(options, spec),
        out=out,
        options=options,
        facts=found.facts,
        places=teaching.places_of(spec, scene),
    )
    description = describe(job, uri)
    return replace(job, digest=description.digest), description


def require_store_name(out: Place) -> None:
    """Refuse an output that is not called `NAME.zarr`.

    Raises:
        OptionError: Says so.
    """
    if out.suffix != ".zarr":
        raise OptionError(f"the output must be named *.zarr, got {str(out)!r}")


def prepare(
    uri: str | Path, vocabulary: Vocabulary, out: Place, options: MapOptions, *, overwrite: bool = False
) -> Job:
    """Begin a run, or continue the same one, and leave it (errors as `held`)."""
    with held(uri, vocabulary, out, options, overwrite=overwrite) as job:
        return replace(job, fence=None)


@contextmanager
def held(
    uri: str | Path,
    vocabulary: Vocabulary,
    out: Place,
    options: MapOptions,
    *,
    overwrite: bool = False,
    lock: Lock | None = None,
) -> Iterator[Job]:
    """Begin a run, or continue the same one, and hold its lock while inside. A finished map needs none.

    Args:
        uri: The scene.
        vocabulary: The classes and their prompts.
        out: Where the map goes.
        options: How it is made.
        overwrite: Discard what is at `out`.
        lock: Held already, by the caller.

    Raises:
        DigestMismatchError: `out` holds a run with other inputs or options.
        StoreError: `out` exists and no run of ours made it.
        StoreLockedError: Another process works on the run.
        OptionError: The storage knows no conditional writes.
    """
    clearing.require_apart(uri, out)
    job, description = build_job(uri, vocabulary, out, options)
    if overwrite and clearing.found(job.out):
        clearing.require_ours(job.out)
    elif _require_fit(job, description):
        yield job if lock is None else replace(job, fence=lock.fence)
        return
    below = job.run_dir.objects
    if isinstance(below, Remote):
        below.require_conditional()
    with Lock(job.run_dir) if lock is None else nullcontext(lock) as held_lock:
        job = replace(job, fence=held_lock.fence)
        if overwrite and clearing.found(job.out):
            clearing.require_ours(job.out)
            job.target.discard()
            job.run_dir.clear()
        _open(job, description)
        learns = job.spec.adapts_to_scene or job.places is not None
        yield adapted_to_scene(job) if learns else job


def _require_fit(job: Job, description: RunDescription) -> bool:
    """Refuse a run or map that is another one; whether the map is finished and nothing is left to do."""
    run, target = job.run_dir, job.target
    finished = target.is_finished
    if run.exists:
        begun = run.description()
        _require_readable(begun, job.out)
        require_same(begun.digest, description.digest, str(job.out))
        _require_acquired(begun.acquired, job)
    elif finished:
        clearing.require_ours(job.out)
        _require_same_copy(job, description)
    if not finished:
        return False
    learns = job.spec.adapts_to_scene or job.places is not None
    if learns and run.exists and run.objects.head(adaptation.STATE_FILE) is None:
        return False
    try:
        return not job.holes_to_fill()
    except StoreError as error:  # whoever reads or repairs the map tells more
        log.debug("%s", error)
        return True


def _require_same_copy(job: Job, description: RunDescription) -> None:
    """Refuse a finished map without its run directory, such as a published one, unless it is the map that is asked for."""
    way = "remove it, choose another output, or pass --overwrite"
    try:
        facts: Any = store.facts(store.open_complete(job.out))
    except StoreError as error:
        raise StoreError(f"{error}, and there is no run directory {job.run_dir.path}; {way}") from error
    require_same(facts["digest"], description.digest, str(job.out))
    _require_acquired(facts.get("acquired"), job)
    if facts.get("holes") and not job.options.run.allow_holes:
        raise StoreError(
            f"{job.out} lacks blocks, and there is no run directory {job.run_dir.path} to fill them in; {way}"
        )
    log.info("%s is a copy without its run directory; its pixels are not compared", job.out)


def _require_acquired(begun: str | None, job: Job) -> None:
    """Refuse another time of recording than that of the record, which a run that goes on does not change."""
    given = job.options.scene.acquired
    if given is not None and given != begun:
        raise OptionError(
            f"--acquired {given}: {job.out} was begun with {begun or 'no time'}, which stands in its record; leave --acquired "
            "out, choose another output, or pass --overwrite"
        )


def _open(job: Job, description: RunDescription) -> None:
    """Make the run ready for its blocks; call with its lock held."""
    run, target = job.run_dir, job.target
    _require_fit(job, description)  # again: somebody may have been faster
    if run.exists:
        identity.warn_if_sampled(run.description().scene.version, job.scene.source)
    if not (run.exists and (target.is_finished or target.is_begun)):
        clearing.require_ours(job.out)
        _begin(job, description)
    elif not target.is_finished:
        put_back_schema(job)


def adapted_to_scene(job: Job) -> Job:
    """Return the job with what its segmenter learns from the scene as a whole; learned once per run."""
    run = job.run_dir
    if run.objects.head(adaptation.STATE_FILE) is None:
        learned = network.learn(job)
        job.scene.require_unchanged()  # before anything is written
        adaptation.keep(learned, run.objects)
    return replace(job, spec=replace(job.spec, state=run.path / adaptation.STATE_FILE))


def _begin(job: Job, description: RunDescription) -> None:
    """Create store and run directory; `run.json` comes last, so a beginning that is cut off is begun anew."""
    job.run_dir.clear()
    job.target.begin(lambda place: store.create(place, job.scene.geobox, job.schema))
    try:
        job.run_dir.begin(description)
    except BaseException:
        job.target.discard()
        job.run_dir.clear()
        raise


def put_back_schema(job: Job) -> None:
    """Put the schema of an unfinished store back to what it is at the beginning."""
    place = job.target.objects(finished=False)
    for name in refresh(place, job.scene.geobox, job.schema):
        if name.partition("/")[0].isdecimal():  # of an overview: these lack where none were asked for at first
            log.info("%s: %s is written anew", job.out, name)
        elif name not in store.ROOT_FILES:  # those differ, too, after a finish that was cut off
            log.warning("%s: %s is damaged and written anew", job.out, name)


def resume(out: Place) -> Job:
    """Return the job of a run begun earlier, from its `run.json` (errors as `held_again`)."""
    with held_again(out) as job:
        return replace(job, fence=None)


def held_again(out: Place, lock: Lock | None = None) -> AbstractContextManager[Job]:
    """Continue a run begun earlier, from its `run.json`, and hold its lock while inside.

    Raises:
        DigestMismatchError: Scene, weights or code are no longer what they were.
    """
    out = files.named(out) if isinstance(out, Path) else out
    description = RunDir(out).description()
    _require_readable(description, out)
    try:
        options = MapOptions.model_validate(description.options.dump())
        vocabulary = Vocabulary.model_validate(description.vocabulary.dump())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise StoreError(
            f"{RunDir(out).path / 'run.json'} is damaged ({where}: {error.errors()[0]['msg']}); "
            "put back a copy of it, or begin anew with --overwrite"
        ) from error
    require_whole(description.uri, options.run.scheduler)
    return held(description.uri, vocabulary, out, options, lock=lock)


def _require_readable(description: RunDescription, out: Place) -> None:
    """Refuse a run whose record lists the options of all methods, as earlier versions wrote it."""
    method: Any = description.options.dump().get("method", {})
    if "sam3" in method:
        raise DigestMismatchError(
            f"{out} was begun by an earlier version of ovrs, and its record of options is of another form; a finished map "
            "can be read and exported as it is. To go on, choose another output, or pass --overwrite to begin anew"
        )


def discard(out: Place) -> None:
    """Remove a store and its run directory.

    Raises:
        StoreError: Something of it cannot be removed.
    """
    target_of(out).discard()
    run = RunDir(out)
    if isinstance(run.path, Path):
        remove_folder(run.path)
    else:
        run.objects.delete_prefix("")


def _rule(options: MapOptions, spec: SegmenterSpec) -> DecisionRule:
    background = spec.vocabulary.background_index
    if "threshold" in options.method.told and background is None:
        raise OptionError(
            "--set threshold needs a vocabulary with a background rule: which class should uncertain pixels get?"
        )
    return DecisionRule(background, spec.method.threshold, getattr(spec.method, "shares", False))
