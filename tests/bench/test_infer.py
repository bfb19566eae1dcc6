"""The published models are what was published, and the bench times every model in every form."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinycifar import recipes, trained, training
from tinycifar.bench import infer
from tinycifar.cli import main
from tinycifar.summary import summarize


@pytest.mark.parametrize("name", infer.PUBLISHED)
def test_a_published_model_has_its_published_size(name):
    model = infer.PUBLISHED[name]()
    statistics = sum(values.numel() for key, values in model.named_buffers() if "running" in key)
    parameters = sum(values.numel() for values in model.parameters())
    # MLPerf Tiny counts the statistics of normalisations as parameters too.
    assert parameters + (statistics if name == "resnet8" else 0) == infer.SIZES[name]["parameters"]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _, activation = model(torch.zeros(1, 3, 32, 32))
    of_activation = activation.numel() * model.head.in_features
    assert counter.get_total_flops() / 2 - of_activation == infer.SIZES[name]["macs"]


@pytest.mark.end_to_end
def test_every_model_is_timed_in_every_form(monkeypatch):
    monkeypatch.setattr(infer, "PUBLISHED", {"resnet8": infer.resnet8})
    bench = infer.bench_infer(["minute"], rounds=1, accuracy=False)
    assert [(row.model, row.kind) for row in bench.rows] == [
        *(("minute", kind) for kind in infer.KINDS),
        *(("resnet8", kind) for kind in ("eager", *infer.ONNX_KINDS)),
    ]
    assert all(row.latency_ms > 0 and row.images_per_second > 0 for row in bench.rows)
    assert all((row.bytes is None) == (row.kind == "eager") for row in bench.rows)
    lines = infer.render(bench).splitlines()
    assert len(lines) == 2 + len(bench.rows)
    json.dumps(asdict(bench))


def test_a_model_that_is_not_there_is_refused_before_anything_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(infer, "_ours", None)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "infer", "minute", "nothing"])
    assert ended.value.code == 2
    assert "nothing does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_models_of_one_name_are_timed_each_on_images_of_its_own_size(monkeypatch):
    sizes = {"a/run": (16, 1), "b/run": (24, 3)}
    for out, (size, channels) in sizes.items():
        changes = [f"image_size={size}", f"channels={channels}", "width=0.25", "epochs=1"]
        recipe = recipes.with_settings(recipes.get("minute"), changes)
        training.train(recipe, "sample", out=Path(out), limit=20, evaluate=False)
    monkeypatch.setattr(infer, "PUBLISHED", {})
    monkeypatch.setattr(infer, "ONNX_KINDS", ("onnx",))
    timed = []
    monkeypatch.setattr(infer, "_time", lambda call, images, calls: timed.append(call(images)) or 1.0)
    bench = infer.bench_infer(list(sizes), rounds=1)
    assert [row.model for row in bench.rows] == ["run"] * len(bench.rows)
    first, second = (summarize(trained.load(out, "cpu").model) for out in sizes)
    assert {row.macs for row in bench.rows} == {first.macs, second.macs}
    assert len(timed) == 2 * (infer.WARM_UP + 1) * len(bench.rows)
