"""The provider `ovrs` of QGIS's Processing, with its algorithms."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication, QgsProcessingProvider

from .finished import Assess, Export, Sample
from .runs import Map, Preview, Teach

ALGORITHMS = (Map, Preview, Teach, Sample, Assess, Export)


class Provider(QgsProcessingProvider):
    """The algorithms of `ovrs`."""

    def id(self) -> str:
        """First part of the algorithms' names."""
        return "ovrs"

    def name(self) -> str:
        """In the toolbox."""
        return "ovrs"

    def longName(self) -> str:
        """For help."""
        return "ovrs: open-vocabulary maps"

    def loadAlgorithms(self) -> None:
        """Add each of them."""
        for kind in ALGORITHMS:
            self.addAlgorithm(kind())

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """Rasters are GeoTIFFs."""
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Polygons and points are GeoPackages."""
        return ["gpkg"]


class Plugin:
    """What QGIS loads."""

    def __init__(self, iface: Any) -> None:
        self.iface = iface
        self.provider: Provider | None = None

    def initProcessing(self) -> None:
        """Add the provider; `qgis_process` calls this alone."""
        self.provider = Provider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Add the provider."""
        self.initProcessing()

    def unload(self) -> None:
        """Remove it."""
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
