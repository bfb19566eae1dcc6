"""Measure the accuracy of the shipped models as TFLite and C on all of CIFAR-10's test images: results/exports.json.

    python scripts/measure_exports.py [tflite] [c] [--model NAME]

It needs a C compiler, the extra `tflite`, ai-edge-litert, tflite-micro, and CIFAR-10 in the cache. Rows of a form
or a model that is not named stay as they were recorded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinycifar import atomic, catalog, data, inference, trained
from tinycifar.formats import c_source, flat, int8_graph, onnx_file, tflite, tflite_run
from tinycifar.trained import Trained

RESULT = Path(__file__).parents[1] / "results" / "exports.json"
BATCH = 100
IN_MICRO = 500  # images: its kernels for a PC are slow


def litert_logits(content: bytes, images: Tensor) -> NDArray[Any]:
    """Stored logits (N, num_classes) in LiteRT as it comes, with XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], [BATCH, *source["shape"][1:]])
    interpreter.allocate_tensors()
    rows = []
    for batch in torch.split(images, BATCH):
        interpreter.set_tensor(
            source["index"], np.stack(list(tflite_run.inputs(batch, int8=source["dtype"] == np.int8)))
        )
        interpreter.invoke()
        rows.append(interpreter.get_tensor(target["index"]).copy())
    return np.concatenate(rows)


def micro_logits(content: bytes, images: Tensor) -> NDArray[Any]:
    """Stored logits (N, num_classes) in TFLite Micro."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content)
    int8 = flat.read(content)["subgraphs"][0]["tensors"][0]["type"] == tflite.INT8
    rows = []
    for image in tflite_run.inputs(images, int8=int8):
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        rows.append(interpreter.get_output(0).copy())
    return np.concatenate(rows)


def tflite_files(model: Trained, images: Tensor, labels: NDArray[Any], expected: NDArray[Any]) -> list[dict[str, Any]]:
    """What TFLite files keep of the accuracy, and how far the interpreters agree."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for int8 in (True, False):
            exported = tflite.to_tflite(model, Path(folder) / "model.tflite", int8=int8)
            content = exported.path.read_bytes()
            logits, micro = litert_logits(content, images), micro_logits(content, images[:IN_MICRO])
            classes, start = logits.argmax(1), logits[:IN_MICRO]
            rows.append(
                {
                    "form": exported.form,
                    "bytes": exported.size,
                    "accuracy": float((classes == labels).mean()),
                    "same_class_as_pytorch": float((classes == expected).mean()),
                    "same_class_in_tflite_micro": float((micro.argmax(1) == start.argmax(1)).mean()),
                    "same_logits_in_tflite_micro": float((micro == start).mean()),
                }
            )
    return rows


def c_files(model: Trained, images: Tensor, labels: NDArray[Any], expected: NDArray[Any]) -> list[dict[str, Any]]:
    """What compiled C keeps of the accuracy; `bytes` are those of all constants."""
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.to_int8(model, Path(folder) / "int8.onnx", variant="u8u8")
        network = int8_graph.read(Path(folder) / "int8.onnx")
        _, source = c_source.write(network, Path(folder), model.name)
        _, logits = c_source.run_compiled(source, network, images, ("-std=c99", "-O3"))
    classes = logits.argmax(1).numpy()
    return [
        {
            "form": "C int8",
            "bytes": c_source.constant_bytes(network),
            "accuracy": float((classes == labels).mean()),
            "same_class_as_pytorch": float((classes == expected).mean()),
        }
    ]


FORMS = {"tflite": ("TFLite", tflite_files), "c": ("C", c_files)}
VERSIONS = ("torch", "onnxruntime", "flatbuffers", "ai-edge-litert", "tflite-micro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forms", nargs="*", choices=[*FORMS, []], help="tflite, c, or nothing for both")
    parser.add_argument("--model", choices=catalog.shipped(), help="measure this model alone")
    arguments = parser.parse_args()
    forms = arguments.forms or list(FORMS)
    before = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    kept = {row["model"]: row["files"] for row in before}
    dataset = data.load()
    images, labels = dataset.test_images, dataset.test_labels.numpy()
    rows = []
    for name in catalog.shipped():
        if arguments.model not in (None, name) and name in kept:
            rows.append(next(row for row in before if row["model"] == name))
            continue
        model = trained.load(name, "cpu")
        expected = inference.logits(model.model, images).argmax(1).numpy()
        files = []
        for form, (prefix, measure) in FORMS.items():
            if form in forms:
                files += measure(model, images, labels, expected)
            else:
                files += [file for file in kept.get(name, []) if file["form"].startswith(prefix)]
        rows.append({"model": name, "accuracy": float((expected == labels).mean()), "files": files})
        print(name, *(f"{file['form']} {file['accuracy']:.2%}" for file in files), sep="; ")
    versions = {name: metadata.version(name) for name in VERSIONS}
    atomic.write_json(
        RESULT,
        {"images": len(labels), "images_in_tflite_micro": IN_MICRO, "rows": rows, "versions": versions},
    )
    print(f"Record: {RESULT}")


if __name__ == "__main__":
    main()
