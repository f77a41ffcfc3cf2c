"""Daily deliveries: decided by content, mapped once, told until somebody acts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from ovrs import pipeline
from ovrs.cli.app import app
from ovrs.collection import catalog, deliveries, imagery, objects
from ovrs.collection import ledger as ledgers
from ovrs.collection.ledger import Image, Ledger
from ovrs.errors import CatalogError, OutputError, StoreLockedError
from ovrs.flows._tasks import export
from ovrs.options import RunOptions
from ovrs.run import versions
from ovrs.run.rundir import RunDir
from ovrs.words import vocabulary

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Prefect, botocore and moto
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TEXT = """version: 1
outputs: {{root: {root}}}
models: {{quick: {{model: trivial, crop: 64}}}}
collections:
  drop: {{pattern: "{pattern}", vocabulary: demo, model: quick, method: {{method: none}}}}
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A catalog with one collection, whose looks do not wait."""
    monkeypatch.setattr(imagery, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(imagery.images, "__kwdefaults__", {"settle": 0.0})
    (tmp_path / "in").mkdir()

    class Site:
        file = tmp_path / "c.yaml"
        ledger = Ledger(str(tmp_path / "maps"))

        def write(self, pattern="in/**/*.tif", root="maps"):
            self.file.write_text(TEXT.format(pattern=pattern, root=root))
            self.known = catalog.load(self.file)
            self.ledger = Ledger(self.known.resolve(self.known.outputs.root))

        def states(self, **how):
            return {d.image.name: d.state for d in self.look(**how)}

        def look(self, **how):
            return deliveries.look(self.known, "drop", self.ledger, **how)

        def fail(self, name, times=ledgers.MAX_ATTEMPTS):
            image = next(d.image for d in self.look() if d.image.name == name)
            for _ in range(times):
                assert self.ledger.claim(image)
                with pytest.raises(RuntimeError), self.ledger.working_on(image):
                    raise RuntimeError("no luck")
            return image

        def finish(self, name):
            image = next(d.image for d in self.look() if d.image.name == name)
            assert self.ledger.claim(image)
            self.ledger.done(image, map=deliveries.target(self.known, image), digest="1")

        def run(self, *words):
            return CliRunner().invoke(app, ["collection", *words, "--catalog", str(self.file)])

    site = Site()
    site.write()
    return site


# ---- content


def test_the_same_content_is_done_whatever_its_time_or_name(site, noise_scene, tmp_path):
    a = noise_scene(60, 50, name="in/a.tif")
    assert site.states() == {"a": "new"}
    site.finish("a")
    a.touch()
    assert site.states() == {"a": "done"}
    a.write_bytes(a.read_bytes())  # delivered again
    (tmp_path / "in/b.tif").write_bytes(a.read_bytes())
    found = {d.image.name: d for d in site.look()}
    assert found["b"].state == "done"
    assert found["b"].same_as == "a"
    assert found["b"].map == str(tmp_path / "maps/drop/a.zarr")
    noise_scene(60, 50, name="in/a.tif", seed=1)
    assert site.states() == {"a": "new", "b": "done"}


def test_of_equal_new_files_one_is_mapped(site, noise_scene, tmp_path):
    a = noise_scene(60, 50, name="in/a.tif")
    (tmp_path / "in/b.tif").write_bytes(a.read_bytes())
    assert [(d.image.name, d.to_do, d.same_as) for d in site.look()] == [("a", True, ""), ("b", False, "a")]
    assert not site.ledger.entries()


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 64, "blockysize": 64}])
def test_a_half_file_waits_until_it_is_whole(site, noise_scene, tmp_path, monkeypatch, options):
    whole = noise_scene(300, 300, name="whole.tif", **options).read_bytes()
    part = tmp_path / "in/a.tif"
    for content in (b"", bytes(9000), whole[:3000], whole[: len(whole) // 2], whole[:-200]):
        part.write_bytes(content)
        os.utime(part, (1e9, 1e9))
        (found,) = site.look()
        assert (found.state, found.to_do) == ("waiting", False), len(content)
        assert found.reason
        assert site.states(read=False) == {"a": "waiting"}
    assert not site.ledger.entries()
    with monkeypatch.context() as later:  # nobody completes it: it is tried, and tells why it fails
        later.setattr(deliveries, "PATIENCE_SECONDS", -1.0)
        assert site.states() == {"a": "new"}
    part.write_bytes(whole)
    os.utime(part, (1e9 + 1, 1e9 + 1))
    assert site.states() == {"a": "new"}


def test_a_file_that_grows_between_two_looks_waits(site, noise_scene, tmp_path, monkeypatch):
    noise_scene(60, 50, name="in/a.tif")

    def grow(_seconds):
        with (tmp_path / "in/a.tif").open("ab") as stream:
            stream.write(b"more")

    monkeypatch.setattr(deliveries.time, "sleep", grow)
    (found,) = site.look()
    assert (found.state, found.reason) == ("waiting", "it is still changing")


def test_what_is_no_raster_is_tried_and_not_waited_for(site, tmp_path):
    (tmp_path / "in/a.tif").write_text("no raster")
    (tmp_path / "in/b.tif").write_text("none, too")
    assert site.states() == {"a": "new", "b": "new"}


def test_a_time_in_the_future_is_settled_with_a_warning(site, noise_scene, caplog):
    a = noise_scene(60, 50, name="in/a.tif")
    os.utime(a, (time.time() + 86400, time.time() + 86400))
    assert [i.name for i in imagery.images(site.known, "drop", settle=5.0)] == ["a"]
    assert site.states() == {"a": "new"}
    assert "in the future" in caplog.text


# ---- listing


def test_a_link_to_nothing_or_a_file_that_vanishes_is_left_out(site, noise_scene, tmp_path, monkeypatch, caplog):
    noise_scene(60, 50, name="in/a.tif")
    (tmp_path / "in/b.tif").symlink_to("nowhere")
    real = imagery.glob
    monkeypatch.setattr(imagery, "glob", lambda pattern: [*real(pattern), str(tmp_path / "in/gone.tif")])
    assert site.states() == {"a": "new"}
    assert "gone.tif is left out" in caplog.text


@pytest.mark.parametrize("folder", ["in/[1]", "in/a[bc]d/deep", "in/*"])
def test_a_folder_with_brackets_in_its_name_is_found(site, noise_scene, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    noise_scene(20, 20, name=f"{folder}/a.tif")
    for pattern in (f"{folder}/*.tif", f"{folder}/**/*.tif", "in/**/*.tif"):
        site.write(pattern)
        assert list(site.states()) == ["a"], pattern


def test_products_below_the_pattern_are_no_imagery(site, noise_scene, words, trivial, tmp_path):
    import ovrs
    from ovrs import pipeline
    from ovrs.export.cog import write_cog
    from ovrs.export.quicklook import write_quicklook

    site.write("in/**/*.*", root="in")
    scene = noise_scene(60, 50, name="in/a.tif")
    (tmp_path / "in/drop").mkdir()
    pipeline.map_scene(scene, words, tmp_path / "in/drop/a.zarr", trivial())
    with ovrs.open(tmp_path / "in/drop/a.zarr") as mapped:
        write_cog(mapped, tmp_path / "in/drop/a.tif")
        write_quicklook(mapped, tmp_path / "in/drop/a.png")
    found = [i.uri for i in imagery.images(site.known, "drop", settle=0) if not i.uri.endswith(".xml")]
    assert found == [str(scene)]


def test_equal_stems_get_names_of_their_own(site, noise_scene, tmp_path):
    for name, seed in (("in/x/a.tif", 0), ("in/y/a.tif", 1), ("in/b.tif", 2), ("in/y/a.tiff", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise_scene(20, 20, name=name, seed=seed)
    site.write("in/**/*.tif*")
    names = list(site.states())
    assert names[:2] == ["b", "x/a"]
    assert len(set(names)) == 4
    assert {n.rsplit("-", 1)[0] for n in names[2:]} == {"y/a-tif", "y/a-tiff"}


@pytest.mark.parametrize(
    "name", ["../../x", "..", "/etc/x", "a/b", "a\\b", "a.zarr", "x\ny", "", ".", "k" * 300, "\udcff"]
)
def test_names_never_leave_their_folder(name, tmp_path):
    safe = imagery.safe_name(name)
    assert (tmp_path / f"{safe}.zarr").resolve().parent == tmp_path.resolve()
    assert safe.isprintable()
    assert len(safe.encode()) < 200
    assert safe != imagery.safe_name(name + "!")


def test_an_idle_pass_over_many_files_takes_seconds(site, monkeypatch):
    count = 20_000
    found = [Image(f"i{n}", f"/in/{n}.tif", "1-1", "drop", str(n)) for n in range(count)]
    memory = {i.uri: {"sign": "1-1", "since": 0.0, "waits": "", "content": i.content} for i in found}
    entries = [
        {
            "key": i.key,
            "generation": 1,
            "status": "done",
            "attempt": 1,
            "name": i.name,
            "map": deliveries.target(site.known, i),
        }
        for i in found
    ]
    monkeypatch.setattr(imagery, "images", lambda *_: found)
    monkeypatch.setattr(site.ledger, "remembered", lambda _: memory)
    monkeypatch.setattr(site.ledger, "entries", lambda: entries)
    begun = time.process_time()  # on a machine of its own
    assert {d.state for d in site.look()} == {"done"}
    catalog.require_own_names("x", [i.name for i in found])
    assert time.process_time() - begun < 5


# ---- claims


@pytest.fixture
def held(tmp_path):
    return Image("a", "/in/a.tif", "1", "drop", "c0")


def test_a_claim_that_is_cut_off_anywhere_can_be_taken(tmp_path, held):
    ledger = Ledger(str(tmp_path))
    (tmp_path / "ledger").mkdir()
    (tmp_path / f"ledger/{held.key}.json").write_bytes(b"")  # cut off by a power failure
    (tmp_path / f"ledger/.{held.key}.2.json.12345678").write_bytes(b"")
    assert ledger.state(ledger.entry(held)) == "failed"
    assert ledger.claim(held)
    assert not Ledger(str(tmp_path)).claim(held)


KILLED = """
import os, signal, sys
from ovrs.collection.ledger import Image, Ledger
ledger, image = Ledger(sys.argv[1]), Image("a", "/in/a.tif", "1", "drop", "c0")
print(ledger.claim(image), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_image_that_kills_its_process_is_tried_three_times(tmp_path, held):
    claims = []
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
        )
        claims.append(done.stdout.strip())
    assert claims == ["True"] * 3 + ["False"]
    ledger = Ledger(str(tmp_path))
    assert ledger.state(ledger.entry(held)) == "hopeless"
    assert "ended while it mapped" in ledger.reason(ledger.entry(held))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StoreLockedError])
def test_cancels_and_restarts_are_no_attempts(tmp_path, held, error):
    for _ in range(5):
        ledger = Ledger(str(tmp_path))
        assert ledger.claim(held)
        with pytest.raises(error), ledger.working_on(held):
            raise error
    assert ledger.claim(held)
    ledgers.release_held()
    assert ledger.entry(held)["attempt"] == 0
    assert Ledger(str(tmp_path)).claim(held)
    assert ledger.entry(held)["attempt"] == 1


def test_a_ledger_that_does_not_answer_keeps_no_other_claim(tmp_path, monkeypatch):
    gone, there = Ledger(str(tmp_path / "gone")), Ledger(str(tmp_path / "there"))
    first, second = (Image(n, f"/in/{n}.tif", "1", "drop", n) for n in "ab")
    assert gone.claim(first)
    assert there.claim(second)
    monkeypatch.setattr(gone, "release", lambda image: (_ for _ in ()).throw(ConnectionError("no answer")))
    ledgers.release_held()
    assert there.entry(second)["attempt"] == 0
    assert gone.entry(first)["attempt"] == 1


def test_a_holder_that_was_taken_over_changes_nothing(tmp_path, held, monkeypatch):
    late, new = Ledger(str(tmp_path)), Ledger(str(tmp_path))
    assert late.claim(held)
    monkeypatch.setattr(ledgers, "EXPIRY_SECONDS", -1.0)
    monkeypatch.setattr(ledgers, "HEARTBEAT_SECONDS", 0.02)
    assert new.claim(held)
    before = new.entry(held)
    with late.working_on(held):
        time.sleep(0.1)
    with pytest.raises(StoreLockedError, match="taken over"):
        late.done(held, map="x")
    assert new.entry(held) == before
    new.done(held, map="y")
    late.release(held)
    assert new.entry(held)["map"] == "y"


def test_clocks_of_machines_do_not_decide(tmp_path, held, monkeypatch):
    ledger = Ledger(str(tmp_path))
    assert ledger.claim(held)
    real = time.time
    for ahead in (1e6, -1e6):
        monkeypatch.setattr(ledgers.time, "time", lambda ahead=ahead: real() + ahead)
        assert not Ledger(str(tmp_path)).claim(held)


# ---- what a person decides


def test_the_command_line_tells_retries_and_forgets(site, noise_scene, tmp_path):
    noise_scene(60, 50, name="in/a.tif")
    noise_scene(60, 50, name="in/b.tif", seed=1)
    assert "not been tried yet" in str(site.run("retry", "a").exception)
    site.finish("b")
    site.fail("a")
    told = site.run("status")
    assert told.exit_code == 4
    assert "drop: 1 done, 1 hopeless" in told.output
    assert "RuntimeError: no luck" in told.output
    assert site.run("retry", "a").exit_code == 0
    assert site.states() == {"a": "new", "b": "done"}
    site.fail("a")
    assert site.run("forget", "drop/a").exit_code == 0
    assert site.states() == {"a": "forgotten", "b": "done"}
    assert site.run("status", "drop").exit_code == 0
    noise_scene(60, 50, name="in/a.tif", seed=2)  # new content counts again
    assert site.states()["a"] == "new"
    shown = json.loads(site.run("status", "b", "--json").output)
    assert [(e["name"], e["state"], e["map"]) for e in shown] == [("b", "done", str(tmp_path / "maps/drop/b.zarr"))]


@pytest.mark.parametrize("command", ["status", "retry", "forget"])
def test_unknown_images_are_refused_in_one_line(site, command):
    refused = site.run(command, "nobody").exception
    assert isinstance(refused, CatalogError)
    assert "no collection holds an image 'nobody'" in str(refused)
    assert "\n" not in str(refused)


def test_an_image_under_way_is_not_decided_about(site, noise_scene):
    noise_scene(60, 50, name="in/a.tif")
    (found,) = site.look()
    assert site.ledger.claim(found.image)
    refused = site.run("retry", "a").exception
    assert isinstance(refused, StoreLockedError)
    assert str(os.getpid()) in str(refused)
    site.ledger.release(found.image)


# ---- the flow


@pytest.fixture
def map_all(site, monkeypatch):
    """`map_all()` does what a pass does, with the library in the place of the flow of one scene."""
    import ovrs.flows.imagery as room

    def one(scene, out, vocabulary_name, options, gpu_pool, allow_composed_prompts, overwrite):
        facts = pipeline.map_scene(scene, vocabulary.load(vocabulary_name), out, options, overwrite=overwrite)
        if "://" not in out:
            export.fn(Path(out))
        return facts

    monkeypatch.setattr(room, "map_scene", one)

    def work():
        found = list(room._taken_up(site.known, site.look()))
        return {d.image.name: room.map_image.fn(site.file, "drop", d.image, RunOptions(), None, False) for d in found}

    return work


def pixels(store):
    return zarr.open_group(store, mode="r")["label"][:]


def test_new_content_is_a_new_version_and_an_old_one_comes_back(map_all, site, noise_scene, tmp_path):
    newest, maps = tmp_path / "maps/drop/a.zarr", []
    for seed in (0, 1, 0):
        noise_scene(150, 120, name="in/a.tif", seed=seed)
        assert map_all() == {"a": "mapped"}
        maps.append(pixels(newest))
        assert map_all() == {}
        assert (newest.with_suffix(".run") / "run.json").exists()
        assert newest.with_suffix(".tif").exists()
    np.testing.assert_array_equal(maps[0], maps[2])
    assert (maps[0] != maps[1]).any()
    (older,) = (tmp_path / "maps/drop/a.versions").glob("*.zarr")
    np.testing.assert_array_equal(pixels(older), maps[1])
    assert older.with_suffix(".tif").exists()
    entries = {e["map"]: e["status"] for e in site.ledger.entries()}
    assert entries == {str(newest): "done", str(older): "done"}
    assert f"version   {older}" in site.run("status", "a").output
    for store in (newest, older):
        assert CliRunner().invoke(app, ["verify", str(store)]).exit_code == 0


def test_a_run_of_another_release_is_begun_anew(map_all, site, noise_scene, words, trivial, tmp_path):
    from ovrs.run import begin

    scene, newest = noise_scene(100, 90, name="in/a.tif"), tmp_path / "maps/drop/a.zarr"
    (found,) = site.look()
    assert site.ledger.claim(found.image)
    site.ledger.note(found.image, out=str(newest))
    begin.prepare(scene, words, newest, trivial(block_pitches=3))  # other options, as another release would have
    site.ledger.release(found.image)
    assert map_all() == {"a": "mapped"}
    assert site.ledger.entry(found.image)["attempt"] == 1
    assert newest.exists()
    assert not newest.with_name("a.zarr.partial").exists()


@pytest.mark.parametrize("moves", [0, 1, 2, 3, 4, 5])
def test_a_change_of_versions_that_is_cut_off_goes_on(map_all, site, noise_scene, tmp_path, monkeypatch, moves):
    newest = tmp_path / "maps/drop/a.zarr"
    noise_scene(70, 60, name="in/a.tif")
    assert map_all() == {"a": "mapped"}
    old = pixels(newest)
    noise_scene(70, 60, name="in/a.tif", seed=1)
    real, left = Path.rename, [moves]

    def rename(path, target):
        if ".versions" in f"{path}{target}" and not target.name.startswith("."):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
        return real(path, target)

    with monkeypatch.context() as later:
        later.setattr(versions.Path, "rename", rename)
        with pytest.raises(OutputError):
            map_all()
    assert map_all() == {"a": "mapped"}
    (older,) = (tmp_path / "maps/drop/a.versions").glob("*.zarr")
    np.testing.assert_array_equal(pixels(older), old)
    assert (pixels(newest) != old).any()
    assert all(RunDir(store).exists for store in (newest, older))
    assert {e["map"] for e in site.ledger.entries()} == {str(newest), str(older)}
    assert site.states() == {"a": "done"}


# ---- object storage


@pytest.fixture
def bucket(monkeypatch):
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_S3_ENDPOINT": f"{host}:{port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("daily")
    yield files
    files.rm("daily", recursive=True)
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_objects_are_found_and_new_content_of_a_key_is_noticed(bucket, site, noise_scene):
    site.write("s3://daily/**/*.tif", root="s3://daily/maps")
    assert site.states() == {}
    scene = noise_scene(60, 50)
    bucket.put_file(str(scene), "daily/day/a.tif")
    bucket.pipe_file("daily/day/readme.txt", b"no")
    assert site.states() == {"a": "new"}
    assert site.look()[0].image.uri == "s3://daily/day/a.tif"
    site.finish("a")
    bucket.put_file(str(scene), "daily/day/a.tif")
    assert site.states() == {"a": "done"}
    bucket.put_file(str(noise_scene(60, 50, seed=1)), "daily/day/a.tif")
    assert site.states() == {"a": "new"}
    with pytest.raises(CatalogError, match="no bucket"):
        objects.listed("s3://nowhere/*.tif")


def test_a_version_in_object_storage_takes_its_name_whole(bucket):
    out, made = "s3://daily/maps/a.zarr", versions.place("s3://daily/maps/a.zarr", "b" * 64)
    older = versions.place(out, "a" * 64)

    def put(url, word):
        for name in ("label/c/0/0", "zarr.json"):
            bucket.pipe_file(f"{url.removeprefix('s3://')}/{name}", word)
        bucket.pipe_file(f"{url.removeprefix('s3://').removesuffix('.zarr')}.run/run.json", word)

    put(out, b"old")
    put(made, b"new")
    for _ in range(2):  # the second time nothing is left to do
        versions.promote(made, out, older)
        names = {n: bucket.cat_file(n) for n in bucket.find("daily/maps")}
        assert {n.removeprefix("daily/maps/"): c for n, c in names.items()} == {
            "a.zarr/label/c/0/0": b"new",
            "a.zarr/zarr.json": b"new",
            "a.run/run.json": b"new",
            f"a.versions/{'a' * 16}.run/run.json": b"old",
            f"a.versions/{'a' * 16}.zarr/label/c/0/0": b"old",
            f"a.versions/{'a' * 16}.zarr/zarr.json": b"old",
        }
