"""Runs that are stopped or refused by the system: what is kept, what is said, what is left behind."""

import contextlib
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from affine import Affine
from conftest import environment, smooth

from ovrs import files, pipeline, repair
from ovrs.cli import edge
from ovrs.cli.app import app
from ovrs.engine import scheduler, tiling
from ovrs.errors import IncompleteRunError, OptionError, OutputError, SceneReadError, StoreError
from ovrs.objects.folder import Folder
from ovrs.options import RunOptions, SceneOptions
from ovrs.request import Request
from ovrs.run import begin, publish, verify, work
from ovrs.run.rundir import RunDir
from ovrs.scene.opening import open_scene
from ovrs.store import layout as store
from ovrs.store import pyramid

ROOT = Path(__file__).parents[1]
WORDS = ["--vocabulary", "demo", "--model", "trivial", "--method", "none"]


def labels(path):
    return zarr.open_group(path, mode="r")["label"][:]


def refuse(code):
    def writer(*_, **__):
        raise OSError(code, os.strerror(code))

    return writer


# ---- the system refuses to write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("writer", ["schema", "run.json", "lock", "marker", "overviews"])
def test_a_refusal_at_any_writer_is_exit_code_4_and_resume_goes_on(
    writer, code, noise_scene, words, trivial, tmp_path, monkeypatch
):
    scene, out = noise_scene(300, 300), tmp_path / "m.zarr"
    real = Folder.put
    with monkeypatch.context() as patched:
        if writer == "schema":
            patched.setattr(store, "create", refuse(code))
        elif writer == "overviews":
            patched.setattr(pyramid, "write_group", refuse(code))
        elif writer == "lock":
            patched.setattr("ovrs.objects.folder.Folder.put_if_absent", refuse(code))
        else:
            late = "run.json" if writer == "run.json" else "blocks/0"

            def put(place, key, content):
                if key.startswith(late):
                    with files.writing(place.path / key):
                        refuse(code)()
                return real(place, key, content)

            patched.setattr(Folder, "put", put)
        with pytest.raises(OutputError) as caught:
            pipeline.map_scene(scene, words, out, trivial())
    assert caught.value.exit_code == 4
    assert os.strerror(code) in str(caught.value)
    begun = RunDir(out).exists
    assert ("ovrs resume" in str(caught.value)) == begun
    left = [p.name for p in tmp_path.rglob("*") if p.name.startswith(".") or p.name == "lock.json"]
    assert left == []
    if not begun:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.tif"]
    pipeline.map_scene(scene, words, out, trivial())
    pipeline.map_scene(scene, words, tmp_path / "quiet.zarr", trivial())
    np.testing.assert_array_equal(labels(out), labels(tmp_path / "quiet.zarr"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_keeps_the_finished_blocks(noise_scene, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        command = [
            "map",
            str(noise_scene(1100, 1100)),
            *WORDS,
            "--set",
            "run.block_pitches=1",
            "-o",
            str(disk / "m.zarr"),
        ]
        assert edge.run(app, command) == 4
        shown = capsys.readouterr().err
        assert "No space left on device" in shown
        assert "ovrs resume" in shown
        assert "Traceback" not in shown
        assert not list(disk.rglob(".*"))
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert edge.run(app, ["resume", str(disk / "m.zarr")]) == 0
        assert (labels(disk / "m.zarr") != 255).all()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_block_that_failed_half_written_is_no_data_everywhere(noise_scene, words, trivial, tmp_path, monkeypatch):
    real = store.write_block

    def half(path, window, chunk, label, confidence, score):
        real(path, window, chunk, label, confidence, score)
        if window.row_off == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_block", half)
    out = tmp_path / "m.zarr"
    with pytest.raises(IncompleteRunError, match="No space left"):
        pipeline.map_scene(noise_scene(700, 300), words, out, trivial())
    facts = pipeline.map_scene(tmp_path / "scene.tif", words, out, trivial(allow_holes=True))
    group = zarr.open_group(out, mode="r")
    holes = (group["label"][:] == 255, group["confidence"][:] == 255)
    assert facts["holes"]
    np.testing.assert_array_equal(*holes)
    assert (~holes[0]).sum() == sum(c["pixels"] for c in facts["classes"])


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("n" * 300 + ".zarr", 4, "shorter name"),
        ("scene.tif/m.zarr", 4, "is a file"),
        ("m.tif", 2, "*.zarr"),
        ("taken.zarr", 3, "--overwrite"),
    ],
)
def test_impossible_outputs_are_one_line_and_leave_nothing(name, code, words, noise_scene, tmp_path, capsys):
    scene = noise_scene(64, 64)
    (tmp_path / "taken.zarr").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert edge.run(app, ["map", str(scene), *WORDS, "-o", str(tmp_path / name)]) == code
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# ---- what vanishes while a run goes on ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "threads"])
@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("m.zarr.partial", 4, "was removed while the map was made"),
        ("m.zarr.partial/label", 4, "no array 'label'"),
        ("m.zarr.partial/zarr.json", 4, "No group found"),
        ("m.run", 3, "was removed"),
        ("m.run/lock.json", 3, "was removed"),
        ("m.run/blocks", 4, "not computed yet"),
        ("m.run/run.json", 3, "no run at"),
    ],
)
def test_what_is_removed_in_mid_run_is_made_again_or_told(
    what, code, said, executor, noise_scene, tmp_path, capsys, monkeypatch
):
    scene, gone = noise_scene(700, 600), []
    real = work._commit

    def commit(job, name, *given):
        if name == "00001_00000" and not gone:
            gone.append(1)
            path = tmp_path / what
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return real(job, name, *given)

    command = ["map", str(scene), *WORDS, "--block", "1", "--executor", executor, "--workers", "1"]
    command += ["-o", str(tmp_path / "m.zarr")]
    monkeypatch.setattr(work, "_commit", commit)
    assert edge.run(app, command) == code, capsys.readouterr()
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert edge.run(app, command) == 0, capsys.readouterr()
    assert verify.check(tmp_path / "m.zarr").problems == ()
    assert (labels(tmp_path / "m.zarr") != 255).all()
    assert not (tmp_path / "m.zarr.partial").exists()


# ---- signals --------------------------------------------------------------------------------------------------------------


def stopped(tmp_path, number, *, group=False, executor="serial", after=3, twice=False):
    out = tmp_path / "m.zarr"
    command = [sys.executable, "-m", "ovrs", "map", str(tmp_path / "scene.tif"), *WORDS, "--set", "run.block_pitches=1"]
    command += ["--set", "model.crop=64", "--set", "model.stride=16", "--executor", executor, "-o", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while len(list((tmp_path / "m.run" / "blocks").glob("0*.json"))) < after and time.monotonic() < until:
        time.sleep(0.01)
    for _ in range(2 if twice else 1):
        (os.killpg if group else os.kill)(process.pid, number)
    try:
        shown = process.communicate(timeout=180)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, shown, out


@pytest.mark.parametrize(
    ("executor", "number", "group"),
    [("serial", signal.SIGINT, False), ("threads", signal.SIGTERM, False), ("dask", signal.SIGINT, True)],
)
def test_a_stopped_run_says_what_is_kept_and_leaves_nothing(
    executor, number, group, noise_scene, words, trivial, tmp_path
):
    noise_scene(700, 700)
    code, shown, out = stopped(tmp_path, number, executor=executor, group=group)
    assert code == 128 + number
    lines = [line for line in shown.splitlines() if not line.startswith("stopping:")]
    assert lines[-1:] == [f"interrupted; finished blocks are kept; `ovrs resume {out}` or the same command goes on"]
    assert "Traceback" not in shown
    assert executor == "dask" or len(lines) == 1
    assert not (tmp_path / "m.run" / "lock.json").exists()
    if executor != "dask":  # workers of a cluster are ended where they stand; the next run sweeps
        assert not [p for p in tmp_path.rglob(".*") if p.parent.name != "cache"]
    kept = len(RunDir(out).records())
    assert kept >= 3
    if executor == "serial":
        assert pipeline.resume(out)["blocks"] > kept


def test_stopped_before_anything_was_begun(noise_scene, tmp_path):
    noise_scene(64, 64)
    code = (
        "import os, signal; from ovrs import pipeline; from ovrs.cli.app import main\n"
        "pipeline.begin.build_job = lambda *_: os.kill(os.getpid(), signal.SIGINT)\nmain()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "map", str(tmp_path / "scene.tif"), *WORDS, "-o", str(tmp_path / "m.zarr")],
        cwd=ROOT,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.communicate(timeout=60)[1] == "interrupted; nothing was begun; the same command begins again\n"
    assert process.returncode == 130
    assert not (tmp_path / "m.run").exists()


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, time\nfrom ovrs.cli.edge import Signals\n"
        "with Signals():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "    except KeyboardInterrupt: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, "ended at once; what is done is kept\n")


def test_threads_end_between_two_blocks_of_a_piece(noise_scene, words, trivial, tmp_path):
    out = tmp_path / "m.zarr"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline.map_scene(
            noise_scene(900, 900), words, out, trivial(executor="threads", workers=1, batch=2), progress=stop
        )
    assert "ovrs resume" in caught.value.__notes__[0]
    assert 0 < len(RunDir(out).records()) < begin.resume(out).plan.block_count


# ---- schedulers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["", "foo", "127.0.0.1:8786", "tcp://:1", "tcp://h", "tcp://h:99999", "tcp://[::1", "http://h:1", "inproc://a"],
)
def test_malformed_addresses_are_refused_at_once(address):
    with pytest.raises(OptionError, match="tcp://host:8786"):
        scheduler.check_address(RunOptions(scheduler=address))


def test_a_scheduler_that_does_not_answer_is_said_in_time_and_nothing_is_begun(
    noise_scene, words, trivial, tmp_path, monkeypatch
):
    monkeypatch.setattr(scheduler, "CONNECT_SECONDS", 0.5)
    run = trivial(executor="dask", scheduler="tcp://127.0.0.1:1")
    with pytest.raises(OptionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        pipeline.map_scene(noise_scene(64, 64), words, tmp_path / "m.zarr", run)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_missing_certificates_are_named():
    import dask

    there = RunOptions(scheduler="tls://127.0.0.1:1")
    names = {f"distributed.comm.tls.{k}": f"/nowhere/{k}.pem" for k in ("ca-file", "client.cert", "client.key")}
    with dask.config.set(names), pytest.raises(OptionError, match=r"run\.tls_ca \(/nowhere/ca-file\.pem\)"):
        scheduler.reach(there)
    with pytest.raises(OptionError, match=r"run\.tls_key \(not set\)"):
        scheduler.reach(there)
    with pytest.raises(OptionError, match=r"run\.tls_cert \(/nowhere/c\.pem\)"):
        scheduler.reach(there.model_copy(update={"tls_cert": Path("/nowhere/c.pem")}))
    with pytest.raises(OptionError, match=r"run\.tls_ca: certificates need an address such as tls://"):
        scheduler.reach(RunOptions(scheduler="tcp://127.0.0.1:1", tls_ca=Path("ca.pem")))


def test_a_relative_output_means_the_same_folder_for_every_worker(noise_scene, words, trivial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = begin.prepare(noise_scene(64, 64), words, Path("m.zarr"), trivial())
    assert prepared.out == tmp_path / "m.zarr"


# ---- damaged headers ------------------------------------------------------------------------------------------------------


def claiming(path, tag, value):
    """Set a LONG or SHORT entry of a little-endian TIFF's first directory."""
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<HHII", content, entry, tag, 4, 1, value)
    path.write_bytes(content)


@pytest.mark.parametrize(("tag", "value"), [(256, 2**31 - 1), (257, 2**31 - 1), (256, 2**30), (257, 2**26)])
def test_enormous_claims_are_refused(tag, value, write_raster):
    path = write_raster(smooth(64, 64), tiled=True, blockxsize=64, blockysize=64)
    claiming(path, tag, value)
    with pytest.raises(SceneReadError):
        open_scene(path, SceneOptions())


@pytest.mark.parametrize(
    "transform",
    [
        (1e-11, 0, 500000, 0, -1e-107, 5.6e6),
        (0.5, 0, 500000, 0, -0.5, 7.5e160),
        (0.5, 0, 1e17, 0, -0.5, 5.6e6),
        (0.5, 0.5, 500000, 0.5, 0.5, 5.6e6),
        (0.5, 0, float("nan"), 0, -0.5, 5.6e6),
    ],
    ids=["tiny", "far north", "far east", "one line", "nan"],
)
def test_pixels_without_a_place_of_their_own_are_refused(transform, write_raster):
    path = write_raster(smooth(64, 64), transform=Affine(*transform))
    with pytest.raises(SceneReadError, match="header damaged"):
        open_scene(path, SceneOptions())


def test_text_in_a_header_that_is_none_is_refused(write_raster):
    site = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]'
    path = write_raster(smooth(64, 64), crs=site)
    content = path.read_bytes()
    assert b"site grid" in content
    path.write_bytes(content.replace(b"site grid", b"s\xc7te grid"))
    with pytest.raises(SceneReadError, match="no UTF-8 text"):
        open_scene(path, SceneOptions())


def test_a_plan_of_too_many_blocks_is_refused(noise_scene, words, trivial, tmp_path, monkeypatch):
    monkeypatch.setattr(tiling, "MOST_BLOCKS", 3)
    with pytest.raises(OptionError, match="--bbox"):
        pipeline.map_scene(noise_scene(900, 900), words, tmp_path / "m.zarr", trivial())
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_read_errors_tell_the_cause_and_the_file(write_raster):
    path = write_raster(smooth(200, 200), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    scene = open_scene(path, SceneOptions())
    from ovrs.scene.grid import Window

    with pytest.raises(SceneReadError) as caught:
        scene.read(Window(0, 0, 200, 200))
    message = str(caught.value)
    assert "scene.tif" in message
    assert "See previous exception" not in message
    assert "TIFF" in message


def fail_in_the_first_row(monkeypatch):
    real = store.write_block

    def full(path, window, chunk, label, confidence, score):
        if window.row_off == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, window, chunk, label, confidence, score)

    monkeypatch.setattr(store, "write_block", full)


def map_with_a_hole(noise_scene, words, trivial, out, monkeypatch):
    """A scene, and the blocks that its finished map lacks because they failed."""
    scene = noise_scene(700, 300)
    with monkeypatch.context() as while_full:
        fail_in_the_first_row(while_full)
        facts = pipeline.map_scene(scene, words, out, trivial(allow_holes=True))
    assert facts["holes"]
    return scene, facts["holes"]


def test_a_map_with_holes_is_complete_only_for_those_who_allow_them(
    noise_scene, words, trivial, tmp_path, monkeypatch, caplog
):
    out, plain = tmp_path / "m.zarr", tmp_path / "plain.zarr"
    scene, holes = map_with_a_hole(noise_scene, words, trivial, out, monkeypatch)
    assert pipeline.map_scene(scene, words, out, trivial(allow_holes=True))["holes"] == holes
    facts = pipeline.map_scene(scene, words, out, trivial())
    assert facts["holes"] == []
    assert "they are tried again" in caplog.text
    assert pipeline.map_scene(scene, words, plain, trivial())["classes"] == facts["classes"]
    np.testing.assert_array_equal(labels(out), labels(plain))
    assert verify.check(out).problems == ()


def test_a_map_whose_holes_fail_again_is_refused(noise_scene, words, trivial, tmp_path, monkeypatch):
    out = tmp_path / "m.zarr"
    scene, holes = map_with_a_hole(noise_scene, words, trivial, out, monkeypatch)
    fail_in_the_first_row(monkeypatch)
    with pytest.raises(IncompleteRunError, match=r"run\.allow_holes=true finishes"):
        pipeline.map_scene(scene, words, out, trivial())
    assert pipeline.map_scene(scene, words, out, trivial(allow_holes=True))["holes"] == holes


def test_a_copy_with_holes_and_no_run_is_replaced_when_told_so(noise_scene, words, trivial, tmp_path, monkeypatch):
    out, url = tmp_path / "m.zarr", f"file://{tmp_path}/there/m.zarr"
    scene, holes = map_with_a_hole(noise_scene, words, trivial, out, monkeypatch)
    publish.publish(out, url)
    wanted = Request(uri=scene, words=words, target=url, options=trivial())
    with pytest.raises(StoreError, match=r"lacks blocks, .*no run directory .* pass --overwrite"):
        pipeline.map(wanted)
    assert publish.published_facts(url)["holes"] == holes
    assert pipeline.map(wanted, overwrite=True)["holes"] == publish.published_facts(url)["holes"] == []
    assert (labels(tmp_path / "there" / "m.zarr") != 255).all()


def test_repair_leaves_allowed_holes_and_heals_the_rest(noise_scene, words, trivial, tmp_path, monkeypatch):
    out = tmp_path / "m.zarr"
    map_with_a_hole(noise_scene, words, trivial, out, monkeypatch)
    before = labels(out)
    chunk = max(p for p in (out / "label").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(b"damaged")
    run = RunDir(out)
    description = run.description()
    description.options.run["allow_holes"] = False  # as where only a later command allowed them
    run.begin(description)
    fail_in_the_first_row(monkeypatch)
    assert repair.repair(out)
    np.testing.assert_array_equal(labels(out), before)
