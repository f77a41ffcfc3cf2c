"""Secrets are kept nowhere and shown nowhere: every file of a run and of its products, all output, every name and log line."""

import json
import logging
import pickle
import subprocess
import sys

import pytest
from conftest import environment, smooth
from webserver import Web

from ovrs import pipeline
from ovrs.cli.app import main
from ovrs.collection.ledger import Image, Ledger
from ovrs.engine import execute
from ovrs.errors import SceneReadError
from ovrs.options import RunOptions
from ovrs.redact import MASK, cleaned, guard_logs, guarded_output, redacted
from ovrs.run import begin, publish, work

S = "hunter2xyz"
ADDRESSES = [
    f"https://h/a.tif?X-Amz-Algorithm=AWS4&X-Amz-Credential={S}%2Faws4&X-Amz-Date=2026&X-Amz-Expires=9&X-Amz-Signature={S}",
    f"https://h/a.tif?X-Amz-Security-Token={S}",
    f"https://b.s3.amazonaws.com/k?AWSAccessKeyId={S}&Signature={S}%2Bx%3D&Expires=17",
    f"https://a.blob.core.windows.net/c/b.tif?sv=2020&se=2026-01-01T00%3A00Z&sr=b&sp=r&sig={S}%2F%3D",
    f"https://storage.googleapis.com/b/o?GoogleAccessId={S}&Expires=1&Signature={S}",
    f"https://d.cloudfront.net/x.tif?Policy={S}&Signature={S}__&Key-Pair-Id={S}",
    f"/vsicurl/https://user:{S}@host:8080/a.tif",
    f"https://user:p@{S}@host/a.tif",
    f"https://{S}@host/a.tif",
    f"/vsizip//vsicurl/https://u:{S}@h/x.zip/a.tif",
    f"zip+https://u:{S}@h/x.zip!a.tif",
    f"/vsicurl?max_retry=2&url=https%3A%2F%2Fu%3A{S}%40h%2Fs.tif%3Fsig%3D{S}%26se%3D1",
    f"/vsicurl?header.Authorization=Bearer%20{S}&url=https%3A%2F%2Fh%2Fx.tif",
    f"PG:host=h user='u' password='{S} x' dbname=d",
    f'PG:"host=h password={S} dbname=d"',
    f"postgresql://u:{S}@h/db",
    f"s3://AKIAIOSFODNN7:{S}/ab+c/{S * 3}@bucket/m.zarr",
    f"s3://key:{S}@bucket/m.zarr",
    f"tls://u:{S}@host:8786",
    f"<GDAL_WMS><UserPwd>u:{S}</UserPwd><ServerUrl>https://h/?apikey={S}&amp;x=1</ServerUrl></GDAL_WMS>",
    f"HTTP error code : 403 - http://h/s.tif?token={S}",
    f"https://h/x?access_token={S}#part",
    f"https://h/x?subscription-key={S}&pl_key={S}&api%5Fkey={S}&code={S}",
    f"https://h/x?anything=eyJhbGciOiJIUzI1NiJ9{S}.abc",
    f"https://h/x?anything=aB3{S * 3}",
    f"http://h/x?hdnea=exp=1~acl=/*~hmac={S}",
    f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={S}==;EndpointSuffix=y",
    f"Authorization: Bearer {S}",
    f"{{'aws_secret_access_key': '{S}', \"password\": \"{S}\"}}",
]
PLAIN = [
    "https://h:8080/tiles@2x.png",
    "http://h/wms?LAYERS=a,b&STYLES=&CRS=EPSG:4326&BBOX=1,2,3,4&width=256",
    "http://h/x?item=S2A_MSIL2A_20230101T101031_R022_T33UUP",
    "/data/a b@c.tif",
    "tcp://127.0.0.1:8786",
    "s3://bucket/maps/m.zarr",
    'NETCDF:"/x.nc":v',
    "HTTP error code : 404 - https://h/a.tif",
    "water: 3 ha = 4 %; user key=3",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_no_secret_survives(text):
    found = redacted(f"reading {text} failed")
    assert S not in found
    assert MASK in found
    assert redacted(found) == found
    assert S not in json.dumps(cleaned({"a": [text], text: (text,)}))
    assert S not in str(SceneReadError(text))


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


def test_another_signature_gives_the_same_text():
    one, two = (f"https://h/a.tif?v=1&se=2026-0{i}-01&sp=r&sig=abc{i}" for i in (1, 2))
    assert redacted(one) == redacted(two)
    assert Image("a", one, "1").key == Image("a", two, "1").key
    assert publish.staging_path(f"s3://k:{S}@b/m.zarr", publish.Path("x")) == publish.staging_path(
        "s3://k:other@b/m.zarr", publish.Path("x")
    )


def test_logs_and_output_are_redacted_also_tracebacks(capsys):
    before = logging.getLogRecordFactory()
    try:
        guard_logs()
        guard_logs()
        try:
            raise OSError(ADDRESSES[0])
        except OSError as error:
            record = logging.getLogRecordFactory()(
                "rasterio", logging.ERROR, "f", 1, "CPLE %s", (ADDRESSES[3],), (type(error), error, error.__traceback__)
            )
        assert S not in logging.Formatter().format(record)
        assert "Traceback" in logging.Formatter().format(record)
        with guarded_output():
            sys.stdout.write(ADDRESSES[5])
            sys.stderr.writelines([ADDRESSES[6]])
        told = capsys.readouterr()
        assert S not in told.out + told.err
        assert MASK in told.out
        assert MASK in told.err
    finally:
        logging.setLogRecordFactory(before)


@pytest.fixture
def web(write_raster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    write_raster(smooth(500, 420), "a.tif").rename(folder / "scene.tif")
    server = Web(folder)
    server.set(signature=S)
    yield server
    server.stop()


@pytest.fixture
def ovrs(monkeypatch, capfd, caplog):
    """The command line in this process; returns exit code and everything it said, printed and logged."""
    before = logging.getLogRecordFactory()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ovrs", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        return code, "".join(capfd.readouterr()) + caplog.text

    yield call
    logging.setLogRecordFactory(before)


def kept(folder):
    """Files below a folder, by name or content, that hold the secret."""
    return [str(p) for p in folder.rglob("*") if S in p.name or (p.is_file() and S.encode() in p.read_bytes())]


def test_no_product_of_a_signed_scene_holds_its_secret(web, ovrs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    signed, renewed = (f"{web.url}?se=2026-0{i}-01&sig={S}%2Fabc{i}" for i in (1, 2))
    plain = ("--classes", "building, road, water", "--model", "trivial", "--set", "run.block_pitches=1", "-o", "m.zarr")
    products = ("--cog", "m.tif", "--vectors", "m.gpkg", "--png", "m.png", "--stac", "m.json")
    said = [ovrs("map", signed, *plain), ovrs("map", renewed, *plain), ovrs("export", "m.zarr", *products)]
    said.append(ovrs("info", "m.zarr", "--json"))
    assert [code for code, _ in said] == [0, 0, 0, 0], said
    assert json.loads((tmp_path / "m.run/run.json").read_text())["uri"] == f"{web.url}?se={MASK}&sig={MASK}"
    said.append(ovrs("map", signed.replace("scene", "gone"), *plain[:-1], "n.zarr"))
    said.append(ovrs("map", signed, "extra"))
    said.append(ovrs("resume", "m.zarr"))
    assert all(code for code, _ in said[4:])
    assert "renewed signature is the same scene" in said[-1][1]
    assert not [text for _, text in said if S in text]
    assert not kept(tmp_path)


def test_tracebacks_and_debug_logs_hold_no_secret(web, tmp_path):
    env = environment(tmp_path) | {"PYTHONWARNINGS": "ignore", "NO_PROXY": "*", "no_proxy": "*"}
    address = f"{web.url.replace('scene', 'gone')}?sig={S}"
    command = [sys.executable, "-m", "ovrs", "--debug", "map", address, "--classes", "a,b", "-o", "m.zarr"]
    done = subprocess.run(command, check=False, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "Traceback" in done.stderr
    assert MASK in done.stderr
    assert S not in done.stdout + done.stderr


def test_a_worker_gets_the_secret_and_its_names_do_not(web, words, trivial, tmp_path, monkeypatch):
    """Dask names a piece of work by its function, and logs the function and the error when it fails."""
    this = begin.prepare(f"{web.url}?sig={S}", words, tmp_path / "m.zarr", trivial())
    assert S not in repr(this) + str(this) + repr(this.scene) + repr(this.scene.origin)
    worker = pickle.loads(pickle.dumps(work.Worker(this)))
    assert all(r.finished for r in worker(this.missing()[:1]))
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    web.set(signature="nobody has this")
    failed = work._commit(worker.job, this.missing()[0], OSError(f"https://u:{S}@h"), 0)
    assert "SceneReadError" in failed.reason
    web.set(signature=S)
    with pytest.raises(SceneReadError, match="renewed signature"):
        pipeline.resume(tmp_path / "m.zarr")
    assert pipeline.run(this)["uri"] == f"{web.url}?sig={MASK}"
    assert not kept(tmp_path)


def test_the_ledger_and_refusals_of_schedulers_keep_no_secret(tmp_path):
    ledger, image = Ledger(str(tmp_path)), Image("a", f"https://h/a.tif?sig={S}", "1")
    assert ledger.claim(image)
    with pytest.raises(RuntimeError), ledger.working_on(image):
        raise RuntimeError(f"https://u:{S}@h/a.tif failed")
    assert not kept(tmp_path)
    with pytest.raises(Exception, match="no Dask scheduler") as caught:
        list(execute.run(RunOptions(executor="dask", scheduler=f"tcp://u:{S}@127.0.0.1:9"), len, [""]))
    assert S not in str(caught.value)
