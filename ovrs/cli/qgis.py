"""`ovrs qgis`: the Processing provider in a profile of QGIS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovrs.cli.edge import App

app = App(help="The Processing provider for QGIS 3.", no_args_is_help=True)

Profile = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of a QGIS profile; default: the one that QGIS starts with.")
]


@app.command(examples=("ovrs qgis install", "ovrs qgis install --profile ~/.local/share/QGIS/QGIS3/profiles/work"))
def install(profile: Profile = None) -> None:
    """Copy the provider into a profile. It runs this environment's `ovrs`; nothing enters QGIS's own Python."""
    from ovrs.qgis import install as installing

    typer.echo(installing.install(profile).text)
    typer.echo("in QGIS: Plugins > Manage and Install Plugins > Installed, tick 'ovrs for Processing'")
    typer.echo(f"or: qgis_process plugins enable {installing.PLUGIN}")


@app.command()
def status(profile: Profile = None) -> None:
    """Say which provider a profile holds, and what it runs. Exit code 3: none."""
    from ovrs.qgis import install as installing

    found = installing.status(profile)
    typer.echo("not installed; `ovrs qgis install` does it" if found is None else found.text)
    if found is None:
        raise typer.Exit(3)


@app.command()
def uninstall(profile: Profile = None) -> None:
    """Remove the provider from a profile."""
    from ovrs.qgis import install as installing

    typer.echo(f"removed {installing.uninstall(profile)}")
