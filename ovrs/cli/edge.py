"""The edge of the command line: signals, messages, exit codes. Every error becomes one message and one exit code here."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperCommand

from ovrs.errors import outcome
from ovrs.telemetry import log_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType, TracebackType

Command = TypeVar("Command", bound="Callable[..., Any]")

ClickException: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Base of the parser's own errors; typer brings its own copy of click and gives no public name to this class."""

_TALKATIVE = ("distributed", "rasterio", "asyncio", "tornado", "bokeh", "fsspec", "s3fs", "botocore", "aiobotocore")

PATIENCE_SECONDS = 2.0
"""After so long a person who pressed Ctrl-C is told what is waited for."""


class Strict(TyperCommand):
    """A command that refuses an option given twice, of which only the last would count, and one with an empty value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line as Typer does, after the two checks.

        Raises:
            BadParameter: An option is given twice, or with an empty value.
        """
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        single = [p for p in order if getattr(p, "opts", None) and p.nargs == 1 and not getattr(p, "multiple", False)]
        twice = {p.opts[-1] for p in single if single.count(p) > 1 and p.param_type_name == "option" and not p.is_eager}
        if twice:
            raise typer.BadParameter(f"{', '.join(sorted(twice))} is given twice", ctx=ctx)
        empty = [p.opts[-1] for p in single if values.get(p.name) == "" and p.default != ""]
        if empty:
            raise typer.BadParameter(f"{empty[0]} is empty; give a value or leave it out", ctx=ctx)
        return list(super().parse_args(ctx, args))


class App(typer.Typer):
    """Commands of ours."""

    def command(self, name: str | None = None, **kwargs: Any) -> Callable[[Command], Command]:
        """As `typer.Typer.command`, with `Strict` commands; `examples` end the help, one a line."""
        examples = kwargs.pop("examples", ())
        if examples:
            lines = "\n".join(["\b", "Examples:", *(f"  {line}" for line in examples)])
            kwargs["epilog"] = "\n\n".join(filter(None, (kwargs.get("epilog"), lines)))
        return super().command(name, **{"cls": Strict, **kwargs})


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived; notes say what is kept and what goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Return the exit code by which shells know the signal."""
        return 128 + self.number


class Signals:
    """While inside, the first SIGINT or SIGTERM raises `Interrupted` in the main thread, a second one ends the process."""

    def __init__(self) -> None:
        self.caught: Interrupted | None = None
        self._before: dict[int, Any] = {}
        self._patience: threading.Timer | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # `nohup` and the like stay as they are
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self.caught is None:  # else a second signal must still end a process whose threads are slow to end
            for number, before in self._before.items():
                signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.caught is not None:
            os.write(2, b"ended at once; what is done is kept\n")
            os._exit(128 + number)
        self.caught = Interrupted(number)
        self._patience = threading.Timer(PATIENCE_SECONDS, _say_patience)
        self._patience.daemon = True
        self._patience.start()
        raise self.caught


def _say_patience() -> None:
    os.write(2, b"stopping: the blocks under way are being ended; Ctrl-C once more ends at once\n")


def run(command: Callable[..., Any], arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (`ovrs.errors.EXIT_CODES`).

    Args:
        command: The typer application.
        arguments: Default: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _forgiving_streams()
    with Signals() as signals:
        try:
            code = _call(command, given)
        except BaseException as error:  # noqa: BLE001  (the edge: whatever it is, it ends as one message)
            code = _told(error, signals.caught, wants_traceback(given))
        else:
            if signals.caught is not None and code:
                code = _told(signals.caught, signals.caught, wants_traceback(given))
    return code


def _call(command: Callable[..., Any], arguments: list[str]) -> int:
    found = command(args=arguments, prog_name="ovrs", standalone_mode=False)
    sys.stdout.flush()
    return found if isinstance(found, int) else 0


def _told(error: BaseException, caught: Interrupted | None, debug: bool) -> int:
    """Print what happened and return the exit code."""
    if caught is not None and (error is caught or not isinstance(error, SystemExit)):
        notes = getattr(caught, "__notes__", None) or ["the same command begins again"]
        _say(f"interrupted; {notes[0]}")
        return caught.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2
    if isinstance(error, BrokenPipeError):  # the reader of our output has seen enough
        with contextlib.suppress(OSError, ValueError):  # no descriptor to point elsewhere, so nothing will be flushed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, ClickException):
        return _usage(error)
    code, message = outcome(error)
    if debug:
        traceback.print_exception(error)
    _say(f"error: {message}")
    return code


def _usage(error: Any) -> int:
    """Tell in one line why a command cannot be understood, and where the help is; without arguments show the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    place = error.ctx.command_path if getattr(error, "ctx", None) is not None else "ovrs"
    _say(f"error: {' '.join(error.format_message().split())} (see `{place} --help`)")
    return int(error.exit_code)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def wants_traceback(arguments: Sequence[str]) -> bool:
    """Whether `--debug` or OVRS_DEBUG asks for tracebacks."""
    return "--debug" in arguments or os.environ.get("OVRS_DEBUG", "") not in ("", "0")


def set_up_logging(*, debug: bool) -> None:
    """Log to standard error: warnings in one line each, everything with `debug`; lines of JSON with `OVRS_LOG=json`."""
    log_as_json()
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug:
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)
            handler.addFilter(_is_for_people)
        warnings.formatwarning = _one_line


def _is_for_people(record: logging.LogRecord) -> bool:
    """Leave out what libraries say to their makers; the reasons of failures stand in our own errors."""
    return record.levelno >= logging.CRITICAL or record.name.partition(".")[0] not in _TALKATIVE


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    return f"warning: {' '.join(str(message).split())} ({category.__name__})\n"


def _forgiving_streams() -> None:
    """Names that the terminal's encoding cannot show are shown escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
