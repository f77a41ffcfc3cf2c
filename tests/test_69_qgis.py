"""The provider for QGIS comes into a profile and goes again; its runner tells progress, cancels, and says errors in a line."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ovrs import __version__
from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.qgis import install

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "ovrs" / "qgis" / "plugin"


@pytest.fixture
def runner():
    """The module as QGIS's Python imports it: without `ovrs`."""
    spec = importlib.util.spec_from_file_location("ovrs_runner", PLUGIN / "runner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Feedback:
    """QGIS's feedback, as far as it is used."""

    def __init__(self, cancel_at=None):
        self.cancel_at, self.lines, self.warnings, self.shown, self.percent = cancel_at, [], [], [], []

    def pushInfo(self, text):
        self.lines.append(text)

    def pushWarning(self, text):
        self.warnings.append(text)

    def setProgress(self, percent):
        self.percent.append(percent)

    def setProgressText(self, text):
        self.shown.append(text)

    def isCanceled(self):
        return self.cancel_at is not None and self.cancel_at in self.lines


def program(tmp_path, text):
    """A setup whose `ovrs` is a small program in a folder with a blank."""
    file = tmp_path / "a folder" / "fake.py"
    file.parent.mkdir()
    file.write_text(text)
    return {"command": [sys.executable, str(file)], "path": None}


def test_progress_and_messages_reach_qgis(runner, tmp_path):
    told = program(
        tmp_path,
        "import sys, json, os\n"
        "print(json.dumps(sys.argv[1:])); print('caution: sketch')\n"
        "facts = {'event': 'progress', 'tiles': 1, 'tiles_total': 4, 'seconds_left': 3.0}\n"
        "print(json.dumps(facts), file=sys.stderr)\n"
        "print('WARNING ovrs: mind', file=sys.stderr); print('note: ä', file=sys.stderr)\n"
        "assert not [k for k in os.environ if k.startswith('PYTHON') and k != 'PYTHONUTF8']\n",
    )
    feedback = Feedback()
    awkward = ["map", "a b.tif", 'say "road"', "ends\\", "--classes=x, y", "ü"]
    out = runner.run(awkward, feedback, told)
    assert json.loads(out[0]) == awkward
    assert feedback.percent == [25.0]
    assert feedback.shown == ["1 of 4 tiles, about 3 s left"]
    assert sorted(feedback.warnings) == ["WARNING ovrs: mind", "caution: sketch"]
    assert "note: ä" in feedback.lines


def test_an_error_is_one_line(runner, tmp_path):
    told = program(tmp_path, "import sys; print('error: no such scene\\n  more', file=sys.stderr); sys.exit(3)")
    with pytest.raises(runner.Failed) as caught:
        runner.run([], Feedback(), told)
    assert str(caught.value) == "no such scene"
    with pytest.raises(runner.Failed, match=r"cannot be run .*run `ovrs qgis install` again"):
        runner.run([], Feedback(), {"command": [str(tmp_path / "gone")], "path": None})
    silent = {"command": [sys.executable, "-c", "raise SystemExit(7)"], "path": None}
    with pytest.raises(runner.Failed, match="exit code 7"):
        runner.run([], Feedback(), silent)
    with pytest.raises(runner.Failed, match=r"ovrs\.json cannot be read"):
        runner.setup()  # not installed here


@pytest.mark.parametrize("deaf", [False, True], ids=["ends", "does not listen"])
def test_cancelling_ends_the_process(runner, tmp_path, monkeypatch, deaf):
    monkeypatch.setattr(runner, "PATIENCE_SECONDS", 0.3)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    told = program(
        tmp_path, f"{ignore}import os, time; print(os.getpid(), flush=True); print('go', flush=True); time.sleep(60)"
    )
    feedback = Feedback(cancel_at="go")
    with pytest.raises(runner.Cancelled, match="go on where it stopped"):
        runner.run([], feedback, told)
    process = int(feedback.lines[feedback.lines.index("go") - 1])
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_command_is_shown_as_one_can_type_it(runner):
    command = ["ovrs", "map", "C:\\my folder\\", 'a "b"', "it's", "plain"]
    assert shlex.split(runner.shown(command, windows=False)) == command
    windows = runner.shown(command, windows=True)
    assert windows == 'ovrs map "C:\\my folder\\\\" "a \\"b\\"" it\'s plain'


def test_the_provider_is_installed_told_of_and_removed(tmp_path):
    profile = tmp_path / "my profile"
    profile.mkdir()
    run, base = CliRunner(), ["--profile", str(profile)]
    assert run.invoke(app, ["qgis", "status", *base]).exit_code == 3
    done = run.invoke(app, ["qgis", "install", *base], catch_exceptions=False)
    assert "qgis_process plugins enable ovrs_processing" in done.output
    folder = profile / "python" / "plugins" / install.PLUGIN
    sources = {f.name for f in PLUGIN.glob("*.py")}
    assert {f.name for f in folder.iterdir()} == {*sources, "metadata.txt", "ovrs.json"}
    assert f"version={__version__}" in (folder / "metadata.txt").read_text()
    told = json.loads((folder / "ovrs.json").read_text())
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if told["path"]:
        clean["PYTHONPATH"] = told["path"]
    shown = subprocess.run([*told["command"], "--version"], check=True, capture_output=True, text=True, env=clean)
    assert shown.stdout.strip() == f"ovrs {__version__}"
    (folder / "of_an_older_version.py").write_text("")
    run.invoke(app, ["qgis", "install", *base], catch_exceptions=False)
    assert not (folder / "of_an_older_version.py").exists()
    assert __version__ in run.invoke(app, ["qgis", "status", *base]).output
    assert run.invoke(app, ["qgis", "uninstall", *base]).output.startswith("removed ")
    assert not folder.exists()
    assert isinstance(run.invoke(app, ["qgis", "uninstall", *base]).exception, OptionError)


def test_a_plugin_of_somebody_else_stays(tmp_path):
    folder = tmp_path / "python" / "plugins" / install.PLUGIN
    folder.mkdir(parents=True)
    (folder / "metadata.txt").write_text("[general]\nname=other\n")
    for work in (install.install, install.uninstall):
        with pytest.raises(OptionError, match=str(folder)):
            work(tmp_path)
    assert (folder / "metadata.txt").read_text() == "[general]\nname=other\n"
    with pytest.raises(OptionError, match="is no folder"):
        install.install(tmp_path / "none")


def test_the_default_profile_is_the_one_qgis_starts_with(tmp_path, monkeypatch):
    monkeypatch.setenv("QGIS_CUSTOM_CONFIG_PATH", str(tmp_path))
    with pytest.raises(OptionError, match="start QGIS once"):
        install.default_profile()
    for name in ("default", "work"):
        (tmp_path / "profiles" / name).mkdir(parents=True)
    assert install.default_profile() == tmp_path / "profiles" / "default"
    (tmp_path / "profiles" / "profiles.ini").write_text("[core]\ndefaultProfile=work\n")
    assert install.default_profile() == tmp_path / "profiles" / "work"
    with pytest.raises(OptionError, match="holds profiles"):
        install.install(tmp_path)
    monkeypatch.delenv("QGIS_CUSTOM_CONFIG_PATH")
    for platform, where in (("win32", "AppData"), ("darwin", "Application Support"), ("linux", ".local")):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        monkeypatch.delenv("APPDATA", raising=False)
        assert where in str(install._settings_folder())


def test_the_plugin_is_data_of_the_package_and_imports_nothing_of_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["ovrs.qgis.plugin"] == ["metadata.txt"]
    for file in PLUGIN.glob("*.py"):
        assert "import ovrs" not in file.read_text()
        assert "from ovrs" not in file.read_text()
