"""`tinycifar export` and `serve`: models where PyTorch is not."""

from __future__ import annotations

import shlex
import webbrowser
from dataclasses import asdict
from pathlib import Path

import click

from tinycifar import data, trained
from tinycifar.commands import terminal
from tinycifar.formats import c_source, onnx_file, parity, tflite, web
from tinycifar.report import text

ENDINGS = {
    "onnx": ".onnx",
    "onnx-int8": "-int8.onnx",
    "tflite": "-int8.tflite",
    "tflite-float": ".tflite",
    "c": "-c",
    "web": "-web",
}


@click.command("export")
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(ENDINGS)),
    default="onnx",
    show_default=True,
    help="ONNX, ONNX with 8-bit convolutions, TFLite with int8 or float input and output, C99 source, or a folder "
    "with a web page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Output file, or folder for c and web (default: exports/MODEL.onnx, ...).",
)
@click.option(
    "--int8",
    "variant",
    type=click.Choice(list(onnx_file.VARIANTS)),
    help="Types of onnx-int8, activations then weights: u8s7 (default) is the fastest, u8u8 keeps 8 bits of weights "
    "(default for a model that does not agree in 7), s8s8 has no zero points.",
)
@terminal.data_option("MODEL's own; of CIFAR-10 the sample")
@terminal.json_option
def export_command(
    model_name: str, kind: str, out: Path | None, variant: str | None, source: str | None, as_json: bool
) -> None:
    """Write MODEL, a run, a weights file or a shipped model, as what runs without PyTorch, and check that it does.

    On images of --data it is checked, and ranges of 8 bits are found.
    """
    if variant and kind != "onnx-int8":
        raise ValueError("--int8 is for --format onnx-int8")
    model = trained.load(model_name, "cpu")
    out = out or Path("exports") / f"{terminal.file_name(model)}{ENDINGS[kind]}"
    if out.resolve() == Path(model.source):
        raise ValueError(f"--out names the weights themselves, {out}; name another file")
    if out.exists() and out.is_dir() != (kind in ("c", "web")):
        raise ValueError(f"--out {out} must be a {'folder' if kind in ('c', 'web') else 'file'} for --format {kind}")
    dataset = None
    if source is not None:
        with terminal.display(to_stderr=True) as display:
            dataset = data.load(source, image_size=model.image_size, display=display)
    found: parity.Exported | c_source.ExportedC
    if kind == "onnx":
        found = onnx_file.to_onnx(model, out, dataset)
    elif kind == "onnx-int8":
        found = onnx_file.to_int8(model, out, dataset, variant=variant)
    elif kind in ("tflite", "tflite-float"):
        found = tflite.to_tflite(model, out, dataset, int8=kind == "tflite")
    elif kind == "c":
        found = c_source.export_c(model, out, dataset)
    else:
        found = web.write(model, out, dataset)
    content = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(found).items()}
    if as_json:
        terminal.print_json(content)
        return
    for line in text.exported(content):
        click.echo(line)
    if kind == "web":
        click.echo(
            f"The page is {out}. To see it: {shlex.join(['python', '-m', 'http.server', '--directory', str(out)])}"
        )


@click.command("serve")
@click.argument("model_name", metavar="[MODEL]", default=trained.best)
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address; :: is all, IPv4 too.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="Answer clients that use this name; repeatable."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option("--workers", type=click.IntRange(1, 64), help="Run N processes (default: one per core, at most four).")
@click.option(
    "--keep-alive",
    type=click.IntRange(1, 3600),
    default=75,
    show_default=True,
    metavar="SECONDS",
    help="Keep idle connections open; longer than your proxy keeps them.",
)
@click.option(
    "--upload-timeout",
    type=click.IntRange(1, 3600),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="Refuse uploads that take longer.",
)
@click.option(
    "--max-upload",
    type=click.IntRange(1, 50),
    default=10,
    show_default=True,
    metavar="MB",
    help="Refuse larger uploads.",
)
@click.option(
    "--trust-proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Log the client that a proxy at this address reports in X-Forwarded-For; repeatable.",
)
def serve_command(
    model_name: str,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    open_browser: bool,
    workers: int | None,
    keep_alive: int,
    upload_timeout: int,
    max_upload: int,
    proxies: tuple[str, ...],
) -> int:
    """Serve MODEL, a run, a weights file, an exported ONNX file or a shipped model, over HTTP, with a page.

    By default it is the most accurate model that is shipped.
    """
    try:
        from tinycifar.serve import app, gate, supervisor
    except ImportError:
        raise ValueError('serving needs more packages: pip install "tinycifar[serve]"') from None

    def started(address: str) -> None:
        click.echo(f"Serving {model.name} at {address} (Ctrl-C ends it)", err=True)
        if open_browser:
            webbrowser.open(address)

    gate.host_names(host, hosts)  # before the model is opened, which takes seconds
    model = app.open_model(model_name)
    try:
        supervisor.serve(
            model,
            host=host,
            port=port,
            hosts=hosts,
            workers=workers,
            limits=gate.Limits(keep_alive, upload_timeout, 1_000_000 * max_upload),
            proxies=proxies,
            started=started,
            replaced=lambda line: click.echo(f"tinycifar: {line}", err=True),
        )
    except supervisor.WorkerError as error:
        return terminal.fail(str(error), 1)
    return 0
