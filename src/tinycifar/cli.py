"""The command line: its sub-commands, which lie in `commands`, and what their errors end with."""

from __future__ import annotations

import io
import signal
import sys

import click

from tinycifar import __version__, checkpoint
from tinycifar.bench import timing
from tinycifar.commands import evaluate, information, listings, predict, ship, sweep, terminal, timings, train
from tinycifar.formats import parity
from tinycifar.scale import distributed


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tinycifar")
def cli() -> None:
    """Image classifiers under 200,000 parameters: train, know how good they are, ship."""


for command in (
    train.train,
    sweep.sweep_command,
    evaluate.evaluate,
    evaluate.report_command,
    evaluate.compare_command,
    predict.predict,
    predict.explain_command,
    ship.export_command,
    ship.serve_command,
    listings.summary_command,
    listings.models_command,
    listings.recipes_group,
    listings.data_group,
    timings.bench_group,
):
    cli.add_command(command)
listings.data_group.add_command(information.info_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 partial result or failed check, 2 refused, 130 or 143 stopped."""
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
    except checkpoint.SaveError as error:
        code = terminal.fail(terminal.problem(error), 1)
    except OSError as error:
        code = terminal.fail(terminal.problem(error), 2)
    except ValueError as error:
        code = terminal.fail(str(error), 2)
    except (FloatingPointError, parity.ParityError) as error:
        code = terminal.fail(str(error), 1)
    except distributed.LostRankError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the processes that are left, as this one is
        code = terminal.fail(str(error), 1, error.tell)
    except timing.Stopped as error:
        code = terminal.fail(str(error), 128 + error.signal)
    except (KeyboardInterrupt, click.Abort):
        code = terminal.fail("interrupted", 130)
    sys.exit(code)
