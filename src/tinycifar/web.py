"""A folder that any static host serves: a page that runs a model in its visitor's browser."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tinycifar import data, export, pictures, run
from tinycifar.cifar10 import cache_directory
from tinycifar.trained import Trained

PAGE = Path(__file__).parent / "templates" / "web"
PACKAGE, VERSION = "onnxruntime-web", "1.23.2"
INTEGRITY = "T09JUtMn+CZLk3mFwqiH0lgQf+4S7+oYHHtk6uhaYAAJI95bTcKi5bOOZYwORXfS/RLZCjDDEXGWIuOCAFlEjg=="  # SHA-512
FILES = {  # of the package: its runtime for WebAssembly with SIMD, under names that every host knows the type of
    "ort.wasm.min.js": "ort.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm.wasm",
}
NPM_SECONDS = 300


def write(trained: Trained, folder: Path) -> export.Exported:
    """Write the page, the model as ONNX, the runtime and samples into a new or empty folder.

    The runtime comes from the npm client the first time and from the cache afterwards, checked against the package's
    published digest. Raises ValueError if that cannot be had or the folder is in use, and as `export.to_onnx` does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"the folder {folder} is in use; name a new or an empty one with --out")
    runtime = _runtime()
    exported = export.to_onnx(trained, folder / "model.onnx")
    for path in PAGE.iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / "ort").mkdir()
    for name in FILES.values():
        shutil.copyfile(runtime / name, folder / "ort" / name)
    notice = f"{PACKAGE} {VERSION}, MIT licence, Copyright (c) Microsoft Corporation: https://www.npmjs.com/package/{PACKAGE}"
    (folder / "ort" / "NOTICE.txt").write_text(notice + "\n", encoding="utf-8")
    (folder / "samples").mkdir()
    shown = samples(trained.data)
    for name, _, content in shown:
        (folder / name).write_bytes(content)
    told = [(name, label) for name, label, _ in shown]
    run.write_json(folder / "model.json", about(trained.name, trained.classes, trained.temperature, told, "browser"))
    return exported


def about(
    name: str,
    classes: Sequence[str],
    temperature: float | None,
    samples: Sequence[tuple[str, str]],
    runtime: Literal["browser", "server"],
) -> dict[str, object]:
    """What the page is told of its model as `model.json`; `samples` are paths and labels."""
    where = {
        "browser": "It runs in this browser: no picture leaves your machine.",
        "server": "Pictures are sent to the server that this page comes from, which keeps none.",
    }
    *most, last = classes
    known = f"{', '.join(most)} and {last}" if most else last
    return {
        "name": name,
        "classes": list(classes),
        "temperature": temperature,
        "text": f"{name} knows {known}, and takes everything for one of these. {where[runtime]}",
        "runtime": runtime,
        "samples": [{"file": file, "label": label} for file, label in samples],
    }


def samples(source: str | None) -> list[tuple[str, str, bytes]]:
    """Path, label and PNG of the first test image of each of the first ten classes of a data set; none for None."""
    if source is None:
        return []
    dataset = data.load("sample" if source in data.NAMES else source)
    found = []
    for label, name in enumerate(dataset.classes[:10]):
        of_class = (dataset.test_labels == label).nonzero().flatten()
        if len(of_class):
            content = io.BytesIO()
            pictures.to_image(dataset.test_images[of_class[0]]).save(content, "PNG")
            found.append((f"samples/{label}.png", name, content.getvalue()))
    return found


def _runtime() -> Path:
    """The folder with the runtime's files, in the cache."""
    folder = cache_directory() / f"{PACKAGE}-{VERSION}"
    if all((folder / name).is_file() for name in FILES.values()):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"the page needs {PACKAGE} {VERSION} from npm, which is not installed: install Node.js first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder.parent) as name:
        here = Path(name)
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--cache", "npm-cache"]
        try:
            done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=NPM_SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError(f"npm did not bring {PACKAGE} within {NPM_SECONDS} seconds") from None
        archive = next(here.glob("*.tgz"), None)
        if done.returncode or archive is None:
            lines = [line for line in done.stderr.splitlines() if line.lower().startswith(("npm error", "npm err!"))]
            raise ValueError(f"npm did not bring {PACKAGE} {VERSION}: {'; '.join(lines[:2])[:200]}")
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != INTEGRITY:
            raise ValueError(f"npm brought a {PACKAGE} {VERSION} whose digest is not the published one")
        unpacked = here / "unpacked"
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for source, name in FILES.items():
                member = tar.extractfile(f"package/dist/{source}")
                assert member is not None
                (unpacked / name).write_bytes(member.read())
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    return folder
