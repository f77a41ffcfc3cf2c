"""The edge of the command line: one message, one documented exit code, never a traceback that nobody asked for."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ovrs import errors
from ovrs.cli import edge
from ovrs.errors import EXIT_CODES, OutputError, OvrsError, SceneReadError, outcome, told

ROOT = Path(__file__).parents[1]


def leaves(kind=OvrsError):
    yield kind
    for child in kind.__subclasses__():
        yield from leaves(child)


def chained(error, cause):
    error.__cause__ = cause
    return error


def app_of(body):
    app = edge.App()
    app.command()(body)

    @app.callback()
    def _root(debug: bool = False) -> None:
        edge.set_up_logging(debug=debug)

    return app


def run(body, *arguments, capsys):
    code = edge.run(app_of(body), ["act", *arguments])
    return code, capsys.readouterr().err


def test_every_error_has_a_documented_exit_code():
    for leaf in leaves():
        assert leaf is OvrsError or leaf.exit_code in EXIT_CODES, leaf


def test_the_page_has_the_table_of_exit_codes():
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "faults.md").read_text("utf-8"), re.M))
    assert rows == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_help_tells_the_exit_codes(capsys):
    from ovrs.cli.app import app

    assert edge.run(app, ["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{code} {meaning.split(':')[0]}" in shown for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            chained(
                ValueError("Read failed. See previous exception for details."), ValueError("band 1: strip\n7 lost")
            ),
            "Read failed.: band 1: strip 7 lost",
        ),
        (chained(ValueError("a b"), ValueError("b")), "a b"),
        (chained(ValueError("b"), ValueError("a b c")), "a b c"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pem"), "x.pem: No such file or directory"),
        (KeyError("crop"), "KeyError 'crop'"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_reason_of_an_error_is_told_in_one_line(error, text):
    assert told(error) == text


def test_a_chain_that_bites_its_tail_and_endless_texts_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert told(first) == "a: b"
    assert len(told(ValueError("x" * 100_000))) < 1000


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SceneReadError("no raster"), 3, "no raster"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.tif"), 4, "a.tif: No space left on device; free space"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 4, "quota"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "a"), 4, "Read-only"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "s.tif"), 3, "s.tif: Permission denied"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "ca.pem"), 3, "ca.pem: No such file"),
        (MemoryError(), 4, "--workers"),
        (ZeroDivisionError("division by zero"), 70, "unexpected ZeroDivisionError: division by zero"),
        (RecursionError("deep"), 70, "OVRS_DEBUG=1"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(error, code, words, capsys, monkeypatch):
    monkeypatch.delenv("OVRS_DEBUG", raising=False)

    def act() -> None:
        raise error

    got, shown = run(act, capsys=capsys)
    assert got == code
    assert code in EXIT_CODES
    assert shown.count("\n") == 1
    assert shown.startswith("error: ")
    assert words in shown
    assert outcome(error)[0] == code


def test_a_traceback_is_shown_on_request(capsys, monkeypatch):
    def act() -> None:
        raise ZeroDivisionError

    assert edge.run(app_of(act), ["--debug", "act"]) == 70
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("OVRS_DEBUG", "1")
    assert run(act, capsys=capsys)[1].startswith("Traceback")


def test_wrong_commands_are_one_line_with_the_place_of_the_help(capsys):
    def act(gsd: float = 1.0, name: list[str] | None = None) -> None:
        pass

    assert run(act, "--gsd", "2", "--name", "a", "--name", "b", capsys=capsys) == (0, "")
    for arguments, words in (
        (["--gsd", "1", "--gsd", "2"], "--gsd is given twice"),
        (["--gsd", "x"], "'--gsd'"),
        (["--gsd", ""], "--gsd is empty"),
        (["--foo"], "--foo"),
        (["more"], "more"),
    ):
        code, shown = run(act, *arguments, capsys=capsys)
        assert code == 2
        assert shown.count("\n") == 1
        assert words in shown
        assert "ovrs" in shown


def test_exit_codes_of_commands_pass(capsys):
    def act() -> None:
        raise typer.Exit(4)

    assert run(act, capsys=capsys) == (4, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_say_what_is_kept(number, capsys):
    def act() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt as stop:
            stop.add_note("finished blocks are kept; `ovrs resume o.zarr` goes on")
            raise

    before = signal.getsignal(number)
    try:
        code, shown = run(act, capsys=capsys)
    finally:
        signal.signal(number, before)
    assert code == 128 + number
    assert code in EXIT_CODES
    assert shown == "interrupted; finished blocks are kept; `ovrs resume o.zarr` goes on\n"


def test_the_reader_of_the_output_may_leave():
    done = subprocess.run(
        f"{sys.executable} -m ovrs methods | head -n 1",
        shell=True,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout == "--method\n"


def test_output_errors_survive_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(errors.not_written("a", OSError(errno.ENOSPC, "full"))))
    assert isinstance(error, OutputError)
    assert "a" in str(error)
