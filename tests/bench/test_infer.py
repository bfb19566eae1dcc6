"""The published models are what was published, and the bench times every model in every form."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinycifar.bench import infer
from tinycifar.cli import main


@pytest.mark.parametrize("name", infer.PUBLISHED)
def test_a_published_model_has_its_published_size(name: str) -> None:
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
def test_every_model_is_timed_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_model_that_is_not_there_is_refused_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(infer, "_ours", None)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "infer", "minute", "nothing"])
    assert ended.value.code == 2
    assert "nothing does not exist" in capsys.readouterr().err
