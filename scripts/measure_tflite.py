"""Measure the accuracy of the shipped models as TFLite files on all of CIFAR-10's test images: results/tflite.json.

    python scripts/measure_tflite.py

It needs the extra `tflite`, ai-edge-litert, tflite-micro and CIFAR-10 in the cache.
"""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinycifar import atomic, catalog, data, inference, trained
from tinycifar.formats import flat, tflite, tflite_run

RESULT = Path(__file__).parents[1] / "results" / "tflite.json"
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


def measure(name: str) -> dict[str, Any]:
    """What one model keeps of its accuracy, and how far the interpreters agree."""
    model, dataset = trained.load(name, "cpu"), data.load()
    images, labels = dataset.test_images, dataset.test_labels.numpy()
    expected = inference.logits(model.model, images).argmax(1).numpy()
    row: dict[str, Any] = {"model": name, "accuracy": float((expected == labels).mean()), "files": []}
    with tempfile.TemporaryDirectory() as folder:
        for int8 in (True, False):
            exported = tflite.to_tflite(model, Path(folder) / "model.tflite", int8=int8)
            content = exported.path.read_bytes()
            logits, micro = litert_logits(content, images), micro_logits(content, images[:IN_MICRO])
            classes, start = logits.argmax(1), logits[:IN_MICRO]
            row["files"].append(
                {
                    "form": exported.form,
                    "bytes": exported.size,
                    "accuracy": float((classes == labels).mean()),
                    "same_class_as_pytorch": float((classes == expected).mean()),
                    "same_class_in_tflite_micro": float((micro.argmax(1) == start.argmax(1)).mean()),
                    "same_logits_in_tflite_micro": float((micro == start).mean()),
                }
            )
    return row


def main() -> None:
    rows = [measure(name) for name in catalog.shipped()]
    versions = {name: metadata.version(name) for name in ("torch", "flatbuffers", "ai-edge-litert", "tflite-micro")}
    atomic.write_json(
        RESULT, {"images": 10_000, "images_in_tflite_micro": IN_MICRO, "rows": rows, "versions": versions}
    )
    print(f"Record: {RESULT}")


if __name__ == "__main__":
    main()
