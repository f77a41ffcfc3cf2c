"""The Processing provider runs in Debian's QGIS: every algorithm once, styled layers, cancelling: `make test-gis`."""

import json
import os
import shutil
import subprocess
import sys

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image
from shapely.geometry import Point

import ovrs
from ovrs.demo.synth import World, write_scene
from ovrs.qgis import install

pytestmark = pytest.mark.gis
WORDS = "building, road, water, tree, field, bare soil"

LOADED = """
import json, sys
sys.path += ["/usr/share/qgis/python/plugins", sys.argv[2]]
from qgis.core import (QgsApplication, QgsMapRendererParallelJob, QgsMapSettings, QgsProcessingException,
                       QgsProcessingFeedback, QgsProject)
from qgis.PyQt.QtCore import QSize
app = QgsApplication([], False)
app.initQgis()
import processing
from processing.core.Processing import Processing
Processing.initialize()
import ovrs_processing
plugin = ovrs_processing.classFactory(None)
plugin.initProcessing()
folder = sys.argv[1]

class Impatient(QgsProcessingFeedback):
    def setProgressText(self, text):
        self.cancel()

told = {}
try:
    processing.run("ovrs:map", {"INPUT": folder + "/large.tif", "CLASSES": "road, field", "METHOD": "none",
        "STORE": folder + "/cut off.zarr", "OUTPUT": folder + "/cut off.tif"}, feedback=Impatient())
except QgsProcessingException as error:
    told["cancelled"] = str(error)
made = processing.runAndLoadResults("ovrs:export", {"STORE": folder + "/my map.zarr", "UNIT": "20m2",
    "OUTPUT": folder + "/loaded.tif", "POLYGONS": folder + "/loaded.gpkg"})
layers = {layer.source().split("|")[0]: layer for layer in QgsProject.instance().mapLayers().values()}
for name in ("loaded.tif", "loaded.gpkg"):
    layer = layers[folder + "/" + name]
    told[name] = layer.renderer().type()
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setOutputSize(QSize(260, 300))
    settings.setDestinationCrs(layer.crs())
    settings.setExtent(layers[folder + "/loaded.tif"].extent())
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(folder + "/" + name + ".png")
print(json.dumps(told))
plugin.unload()
"""


@pytest.fixture(scope="module")
def qgis(tmp_path_factory):
    """A folder and a profile, both with blanks, a scene and clicks; and what runs an algorithm there."""
    folder = tmp_path_factory.mktemp("in a folder")
    profile = folder / "con fig" / "profiles" / "default"
    profile.mkdir(parents=True)
    install.install(profile)
    write_scene(folder / "my scene.tif", height=300, width=260, world=World(seed=4))
    rng = np.random.default_rng(0)
    with rasterio.open(folder / "my scene.tif") as source:
        bounds, crs = source.bounds, source.crs
    points = [Point(rng.uniform(bounds.left, bounds.right), rng.uniform(bounds.bottom, bounds.top)) for _ in range(12)]
    clicks = geopandas.GeoDataFrame({"kind": ["field", "tree", "road"] * 4, "note": "-"}, geometry=points, crs=crs)
    clicks.to_file(folder / "my clicks.gpkg", layer="my clicks")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {"QT_QPA_PLATFORM": "offscreen", "QGIS_CUSTOM_CONFIG_PATH": str(folder / "con fig")}
    assert shutil.which("qgis_process.bin"), "Debian's package qgis is not installed"
    subprocess.run(["qgis_process.bin", "plugins", "enable", install.PLUGIN], check=True, env=env, capture_output=True)

    def run(algorithm, *, expect=0, **parameters):
        given = [f"--{name}={value}" for name, value in parameters.items()]
        command = ["qgis_process.bin", "run", f"ovrs:{algorithm}", *given]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, cwd=folder)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.env, run.folder, run.profile = env, folder, profile
    return run


@pytest.fixture(scope="module")
def mapped(qgis):
    told = qgis("map", INPUT="my scene.tif", CLASSES=WORDS, METHOD="none", STORE="my map.zarr", OUTPUT="my classes.tif")
    assert "1 of 1 tiles" in told
    assert "caution: sketch" in told
    return qgis.folder / "my map.zarr"


def test_map_writes_a_map_and_a_styled_raster(qgis, mapped):
    with rasterio.open(qgis.folder / "my classes.tif") as source, ovrs.open(mapped) as made:
        np.testing.assert_array_equal(source.read(1), made.label[:])
        assert made.record.model.method == "none"
    assert (qgis.folder / "my classes.qml").exists()


def test_preview_shows_its_picture_among_the_results(qgis):
    told = qgis(
        "preview", INPUT="my scene.tif", CLASSES="building, road", PARTS=1, COMPARE="none,tmpa", OUTPUT="my look.png"
    )
    assert told.count("the whole: about") == 2
    assert 'src="my look.png"' in (qgis.folder / "my look.html").read_text()
    with Image.open(qgis.folder / "my look.png") as picture:
        assert picture.width > 1000
    outside = qgis("preview", expect=1, INPUT="my scene.tif", CLASSES="road, field", POINT="0,0", OUTPUT="other.png")
    assert "lies outside of the scene" in outside


def test_teach_takes_the_attribute_that_is_named(qgis, mapped):
    told = qgis(
        "teach", STORE=mapped, EXAMPLES="my clicks.gpkg", FIELD="kind", TAUGHT="taught map.zarr", OUTPUT="taught.tif"
    )
    assert "examples: 12 places" in told
    with ovrs.open(qgis.folder / "taught map.zarr") as made:
        assert made.record.scene_adaptation is not None
    assert (qgis.folder / "taught map-examples.gpkg").exists()
    assert mapped.exists()


def test_sample_and_assess_judge_a_map(qgis, mapped):
    qgis("sample", STORE=mapped, PER_CLASS=5, OUTPUT="my points.gpkg")
    points = geopandas.read_file(qgis.folder / "my points.gpkg", layer="sample")
    points["reference"] = points["stratum"]
    points.to_file(qgis.folder / "my labels.gpkg", layer="sample")
    told = qgis(
        "assess", STORE=mapped, REFERENCE="my labels.gpkg|layername=sample", OUTPUT="page.html", FIGURES="f.json"
    )
    assert "overall" in told.lower()
    assert "accuracy" in (qgis.folder / "page.html").read_text().lower()
    assert json.loads((qgis.folder / "f.json").read_text())["ovrs"] == "accuracy"


def test_an_error_of_ovrs_is_one_line(qgis, mapped):
    told = qgis("export", expect=1, STORE=mapped, UNIT="twenty", OUTPUT="x.tif")
    lines = {line.removeprefix("ERROR:\t") for line in told.splitlines() if "min-mapping-unit takes" in line}
    assert len(lines) == 1  # said by the log and by the result
    assert "Traceback" not in told


def test_layers_are_styled_when_qgis_loads_them_and_a_run_can_be_cancelled(qgis, mapped):
    write_scene(qgis.folder / "large.tif", height=1400, width=1400, world=World(seed=5))
    (qgis.folder / "look.py").write_text(LOADED)
    plugins = qgis.profile / "python" / "plugins"
    command = ["/usr/bin/python3", qgis.folder / "look.py", qgis.folder, plugins]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=qgis.env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert "cancelled; the same settings go on" in told["cancelled"]
    assert not (qgis.folder / "cut off.zarr").exists()
    assert (qgis.folder / "cut off.run").exists()
    assert told["loaded.tif"] == "paletted"
    assert told["loaded.gpkg"] == "categorizedSymbol"
    with rasterio.open(qgis.folder / "loaded.tif") as source, ovrs.open(mapped) as made:
        colours = np.array([*made.colours, *[(255, 255, 255)] * 250], np.uint8)
        wanted = colours[source.read(1)].astype(int)
    for name, share in (("loaded.tif", 1.0), ("loaded.gpkg", 0.98)):
        seen = np.asarray(Image.open(qgis.folder / f"{name}.png").convert("RGB"))
        assert (np.abs(seen - wanted).max(-1) <= 2).mean() >= share, name


def test_the_profile_knows_its_provider(qgis):
    found = install.status(qgis.profile)
    assert found.command == [sys.executable, "-m", "ovrs"]
    assert "ovrs 0." in found.text
