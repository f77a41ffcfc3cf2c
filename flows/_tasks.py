"""Prefect tasks: one-line wrappers of library functions, sized to minutes of work each."""

from __future__ import annotations

import base64
import io
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image
from prefect import get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.assets import add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.context import AssetContext

from ovrs import pipeline
from ovrs.cache import cache_directory
from ovrs.errors import IncompleteRunError
from ovrs.export import target
from ovrs.export.cog import write_cog
from ovrs.export.quicklook import write_quicklook
from ovrs.store.map import open_map
from ovrs.store.record import RunRecord
from ovrs.words.prompts import LanguageModel, PromptError, write_prompts
from ovrs.words.vocabulary import COMPOSED, ClassEntry, Vocabulary, composed

from ._runs import areas, stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import State, TaskRun

    from ovrs.run.job import Job
    from ovrs.store.map import Map

log = logging.getLogger(__name__)

QUIET_SECONDS = 300.0
"""How long nothing is reported after the Prefect server did not answer: each attempt takes Prefect's client a minute."""
HEALABLE = {
    "SceneReadError",
    "OSError",
    "OutputError",
    "TimeoutError",
    "KilledWorker",
    "OutOfMemoryError",
    "ConnectionError",
    "ConnectionAbortedError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "BrokenPipeError",
}
"""Classes of errors (`BlockRecord.error`) that another attempt can cure; anything else fails at once."""


class Reports:
    """What Prefect is told for people to see. The map does not depend on it: a server that went away costs no block."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, tell: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`tell(*args, **kwargs)`, or None and a warning while the server does not answer."""
        if time.monotonic() < self._quiet_until:
            return None
        try:
            return tell(*args, **kwargs)
        except httpx.HTTPError as error:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("the Prefect server does not answer (%s); the map goes on unseen", error)
            return None


report = Reports()


async def can_heal(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Retry a batch only when every block in it that failed did so with an error of a healable class."""
    failure = await state.aresult(raise_on_failure=False)
    return isinstance(failure, IncompleteRunError) and {r.error for r in failure.records} <= HEALABLE


@task(name="map-blocks", retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=can_heal, cache_policy=NO_CACHE)
def map_blocks(job: Job, names: list[str], progress_artifact: Any = None) -> int:
    """Compute those of `names` that have no finished marker; the markers, not Prefect, say what is done."""
    before = {
        name: job.run_dir.record_of(name) for name in names
    }  # of this batch alone: a scene may have 100,000 blocks
    found = pipeline.compute(job, [n for n, r in before.items() if r is None or not r.finished], stop=stopping)
    failed = [r for r in found if not r.finished]
    if progress_artifact is not None:
        done = 1 - len(job.missing()) / job.plan.block_count
        report(update_progress_artifact, progress_artifact, progress=round(100 * done, 1))
    if failed:
        listed = [f"{r.reason} (block {r.name})" for r in failed]
        raise IncompleteRunError("\n".join([f"{len(failed)} blocks failed", *listed]), failed)
    return len(names)


@task(name="prompts", cache_policy=NO_CACHE)
def prompts(words: Vocabulary, llm: LanguageModel | None, context: str, allow_composed: bool) -> Vocabulary:
    """Let a language model describe the classes that nobody has described; composed descriptions stand in only if allowed.

    Without a language model the classes stay as they are: asked for by name and synonyms.

    Raises:
        PromptError: The endpoint failed and composed descriptions are not allowed.
    """
    bare = [c.name for c in words.classes if c.prompt_source == COMPOSED or not c.descriptions]
    if llm is None or not bare:
        return words
    stripped = words.model_copy(
        update={
            "classes": tuple(
                c.model_copy(update={"descriptions": (), "prompt_source": "library"}) if c.name in bare else c
                for c in words.classes
            )
        }
    )
    try:
        return write_prompts(stripped, llm, context=context, cache=cache_directory() / "prompts")
    except PromptError as error:
        if not allow_composed:
            raise
        get_run_logger().warning("composed descriptions for %s: %s", ", ".join(bare), error)
        written = {c.name: c for c in error.partial.classes} if error.partial else {}
        kept = [
            written[c.name] if written.get(c.name) and written[c.name].descriptions else composed_entry(c)
            for c in words.classes
        ]
        return words.model_copy(update={"classes": tuple(kept)})


def composed_entry(entry: ClassEntry) -> ClassEntry:
    """`entry` as it is when described, else with composed prompts, marked as such for the map's provenance."""
    if entry.descriptions:
        return entry
    return entry.model_copy(update={"descriptions": composed(entry.name).descriptions, "prompt_source": COMPOSED})


@task(name="export", cache_policy=NO_CACHE)
def export(store: Path) -> list[str]:
    """COG and picture beside the store; `NAME-classes` where the scene itself has the store's name."""
    with open_map(store) as mapped:
        cog, picture = (_beside(mapped, store, suffix) for suffix in (".tif", ".png"))
        return [str(write_cog(mapped, cog).path), str(write_quicklook(mapped, picture).path)]


def _beside(mapped: Map, store: Path, suffix: str) -> Path:
    plain = store.with_suffix(suffix)
    return plain if target.input_of(mapped, plain) is None else store.with_name(f"{store.stem}-classes{suffix}")


@materialize("ovrs://map", by="ovrs", name="publish", cache_policy=NO_CACHE)
def publish(record: RunRecord, picture: str | None, products: list[str]) -> None:
    """The map as an asset with its class areas; areas, links to the products and the picture as Prefect artifacts."""
    scene, table = record.scene.name, [area.dump() for area in record.classes]
    context = AssetContext.get()
    for made in context.downstream_assets if context else ():
        add_asset_metadata(made, areas(record))
    report(create_table_artifact, key="class-areas", table=table, description=f"Areas of {scene}")
    lines = "\n".join(f"- `{p}`" for p in products)
    report(create_markdown_artifact, key="products", markdown=f"Products of {scene}\n\n{lines}")
    if picture is not None:
        url = f"data:image/jpeg;base64,{base64.b64encode(thumbnail(Path(picture))).decode()}"
        report(create_image_artifact, key="quicklook", image_url=url, description=scene)


def thumbnail(picture: Path, side: int = 900) -> bytes:
    """A small JPEG: Prefect refuses events of a megabyte."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()
