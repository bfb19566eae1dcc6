"""The command line: the sub-commands in `commands`, loaded when they are used, and exit codes for errors."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys

import click

from tinycifar import __version__, signals
from tinycifar.commands import terminal

# By name: module in `tinycifar.commands`, function, and the line in `tinycifar --help`, which loads no module.
COMMANDS = {
    "train": ("train", "train", "Train a recipe into a run directory."),
    "sweep": ("sweep", "sweep_command", "Search recipe fields for the best validation accuracy."),
    "evaluate": ("evaluate", "evaluate", "Score a model and write evaluation.json."),
    "report": ("evaluate", "report_command", "Rewrite a run's report.html."),
    "compare": ("evaluate", "compare_command", "Compare runs: table, curves, significance."),
    "predict": ("predict", "predict", "Classify pictures."),
    "explain": ("explain", "explain_command", "Draw heat maps of what a model looks at."),
    "export": ("ship", "export_command", "Write a model as ONNX, C or a web page."),
    "serve": ("ship", "serve_command", "Serve a model over HTTP."),
    "summary": ("summary", "summary_command", "Print a model's layer table."),
    "models": ("models", "models_command", "List shipped models and architectures."),
    "recipes": ("recipes", "recipes_group", "List recipes; show one as a TOML file."),
    "data": ("data", "data_group", "Fetch, verify and describe data."),
    "bench": ("timings", "bench_group", "Time training, inference and start-up."),
}


class _LazyGroup(click.Group):
    """A group that loads the module of a sub-command when the command is used, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"tinycifar.commands.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tinycifar")
def cli() -> None:
    """Image classifiers under 200,000 parameters: train, evaluate, export, serve."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 partial result or failed check, 2 refused, 130 or 143 stopped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed; else the next file that is opened would take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 (until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a run
    try:
        code = cli.main(arguments, prog_name="tinycifar", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        code = terminal.fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        code = terminal.fail("interrupted", 130)
    except Exception as error:
        if signals.ended_by is not None:  # a library that was interrupted while it was loaded, for example
            sys.exit(terminal.fail("interrupted", 128 + signals.ended_by))
        code = _code(error)
        if code is None:
            raise  # a bug, which needs its traceback
        report: bool | None = getattr(error, "report", None)  # of a LostRankError
        if report is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the processes that are left, as this one is
        message = terminal.problem(error) if isinstance(error, OSError) else str(error)
        code = terminal.fail(message, code, report)
    sys.exit(code)


def _code(error: Exception) -> int | None:
    """The exit code of an error that is reported in one line, None of any other.

    Exceptions of the package have it as `exit_code`, so that none of their modules is loaded for it.
    """
    code: int | None = getattr(error, "exit_code", None)
    if code is not None:
        return code
    return 1 if isinstance(error, FloatingPointError) else 2 if isinstance(error, (OSError, ValueError)) else None
