import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from tinycifar import data, inference, machine, recipes, run, signals, training
from tinycifar import trained as trained_models
from tinycifar.bench import timing
from tinycifar.cli import COMMANDS, cli
from tinycifar.commands import ship
from tinycifar.data import cifar10, pictures
from tinycifar.evaluation.corruptions import CORRUPTIONS
from tinycifar.formats import c_source, onnx_file, parity
from tinycifar.report import plots

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[1]
TRAIN = ["train", "--data", "sample", "--limit", "64"]
ONE_EPOCH = [*TRAIN, "--epochs", "1"]


def test_training_prints_a_line_an_epoch_and_a_closing_summary(tinycifar, tmp_path):
    done = tinycifar("train", "reference-30", "--data", "sample", "--epochs", "2", "--limit", "64", "--out", "run")
    assert done.code == 0
    pattern = (
        r"^Epoch \d/2 \| LR\(s\): \[0\.\d{6}\] \| Train loss \d\.\d{4} acc 0\.\d{4} \| Val loss \d\.\d{4} acc 0\.\d{4}$"
    )
    assert len(re.findall(pattern, done.out, re.MULTILINE)) == 2
    for words in ("Train accuracy", "Test accuracy", "95% interval", "Best on test", "Target", "images/s", "run"):
        assert words in done.out
    assert "\x1b" not in done.out
    found = {path.name for path in Path("run").iterdir()}
    assert {"loss.png", "accuracy.png", "model.safetensors", "report.html"} <= found


def test_every_command_with_json_prints_one_json_object_and_nothing_else(tinycifar, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "bench_step", partial(timing.bench_step, steps=1, batch_size=8))
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    for words, key in [
        ([*ONE_EPOCH, "--out", "other"], "test_accuracy"),
        (["evaluate", trained], "accuracy"),
        (["predict", "image.png", "--model", trained], "predictions"),
        (["explain", "image.png", "--model", trained], "explanations"),
        (["compare", trained], "contenders"),
        (["models"], "shipped"),
        ([*ONE_EPOCH, "--out", "more", "--seeds", "2"], "mean"),
        (["summary", "C1C2C3C4O"], "layers"),
        (["recipes"], "recipes"),
        (["bench", "step", "c1c2c3c4o"], "images_per_second"),
        (["data", "info", "--data", "sample"], "classes"),
        (["data", "verify"], "files"),
    ]:
        assert key in tinycifar(*words, "--json").json


def test_bench_train_prints_the_ratio_and_writes_its_record(tinycifar, monkeypatch):
    measured = timing.TrainBench(
        ratio=60.0,
        ratios={"float32": 60.0},
        reference_seconds={"float32": 1200.0},
        train_seconds=20.0,
        reference_steps=80,
        reference_error_percent=0.5,
        reference="reference-30-as-run",
        recipe="minute",
        precision="float32",
        runs=[{"seed": 0, "train_seconds": 20.0, "wall_seconds": 25.0, "test_accuracy": 0.85}],
        wall_seconds=300.0,
        processor="a processor, avx2",
        threads=2,
        torch_version="2.13.0",
        device="a processor",
        instruction_set="avx2",
        git_revision=None,
        date="2026-11-23T12:00:00",
    )
    asked = {}
    monkeypatch.setattr(data, "load", lambda *_: data.sample())
    monkeypatch.setattr(timing, "bench_train", lambda dataset, **options: asked.update(options) or measured)
    monkeypatch.setattr(machine, "git_revision", lambda: "0123abcd")
    monkeypatch.setattr(machine, "processor_slug", lambda: "a-processor-avx2")
    done = tinycifar("bench", "train", "minute", "--runs", "2", "--steps", "5")
    assert (asked["recipe_name"], asked["runs"], asked["steps"]) == ("minute", 2, 5)
    assert "Ratio: 60.0" in done.out
    assert done.out.splitlines()[-1].startswith("To add this processor to the table: run `tinycifar bench train minute")
    assert done.out.splitlines()[-1].endswith(" with results/minute/bench-train/a-processor-avx2.json")
    assert not Path("results").exists()
    assert tinycifar("bench", "train", "--json", "--record").json == asdict(measured)
    assert json.loads(Path("results/minute/bench-train/a-processor-avx2.json").read_text()) == asdict(measured)
    refused = tinycifar("bench", "train", "--record")
    assert (refused.code, refused.out) == (2, "")
    assert "exists already: move this record away first" in refused.err


def test_a_benchmark_that_a_signal_ends_says_so_and_gives_its_exit_code(tinycifar, monkeypatch):
    def stopped(*_: Any, **__: Any) -> None:
        raise timing.Stopped(signal.SIGTERM)

    monkeypatch.setattr(data, "load", lambda *_: data.sample())
    monkeypatch.setattr(timing, "bench_train", stopped)
    done = tinycifar("bench", "train")
    assert (done.code, done.out) == (143, "")
    assert done.err == "tinycifar: stopped; nothing was recorded\n"


def test_help_fits_a_small_terminal_and_hidden_options_are_in_the_documents_alone(tinycifar, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    documents = (ROOT / "docs/CONTRIBUTING.md").read_text() + (ROOT / "docs/DATA.md").read_text()
    hidden = set()
    for name in COMMANDS:
        shown, command = tinycifar(name, "--help").out, cli.get_command(click.Context(cli), name)
        assert len(shown.splitlines()) <= (24 if name == "train" else 32), name
        assert max(map(len, shown.splitlines())) <= 80, name
        for option in command.params:
            if isinstance(option, click.Option) and option.hidden:
                hidden.add(option.opts[0])
                assert option.opts[0] not in shown
                assert f"`{option.opts[0]}" in documents, f"tinycifar {name}: {option.opts[0]}"
    assert {"--record", "--stop-after-epoch", "--checkpoint-seconds"} < hidden


def test_evaluate_prints_scores_by_class_and_the_confusion_matrix(tinycifar, trained):
    content = tinycifar("evaluate", trained, "--json").json
    lines = tinycifar("evaluate", trained).out.splitlines()
    assert any("no temperature: it is fitted on validation images only" in line for line in lines)
    for row, counts in zip(content["classes"], content["confusion"], strict=True):
        score, confusion = (line.split() for line in lines if line.startswith(row["class"]))
        assert score[1:] == [str(row["images"]), *(f"{row[name]:.2%}" for name in ("precision", "recall", "f1"))]
        assert confusion[1:] == [str(count) for count in counts]


def test_robustness_is_told_for_every_corruption_and_severity(tinycifar, trained):
    words = ["evaluate", trained, "--robustness", "--images", "4"]
    found = tinycifar(*words, "--json").json["robustness"]
    assert found["images"] == 4
    assert {name: len(accuracies) for name, accuracies in found["accuracy"].items()} == dict.fromkeys(CORRUPTIONS, 5)
    every = [accuracy for accuracies in found["accuracy"].values() for accuracy in accuracies]
    assert found["mean_corruption_accuracy"] == pytest.approx(sum(every) / 85)
    out = tinycifar(*words).out
    assert f"Mean {found['mean_corruption_accuracy']:.2%}, without corruption {found['clean_accuracy']:.2%}" in out
    assert json.loads((trained / "evaluation.json").read_text())["robustness"] == found


def test_predict_works_straight_after_the_install_on_folders_and_skips_what_it_cannot_read(tinycifar, tmp_path):
    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    pictures.to_image(data.sample().test_images[0]).save(folder / "a cat, asleep.png")
    (folder / "broken.webp").write_text("no picture")
    done = tinycifar("predict", "pictures")
    assert done.code == 1
    assert done.out.split()[:5] == ["pictures/deep/a", "cat,", "asleep.png", "cat", done.out.split()[4]]
    assert "cannot read pictures/deep/broken.webp" in done.err
    assert "1 of 2 files skipped" in done.err
    listed = tinycifar("predict", "pictures", "--csv")
    heading, line = csv.reader(listed.out.splitlines())
    assert heading[:3] == ["file", "class_1", "probability_1"]
    assert line[:2] == ["pictures/deep/a cat, asleep.png", "cat"]
    content = tinycifar("predict", "pictures", "--json").json
    assert [entry["file"] for entry in content["unreadable"]] == ["pictures/deep/broken.webp"]
    assert content["predictions"][0]["classes"][0]["probability"] == pytest.approx(float(line[2]), abs=1e-6)


def test_a_shipped_model_is_evaluated_on_test_images_at_the_temperature_of_its_twin(tinycifar):
    done = tinycifar("evaluate", "minute", "--data", "sample")
    assert done.code == 0
    assert "Test accuracy: " in done.out
    assert "fitted to validation images of a twin that was trained without them" in done.out
    assert {path.name for path in Path("evaluations/minute").iterdir()} == {
        "evaluation.json",
        "evaluation.safetensors",
    }


def test_a_run_is_exported_as_onnx_with_the_parity_told(tinycifar, trained, tmp_path):
    done = tinycifar("export", trained, "--out", "model.onnx")
    assert done.code == 0
    assert re.fullmatch(
        r"model\.onnx: [\d,]+ bytes, ONNX float32, opset 18, IR version 8\n"
        r"Against PyTorch on 200 images, in onnxruntime \S+: \d+ with the same class.*, logits differ by at most \S+\n",
        done.out,
    )
    assert onnx_file.logits(Path("model.onnx"), data.sample().test_images).shape == (200, 10)


def test_an_export_never_writes_over_the_weights_or_into_what_is_of_another_kind(tinycifar, trained, tmp_path):
    shutil.copyfile(trained / "model.safetensors", "mine.safetensors")
    before = Path("mine.safetensors").read_bytes()
    done = tinycifar("export", "mine.safetensors", "--out", "mine.safetensors")
    assert (done.code, done.out) == (2, "")
    assert done.err == "tinycifar: --out names the weights themselves, mine.safetensors; name another file\n"
    assert Path("mine.safetensors").read_bytes() == before
    for kind, out, must in (("onnx", ".", "file"), ("c", "mine.safetensors", "folder")):
        done = tinycifar("export", "minute", "--format", kind, "--out", out)
        assert (done.code, done.err) == (2, f"tinycifar: --out {out} must be a {must} for the format {kind}\n")


def test_exports_of_several_seeds_are_told_apart(tinycifar, trained, monkeypatch):
    def written(_: object, path: Path, __: object) -> parity.Exported:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return parity.Exported(path, 0, "ONNX", "onnxruntime", parity.Parity(200, 200, 0, 0.0, 0.0))

    monkeypatch.setattr(onnx_file, "to_onnx", written)
    for name in ("one", "two"):
        shutil.copytree(trained, Path(name) / "seed-0")
        assert tinycifar("export", f"{name}/seed-0").code == 0
    assert {path.name for path in Path("exports").iterdir()} == {"one-seed-0.onnx", "two-seed-0.onnx"}


def test_an_export_in_c_tells_flash_and_ram(tinycifar, exports, monkeypatch):
    monkeypatch.setattr(
        onnx_file, "to_int8", lambda _, path, *__, **___: shutil.copyfile(exports / "minute-int8.onnx", path)
    )
    written: list[c_source.ExportedC] = []
    export_c = c_source.export_c

    def kept(*arguments: Any) -> c_source.ExportedC:
        written.append(export_c(*arguments))
        return written[-1]

    monkeypatch.setattr(c_source, "export_c", kept)
    out = tinycifar("export", "minute", "--format", "c").out
    assert out.splitlines()[-1] == "The compiled code gives the same bits as this arithmetic on all 200 images"
    assert re.search(r"^Against PyTorch on 200 images: \d+ with the same class", out, re.MULTILINE)
    assert re.search(r"^Against the int8 ONNX model on 200 images: \d+ with the same class", out, re.MULTILINE)
    refused = tinycifar("export", "minute", "--format", "c")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "minute.h exists already; name another output, or pass --overwrite to replace it" in refused.err

    def not_run(*_: object) -> None:
        raise c_source.NotRunError("there is no C compiler here")

    monkeypatch.setattr(c_source, "run_compiled", not_run)
    again = tinycifar("export", "minute", "--format", "c", "--overwrite", "--json").json
    assert again["not_compiled"] == "there is no C compiler here"
    assert ship.c_lines(written[-1])[-1] == "The compiled code was not run: there is no C compiler here"
    assert Path(again["source"]) == Path("exports/minute-c/minute.c")
    assert again["weight_bytes"] < again["constant_bytes"] < Path(again["source"]).stat().st_size
    assert f"Flash: {again['weight_bytes']:,} bytes of weights, {again['constant_bytes']:,} with all other" in out
    assert f"RAM: {again['memory_bytes']:,} bytes" in out
    needs = again["cores"]["Cortex-M4F"]
    assert f"Cortex-M4F {needs['flash_bytes'] / 1000:.1f} and {needs['ram_bytes'] / 1000:.1f} kB" in out
    assert needs["flash_bytes"] > again["constant_bytes"]
    assert needs["ram_bytes"] > again["memory_bytes"] + again["pixel_bytes"]


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (["--max-parameters", "166240"], True),
        (["--max-parameters", "166239"], False),
        (["--max-macs", "12485088"], True),
        (["--max-macs", "12485087"], False),
        (["--max-macs", "12485088", "--max-parameters", "1"], False),
    ],
)
def test_models_within_limits_are_listed_and_no_others(tinycifar, limit, kept):
    found = tinycifar("models", "--json", *limit).json
    assert ("minute" in found["shipped"], "minutenet" in found["architectures"]) == (kept, kept)
    assert "c1c2c3c4o" not in found["architectures"]
    assert ("minutenet" in tinycifar("models", *limit).out) == kept


def test_models_are_listed_with_the_most_accurate_first_and_limits_that_none_keeps_get_a_line(tinycifar):
    content, done = tinycifar("models", "--json").json, tinycifar("models")
    rows = [line.split()[:4] for line in done.out.splitlines()]
    assert ["minute", "minutenet", "166,240", "12,485,088"] in rows
    assert ["c1c2c3c4o", "195,946", "195,946", "34,734,080"] in rows
    for kind in ("shipped", "architectures"):
        accuracies = [row["test_accuracy"] or 0 for row in content[kind].values()]
        assert accuracies == sorted(accuracies, reverse=True)
    assert len(set(accuracies)) > 2
    none = tinycifar("models", "--max-parameters", "1")
    assert (none.code, none.out.count("is within these limits")) == (0, 2)


def test_explain_draws_one_picture_each_into_a_folder(tinycifar, tmp_path):
    pictures.to_image(data.sample().test_images[0]).save(tmp_path / "cat.png")
    (tmp_path / "broken.png").write_text("no picture")
    done = tinycifar("explain", "cat.png", "broken.png", "--out", "drawn")
    assert (done.code, done.out[:12]) == (1, "cat.png: cat")
    assert "cannot read broken.png" in done.err
    assert [path.name for path in Path("drawn").iterdir()] == ["cat-explained.png"]
    before = (tmp_path / "cat.png").read_bytes()
    assert tinycifar("explain", "cat.png", "--out", ".").code == 0
    assert (tmp_path / "cat.png").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_names_with_dollar_signs_other_letters_line_breaks_and_stray_bytes_are_shown_with_escapes(tinycifar, tmp_path):
    names = [b"a$\\frac$.png", "猫.png".encode(), b"two\nlines.png", b"stray\xff.png", b"\x1b[31mred.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        pictures.to_image(data.sample().test_images[0]).save(tmp_path / "cat.png")
        os.rename(tmp_path / "cat.png", os.fsencode(tmp_path) + b"/in/" + name)  # noqa: PTH104 (bytes)
    for words in (["predict", "in"], ["predict", "in", "--csv"], ["explain", "in", "--out", "out"]):
        done = tinycifar(*words)
        assert (done.code, done.err) == (0, "")
        assert done.out.count("\n") == len(names) + ("--csv" in words)
        assert "\x1b" not in done.out
        assert "in/two\\nlines.png" in done.out
        assert "in/stray\\udcff.png" in done.out
    assert len(tinycifar("predict", "in", "--json").json["predictions"]) == len(names)
    assert len(list((tmp_path / "out").iterdir())) == len(names)


def test_several_seeds_are_runs_of_their_own_with_one_summary(tinycifar, trained):
    done = tinycifar(*ONE_EPOCH, "--seeds", "3", "--seed", "4", "--out", "many")
    assert done.code == 0
    assert re.search(r"^3 seeds of minute, test accuracy:\nmean \d", done.out, re.MULTILINE)
    summary = json.loads(Path("many/summary.json").read_text())
    assert summary["finished"] == [4, 5, 6]
    alone = tinycifar(*ONE_EPOCH, "--seed", "5", "--out", "one", "--json")
    assert alone.json["test_accuracy"] == summary["accuracies"][1]
    assert Path("one/model.safetensors").read_bytes() == Path("many/seed-5/model.safetensors").read_bytes()
    compared = tinycifar("compare", "many", "--out", "page.html", "--json").json
    assert [len(of["runs"]) for of in compared["contenders"]] == [3]
    assert "are the same recipe and seed" in tinycifar("compare", "many", "one").err
    assert "holds several seeds" in tinycifar("report", "many").err
    assert "for example many/seed-6" in tinycifar("train", "--resume", "many").err
    assert Path("page.html").exists()


def test_a_seed_that_diverges_costs_the_others_nothing(tinycifar, monkeypatch):
    train = training.train

    def diverging(*arguments: Any, seed: int, **options: Any) -> training.Result:
        if seed == 1:
            raise FloatingPointError("the loss is nan at step 7")
        return train(*arguments, seed=seed, **options)

    monkeypatch.setattr(training, "train", diverging)
    done = tinycifar(*ONE_EPOCH, "--seeds", "3", "--out", "many")
    assert (done.code, done.err) == (1, "tinycifar: seed 1: the loss is nan at step 7\n")
    assert json.loads(Path("many/summary.json").read_text())["finished"] == [0, 2]


def test_a_signal_at_the_end_of_a_seed_begins_no_other_one(tinycifar, monkeypatch):
    evaluate = inference.evaluate

    def interrupted(*arguments: Any) -> inference.Evaluation:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(inference, "evaluate", interrupted)
    done = tinycifar(*ONE_EPOCH, "--seeds", "3", "--out", "many")
    assert (done.code, "Resume with the same command and --out many" in done.out) == (130, True)
    assert [path.name for path in run.seeds(Path("many"))] == ["seed-0"]
    assert json.loads(Path("many/summary.json").read_text())["finished"] == [0]


@pytest.mark.slow
def test_the_same_command_goes_on_with_the_seeds_of_a_folder_and_another_recipe_is_refused(tinycifar):
    words = ["train", "--data", "sample", "--epochs", "2", "--limit", "32", "--out", "many"]
    whole = tinycifar(*words[:-1], "whole", "--seeds", "3", "--json").json
    assert tinycifar(*words[:-1], "many/seed-0", "--seed", "0").code == 0
    assert tinycifar(*words[:-1], "many/seed-1", "--seed", "1", "--stop-after-epoch", "1").code == 0
    found = tinycifar(*words, "--seeds", "3", "--json").json
    assert (found["finished"], found["accuracies"]) == ([0, 1, 2], whole["accuracies"])
    for seed in run.seeds(Path("whole")):
        other = Path("many", seed.name)
        assert (seed / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    for refused, told in (
        (["--seeds", "3", "--set", "batch_size=16"], "was trained with different settings: batch_size was"),
        (
            ["--seeds", "3", "--limit", "16"],
            "many/seed-0 was trained with different settings: train_images was 32, not 16",
        ),
    ):
        done = tinycifar(*words, *refused)
        assert (done.code, told in done.err) == (2, True)


def test_an_evaluation_is_saved_even_if_its_reader_goes_away(trained):
    (trained / "evaluation.json").unlink()
    command = [sys.executable, "-m", "tinycifar", "evaluate", str(trained)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.close()
    assert run.read_evaluation(trained).images == 200


def test_a_report_can_be_written_anew(tinycifar, trained):
    (trained / "report.html").unlink()
    done = tinycifar("report", trained)
    assert (done.code, done.out) == (0, f"Report: {trained / 'report.html'}\n")
    page = (trained / "report.html").read_text()
    (trained / "report.html").unlink()
    assert tinycifar("report", trained, "--data", "sample").code == 0
    assert (trained / "report.html").read_text() == page


def test_summary_prints_the_table_whatever_the_case_of_the_name_and_draws_receptive_fields(tinycifar):
    upper, lower = tinycifar("summary", "C1C2C3C4O", "--plot", "fields.png"), tinycifar("summary", "c1c2c3c4o")
    assert upper.out == lower.out
    assert "195,946" in upper.out
    assert Path("fields.png").exists()


def test_an_incomplete_cache_fails_its_check_with_exit_code_1(tinycifar):
    done = tinycifar("data", "verify")
    assert done.code == 1
    assert done.out.count("missing") == 6
    assert tinycifar("data", "info", "--json").json["verified"] is False


def refusals(trained: Path, own: Path, folder: Path) -> list[tuple[list[str | Path], str]]:
    """Commands that must be refused, and what the message must say; `folder` has some files that are of no use."""
    sample: list[str | Path] = ["train", "reference-30", "--data", "sample"]
    minute, of_own, record = [*TRAIN[:3]], ["train", "--data", own], "--record is for whole, unchanged recipes"
    against, no_python = (
        ["bench", "startup", "--rounds", "1", "--against"],
        "is not a Python interpreter that has tinyc",
    )
    return [
        (["train", "resnet"], "unknown recipe 'resnet'; allowed are: minute, micro, nano"),
        (["export", "minute", "--int8", "u8u8"], "--int8 is for the format onnx-int8"),
        (
            ["export", "minute", "--format", "h5"],
            "'h5' is not one of 'onnx', 'onnx-int8', 'tflite', 'tflite-float', 'c', 'web'",
        ),
        (["export", "minute", "--out", "new/"], "new/ names a folder; name a file to write"),
        (["summary", "nanonet", "--plot", "new/"], "new/ names a folder; name a file to write"),
        (["export", "minute", "--out", "minute.tflite"], "minute.tflite does not end in .onnx"),
        (["compare", trained, "--out", "page.png"], "page.png does not end in .html"),
        (["compare", trained, "--out", "new/"], "new/ names a folder; name a file to write"),
        (["serve", "new.onnx"], "new.onnx does not exist; name an ONNX file of tinycifar"),
        (
            ["summary", "resnet"],
            "resnet does not exist; name an architecture (c1c2c3c4o, minutenet, whitenet, micronet, nanonet",
        ),
        (["bench", "step", "resnet"], "unknown model 'resnet'; the models are: c1c2c3c4o, minutenet"),
        (["bench", "train", "resnet"], "unknown recipe 'resnet'"),
        (["bench", "train", "--steps", "1"], "1 is not in the range"),
        (
            ["train", "--data", "sample", "--set", "max_momentum=0"],
            "nesterov needs base_momentum and max_momentum above 0",
        ),
        ([*sample, "--set", "colour=red"], "unknown recipe field 'colour'"),
        ([*sample, "--set", "width=0.5", "--set", "width=1"], "the recipe field width is given twice"),
        ([*sample, "--set", "epochs=2", "--epochs", "1"], "the recipe field epochs is given twice"),
        (["sweep", "--vary", "width=1,2", "--set", "epochs=2", "--epochs", "1"], "epochs is given twice"),
        ([*sample, "--set", "epochs=many"], "epochs takes a whole number"),
        ([*sample, "--epochs", "0"], "epochs must lie between 1"),
        ([*sample, "--limit", "0"], "0 is not in the range"),
        ([*sample, "--limit", "401"], "allowed are 1 to 400"),
        ([*sample, "--stop-after-epoch", "31"], "1 to 30, not after 31"),
        ([*sample, "--device", "tpu"], "no device 'tpu' here"),
        ([*sample, "--threads", "0"], "--threads"),
        ([*sample, "--threads", "100000"], "--threads"),
        ([*sample, "--seed", "99999999999999999999"], "--seed"),
        ([*sample, "--device", "meta"], "no device 'meta' here"),
        ([*sample, "--out", trained], "is in use"),
        ([*sample, "--record"], "--record is for whole, unchanged recipes"),
        (["train", "--record", "--epochs", "2"], "--record is for whole, unchanged recipes"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["data", "fetch", "--data", "sample"], "the sample ships with the package"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["predict", "none.png"], "none.png does not exist; name pictures or folders"),
        (
            ["predict", trained, "--model", "resnet"],
            "resnet does not exist; name a run directory, a .safetensors file, or a",
        ),
        (["predict", trained, "--csv", "--json"], "--csv and --json exclude each other"),
        (["predict"], "PICTURE"),
        (["explain", trained / "loss.png", "--class", "unicorn", "--out", trained], "unknown class 'unicorn'"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["compare"], "RUN"),
        (["compare", trained, "--out", trained / "recipe.json" / "x.html"], "recipe.json"),
        (["evaluate", trained, "--images", "5"], "--images needs --robustness"),
        (["explain", trained / "loss.png", "--class", "unicorn", "--out", "new"], "unknown class 'unicorn'"),
        (["predict", ""], "an empty name does not exist"),
        ([*sample, "--seeds", "2", "--limit", "401", "--out", "new"], "allowed are 1 to 400"),
        (["train", "--seeds", "2", "--data", "nowhere", "--out", "new"], "nowhere"),
        (["train", "--resume", "nowhere"], "nowhere does not exist"),
        ([*sample, "--checkpoint-seconds", "nan"], "the seconds between checkpoints must be at least 0, not nan"),
        (["train", "--resume", trained, "--out", "new"], "leave out --out and --seeds"),
        (["train", "--resume", trained, "--seed", "9"], "was trained with different settings: seed was 0, not 9"),
        (
            ["train", "reference-30", "--resume", trained],
            "trained with different settings: name was minute, not reference-30",
        ),
        (["train", "--resume", trained, "--set", "nesterov=false"], "nesterov was True, not False"),
        (["compare", "nowhere"], "nowhere does not exist"),
        (["models", "--max-macs", "0"], "0 is not in the range"),
        (["compare", trained, trained], "a run is named twice"),
        ([*sample, "--seeds", "0"], "0 is not in the range"),
        ([*sample, "--seeds", "2", "--out", trained], "is in use"),
        (["frobnicate"], "frobnicate"),
        (["train", "--colour"], "--colour"),
        ([*minute, "--max-parameters", "50000", "--set", "width=0.5"], "--max-parameters finds the width: leave out"),
        ([*minute, "--max-parameters", "10"], "minutenet has at least"),
        ([*minute, "--max-parameters", "0"], "0 is not in the range"),
        ([*minute, "missing.toml"], "missing.toml does not exist; `tinycifar recipes show NAME > missing.toml`"),
        ([*of_own, "--init", "nowhere"], "nowhere does not exist"),
        ([*of_own, "--init", "nano"], "nano is a nanonet32 of width 1"),
        ([*of_own, "--init", "minute", "--max-parameters", "50000"], "minute is a minutenet of width 1"),
        ([*of_own, "--set", "validation_images=5"], "has 15 validation images already"),
        ([*of_own, "--record"], record),
        (["train", "--init", "minute", "--record"], record),
        (["train", "--max-parameters", "166240", "--record"], record),
        ([*TRAIN, "--out", folder / "text" / "run"], "text"),
        ([*TRAIN, "--seeds", "2", "--out", folder / "text" / "run"], "text"),
        (["explain", trained / "loss.png", "--out", folder / "text" / "x"], "text"),
        (["bench", "train", "nano"], "has a teacher or validation images"),
        (["bench", "train", "teacher"], "has a teacher or validation images"),
        ([*against, "nowhere"], "nowhere is neither a Python interpreter nor a checkout"),
        ([*against, folder], "is neither a Python interpreter nor a checkout"),
        ([*against, folder / "text"], f"text {no_python}"),
        ([*against, shutil.which("true") or ""], f"true {no_python}"),
        ([*against, f"./{folder.name}/python"], f"python {no_python}"),  # not the one in PATH
        (["recipes", "show", "resnet"], "unknown recipe 'resnet'; allowed are: minute"),
        (["recipes", "show", "no.toml"], "no.toml does not exist"),
        (["recipes", "show"], "RECIPE"),
        (["recipes", "--json", "show", "minute"], "put --json after show"),
        (["recipes", "hide"], "hide"),
        (["data", "info", "--data", "nowhere"], "nowhere does not exist"),
        (["data", "info", "--group", "(.)"], "--group is for own data: give --data too"),
        *(
            (["data", "fetch", "--data", source], f"own images need no fetching: run `tinycifar train --data {source}`")
            for source in (own, folder)  # which has an IDX file
        ),
        (["data", "fetch", "--data", ""], "the name of the data is empty"),
        (["train", "--out", ""], "'--out': it is empty; name a file or folder, or . for the current folder"),
        (["train", "--resume", ""], "'--resume': it is empty"),
        (["train", "--init", ""], "the name of a model is empty"),
        (["train", "micro", "--teacher", ""], "the name of a teacher is empty"),
        (["report", ""], "'RUN': it is empty"),
        (["compare", ""], "'RUN...': it is empty"),
        (["evaluate", ""], "the name of a model is empty"),
        (["export", "minute", "--out", ""], "an empty name names a folder; name a file to write"),
        (["export", "minute", "--format", "c", "--out", ""], "--out is empty"),
        (["predict", trained / "loss.png", "--keep", "2"], "right answers to keep lies between 0.5 and 0.99, not 2"),
        (["evaluate", trained, "--keep", "0.9"], "--keep and --threshold need --outside"),
    ]


def test_bad_input_gets_one_line_and_exit_code_2_and_makes_nothing(tinycifar, trained, own, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("text", "python", "train-images-idx3-ubyte"):
        (tmp_path / "folder" / name).write_text("nothing")
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    for words, message in refusals(trained, own, tmp_path / "folder"):
        refused = tinycifar(*words)
        assert refused.code == 2, words
        assert message in refused.err, words
        assert refused.err.count("\n") == 1, words
        assert refused.out == "", words
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before
    assert not (tmp_path / "cache" / cifar10.FOLDER).exists()


@pytest.mark.parametrize(
    ("writes", "code", "message"),
    [
        (0, 2, "tinycifar: No space left on device: run/environment.json\n"),
        (12, 1, "what was saved before is as it was"),  # after the first epoch
    ],
)
def test_a_full_disk_is_told_in_one_line(tinycifar, monkeypatch, writes, code, message):
    real, left = os.fsync, iter(range(writes))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    failed = tinycifar(*TRAIN, "--epochs", "2", "--out", "run")
    assert (failed.code, failed.err.count("\n")) == (code, 1)
    assert message in failed.err


def test_a_report_that_cannot_be_written_costs_nothing_but_the_report(tinycifar, monkeypatch):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save_curves", full)
    done = tinycifar(*ONE_EPOCH, "--out", "run")
    assert (done.code, done.err) == (1, "tinycifar: no report: No space left on device\n")
    assert "Test accuracy" in done.out


def test_a_name_like_markup_is_printed_as_it_is_and_skipping_says_on_which_images_the_train_accuracy_is(tinycifar):
    done = tinycifar(*TRAIN, "--epochs", "2", "--out", "x[red]y:smile:[b]")
    assert done.code == 0
    assert done.out.count("x[red]y:smile:[b]") == 2
    assert "(on the augmented images trained on, 45% of all)" in done.out


def test_evaluating_on_other_data_leaves_the_evaluation_of_the_run_alone(tinycifar, trained):
    before = (trained / "evaluation.json").read_text()
    (trained / "evaluation.json").write_text("mine")
    assert tinycifar("evaluate", trained, "--data", "sample").code == 0
    assert (trained / "evaluation.json").read_text() == "mine"
    (trained / "evaluation.json").write_text("[]")
    assert tinycifar("evaluate", trained).code == 0
    again = json.loads((trained / "evaluation.json").read_text())
    assert again.pop("seen") == {"images": 0, "first": []}  # which training leaves to `evaluate`
    assert again | {"images_per_second": 0} == json.loads(before) | {"images_per_second": 0}


def test_a_record_is_written_for_a_whole_recipe(tinycifar, monkeypatch):
    whole = recipes.with_settings(recipes.get("reference-30"), ["epochs=1"])
    sample = data.sample().limit(32)
    monkeypatch.setitem(recipes.RECIPES, "reference-30", whole)
    monkeypatch.setattr(machine, "git_revision", lambda: "0123abcd")
    monkeypatch.setattr(data, "load", lambda source, **_: sample)
    done = tinycifar("train", "reference-30", "--seed", "3", "--record", "--json")
    record = json.loads(Path("results/reference-30/seed-3.json").read_text())
    assert {"run": done.json["run"], **record} == done.json
    assert (record["git_revision"], record["seed"]) == ("0123abcd", 3)


@pytest.mark.slow
def test_a_student_learns_from_all_seeds_of_its_teacher_and_its_run_remembers_them(tinycifar):
    short = ["--data", "sample", "--epochs", "1", "--limit", "90"]
    held_out = ["--set", "validation_images=30"]
    assert tinycifar("train", "teacher", *short, *held_out, "--seeds", "2", "--out", "teacher").code == 0
    refused = tinycifar("train", "micro", *short)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "tinycifar train teacher" in refused.err
    wrong = tinycifar("train", "micro", *short, "--teacher", "minute")
    assert (wrong.code, "minute is of recipe minute" in wrong.err) == (2, True)
    done = tinycifar("train", "micro", *short, *held_out, "--teacher", "teacher", "--out", "run", "--json")
    digests = [trained_models.load(f"teacher/seed-{seed}").sha256 for seed in (0, 1)]
    told = done.json["teachers"]
    assert [(of["recipe"], of["sha256"], of["seed"]) for of in told] == [
        ("teacher", digest, seed) for seed, digest in enumerate(digests)
    ]
    assert [(of["split"], of["epochs"], of["limit"], "source" in of) for of in told] == [
        ("validation", 1, 90, False)
    ] * 2
    assert "2 models of the recipe teacher" in Path("run/report.html").read_text()
    assert tinycifar("train", "--resume", "run").code == 0
    Path("teacher/seed-1/model.safetensors").unlink()
    lost = tinycifar("train", "--resume", "run")
    assert (lost.code, lost.err.count("\n")) == (2, 1)
    assert "run learned from it; say where it is now with --teacher" in lost.err
    other = tinycifar("train", "--resume", "run", "--teacher", "teacher/seed-0")
    assert (other.code, "trained with different settings: teachers was" in other.err) == (2, True)


def test_a_record_needs_a_teacher_of_an_unchanged_recipe(tinycifar, monkeypatch):
    monkeypatch.setattr(machine, "git_revision", lambda: "0123abcd")
    short = ["--data", "sample", "--epochs", "1", "--limit", "90", "--set", "validation_images=30"]
    assert tinycifar("train", "teacher", *short, "--out", "teacher").code == 0
    done = tinycifar("train", "micro", "--teacher", "teacher", "--record")
    assert (done.code, "--record needs teachers that are whole runs of the unchanged recipe" in done.err) == (2, True)
    Path("teacher/evaluation.json").unlink()
    unfinished = tinycifar("train", "micro", *short, "--teacher", "teacher")
    assert (unfinished.code, "teacher is not finished: run `tinycifar train --resume teacher`" in unfinished.err) == (
        2,
        True,
    )


def test_without_a_teacher_nothing_is_fetched_before_the_recipe_is_refused(tinycifar, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *arguments: pytest.fail("data was loaded"))
    assert tinycifar("train", "nano").code == 2


@contextlib.contextmanager
def training_after_its_first_epoch(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A `tinycifar train` of its own process, with many epochs to go."""
    words = ["train", "--data", "sample", "--epochs", "1000", "--out", str(out)]
    with subprocess.Popen([sys.executable, "-m", "tinycifar", *words], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("Epoch 1/"):
                break
        yield process


@pytest.mark.slow
def test_a_reader_that_goes_away_costs_no_finished_epoch(tmp_path):
    with training_after_its_first_epoch(tmp_path / "run") as process:
        process.stdout.close()
        assert process.wait() == 1
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 2


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
@pytest.mark.slow
def test_a_narrow_terminal_without_colours_and_without_a_home_is_enough(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 40, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    surroundings = {**kept, "HOME": "/nonexistent", "NO_COLOR": "1", "TERM": "xterm"}
    words = ["train", "--data", "sample", "--epochs", "2", "--limit", "64", "--out", str(tmp_path / "ü")]
    command = [sys.executable, "-m", "tinycifar", *words]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=surroundings) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal so
            while part := os.read(ours, 4096):
                shown += part
        assert process.wait() == 0, shown
    os.close(ours)
    assert b"Test accuracy" in shown
    assert b"arning" not in shown
    assert not re.search(rb"\x1b\[[0-9;]*(3|4|9)\d(;|m)", shown)
    assert (tmp_path / "ü" / "report.html").exists()


@pytest.mark.slow
def test_without_a_terminal_there_are_no_control_codes_and_no_folder_is_needed_but_the_runs(tmp_path):
    words = ["train", "--data", "sample", "--epochs", "1", "--limit", "64", "--out", str(tmp_path / "run")]
    surroundings = {**os.environ, "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-m", "tinycifar", *words], capture_output=True, env=surroundings, check=True
    )
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="descriptors are inherited otherwise there")
def test_a_closed_standard_output_is_no_error(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    command = [sys.executable, "-m", "tinycifar", "predict", "x.png"]
    done = subprocess.run(command, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1), check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_an_interrupt_ends_with_exit_code_130_and_says_where_things_lie(tmp_path):
    with training_after_its_first_epoch(tmp_path / "run") as process:
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "Stopped" in rest
    assert str(tmp_path / "run") in rest
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.full_data
def test_the_users_cache_verifies(tinycifar):
    if not (cifar10.cache_directory() / cifar10.FOLDER).exists():
        pytest.skip("CIFAR-10 is not in the cache")
    done = tinycifar("data", "verify", "--json")
    assert done.code == 0
    assert len(done.json["files"]) == 6


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_turns_into_another_error_still_ends_the_command_as_interrupted(
    number, code, monkeypatch, tinycifar
):
    def interrupted(*_: object, **__: object) -> None:
        try:
            signals.end(number, None)
        except BaseException:
            raise AttributeError("module 'numpy' has no attribute 'matrix'") from None  # as when it was being loaded

    monkeypatch.setattr(signals, "ended_by", None)
    monkeypatch.setattr(data, "load", interrupted)
    done = tinycifar("train", "--data", "sample", "--out", "run")
    assert (done.code, done.err) == (code, "tinycifar: interrupted\n")
