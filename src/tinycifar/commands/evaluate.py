"""`tinycifar evaluate`, `report` and `compare`: how good models are."""

from __future__ import annotations

from pathlib import Path

import click

from tinycifar import catalog, data
from tinycifar.commands import terminal


@click.command()
@click.argument("model_name", metavar="MODEL")
@terminal.out_option("Folder to write to (default: the run, otherwise evaluations/MODEL).")
@terminal.option(
    "--test",
    is_flag=True,
    help="Score on the test images even if there are validation images; not written to the run.",
)
@terminal.data_option("MODEL's own")
@terminal.device_option
@terminal.threads_option
@terminal.option("--robustness", is_flag=True, help="Also score on corrupted images: 17 corruptions, 5 severities.")
@terminal.option("--outside", metavar="PATH", help="Pictures of no class: count those answered none of these.")
@terminal.option("--keep", type=float, metavar="SHARE", help="Right answers to keep with --outside (default: 0.95).")
@terminal.option("--threshold", type=float, metavar="SCORE", help="Reject pictures below this score, with --outside.")
@terminal.number_option("--images", help="Corrupted images with --robustness (default: 2000).")
@terminal.json_option
def evaluate(
    model_name: str,
    out: Path | None,
    test: bool,
    source: str | None,
    device: str,
    threads: int | None,
    robustness: bool,
    outside: str | None,
    keep: float | None,
    threshold: float | None,
    images: int | None,
    as_json: bool,
) -> int:
    """Score MODEL and write evaluation.json.

    MODEL is a run, a weights file or a shipped model. It is scored on its data's validation images if there are any,
    otherwise on the test images.
    """
    from tinycifar import inference, library, trained
    from tinycifar.report import text

    if images is not None and not robustness:
        raise ValueError("--images needs --robustness: it sets the number of corrupted images")
    if outside is None and (keep, threshold) != (None, None):
        raise ValueError("--keep and --threshold need --outside: pictures that belong to no class")
    terminal.set_threads(threads)
    model = trained.load(model_name, device)
    corrupted = (images or 2000) if robustness else 0
    other_images = test or source is not None
    own_folder = None if other_images else Path(model.source).parent
    if out is not None and (out / "recipe.json").exists() and out.resolve() != own_folder:
        raise ValueError(
            f"--out {out} is a run, which holds the evaluation of its own model on its own data; name another folder"
        )
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} exists and is not a folder; name a folder")
    with terminal.display(to_stderr=True) as display:
        evaluation = inference.evaluate_model(
            model,
            source=source,
            test=test,
            corrupted=corrupted,
            others=outside,
            keep=keep,
            threshold=threshold,
            display=display,
        )
    if out is None:
        is_own = not other_images and model_name not in catalog.shipped() and Path(model_name).is_dir()
        out = Path(model_name) if is_own else Path("evaluations") / library.output_name(model)
    replaced = " (replaced)" if (out / "evaluation.json").exists() else ""
    code = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        evaluation.save(out)
    except OSError as error:
        code = terminal.fail(f"cannot write the evaluation: {terminal.problem(error)}", 1)
    scores = evaluation.scores
    lines = [*text.scores(scores), *text.by_class(scores), *text.outside(scores), *text.robustness(scores)]
    lines.append(f"Speed: {scores.images_per_second:,.0f} images/s")
    terminal.show(as_json, scores, *lines, *([] if code else [f"Results: {out / 'evaluation.json'}{replaced}"]))
    return code


@click.command("report")
@click.argument("directory", metavar="RUN", type=terminal.NamedPath())
@terminal.data_option("RUN's own")
@terminal.json_option
def report_command(directory: Path, source: str | None, as_json: bool) -> int:
    """Rewrite RUN's report.html, one self-contained page."""
    from tinycifar import run
    from tinycifar.report import plots, run_page

    dataset = None
    if source is not None:
        with terminal.display(to_stderr=True) as display:
            dataset = data.load(source, **vars(run.read_recipe(directory).form), display=display)
    path = run_page.write(directory, dataset)
    plots.save_curves(directory)
    terminal.show(as_json, {"report": path}, f"Report: {path}")
    return 0


@click.command("compare")
@click.argument("directories", metavar="RUN...", nargs=-1, required=True, type=terminal.NamedPath())
@terminal.option(
    "--out", type=terminal.OutputFile(".html"), default="comparison.html", show_default=True, help="Page to write."
)
@terminal.overwrite_option
@terminal.json_option
def compare_command(directories: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool) -> int:
    """Compare RUNs: a table, their curves, and whether they differ by more than noise.

    The seeds in one RUN count as one recipe, as do several RUNs of the same recipe.
    """
    from tinycifar import library

    comparison = library.compare(directories, out, overwrite=overwrite)
    terminal.show(as_json, {"page": out, **comparison.as_json()}, *comparison.lines(), f"Page: {out}")
    return 0
