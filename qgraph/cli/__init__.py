"""The command line. `main` maps every outcome to an exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR

import click

from qgraph.cli import clock, log
from qgraph.cli.console import say, show_warning
from qgraph.cli.help import Help
from qgraph.errors import QGraphError
from qgraph.running.wording import speaking_flags
from qgraph.version import __version__

COMMANDS = {
    "quantize": "qgraph.cli.quantize",
    "apply": "qgraph.cli.quantize",
    "whatif": "qgraph.cli.whatif",
    "search": "qgraph.cli.search",
    "distill": "qgraph.cli.distill",
    "equalise": "qgraph.cli.equalise",
    "sensitivity": "qgraph.cli.sensitivity",
    "finetune": "qgraph.cli.finetune",
    "evaluate": "qgraph.cli.evaluate",
    "compare": "qgraph.cli.compare",
    "adopt": "qgraph.cli.adopt",
    "certify": "qgraph.cli.certify",
    "inspect": "qgraph.cli.inspect",
    "report": "qgraph.cli.report",
    "demo": "qgraph.cli.demo",
    "warmup": "qgraph.cli.warmup",
    "completion": "qgraph.cli.completion",
}


class _LazyGroup(Help, click.Group):
    """Imports the module of a command only when it runs, so that --help and completion are quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = __import__(COMMANDS[name], fromlist=[name])
        return getattr(module, name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qgraph")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (before or after the command).")
@log.log_options
def cli(debug: bool) -> None:
    """Quantize ONNX models on a CPU, with the mathematics on the table.

    \b
    Example:
      qgraph quantize model.onnx -o small.onnx --data calibration.npz --weights 4
    """


class _Terminated(BaseException):
    """SIGTERM arrived: unwind, so that no half-written file stays."""


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Turn SIGTERM into an exception; only in the main thread, where Python allows it."""

    def terminate(signum: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    clock.begin(process=argv is None)
    try:
        status = _run(argv)
        log.LOG.info("exit status %d after %.2f s", status, clock.elapsed())
        return status
    finally:
        log.end()


def _run(argv: Sequence[str] | None) -> int:
    if "_QGRAPH_COMPLETE" in os.environ:
        import qgraph.cli.completion  # noqa: F401  (it registers completion for bash)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    warnings.showwarning = show_warning
    try:
        with _sigterm_unwinds(), speaking_flags():
            status = cli.main(arguments, prog_name="qgraph", standalone_mode=False, obj=tuple(arguments))
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say_interrupted()
    except _Terminated:
        return 128 + signal.SIGTERM
    except click.ClickException as error:
        log.LOG.error(error.format_message())
        error.show(sys.stderr)
        return error.exit_code
    except QGraphError as error:
        if debug:
            raise
        _say_error(f"error: {error}", error)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        _say_error("error: out of memory; try --limit with fewer samples", None)
        return 1
    except Exception as error:
        if _came_of_interruption(error):
            return _say_interrupted()
        if debug:
            raise
        _say_error(f"error: {type(error).__name__}: {error} (unexpected; --debug shows where)", error)
        return 1


def _say_interrupted() -> int:
    say("interrupted", style="bold red", level=ERROR)
    return 130


def _came_of_interruption(error: BaseException) -> bool:
    """Whether an engine was interrupted and raised an error of its own."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _say_error(text: str, error: BaseException | None) -> None:
    """Show an error in one message; the log has its traceback."""
    say(text, style="red", log=False)
    log.LOG.error(text, exc_info=error)
