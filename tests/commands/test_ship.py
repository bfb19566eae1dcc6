from pathlib import Path
from typing import Any

import pytest
import torch

from tinycifar import data, inference
from tinycifar import trained as trained_models
from tinycifar.formats import c_source, onnx_file, parity, web

pytestmark = pytest.mark.usefixtures("undrawn")


def test_an_export_is_tried_on_the_pictures_that_are_named_where_its_own_are_gone(tinycifar, own_run, own):
    lost = tinycifar("export", own_run.directory)
    assert (lost.code, lost.out, lost.err.count("\n")) == (2, "", 1)
    assert "say where it is now with --data" in lost.err
    done = tinycifar("export", own_run.directory, "--data", own, "--out", "own.onnx")
    loaded = data.load(own, image_size=24)
    assert f"Against PyTorch on {len(loaded.test_images)} images" in done.out
    expected = inference.logits(trained_models.load(own_run.directory).model, loaded.test_images)
    torch.testing.assert_close(onnx_file.logits(Path("own.onnx"), loaded.test_images), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("kind", "where", "name"),
    [("onnx-int8", onnx_file, "to_int8"), ("c", c_source, "export_c"), ("web", web, "write")],
)
def test_every_kind_of_export_is_given_the_pictures_at_the_models_size(
    tinycifar, own_run, own, monkeypatch, kind, where, name
):
    def given(model: Any, out: Path, dataset: data.Dataset, **_: Any) -> None:
        raise parity.ParityError(f"{dataset.path} at {dataset.image_size}")

    monkeypatch.setattr(where, name, given)
    done = tinycifar("export", own_run.directory, "--data", own, "--format", kind)
    assert (done.code, done.out, done.err) == (1, "", f"tinycifar: {own} at 24\n")
