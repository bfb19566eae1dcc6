"""`tinycifar export` and `serve`: models where PyTorch is not."""

from __future__ import annotations

import shlex
import webbrowser
from typing import TYPE_CHECKING

import click

from tinycifar import catalog, data, words
from tinycifar.commands import terminal

if TYPE_CHECKING:
    from tinycifar.formats.c_source import ExportedC
    from tinycifar.formats.parity import Exported, Parity


@click.command("export")
@click.argument("model_name", metavar="MODEL")
@terminal.option(
    "--format",
    "kind",
    type=click.Choice(list(catalog.FORMATS)),
    default="onnx",
    show_default=True,
    help="ONNX, ONNX with 8-bit convolutions, TFLite with int8 or float input and output, C99 source, or a folder "
    "with a web page.",
)
@terminal.option(
    "--out",
    type=click.Path(),
    help="Output file, or folder for c and web (default: exports/MODEL.onnx, ...).",
)
@terminal.option(
    "--int8",
    "variant",
    type=click.Choice(catalog.INT8_VARIANTS),
    help="For onnx-int8: u8s7 is the fastest (default), u8u8 keeps 8-bit weights, s8s8 has no zero points.",
)
@terminal.data_option("MODEL's own; the sample for CIFAR-10")
@terminal.overwrite_option
@terminal.json_option
def export_command(
    model_name: str,
    kind: str,
    out: str | None,
    variant: str | None,
    source: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write MODEL in a form that runs without PyTorch, and check its results on images of --data.

    MODEL is a run, a weights file or a shipped model.
    """
    from tinycifar import library, trained
    from tinycifar.formats.c_source import ExportedC

    dataset = None
    if source is not None:
        model = trained.load(model_name, "cpu")
        with terminal.display(to_stderr=True) as display:
            dataset = data.load(source, **vars(model.form), display=display)
    exported = library.export(model_name, out, format=kind, data=dataset, int8=variant, overwrite=overwrite)
    lines = c_lines(exported) if isinstance(exported, ExportedC) else _file_lines(exported, kind)
    terminal.show(as_json, exported, *lines)


def _file_lines(exported: Exported, kind: str) -> list[str]:
    """The file that was written, how it compares with its model, and how to serve a page."""
    server = ["python", "-m", "http.server", "--directory", str(exported.path.parent)]
    return [
        f"{words.printable(str(exported.path))}: {exported.size:,} bytes, {exported.form}",
        _parity_line("PyTorch", exported.parity, f", in {exported.runtime}"),
        *([f"Serve the page: {shlex.join(server)}"] if kind == "web" else []),
    ]


def c_lines(exported: ExportedC) -> list[str]:
    """The C code that was written, what it needs, and how it compares with its model."""
    sizes = ", ".join(
        f"{core} {size.flash_bytes / 1000:.1f} and {size.ram_bytes / 1000:.1f} kB"
        for core, size in exported.cores.items()
    )
    files = words.printable(f"{exported.header}, {exported.source}")
    compiled = f"The compiled code gives the same bits as this arithmetic on all {exported.parity.images} images"
    return [
        f"{files}: C with int8 weights and integer arithmetic",
        f"Flash: {exported.weight_bytes:,} bytes of weights, {exported.constant_bytes:,} with all other constants, "
        "and the code",
        f"RAM: {exported.memory_bytes:,} bytes of working memory, {exported.pixel_bytes:,} of pixels, and the stack",
        f"Flash and RAM with code and stack, for gcc -O2: {sizes}",
        _parity_line("PyTorch", exported.parity),
        _parity_line("the int8 ONNX model", exported.parity_int8),
        compiled if exported.not_compiled is None else f"The compiled code was not run: {exported.not_compiled}",
    ]


def _parity_line(reference: str, parity: Parity, runtime: str = "") -> str:
    undecided = f", {parity.undecided} of the others undecided" if parity.undecided else ""
    return (
        f"Against {reference} on {parity.images} images{runtime}: {parity.same_class} with the same class{undecided}, "
        f"logits differ by at most {parity.largest_difference:.2g}"
    )


@click.command("serve")
@click.argument("model_name", metavar="[MODEL]", default=catalog.best)
@terminal.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Listen on this address; :: is all, IPv4 too.",
)
@terminal.number_option("--port", least=0, most=65535, default=8000, help="0 picks a free one.")
@terminal.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="Answer clients that use this name; repeatable."
)
@terminal.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@terminal.number_option("--workers", most=64, help="Run N processes (default: one per core, at most four).")
@terminal.number_option(
    "--keep-alive",
    most=3600,
    default=75,
    metavar="SECONDS",
    help="Keep idle connections open; longer than your proxy keeps them.",
)
@terminal.number_option(
    "--upload-timeout", most=3600, default=120, metavar="SECONDS", help="Refuse uploads that take longer."
)
@terminal.number_option("--max-upload", most=50, default=10, metavar="MB", help="Refuse larger uploads.")
@terminal.option(
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
    """Serve MODEL over HTTP, with a web page.

    MODEL is a run, a weights file, an exported ONNX file or a shipped model (default: the most accurate one).
    """
    try:
        from tinycifar.serve import gate, served, supervisor
    except ImportError:
        raise ValueError('serving needs more packages; install them with: pip install "tinycifar[serve]"') from None

    def started(address: str) -> None:
        click.echo(f"Serving {model.name} at {address} (Ctrl-C ends it)", err=True)
        if open_browser:
            webbrowser.open(address)

    gate.host_names(host, hosts)  # before the model is opened, which takes seconds
    model = served.open_model(model_name)
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
