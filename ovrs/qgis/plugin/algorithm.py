"""What the algorithms share: how layers become files for `ovrs`, and how its files become styled layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsFeature,
    QgsField,
    QgsFields,
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsVectorFileWriter,
)
from qgis.PyQt.QtCore import QVariant

from . import runner

STORES = "Map of ovrs (*.zarr)"
BY_ITSELF = "as the model recommends"


class Styled(QgsProcessingLayerPostProcessorInterface):
    """Gives a layer the style that `ovrs` wrote, once QGIS has loaded it."""

    def __init__(self, *, style: str = "", table: str = "") -> None:
        """Take the style's file, of a raster, or the layer's name in a GeoPackage, which holds its style."""
        super().__init__()
        self.style, self.table = style, table

    def postProcessLayer(self, layer: Any, _context: Any, _feedback: Any) -> None:
        """Load the style; QGIS finds the one in a GeoPackage only for a layer that is named."""
        if self.style:
            layer.loadNamedStyle(self.style)
        else:
            source = layer.source().split("|")[0]
            layer.setDataSource(f"{source}|layername={self.table}", layer.name(), "ogr", True)
        layer.triggerRepaint()


_WAITING: list[Styled] = []
"""Styles of layers that are not loaded yet; QGIS keeps neither them nor the algorithm."""


class Algorithm(QgsProcessingAlgorithm):
    """One command of `ovrs`."""

    NAME = TITLE = HELP = ""

    def createInstance(self) -> Any:
        """Another one, for one run."""
        return type(self)()

    def name(self) -> str:
        """After `ovrs:`."""
        return self.NAME

    def displayName(self) -> str:
        """In the toolbox."""
        return self.TITLE

    def shortHelpString(self) -> str:
        """Beside the dialog."""
        return self.HELP

    def initAlgorithm(self, _configuration: Any = None) -> None:
        """Declare the parameters."""
        for parameter in self.parameters():
            self.addParameter(parameter)

    def parameters(self) -> list[Any]:
        """Of this algorithm, in the order of the dialog."""
        raise NotImplementedError

    def processAlgorithm(self, parameters: dict[str, object], context: Any, feedback: Any) -> dict[str, object]:
        """Run; every error is one line of QGIS's log."""
        try:
            return self.work(Given(self, parameters, context, feedback))
        except (runner.Failed, runner.Cancelled) as error:
            raise QgsProcessingException(str(error)) from None

    def work(self, given: Given) -> dict[str, object]:
        """Run `ovrs` and return the outputs."""
        raise NotImplementedError

    def style(self, given: Given, path: str, *, style: str = "", table: str = "") -> str:
        """Return `path`, whose layer gets its style when QGIS loads it (arguments as `Styled`)."""
        if given.context.willLoadLayerOnCompletion(path):
            _WAITING.append(Styled(style=style, table=table))
            given.context.layerToLoadOnCompletionDetails(path).setPostProcessor(_WAITING[-1])
        return path


class Given:
    """The values of one run."""

    def __init__(self, algorithm: Algorithm, parameters: dict[str, object], context: Any, feedback: Any) -> None:
        self.algorithm, self.parameters, self.context, self.feedback = algorithm, parameters, context, feedback

    def text(self, name: str) -> str:
        """Return a text, empty where nothing is given."""
        return str(self.algorithm.parameterAsString(self.parameters, name, self.context) or "").strip()

    def whole(self, name: str) -> int:
        """Return a whole number."""
        return int(self.algorithm.parameterAsInt(self.parameters, name, self.context))

    def flag(self, name: str) -> bool:
        """Return whether a box is ticked."""
        return bool(self.algorithm.parameterAsBool(self.parameters, name, self.context))

    def layer(self, name: str) -> Any:
        """Return a layer, or None."""
        return self.algorithm.parameterAsLayer(self.parameters, name, self.context)

    def output(self, name: str) -> str:
        """Path of a layer to write; empty where it is skipped."""
        return str(self.algorithm.parameterAsOutputLayer(self.parameters, name, self.context) or "")

    def file(self, name: str) -> str:
        """Path of a file to write; empty where it is skipped."""
        return str(self.algorithm.parameterAsFileOutput(self.parameters, name, self.context) or "")

    def store(self, name: str) -> str:
        """Path of a map, which is a folder."""
        found = self.text(name).rstrip("/\\")
        if not found.endswith(".zarr"):
            raise runner.Failed(f"{found or 'nothing'} is no map; name a folder NAME.zarr that ovrs wrote")
        return found

    def scene(self, name: str) -> str:
        """Source of a raster that GDAL opens."""
        found = self.layer(name)
        if found is None:
            raise runner.Failed("name a raster layer of the project, or a file")
        if found.providerType() != "gdal":
            raise runner.Failed(f"{found.name()} comes from {found.providerType()}; ovrs maps rasters that GDAL opens")
        return _source(found.source().split("|option:")[0])

    def box(self, name: str, crs: Any) -> list[str]:
        """`--bbox` of an extent, in a CRS; nothing where none is given."""
        if not self.parameters.get(name):
            return []
        found = self.algorithm.parameterAsExtent(self.parameters, name, self.context, crs)
        values = (found.xMinimum(), found.yMinimum(), found.xMaximum(), found.yMaximum())
        return ["--bbox=" + ",".join(map(repr, values))]

    def saved(self, name: str) -> str:
        """Source of a layer whose file holds what QGIS shows."""
        found = self.layer(name)
        if found is None:
            raise runner.Failed("name the layer with the reference")
        if found.type() == QgsMapLayer.VectorLayer:
            if found.isEditable() and found.isModified():
                raise runner.Failed(f"{found.name()} has unsaved edits; save them first")
            if found.providerType() != "ogr" or found.subsetString():
                raise runner.Failed(f"{found.name()} is filtered or in memory; export it to a GeoPackage first")
        return _source(found.source())

    def examples(self, name: str, field: str, beside: str) -> str:
        """Write the features of a layer with their class to a file beside a map, and return it.

        Unsaved edits count, and of a layer with a selection the selection, as QGIS offers it.
        """
        source = self.algorithm.parameterAsSource(self.parameters, name, self.context)
        if source is None:
            raise runner.Failed("name the layer with the examples")
        names = [f.name() for f in source.fields()]
        chosen = self.text(field) or next((n for n in ("reference", "class", "label", "name") if n in names), "")
        if chosen not in names:
            raise runner.Failed(
                f"the examples have no attribute {chosen or 'class'}; they have: {', '.join(names) or 'none'}"
            )
        path = Path(beside).with_name(Path(beside).name[: -len(".zarr")] + "-examples.gpkg")
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = QgsFields()
        fields.append(QgsField("class", QVariant.String))
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.driverName, options.layerName = "GPKG", "examples"
        writer = QgsVectorFileWriter.create(
            str(path), fields, source.wkbType(), source.sourceCrs(), self.context.transformContext(), options
        )
        if writer.hasError() != QgsVectorFileWriter.NoError:
            raise runner.Failed(f"{path} cannot be written: {writer.errorMessage()}")
        for feature in source.getFeatures():
            value = feature[chosen]
            if feature.hasGeometry() and value not in (None, QVariant()) and str(value).strip():
                made = QgsFeature(fields)
                made.setGeometry(feature.geometry())
                made["class"] = str(value).strip()
                writer.addFeature(made)
        del writer
        return str(path)

    def run(self, *arguments: str) -> list[str]:
        """Run `ovrs`."""
        return runner.run(list(arguments), self.feedback)


def _source(text: str) -> str:
    """Return a path as the process finds it from its own folder; other sources as they are."""
    path, bar, rest = text.partition("|")
    return f"{Path(path).absolute()}{bar}{rest}" if Path(path).exists() else text


def advanced(parameter: Any) -> Any:
    """Return a parameter that the dialog hides at first."""
    parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
    return parameter


def store_in(description: str = "Map") -> Any:
    """Return a map to read, under the name STORE."""
    return QgsProcessingParameterFile("STORE", description, behavior=QgsProcessingParameterFile.Folder)


def store_out(description: str = "Map (a folder NAME.zarr)", name: str = "STORE") -> Any:
    """Return a map to write."""
    return QgsProcessingParameterFileDestination(name, description, STORES)


POINTS_OR_POLYGONS = [QgsProcessing.TypeVectorPoint, QgsProcessing.TypeVectorPolygon]
