"""Products and measurements as flows: export a finished map, score methods on labelled sets.

python -m ovrs.flows.products MAP.zarr
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from ovrs.store.map import open_map

from ._tasks import export, publish


@flow(name="export-products")
def export_products(store: Path) -> list[str]:
    """Write every GIS product of a finished map beside it.

    Args:
        store: NAME.zarr.
    """
    paths: list[str] = export(store)
    with open_map(store) as mapped:
        publish(mapped.record, paths[-1], paths)
    return paths


@flow(name="bench")
def bench(
    dataset: str,
    method: str = "none,tmpa",
    model: str = "bundled",
    corruption: str = "none",
    results: Path = Path("results"),
) -> str:
    """Score methods on labelled sets of the catalog; the table becomes an artifact.

    Args:
        dataset: Names in the catalog, separated by commas.
        method: Rows, separated by commas.
        model: Models, separated by commas.
        corruption: none, all, or names.
        results: Folder; what is there is continued.
    """
    command = ["bench", "accuracy", "--dataset", dataset, "--method", method, "--model", model]
    subprocess.run([sys.executable, "-m", "ovrs", *command, "--corruption", corruption, "-o", str(results)], check=True)
    page = (results / "accuracy.md").read_text("utf-8")
    create_markdown_artifact(key="accuracy", markdown=page)
    return page


def main() -> None:
    """Command line of the export flow."""
    parser = argparse.ArgumentParser(description="Export a finished map as a Prefect flow.")
    parser.add_argument("store", type=Path)
    print("\n".join(export_products(parser.parse_args().store)))


if __name__ == "__main__":
    main()
