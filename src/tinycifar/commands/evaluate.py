"""`tinycifar evaluate`, `report` and `compare`: how good models are."""

from __future__ import annotations

from pathlib import Path

import click

from tinycifar import data, inference, run, trained
from tinycifar.commands import terminal
from tinycifar.report import compare, plots, run_page, text


@click.command()
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to (default: the run's, else evaluations/MODEL)."
)
@click.option(
    "--test",
    is_flag=True,
    help="Open the test images even of a model with validation images; never written to its run.",
)
@terminal.data_option("the data that MODEL was trained on")
@terminal.device_option
@terminal.threads_option
@click.option("--robustness", is_flag=True, help="Also on corrupted images: 17 corruptions, 5 severities.")
@click.option("--images", type=click.IntRange(1), help="How many of them, with --robustness (default: 2000).")
@terminal.json_option
def evaluate(
    model_name: str,
    out: Path | None,
    test: bool,
    source: str | None,
    device: str,
    threads: int | None,
    robustness: bool,
    images: int | None,
    as_json: bool,
) -> int:
    """Score MODEL, a run, a weights file or a shipped model, on the images that it opens; write evaluation.json."""
    if images is not None and not robustness:
        raise ValueError("--images says how many images --robustness corrupts; give both or neither")
    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    corrupted = (images or 2000) if robustness else 0
    if test and out is not None and out.resolve() / "model.safetensors" == Path(model.source):
        raise ValueError(f"{out} is the run itself, where --test writes nothing: name another folder with --out")
    with terminal.display(to_stderr=True) as display:
        found = inference.evaluate_model(model, source=source, test=test, corrupted=corrupted, display=display)
    if out is None:  # a run's own evaluation is that on its own data
        of_run = source is None and not test and model_name not in trained.shipped() and Path(model_name).is_dir()
        out = Path(model_name) if of_run else Path("evaluations") / terminal.file_name(model)
    code = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        found.save(out)
    except OSError as error:
        code = terminal.fail(f"the evaluation is not written: {terminal.problem(error)}", 1)
    if as_json:
        terminal.print_json(found.content)
        return code
    for lines in (text.scores, text.by_class, text.robustness):
        for line in lines(found.content):
            click.echo(line)
    click.echo(f"{found.content['images_per_second']:,.0f} images/s")
    return code


@click.command("report")
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@terminal.data_option("the data that RUN was trained on")
@terminal.json_option
def report_command(directory: Path, source: str | None, as_json: bool) -> int:
    """Write RUN's report.html anew: one page with all that is known of it, which needs no network."""
    dataset = None
    if source is not None:
        with terminal.display(to_stderr=True) as display:
            dataset = data.load(source, image_size=run.read_recipe(directory).image_size, display=display)
    path = run_page.write(directory, dataset)
    plots.save_curves(directory)
    if as_json:
        terminal.print_json({"report": str(path)})
    else:
        click.echo(f"Report: {path}")
    return 0


@click.command("compare")
@click.argument("directories", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default="comparison.html", show_default=True, help="The page to write."
)
@terminal.json_option
def compare_command(directories: tuple[Path, ...], out: Path, as_json: bool) -> int:
    """Lay runs side by side: a table, their curves, and whether they differ by more than noise.

    A RUN of several seeds counts as one recipe, as do several RUNs of the same recipe.
    """
    found = compare.compare(directories)
    compare.write(found, out)
    if as_json:
        terminal.print_json({"page": str(out), **found.as_json()})
    else:
        for line in (*found.lines(), f"Page: {out}"):
            click.echo(line)
    return 0
