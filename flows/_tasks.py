"""Prefect tasks: one-line wrappers of library functions, sized to minutes of work each."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from ovrs import job, pipeline
from ovrs.errors import IncompleteRunError
from ovrs.export.cog import write_cog
from ovrs.export.quicklook import write_quicklook

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun

    from ovrs.job import Job

HEALABLE = ("SceneReadError", "OSError", "ConnectionError", "TimeoutError", "KilledWorker", "OutOfMemoryError")
"""Failures that another attempt can cure; anything else fails at once."""


async def can_heal(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Retry a batch only when every reason in its error is of the healable kind."""
    failure = await state.aresult(raise_on_failure=False)
    return isinstance(failure, IncompleteRunError) and all(
        line.strip().startswith(HEALABLE) for line in str(failure).splitlines()[1:]
    )


@task(name="map-blocks", retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=can_heal, cache_policy=NO_CACHE)
def map_blocks(this: Job, names: list[str]) -> int:
    """Compute those of `names` that have no finished marker; the markers, not Prefect, say what is done."""
    missing = set(this.missing())
    failed = [r for r in pipeline.compute(this, [n for n in names if n in missing]) if not r.finished]
    if failed:
        raise IncompleteRunError(
            "\n".join([f"{len(failed)} blocks failed", *(f"{r.reason} (block {r.name})" for r in failed)])
        )
    return len(names)


finish = task(name="finish", cache_policy=NO_CACHE)(job.finish)


@task(name="export", cache_policy=NO_CACHE)
def export(store: Path) -> list[str]:
    """COG and picture beside the store."""
    return [str(write_cog(store, store.with_suffix(".tif"))), str(write_quicklook(store, store.with_suffix(".png")))]


@task(name="publish", cache_policy=NO_CACHE)
def publish(facts: dict[str, Any], picture: str | None) -> None:
    """Class areas and the picture as Prefect artifacts."""
    create_table_artifact(key="class-areas", table=facts["classes"], description=f"Areas of {facts['scene']['name']}")
    if picture is not None:
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        create_image_artifact(
            key="quicklook", image_url=f"data:image/png;base64,{data}", description=facts["scene"]["name"]
        )
