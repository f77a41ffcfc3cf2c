"""Begin a run, or continue it: open the scene, plan, describe, and make the store."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ovrs import files
from ovrs.engine.decide import DecisionRule
from ovrs.engine.tiling import Plan, check_blocks
from ovrs.errors import DigestMismatchError, OptionError, StoreError
from ovrs.options import MapOptions
from ovrs.provenance import require_same
from ovrs.run import adaptation, network, verify
from ovrs.run import overwrite as clearing
from ovrs.run.job import Job
from ovrs.run.record import describe
from ovrs.run.rundir import Lock, RunDir
from ovrs.run.segmenters import SegmenterSpec
from ovrs.scene import identity
from ovrs.scene.grid import nominal_size_m
from ovrs.scene.opening import open_scene, require_whole
from ovrs.store import layout as store
from ovrs.words.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovrs.store.record import RunDescription

log = logging.getLogger(__name__)


def build_job(uri: str | Path, vocabulary: Vocabulary, out: Path, options: MapOptions) -> tuple[Job, RunDescription]:
    """Open the scene, plan, and describe the run; writes nothing. The network is described where blocks are computed.

    Returns:
        The job and what its `run.json` says.
    """
    require_store_name(out)
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
    )
    return job, describe(job, uri)


def require_store_name(out: Path) -> None:
    """Refuse an output that is not called `NAME.zarr`.

    Raises:
        OptionError: Says so.
    """
    if out.suffix != ".zarr":
        raise OptionError(f"the output must be named *.zarr, got {str(out)!r}")


def prepare(uri: str | Path, vocabulary: Vocabulary, out: Path, options: MapOptions, *, overwrite: bool = False) -> Job:
    """Begin a run, or continue the same one.

    Raises:
        DigestMismatchError: `out` holds a run with other inputs or options.
        StoreError: `out` exists and no run of ours made it.
    """
    clearing.require_apart(uri, out)
    job, description = build_job(uri, vocabulary, out, options)
    run, out = job.run_dir, job.out
    partial = store.partial_path(out)
    if overwrite and clearing.found(out):
        clearing.require_ours(out)
        with Lock(run):  # refuses while another process writes there
            discard(out)
    if run.exists:
        begun = run.description()
        _require_readable(begun, out)
        require_same(begun.digest, description.digest, str(out))
        identity.warn_if_sampled(begun.scene.version, job.scene.source)
    elif out.exists():
        clearing.require_ours(out)
        raise StoreError(
            f"{out} exists and has no run directory {run.path.name} beside it; "
            f"remove it, choose another output, or pass --overwrite"
        )
    if not (run.exists and (out.exists() or partial.exists())):
        clearing.require_ours(out)
        with files.folder_kept_on_success(run.path), Lock(run):
            _begin(job, description)
    elif not out.exists():
        with Lock(run):
            put_back_schema(job)
    return _adapted_to_scene(job) if job.spec.adapts_to_scene else job


def _adapted_to_scene(job: Job) -> Job:
    """The job with what its segmenter learns from the scene as a whole; learned once per run."""
    file = job.run_dir.path / adaptation.STATE_FILE
    if not file.exists():
        with Lock(job.run_dir):
            learned = network.learn(job)
            job.scene.require_unchanged()  # before anything is written
            adaptation.keep(learned, file)
    return replace(job, spec=replace(job.spec, state=file))


def _begin(job: Job, description: RunDescription) -> None:
    """Create store and run directory; `run.json` comes last, so a beginning that is cut off is begun anew."""
    partial = store.partial_path(job.out)
    for leftover in (partial, job.run_dir.blocks):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in (adaptation.STATE_FILE, verify.MANIFEST):
        (job.run_dir.path / name).unlink(missing_ok=True)
    with files.atomic_folder(partial) as temporary:
        store.create(temporary, job.scene.geobox, job.schema)
    try:
        job.run_dir.begin(description)
    except BaseException:
        discard(job.out)
        raise


def put_back_schema(job: Job) -> None:
    """Put the schema of an unfinished store back to what it is at the beginning."""
    partial = store.partial_path(job.out)
    for name in store.refresh(partial, job.scene.geobox, job.schema):
        if name not in store.ROOT_FILES:  # those differ, too, after a finish that was cut off
            log.warning("%s: %s is damaged and written anew", partial, name)


def resume(out: Path) -> Job:
    """The job of a run begun earlier, from its `run.json`.

    Raises:
        DigestMismatchError: Scene, weights or code are no longer what they were.
    """
    out = files.named(out)
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
    return prepare(description.uri, vocabulary, out, options)


def _require_readable(description: RunDescription, out: Path) -> None:
    """Refuse a run whose record lists the options of all methods, as earlier versions wrote it."""
    method: Any = description.options.dump().get("method", {})
    if "sam3" in method:
        raise DigestMismatchError(
            f"{out} was begun by an earlier version of ovrs, and its record of options is of another form; a finished map "
            "can be read and exported as it is. To go on, choose another output, or pass --overwrite to begin anew"
        )


def discard(out: Path) -> None:
    """Remove a store and its run directory.

    Raises:
        StoreError: Something of it cannot be removed.
    """
    for path in (out, store.partial_path(out), RunDir(out).path):
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise StoreError(f"{path} cannot be removed; remove it by hand")


def _rule(options: MapOptions, spec: SegmenterSpec) -> DecisionRule:
    background = spec.vocabulary.background_index
    if "threshold" in options.method.told and background is None:
        raise OptionError(
            "--set threshold needs a vocabulary with a background rule: which class should uncertain pixels get?"
        )
    return DecisionRule(background, spec.method.threshold)
