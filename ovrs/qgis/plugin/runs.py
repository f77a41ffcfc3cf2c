"""Algorithms that compute: map a scene, look at a few windows of it, teach it by examples."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingOutputHtml,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterPoint,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from . import runner
from .algorithm import BY_ITSELF, POINTS_OR_POLYGONS, Algorithm, Given, advanced, store_in, store_out

_WORDS = "building, road, water, tree, bare soil"


def _scene_and_words() -> list[Any]:
    return [
        QgsProcessingParameterRasterLayer("INPUT", "Scene"),
        QgsProcessingParameterString("CLASSES", "Classes, in plain words", _WORDS, optional=True),
        QgsProcessingParameterString(
            "VOCABULARY", "Or a vocabulary: a shipped name, or a YAML file", "", optional=True
        ),
    ]


def _examples(*, optional: bool) -> list[Any]:
    return [
        QgsProcessingParameterFeatureSource(
            "EXAMPLES", "Examples: points or polygons with a class", POINTS_OR_POLYGONS, optional=optional
        ),
        QgsProcessingParameterField("FIELD", "Attribute with the class", None, "EXAMPLES", optional=True),
    ]


def _how() -> list[Any]:
    methods = [BY_ITSELF, *_known("methods")]
    kind = QgsProcessingParameterEnum("METHOD", "Adaptation", methods, False, BY_ITSELF, False, True)
    more = QgsProcessingParameterString(
        "MORE", "Other options: SECTION.KEY=VALUE; …  (`ovrs options` lists them)", "", optional=True
    )
    return [advanced(kind), advanced(more)]


def _known(name: str) -> list[str]:
    """Names that `ovrs qgis install` wrote; none where its file is damaged, which a run then tells."""
    try:
        return list(runner.setup().get(name, []))
    except runner.Failed:
        return []


def _classes() -> Any:
    return QgsProcessingParameterRasterDestination("OUTPUT", "Classes")


def _words(given: Given) -> list[str]:
    vocabulary, classes = given.text("VOCABULARY"), given.text("CLASSES")
    if vocabulary:
        return [f"--vocabulary={vocabulary}"]
    if not classes:
        raise runner.Failed("name classes, or a vocabulary")
    return [f"--classes={classes}"]


def _asked(given: Given) -> list[str]:
    """Return method and other options."""
    method = str(given.algorithm.parameterAsEnumString(given.parameters, "METHOD", given.context))
    own = [] if method in ("", BY_ITSELF) else [f"--method={method}"]
    return own + [f"--set={pair.strip()}" for pair in given.text("MORE").split(";") if pair.strip()]


def _exported(algorithm: Algorithm, given: Given, store: str) -> dict[str, object]:
    """Write the classes of a map as a raster with its style."""
    out = given.output("OUTPUT")
    given.run("export", store, f"--cog={out}")
    return {"STORE": store, "OUTPUT": algorithm.style(given, out, style=str(Path(out).with_suffix(".qml")))}


class Map(Algorithm):
    """`ovrs map`, then `ovrs export`."""

    NAME, TITLE = "map", "Map a scene"
    HELP = (
        "Maps a raster into the classes that you name. A run that was cancelled goes on with the same settings and the "
        "same map. Examples teach the run; the extent limits it."
    )

    def parameters(self) -> list[Any]:
        """Of this algorithm."""
        return [
            *_scene_and_words(),
            QgsProcessingParameterExtent("EXTENT", "Only this part", optional=True),
            *_examples(optional=True),
            *_how(),
            QgsProcessingParameterBoolean("OVERWRITE", "Begin anew where the map is there", False),
            store_out(),
            _classes(),
        ]

    def work(self, given: Given) -> dict[str, object]:
        """Run it."""
        scene, store = given.scene("INPUT"), given.file("STORE")
        asked = [*_words(given), *given.box("EXTENT", given.layer("INPUT").crs()), *_asked(given)]
        if given.parameters.get("EXAMPLES"):
            asked.append(f"--examples={given.examples('EXAMPLES', 'FIELD', store)}")
        if given.flag("OVERWRITE"):
            asked.append("--overwrite")
        given.run("map", scene, *asked, "-o", store, "--progress", "json")
        return _exported(self, given, store)


class Preview(Algorithm):
    """`ovrs preview`."""

    NAME, TITLE = "preview", "Preview a few windows"
    HELP = (
        "Maps a few windows of a scene within seconds, under one setting or several side by side, and says what the whole "
        "would take. Click a point to see one window around it."
    )

    def parameters(self) -> list[Any]:
        """Of this algorithm."""
        parts = QgsProcessingParameterNumber("PARTS", "Windows", defaultValue=4, minValue=1, maxValue=24)
        return [
            *_scene_and_words(),
            QgsProcessingParameterString("COMPARE", "Methods side by side: none,tmpa", "", optional=True),
            QgsProcessingParameterPoint("POINT", "Around this point", optional=True),
            QgsProcessingParameterExtent("EXTENT", "Or this part", optional=True),
            parts,
            *_examples(optional=True),
            *_how(),
            QgsProcessingParameterFileDestination("OUTPUT", "Picture", "PNG files (*.png)"),
        ]

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Declare parameters, and the page that QGIS shows among its results."""
        super().initAlgorithm(configuration)
        self.addOutput(QgsProcessingOutputHtml("PAGE", "Preview"))

    def work(self, given: Given) -> dict[str, object]:
        """Run it."""
        out, crs = given.file("OUTPUT"), given.layer("INPUT").crs() if given.layer("INPUT") else None
        asked = [given.scene("INPUT"), *_words(given), *_asked(given), f"--parts={given.whole('PARTS')}"]
        if given.text("COMPARE"):
            asked.append(f"--compare={given.text('COMPARE')}")
        if given.parameters.get("POINT"):
            point = self.parameterAsPoint(given.parameters, "POINT", given.context, crs)
            asked.append(f"--at={point.x()!r},{point.y()!r}")
        else:
            asked += given.box("EXTENT", crs)
        if given.parameters.get("EXAMPLES"):
            asked.append(f"--examples={given.examples('EXAMPLES', 'FIELD', str(Path(out).with_suffix('.zarr')))}")
        lines = given.run("preview", *asked, "-o", out)
        page = Path(out).with_suffix(".html")
        told = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        page.write_text(f'<meta charset="utf-8"><img src="{html.escape(Path(out).name)}">{told}', "utf-8")
        return {"OUTPUT": out, "PAGE": str(page)}


class Teach(Algorithm):
    """`ovrs teach`, then `ovrs export`."""

    NAME, TITLE = "teach", "Teach a map by examples"
    HELP = (
        "Maps a scene again, as a map was made, with points or polygons that say where its classes are. Some ten a class "
        "are enough. Put all examples into one layer. The earlier map stays."
    )

    def parameters(self) -> list[Any]:
        """Of this algorithm."""
        return [
            store_in("Map to repeat"),
            *_examples(optional=False),
            QgsProcessingParameterBoolean("OVERWRITE", "Begin anew where the taught map is there", False),
            store_out("Taught map (a folder NAME.zarr)", "TAUGHT"),
            _classes(),
        ]

    def work(self, given: Given) -> dict[str, object]:
        """Run it."""
        store, out = given.store("STORE"), given.file("TAUGHT")
        asked = [f"--examples={given.examples('EXAMPLES', 'FIELD', out)}", "-o", out, "--progress", "json"]
        if given.flag("OVERWRITE"):
            asked.append("--overwrite")
        given.run("teach", store, *asked)
        return {**_exported(self, given, out), "STORE": store, "TAUGHT": out}
