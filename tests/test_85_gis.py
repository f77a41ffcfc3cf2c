"""Clients that people use open what we write: QGIS (offscreen), GDAL's tools, and the viewer in Chromium: `make test-gis`.

Needs Debian's python3-qgis, gdal-bin and chromium, and the package playwright.
"""

import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

import ovrs
from ovrs import options, pipeline
from ovrs.demo.synth import World, write_scene
from ovrs.export.cog import write_cog, write_confidence
from ovrs.export.qml import write_qml
from ovrs.export.vectors import write_vectors
from ovrs.view.page import write_report
from ovrs.view.server import open_viewer
from ovrs.words import vocabulary

pytestmark = pytest.mark.gis

QGIS = """
import json, sys
from qgis.core import (QgsApplication, QgsMapRendererParallelJob, QgsMapSettings, QgsProject, QgsRasterLayer, QgsVectorLayer)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
folder = sys.argv[1]
app = QgsApplication([], False)
app.initQgis()
raster = QgsRasterLayer(folder + "/m.tif", "raster")
vector = QgsVectorLayer(folder + "/m.gpkg|layername=classes", "vector", "ogr")
assert raster.isValid() and vector.isValid()
told = {
    "crs": [raster.crs().authid(), vector.crs().authid()],
    "renderer": [raster.renderer().type(), vector.renderer().type()],
    "classes": [c.label for c in raster.renderer().classes()],
    "categories": [c.label() for c in vector.renderer().categories()],
    "features": vector.featureCount(),
}
for name, layer in (("raster", raster), ("vector", vector)):
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setBackgroundColor(QColor(255, 255, 255))
    settings.setOutputSize(QSize(450, 600))
    settings.setDestinationCrs(raster.crs())
    settings.setExtent(raster.extent())
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(folder + "/" + name + "-qgis.png")
project = QgsProject.instance()
project.addMapLayers([raster, vector])
project.write(folder + "/m.qgz")
print(json.dumps(told))
app.exitQgis()
"""


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gis")
    write_scene(folder / "s.tif", height=600, width=450, world=World(seed=4))
    chosen = options.build(run={"store_scores": True})
    pipeline.map_scene(folder / "s.tif", vocabulary.load("demo"), folder / "m.zarr", chosen)
    old = options.build(method={"method": "none"}, run={"zarr_format": 2})
    pipeline.map_scene(folder / "s.tif", vocabulary.load("demo"), folder / "v2.zarr", old)
    write_cog(ovrs.open(folder / "m.zarr"), folder / "m.tif")
    write_qml(ovrs.open(folder / "m.zarr"), folder / "m.tif")
    write_confidence(ovrs.open(folder / "m.zarr"), folder / "c.tif")
    write_vectors(ovrs.open(folder / "m.zarr"), folder / "m.gpkg")
    return folder


def tool(*command, **settings):
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(folder):
    import zarr

    table = np.array([*vocabulary.load("demo").colours, *[(255, 255, 255)] * 250], np.uint8)
    return table[zarr.open_group(folder / "m.zarr", mode="r")["label"][:]]


def test_qgis_opens_styles_and_renders_raster_and_polygons(products):
    import os

    (products / "look.py").write_text(QGIS)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    out = tool("/usr/bin/python3", products / "look.py", products, env={**env, "QT_QPA_PLATFORM": "offscreen"})
    told = json.loads(out.splitlines()[-1])
    names = list(vocabulary.load("demo").class_names)
    assert told["crs"] == ["EPSG:32633", "EPSG:32633"]
    assert told["renderer"] == ["paletted", "categorizedSymbol"]
    assert told["classes"] == told["categories"] == names
    assert told["features"] > 10
    wanted = expected(products)
    for name, share in (("raster", 1.0), ("vector", 0.99)):
        seen = np.asarray(Image.open(products / f"{name}-qgis.png").convert("RGB"))
        assert (np.abs(seen.astype(int) - wanted).max(-1) <= 2).mean() >= share, name
    assert (products / "m.qgz").exists()


def test_gdal_tools_of_debian_read_everything(products):
    info = json.loads(tool("gdalinfo", "-json", products / "m.tif"))
    assert info["size"] == [450, 600]
    assert "Overview" not in info["bands"][0].get("description", "")
    assert info["bands"][0]["colorInterpretation"] == "Palette"
    assert info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert 'ID["EPSG",32633]' in info["coordinateSystem"]["wkt"]
    text = tool("gdalinfo", products / "m.tif")
    assert "building" in text  # category names and attribute table of the side file
    assert "scale:0.005" in tool("gdalinfo", products / "c.tif").lower().replace("offset: 0,   ", "")
    assert "Feature Count" in tool("ogrinfo", "-so", products / "m.gpkg", "classes")
    assert 'EPSG",32633' in tool("ogrinfo", "-so", products / "m.gpkg", "classes")
    old = tool("gdalinfo", f'ZARR:"{products / "v2.zarr"}":/label')
    assert "32633" in old


CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture
def page():
    playwright = pytest.importorskip("playwright.sync_api")
    assert shutil.which("chromium"), "chromium is not installed"
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        found = browser.new_page(viewport={"width": 1200, "height": 800})
        found.faults = []
        found.on("console", lambda message: found.faults.append(message.text) if message.type == "error" else None)
        found.on("pageerror", lambda error: found.faults.append(str(error)))
        found.on(
            "request",
            lambda request: (
                found.faults.append(request.url)
                if not request.url.startswith(("http://127.0.0.1", "file:", "data:", "blob:"))
                else None
            ),
        )
        yield found
        browser.close()


def colours(page):
    """The colours on the map's canvas."""
    return np.asarray(Image.open(__import__("io").BytesIO(page.locator("#map").screenshot())).convert("RGB")).astype(
        int
    )


def near(picture, colour, tolerance=6):
    return (np.abs(picture - np.array(colour)).max(-1) <= tolerance).mean()


def test_viewer_loads_toggles_clicks_and_compares(products, page):
    server = open_viewer(ovrs.open(products / "m.zarr"), ovrs.open(products / "v2.zarr"), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page.goto(server.url)
        page.wait_for_selector("body.ready", timeout=30_000)
        assert page.locator("#legend li").count() == 6
        assert "ha" in page.inner_text("#legend li:first-child")
        page.locator("#opacity").fill("100")
        page.wait_for_timeout(500)
        field = vocabulary.load("demo").colours[4]
        whole = near(colours(page), field)
        assert whole > 0.1
        page.uncheck("#legend li:nth-child(5) input")
        page.wait_for_timeout(1500)
        assert near(colours(page), field) < whole / 10
        page.check("#legend li:nth-child(5) input")
        page.check("#swipe")
        page.wait_for_timeout(1500)
        halves = np.split(colours(page)[:, : colours(page).shape[1] // 2 * 2], 2, axis=1)
        assert near(halves[0], field) > 10 * near(halves[1], field)
        page.locator("#layers input").nth(2).check()
        page.wait_for_timeout(500)
        page.mouse.click(450, 400)
        page.wait_for_selector(".answer")
        told = page.inner_text("#pixel")
        assert "confidence" in told
        assert "before:" in told
        assert page.locator(".scores li").count() == 6
        page.screenshot(path=str(products / "viewer.png"))
        assert [f for f in page.faults if "404" not in f] == []
    finally:
        server.shutdown()
        server.server_close()


def test_report_shows_in_a_browser(products, page):
    file = write_report(ovrs.open(products / "m.zarr"), products / "r.html")
    page.goto(f"file://{file}")
    assert page.locator("img").evaluate("i => i.naturalWidth") > 300
    assert "building" in page.inner_text("table")
    page.click("summary")
    assert "prompts" in page.inner_text("pre")
    assert page.faults == []
