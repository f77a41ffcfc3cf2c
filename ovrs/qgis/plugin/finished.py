"""Algorithms on a finished map: draw a sample, assess it, export it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingParameterBoolean,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
)

from . import runner
from .algorithm import Algorithm, Given, advanced, store_in


class Sample(Algorithm):
    """`ovrs sample`."""

    NAME, TITLE = "sample", "Draw a sample to label"
    HELP = "Draws random points in each class of a map. Fill in their attribute reference, save, and assess the map."

    def parameters(self) -> list[Any]:
        """Of this algorithm."""
        return [
            store_in(),
            QgsProcessingParameterNumber("PER_CLASS", "Points for each class", defaultValue=50, minValue=1),
            QgsProcessingParameterNumber("SEED", "Start of the random numbers", defaultValue=0, minValue=0),
            QgsProcessingParameterVectorDestination("OUTPUT", "Points"),
        ]

    def work(self, given: Given) -> dict[str, object]:
        """Run it."""
        out = given.output("OUTPUT")
        numbers = [f"--per-class={given.whole('PER_CLASS')}", f"--seed={given.whole('SEED')}"]
        given.run("sample", given.store("STORE"), *numbers, "-o", out)
        return {"OUTPUT": self.style(given, out, table="sample")}


class Assess(Algorithm):
    """`ovrs assess`, then `ovrs report`."""

    NAME, TITLE = "assess", "Assess a map"
    HELP = (
        "Compares a map with a reference: labelled points of a sample, other points, polygons, or a raster of labels. The "
        "page holds accuracy, areas with 95 % intervals, and what the confidence is worth."
    )

    def parameters(self) -> list[Any]:
        """Of this algorithm."""
        return [
            store_in(),
            QgsProcessingParameterMapLayer("REFERENCE", "Reference: points, polygons, or a raster of labels"),
            QgsProcessingParameterField("FIELD", "Attribute with the class", None, "REFERENCE", optional=True),
            QgsProcessingParameterString("LEGEND", "Classes of a raster: 1=building,2=road", "", optional=True),
            advanced(QgsProcessingParameterBoolean("RANDOM", "Points are a simple random sample of the map", False)),
            QgsProcessingParameterFileDestination("OUTPUT", "Report", "HTML files (*.html)"),
            QgsProcessingParameterFileDestination("FIGURES", "Figures for export", "JSON files (*.json)"),
        ]

    def work(self, given: Given) -> dict[str, object]:
        """Run it."""
        store, page, figures = given.store("STORE"), given.file("OUTPUT"), given.file("FIGURES")
        asked = [f"--reference={given.saved('REFERENCE')}", "-o", figures]
        asked += [f"--field={given.text('FIELD')}"] if given.text("FIELD") else []
        asked += [f"--legend={given.text('LEGEND')}"] if given.text("LEGEND") else []
        asked += ["--random"] if given.flag("RANDOM") else []
        given.run("assess", store, *asked)
        given.run("report", store, "-o", page, f"--accuracy={figures}")
        return {"OUTPUT": page, "FIGURES": figures}


class Export(Algorithm):
    """`ovrs export`."""

    NAME, TITLE = "export", "Export a map"
    HELP = (
        "Writes a finished map as styled layers: classes, confidence, polygons. The mapping unit gives small areas to the "
        "classes around them, in every product alike. The map stays as it is."
    )

    def parameters(self) -> list[Any]:
        """Of this algorithm."""
        raster, vector = QgsProcessingParameterRasterDestination, QgsProcessingParameterVectorDestination
        return [
            store_in(),
            QgsProcessingParameterString("UNIT", "Minimum mapping unit: 50m2, 0.5ha", "", optional=True),
            QgsProcessingParameterNumber(
                "MAJORITY", "Majority of so many x so many pixels; 0: none", defaultValue=0, minValue=0
            ),
            QgsProcessingParameterString("REGULARISE", "Classes whose polygons get right angles", "", optional=True),
            advanced(
                QgsProcessingParameterFile(
                    "CALIBRATED", "Figures of Assess, to calibrate by", extension="json", optional=True
                )
            ),
            raster("OUTPUT", "Classes", optional=True, createByDefault=True),
            raster("CONFIDENCE", "Confidence", optional=True, createByDefault=False),
            vector("POLYGONS", "Polygons", optional=True, createByDefault=False),
        ]

    def work(self, given: Given) -> dict[str, object]:
        """Run it."""
        asked, made = [], {}
        for name, flag in (("OUTPUT", "--cog"), ("CONFIDENCE", "--confidence"), ("POLYGONS", "--vectors")):
            path = given.output(name)
            if path:
                asked.append(f"{flag}={path}")
                made[name] = path
        if not made:
            raise runner.Failed("nothing to export: name classes, confidence or polygons")
        for name, flag in (
            ("UNIT", "--min-mapping-unit"),
            ("REGULARISE", "--regularise"),
            ("CALIBRATED", "--calibrated"),
        ):
            if given.text(name):
                asked.append(f"{flag}={given.text(name)}")
        if given.whole("MAJORITY"):
            asked.append(f"--majority={given.whole('MAJORITY')}")
        given.run("export", given.store("STORE"), *asked)
        if "OUTPUT" in made:
            self.style(given, made["OUTPUT"], style=str(Path(made["OUTPUT"]).with_suffix(".qml")))
        if "POLYGONS" in made:
            self.style(given, made["POLYGONS"], table="classes")
        return dict(made)
