"""Write the README's figures and pictures from the records in `results/`; with `--check`, only say whether they are.

Exit code 1 if a check finds one that is stale.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from tinycifar.catalog import shipped
from tinycifar.metrics import mean_interval, wilson_interval
from tinycifar.models import build, written_out
from tinycifar.recipe import INFO, Recipe
from tinycifar.recipes import RECIPES
from tinycifar.report.plots import BLUE, ORANGE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
HEADLINE, REFERENCE = "minute", "reference-30-as-run"
FRONTIER = ("nano", "accurate")
TEST_IMAGES = 10_000
NOT_MEASURED = "not measured"
# Of the arithmetic in docs/SCALE.md: what is assumed of users, and how full a core may be so that answers stay quick.
PICTURES_A_DAY, PEAK, LOADED = 10, 5, 0.5
FORMS = {
    "eager": "PyTorch",
    "onnx": "ONNX",
    "int8-u8s7": "int8 ONNX",
    "int8-u8u8": "int8 ONNX, u8u8",
    "int8-s8s8": "int8 ONNX, s8s8",
    "int8": "int8 ONNX, u8u8",  # as records of version 0.1.0 call them
    "int8-signed": "int8 ONNX",
    "tflite": "TFLite",
    "tflite-int8": "int8 TFLite",
}
EXPORTED_FORMS = {"TFLite int8": "int8 TFLite", "TFLite float32": "TFLite"}  # by their names in exports.json


def records(recipe: str) -> list[dict[str, Any]]:
    """The records of a recipe's runs on a CPU, by seed."""
    paths = sorted((RESULTS / recipe).glob("seed-*.json"), key=lambda path: int(path.stem.removeprefix("seed-")))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def bench_trains(recipe: str) -> dict[str, dict[str, Any]]:
    """What `tinycifar bench train RECIPE --record` recorded, by processor, the fastest first.

    The first record is older than the names of processors: it says neither family nor instruction set, the latter is
    the end of its file's name.
    """
    benches = {}
    for path in sorted((RESULTS / recipe / "bench-train").glob("*.json")):
        bench = json.loads(path.read_text(encoding="utf-8"))
        instruction_set = f"{path.stem.rpartition('-')[2]} (family not recorded)"
        benches[bench.get("processor", f"{bench['device'].removeprefix('cpu: ')}, {instruction_set}")] = bench
    return dict(sorted(benches.items(), key=lambda entry: entry[1]["train_seconds"]))


def bench_beside(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The benchmark of a recipe on the processor that its runs were recorded on; None if there is none."""
    names = ("device", "instruction_set")
    benches = bench_trains(runs[0]["recipe"]).values()
    return next((b for b in benches if all(b.get(name) == runs[0].get(name) for name in names)), None)


def original(epochs: int) -> list[dict[str, float]]:
    """The original's log of its run over that many epochs."""
    with (RESULTS / "original" / f"log-{epochs}-epochs.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def percent(values: list[float]) -> str:
    """Mean in per cent, with the standard deviation where there are several values."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def place(run: dict[str, Any]) -> str:
    """Where something was measured."""
    instruction_set = f", {run['instruction_set']}" if run.get("instruction_set") else ""
    device = run["device"].removeprefix("cpu: ")
    return f"{device}{instruction_set}, {run['threads']} threads, torch {run['torch_version']}"


def mean_of(runs: list[dict[str, Any]], field: str) -> float:
    """The mean of a field; 0 where there is no run."""
    return statistics.mean(run[field] for run in runs) if runs else 0.0


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Mean test accuracy with its spread and interval, in per cent, and mean seconds, as they are printed."""
    accuracies = [run["test_accuracy"] for run in runs]
    low, high = mean_interval(accuracies)
    return {
        "mean": f"{100 * statistics.mean(accuracies):.2f}",
        "deviation": f"{100 * statistics.stdev(accuracies):.2f}",
        "interval": f"{100 * low:.2f} to {100 * high:.2f}",
        "worst": f"{100 * min(accuracies):.2f}",
        "seconds": f"{mean_of(runs, 'train_seconds'):.1f}",
        "wall": f"{mean_of(runs, 'wall_seconds'):.0f}",
    }


def headline() -> str:
    """What the default recipe reaches, in which time, and how that compares with the reference."""
    runs, reference = records(HEADLINE), records(REFERENCE)
    scores, bench = over_seeds(runs), bench_beside(runs)
    assert bench is not None, f"{HEADLINE} needs a benchmark on the processor of its records"
    benches = bench_trains(HEADLINE)
    processor = next(name for name, entry in benches.items() if entry == bench).split(" (")[0].replace("(R)", "")
    slowest, entry = list(benches.items())[-1]
    others = "" if entry == bench else f" On {slowest} `minute` takes {entry['train_seconds']:.0f} seconds."
    return (
        f"**{scores['mean']} ± {scores['deviation']}% on CIFAR-10's test set after {scores['seconds']} seconds of "
        f"training on two CPU cores, with {runs[0]['parameters']:,} parameters.** This is `{HEADLINE}`, the default "
        f"recipe, on {processor}: mean of {len(runs)} seeds (95% interval {scores['interval']}), last "
        f"weights, no test-time augmentation. The reference, the network that tinycifar started from, "
        f"takes {bench['reference_seconds']['float32'] / 60:.1f} minutes there and reaches "
        f"{percent([run['test_accuracy'] for run in reference])}% ({seeds(reference)}).{others}"
    )


def seeds(runs: list[dict[str, Any]]) -> str:
    """How many seeds a figure comes from."""
    return f"{len(runs)} seed{'s' * (len(runs) != 1)}"


def choices() -> str:
    """Which command gives what: accuracy, size and time of the recipes that a user chooses from."""
    few = json.loads((RESULTS / "fashion-mnist.json").read_text(encoding="utf-8"))["few"]
    lines = ["| I want | command | CIFAR-10 test accuracy, size, time |", "|---|---|---|"]
    for name, wish, command in (
        ("minute", "to see a network learn; a baseline", "tinycifar train"),
        ("nano", "a model for a microcontroller", "tinycifar export nano --format c"),
        ("accurate", "the most accurate model", "tinycifar predict cat.png"),
    ):
        runs = records(name)
        first, minutes = runs[0], mean_of(runs, "train_seconds") / 60
        time = f"{60 * minutes:.0f} s of training" if minutes < 2 else f"shipped; {minutes:.0f} min of training"
        lines.append(
            f"| {wish} | `{command}` | {percent([run['test_accuracy'] for run in runs])}% ({seeds(runs)}), "
            f"{first['parameters']:,} parameters ({written_out(build(RECIPES[name].model)):,} with mirrored filters "
            f"written out), {first['macs'] / 1e6:.1f}M MACs; {time} |"
        )
    accuracies = [run["test_accuracy"] for run in few["init"]["runs"]]
    lines += [
        "| my own classes | `tinycifar train --data photos --init accurate --set model=accuratenet --epochs 60` "
        f"| {percent(accuracies)}% on Fashion-MNIST from {few['images_a_class']} images per class "
        f"({len(accuracies)} seeds), {mean_of(few['init']['runs'], 'train_seconds'):.0f} s |",
        "| a web page that classifies | `tinycifar export nano --format web` | runs in the visitor's browser |",
        "| to know whether A beats B | `tinycifar compare RUN RUN` | a test on the same images, or over seeds |",
    ]
    return "\n".join(lines)


def frontier() -> str:
    """What the most accurate recipes reach at which size, and what that is measured on."""
    lines = []
    for name in FRONTIER:
        recipe, runs = RECIPES[name], records(name)
        if not runs:
            lines.append(f"- `{name}`: {NOT_MEASURED}.")
            continue
        first, accuracies = runs[0], [run["test_accuracy"] for run in runs]
        if len(runs) > 1:
            low, high = mean_interval(accuracies)
            known = f"mean of {len(runs)} seeds, 95% interval of the mean {100 * low:.2f} to {100 * high:.2f}"
        else:
            low, high = wilson_interval(round(accuracies[0] * TEST_IMAGES), TEST_IMAGES)
            known = f"one run, 95% interval over the test images {100 * low:.2f} to {100 * high:.2f}"
        size = f"{first['parameters']:,} parameters and {first['macs'] / 1e6:.1f}M multiply-accumulates an image"
        bold = "**" if len(runs) > 1 else ""  # a single seed is no headline
        text = (
            f"- {bold}`{name}`: {percent(accuracies)}% with {size}{bold} ({known}; last weights, "
            f"no test-time augmentation; {written_out(build(recipe.model)):,} parameters if mirrored filters were "
            f"written out). "
            f"Training: {mean_of(runs, 'train_seconds') / 60:.0f} minutes"
        )
        if recipe.teacher:
            teachers = first["teachers"]
            minutes = sum(teacher["train_seconds"] for teacher in teachers) / 60
            held_out = percent([teacher["accuracy"] for teacher in teachers])
            size = f"{sum(p.numel() for p in build(RECIPES[recipe.teacher].model).parameters()):,} parameters"
            text += (
                f", after {minutes:.0f} minutes for its teachers: {len(teachers)} models of {size} with "
                f"{held_out}% on held-out training images"
            )
        lines.append(f"{text}. Measured on: {place(first)}.")
    return "\n".join(lines)


def subsets() -> str:
    """What the shipped weights score on subsets of CIFAR-10's test images."""
    lines = [
        "| weights, seed 0 | 10,000 test images | the 9,714 without near-duplicates in the training set "
        "| MLPerf Tiny's 200 |",
        "|---|---|---|---|",
    ]
    for name, about in shipped().items():
        found = about.get("test_subsets", {})
        cells = [about["test_accuracy"], *(found.get(subset) for subset in ("without-near-duplicates", "mlperf-tiny"))]
        shown = (NOT_MEASURED if cell is None else f"{100 * cell:.2f}" for cell in cells)
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    note = "Accuracy in %. Of the 200 images one is half a point."
    return "\n".join([*lines, "", f"{note} `tinycifar evaluate` prints these for every model of CIFAR-10."])


def bench_infers() -> list[dict[str, Any]]:
    """What `tinycifar bench infer --record` recorded, a processor each; the first record says no instruction set."""
    benches = []
    for path in sorted((RESULTS / "bench-infer").glob("*.json")):
        bench = json.loads(path.read_text(encoding="utf-8"))
        unnamed = f"{bench['device'].removeprefix('cpu: ').replace('(R)', '')}, {path.stem.rpartition('-')[2]}"
        benches.append({**bench, "processor": bench.get("processor", unnamed)})
    return benches


def inference() -> str:
    """What inference costs in each form, ours beside published models, by processor."""
    benches = bench_infers()
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # by model and form, then by processor
    for bench in benches:
        for row in bench["rows"]:
            rows.setdefault((row["model"], FORMS[row["kind"]]), {})[bench["processor"]] = row
    models, forms = list(dict.fromkeys(model for model, _ in rows)), list(dict.fromkeys(FORMS.values()))
    exported = {
        (row["model"], EXPORTED_FORMS.get(file["form"], "")): file["accuracy"]
        for row in json.loads((RESULTS / "exports.json").read_text(encoding="utf-8"))["rows"]
        for file in row["files"]
    }
    lines = [
        "| model | in | file | test % |" + "".join(f" one image; batches of 256: {b['processor']} |" for b in benches),
        "|---|---|---|---|" + "---|" * len(benches),
    ]
    for model, form in sorted(rows, key=lambda key: (models.index(key[0]), forms.index(key[1]))):
        measured = rows[model, form]
        *_, known = measured.values()
        size = "" if known["bytes"] is None else f"{known['bytes'] / 1000:,.0f} kB"
        right = exported.get((model, form)) if known["accuracy"] is None else known["accuracy"]
        accuracy = NOT_MEASURED if right is None else f"{100 * right:.2f}"
        cells = [
            f"{row['latency_ms']:.2f} ms; {row['images_per_second']:,.0f} images/s" if row else NOT_MEASURED
            for row in (measured.get(bench["processor"]) for bench in benches)
        ]
        lines.append(f"| `{model}` | {form} | {size} | {accuracy} | {' | '.join(cells)} |")
    runtimes = sorted(
        {f"{b['threads']} threads, torch {b['torch_version']}, onnxruntime {b['onnxruntime_version']}" for b in benches}
    )
    return "\n".join(
        [
            *lines,
            "",
            textwrap.fill(
                f"Medians of {benches[-1]['rounds']} rounds, every model in every form in turn; {'; '.join(runtimes)}. "
                "`resnet8` and `resnet20` have random weights.",
                100,
                break_on_hyphens=False,
            ),
        ]
    )


def exports() -> str:
    """What TFLite files and C keep of the accuracy, as `scripts/measure_exports.py` recorded it."""
    record = json.loads((RESULTS / "exports.json").read_text(encoding="utf-8"))
    lines = [
        "| model | in | size | test % | PyTorch, test % | class as in PyTorch "
        "| TFLite Micro: class, logits as in LiteRT |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        for file in row["files"]:
            micro = (
                f"{file['same_class_in_tflite_micro']:.1%}, {file['same_logits_in_tflite_micro']:.1%}"
                if "same_class_in_tflite_micro" in file
                else ""
            )
            lines.append(
                f"| `{row['model']}` | {file['form']} | {file['bytes'] / 1000:,.0f} kB | {100 * file['accuracy']:.2f} "
                f"| {100 * row['accuracy']:.2f} | {file['same_class_as_pytorch']:.2%} | {micro} |"
            )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Accuracy on all {record['images']:,} test images, of TFLite in LiteRT; TFLite Micro on the first "
            f"{record['images_in_tflite_micro']:,}.",
            textwrap.fill(f"Measured by `scripts/measure_exports.py` with {versions}.", 100, break_on_hyphens=False),
        ]
    )


def boards() -> str:
    """What exported C needs on emulated cores, and TFLite Micro beside it."""
    record = json.loads((RESULTS / "boards.json").read_text(encoding="utf-8"))
    other = json.loads((RESULTS / "tflite-micro.json").read_text(encoding="utf-8"))
    names = {
        "nano": "`nano`",
        "plainnet": "PlainNet of [EXTENDING](EXTENDING.md)",
        "thousand": "`whitenet`, 1,000 classes",
        "grey": "`nano`, one channel",
    }
    lines = [
        "| model | core | instructions per image | per MAC | flash | RAM | stack in it |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in record["models"]:
        for row in entry["cores"]:
            instructions = row["instructions"]
            sizes = " | ".join(f"{row[name]:,}" for name in ("flash_bytes", "ram_bytes", "stack_bytes"))
            lines.append(
                f"| {names[entry['model']]} | {row['core']} | {instructions / 1e6:.2f}M "
                f"| {instructions / entry['macs']:.2f} | {sizes} |"
            )
    ours = {row["core"]: row["instructions"] for row in record["models"][0]["cores"]}
    shares = [
        f"{row['instructions'] / 1e6:.2f}M on {row['core']}, of which ours needs "
        f"{ours[row['core']] / row['instructions']:.2f}"
        for row in other["rows"]
        if row["model"] == "nano" and row["kernels"] == "CMSIS-NN"
    ]
    low, high = (bytes_ // 1000 for bytes_ in other["flash_bytes"])
    return "\n".join(
        [
            *lines,
            "",
            "Sizes are bytes. Flash is what the model adds to a program, with the library functions that it",
            "uses and without the names of classes, which this program does not print;",
            f"RAM is working memory, pixels and stack. Means of {record['images']} images. The logits of all",
            f"images are equal in every bit on all cores. Compiled with `{record['options']}`;",
            ";\n".join(dict.fromkeys(record["tools"])) + ".",
            "",
            f"TFLite Micro with CMSIS-NN needs {shares[0]};",
            f"{shares[1]}. It takes {low} to {high} kB of",
            f"flash and {other['ram_bytes'] / 1000:.1f} kB of RAM for `nano`. This was measured earlier and is quoted;",
            "[the record](../results/tflite-micro.json) has versions and how to reproduce it.",
        ]
    )


def board_times() -> str:
    """Arithmetic: instructions of `nano` as milliseconds at common clock rates."""
    record = json.loads((RESULTS / "boards.json").read_text(encoding="utf-8"))
    rates = (64, 120, 480)
    lines = [f"| core | {' | '.join(f'{rate} MHz' for rate in rates)} |", "|---|---|---|---|"]
    for row in record["models"][0]["cores"]:
        cells = (
            f"{row['instructions'] / rate / 1e3:,.0f} to {1.5 * row['instructions'] / rate / 1e3:,.0f} ms"
            for rate in rates
        )
        lines.append(f"| {row['core']} | {' | '.join(cells)} |")
    note = (
        "**Arithmetic, not measured:** one image of `nano` at 1 to 1.5 cycles per instruction. Not every core exists at"
    )
    return "\n".join([*lines, "", f"{note}\nevery clock rate."])


def own_images() -> str:
    """What `minute` reaches on Fashion-MNIST, and what shipped weights do for few images."""
    path = RESULTS / "fashion-mnist.json"
    if not path.exists():
        return f"Fashion-MNIST: {NOT_MEASURED}."
    measured = json.loads(path.read_text(encoding="utf-8"))
    runs, few = measured["minute"], measured["few"]
    low, high = mean_interval([run["test_accuracy"] for run in runs])
    ways = ("scratch", "scratch-tuned", "init")
    plain, tuned, fine_tuned = ([run["test_accuracy"] for run in few[way]["runs"]] for way in ways)
    better = max(plain, tuned, key=statistics.mean)
    gains = [after - before for before, after in zip(better, fine_tuned, strict=True)]
    least, most = mean_interval(gains)
    seconds = mean_of(few["init"]["runs"], "train_seconds")
    return (
        f"**`minute` on Fashion-MNIST: {percent([run['test_accuracy'] for run in runs])}%** on its "
        f"{measured['data']['test_images']:,} test images after {mean_of(runs, 'train_seconds'):.1f} seconds of "
        f"training ({len(runs)} seeds; 95% interval of the mean {100 * low:.2f} to {100 * high:.2f}). **With "
        f"{few['images_a_class']} images per class**, {few['init']['recipe']['epochs']} epochs of "
        f"`{few['init']['recipe']['model']}` reach {percent(fine_tuned)}% from the weights of "
        f"`{few['init']['init']}`, in {seconds:.0f} seconds. From random weights "
        f"they reach {percent(plain)}% at the same learning rates and "
        f"{percent(tuned)}% at rates chosen for random weights on other images. The gain over the better of these is "
        f"{100 * statistics.mean(gains):.2f} points ({len(gains)} seeds, each with images of its own; 95% interval "
        f"{100 * least:.2f} to {100 * most:.2f}). Measured on: {place(measured)}."
    )


def outside() -> str:
    """What thresholds for none of these keep and reject, by score, of `scripts/measure_outside.py`."""
    record = json.loads((RESULTS / "outside.json").read_text(encoding="utf-8"))
    parts = [(f"`{name}`", row) for name, rows in record["shipped"].items() for row in rows]
    text = (
        f"Thresholds keep {record['keep']:.0%} of the right answers on the images that they were chosen on. The "
        "shipped models were trained on all training images, so theirs were chosen on CIFAR-10's test images 0 to "
        "4,999; the table has the other 5,000. In parentheses is the area under the ROC curve between known and "
        "foreign images; 0.5 is chance."
    )
    if held := record.get("held-out"):
        classes = " and ".join(held["classes"])
        parts += [(f"`minute` without {classes}", row) for row in held["rows"]]
        text += (
            f" `minute` without {classes} was trained once, seed 0, on the eight other classes with "
            f"{held['validation_images']:,} validation images, which gave its thresholds; the table has its test "
            f"images, of which it classifies {held['test_accuracy']:.1%} correctly."
        )
    lines = [
        "| model | score | right kept | wrong kept | Fashion-MNIST rejected | held-out classes rejected |",
        "|---|---|---|---|---|---|",
    ]
    for model, row in parts:
        shares = [f"{row[key]:.1%}" for key in ("right_kept", "wrong_kept")]
        for key in ("fashion-mnist", "held-out classes"):
            shares.append(f"{row[key]['rejected']:.1%} ({row[key]['auroc']:.3f})" if key in row else "")
        lines.append(f"| {model} | {row['score']} | {' | '.join(shares)} |")
    return wrapped("\n".join([*lines, "", text]))


def scale() -> str:
    """What one core and two train and serve."""
    path = RESULTS / "scale.json"
    if not path.exists():
        return f"One core: {NOT_MEASURED}."
    found = json.loads(path.read_text(encoding="utf-8"))
    ways = list(next(iter(found["training"].values())))
    lines = [f"| training, images a second | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    for recipe, speeds in found["training"].items():
        cells = (f"{speed:,.0f} ({speed / speeds['2 threads']:.2f})" for speed in speeds.values())
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    lines += ["", "| serving, one process on one core | pictures of 32x32 a second |", "|---|---|"]
    lines += [f"| `{model}` | {speed:,.0f} |" for model, speed in found["serving"].items()]
    return "\n".join(
        [
            *lines,
            "",
            f"In brackets: speed relative to one process with two threads. Medians of {found['rounds']} rounds, all in "
            f"turn; {found['images']:,} images in batches of 250, none left out as easy, "
            f"in the precision that the recipe has here. The service decodes PNG files and is asked over HTTP "
            f"by clients on the other core. Measured on: {place(found)}, {found['date'][:10]}.",
        ]
    )


def many_users() -> str:
    """What the measured rates come to for many users, by arithmetic."""
    path = RESULTS / "scale.json"
    if not path.exists():
        return f"The arithmetic: {NOT_MEASURED}."
    found = json.loads(path.read_text(encoding="utf-8"))
    rate, page = found["serving"]["accurate"], found["page_bytes"] / 1e6
    lines = [
        "| users | pictures a second at the peak | cores for `accurate` over HTTP | or the page: MB a second |",
        "|---|---|---|---|",
    ]
    for users in (1_000, 1_000_000, 100_000_000):
        visits = users * PEAK / 86_400
        pictures = visits * PICTURES_A_DAY
        cores = math.ceil(pictures / (rate * LOADED))
        lines.append(f"| {users:,} | {rounded(pictures)} | {cores:,} | {rounded(visits * page)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Assumed: {PICTURES_A_DAY} pictures a user and day, a peak of {PEAK} times the mean, cores loaded to "
            f"{LOADED:.0%} of the {rate:,.0f} pictures a second above; the page, {page:.1f} MB, fetched once "
            "a user and day.",
        ]
    )


def rounded(value: float) -> str:
    """A value of at least a tenth with two digits that count."""
    return f"{round(value, 1 - math.floor(math.log10(value))):,.{1 if value < 10 else 0}f}"


def leaderboard() -> str:
    """The recipes whose ten seeds have a mean above 85% for sure, the fastest beside the reference first."""
    lines = [
        "| recipe | times as fast as the reference: float32; own precision | parameters | MACs | precision | test % "
        "| 95% interval of the mean | seconds | machine | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    entries = [
        (bench, runs)
        for name, recipe in RECIPES.items()
        if not recipe.teacher
        and not recipe.validation_images
        and len(runs := records(name)) >= 10
        and mean_interval([run["test_accuracy"] for run in runs])[0] > 0.85
        and (bench := bench_beside(runs)) is not None
    ]
    for bench, runs in sorted(entries, key=lambda entry: -entry[0]["ratio"]):
        summary, first = over_seeds(runs), runs[0]
        lines.append(
            f"| `{first['recipe']}` | {bench['ratio']:.1f}; {bench['ratios'][first['precision']]:.1f} "
            f"| {first['parameters']:,} | {first['macs'] / 1e6:.1f}M | {first['precision']} "
            f"| {summary['mean']} ± {summary['deviation']} | {summary['interval']} | {summary['seconds']} "
            f"| {place(first)} | {first['date'][:10]} |"
        )
    return "\n".join(lines)


def processors() -> str:
    """What the default recipe takes on each processor that was measured, and how many times the reference takes."""
    lines = [
        f"| processor | threads, torch | `{HEADLINE}`, seconds | speed-up over the reference in float32 "
        "| in the recipe's own precision | test % | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, bench in bench_trains(HEADLINE).items():
        accuracies = [run["test_accuracy"] for run in bench["runs"]]
        own = bench["precision"]
        lines.append(
            f"| {name} | {bench['threads']}, {bench['torch_version']} | {bench['train_seconds']:.1f} "
            f"| {bench['ratios']['float32']:.1f} | {bench['ratios'][own]:.1f} in {own} "
            f"| {percent(accuracies)} ({len(accuracies)} seeds) | {bench['date'][:10]} |"
        )
    return "\n".join([*lines, "", "`tinycifar bench train` measures yours and says how to add it."])


def table() -> str:
    """The result table, our records beside what the original logged, and where they were measured."""
    lines = [
        "| recipe | seeds | train % | test %, last epoch | with flip TTA | best on test¹ | training "
        "| original: train, test, best on test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    places = set()
    for name, recipe in RECIPES.items():
        runs = records(name)
        cells = [NOT_MEASURED] + [""] * 5
        if runs:
            fields = ("train_accuracy", "test_accuracy", "test_accuracy_tta", "best_test_accuracy")
            scores = [percent([run[field] for run in runs]) if runs[0][field] else "–" for field in fields]
            if recipe.validation_images:
                scores[1] = f"not opened; validation {percent([run['validation_accuracy'] for run in runs])}"
            minutes, speed = mean_of(runs, "train_seconds") / 60, mean_of(runs, "images_per_second")
            time = f"{minutes:.1f} min, {speed:,.0f} images/s"
            if not recipe.skip_easiest:  # else epochs differ in length
                fastest = min(epoch["train_seconds"] for run in runs for epoch in run["history"])
                time += f"; fastest epoch {fastest:.1f} s"
            cells = [str(len(runs)), *scores, time]
            places |= {place(run) for run in runs}
        logged = "–"
        if name.endswith("-as-run"):
            log = original(recipe.epochs)
            best = max(row["test_accuracy"] for row in log)
            logged = f"{100 * log[-1]['train_accuracy']:.2f}, {100 * log[-1]['test_accuracy']:.2f}, {100 * best:.2f}"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {logged} |")
    lines += [
        "",
        "¹ The epoch chosen by its test accuracy, as the original did: shown for comparison only, not a fair score.",
        "",
    ]
    lines += [
        f"Measured on: {'; '.join(sorted(places))}. One run over 10,000 images has a standard error of 0.35 points."
    ]
    return "\n".join(lines)


def compare_curves(recipe: str) -> tuple[Figure, str]:
    """Accuracy over the epochs, ours (first seed) and the original's; and a digest of all that was drawn."""
    ours = records(recipe)[0]["history"]
    theirs = original(len(ours))
    ends = " and ".join(f"{100 * rows[-1]['test_accuracy']:.2f}%" for rows in (ours, theirs))
    title = f"{recipe}, ours beside the original's log: {ends} on test at the end"
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, colour, style, rows in (("ours", BLUE, "-", ours), ("original's log", ORANGE, "--", theirs)):
        epochs = [row["epoch"] for row in rows]
        for split, width in (("test", 2), ("train", 1)):
            values = [100 * row[f"{split}_accuracy"] for row in rows]
            axes.plot(epochs, values, colour, linestyle=style, linewidth=width, label=f"{split}, {label}")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure, hashlib.sha256(json.dumps([title, ours, theirs]).encode()).hexdigest()


def accuracy_against_seconds() -> tuple[Figure, str]:
    """Test accuracy against seconds of training, the default recipe and the reference; and a digest of all drawn.

    The reference's accuracies are those of its recorded run, its seconds those of the steps in the benchmark.
    """
    runs = records(HEADLINE)
    bench = bench_beside(runs)
    assert bench is not None, f"{HEADLINE} needs a benchmark on the processor of its records"
    ends = [(run["train_seconds"], 100 * run["test_accuracy"]) for run in runs]
    history = records(REFERENCE)[0]["history"]
    epoch_seconds = bench["reference_seconds"]["float32"] / len(history)
    curve = [(entry["epoch"] * epoch_seconds, 100 * entry["test_accuracy"]) for entry in history]
    title = "CIFAR-10 on two CPU cores: test accuracy against seconds of training"
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*curve, strict=True), ORANGE, marker=".", label=f"{REFERENCE}, recorded accuracies at timed rate")
    axes.plot(
        *zip(*ends, strict=True),
        BLUE,
        marker="o",
        alpha=0.6,
        linestyle="",
        label=f"{HEADLINE}, {len(ends)} seeds at their end",
    )
    axes.axhline(85, color="grey", linewidth=1, linestyle=":", label="85%")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([10, 20, 50, 100, 200, 500, 1000, 2000]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(10, 1.3 * curve[-1][0])
    axes.set_title(title)
    axes.set_xlabel("seconds of training (logarithmic)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure, hashlib.sha256(json.dumps([title, ends, curve]).encode()).hexdigest()


def published() -> list[dict[str, str]]:
    """What others published, a row each with its source; `macs` may be empty."""
    with (RESULTS / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sources() -> str:
    """The published models of the picture, with where their figures come from."""
    lines = ["| published model | parameters | MACs | test % | note | source |", "|---|---|---|---|---|---|"]
    for row in sorted(published(), key=lambda row: -float(row["test_accuracy"])):
        macs = f"{float(row['macs']) / 1e6:.1f}M" if row["macs"] else "not given"
        where = row["source"]
        where = f"[{where.split('/')[3]}]({where})" if where.startswith("https://github.com/") else where
        lines.append(
            f"| {row['name']} | {int(row['parameters']):,} | {macs} | {100 * float(row['test_accuracy']):.2f} "
            f"| {row['note']} | {where} |"
        )
    return "\n".join(lines)


def pareto() -> tuple[Figure, str]:
    """Test accuracy against parameters and against MACs, our best recipe of each model and what others published.

    And a digest of all that is drawn.
    """
    best: dict[str, tuple[str, int, int, float]] = {}  # of each model
    shared: list[tuple[int, int, float]] = []
    for name, recipe in RECIPES.items():
        if (runs := records(name)) and runs[0]["test_accuracy"] is not None:
            accuracy = 100 * statistics.mean(run["test_accuracy"] for run in runs)
            label = f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)})"
            if recipe.model not in best or accuracy > best[recipe.model][3]:
                best[recipe.model] = (label, runs[0]["parameters"], runs[0]["macs"], accuracy)
    ours = list(best.values())
    for model, (_, parameters, _, accuracy) in best.items():
        if (plain := written_out(build(model))) > parameters:
            shared.append((parameters, plain, accuracy))
    theirs = [
        (row["name"], int(row["parameters"]), int(row["macs"] or 0), 100 * float(row["test_accuracy"]))
        for row in published()
    ]
    title = "CIFAR-10: test accuracy against size, without test-time augmentation"
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    labels: dict[Axes, list[tuple[str, float, float, str]]] = {axes: [] for axes in panels}
    for axes, column, what, ticks, unit in (
        (panels[0], 0, "parameters", [20_000, 50_000, 100_000, 200_000, 500_000], "{x:,.0f}"),
        (panels[1], 1, "multiply-accumulates an image, in millions", [5, 10, 20, 50, 100, 200], "{x:g}"),
    ):
        for entries, colour, marker, who in ((theirs, ORANGE, "s", "published"), (ours, BLUE, "o", "ours")):
            points = [
                (name, (parameters, macs / 1e6)[column], accuracy)
                for name, parameters, macs, accuracy in entries
                if (parameters, macs)[column]
            ]
            filled = colour if who == "ours" else "none"
            axes.plot(*zip(*(point[1:] for point in points), strict=True), marker, color=colour, mfc=filled, label=who)
            labels[axes] += [(*point, colour) for point in points]
        if column == 0:
            for parameters, plain, accuracy in shared:
                axes.plot([parameters, plain], [accuracy] * 2, BLUE, marker="|", alpha=0.5, linewidth=1)
            axes.lines[-1].set_label("ours, to the size with mirrored filters written out")
            axes.axvline(200_000, color="grey", linewidth=1, linestyle=":", label="200,000 parameters")
        axes.set_xscale("log")
        axes.set_xlim(0.7 * ticks[0], 2.2 * ticks[-1])
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(unit)
        axes.set_xlabel(f"{what} (logarithmic)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.draw_without_rendering()  # the layout, on which the room for names depends
    for axes, named in labels.items():
        name_points(axes, named)
    return figure, hashlib.sha256(json.dumps([title, ours, shared, theirs]).encode()).hexdigest()


def name_points(axes: Axes, points: list[tuple[str, float, float, str]]) -> None:
    """Write the name of each point, with its x, y and colour, beside it, if possible where nothing else is."""
    taken = []
    for _, x, y, _ in points:
        left, low = axes.transData.transform((x, y))
        taken.append(Bbox.from_bounds(left - 6, low - 6, 12, 12))
    for name, x, y, colour in points:
        text = axes.annotate(name, (x, y), (6, 3), textcoords="offset points", fontsize=8, color=colour)
        text.set_in_layout(False)
        for right, up in product((6, -6), (3, -9, 9, -15, 15, -21)):
            text.set_position((right, up))
            text.set_horizontalalignment("left" if right > 0 else "right")
            box = text.get_window_extent()
            inside = (
                axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
            )
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def recipe_fields() -> str:
    """Every field of a recipe: its meaning, its allowed values and its default."""
    lines = ["| field | meaning | allowed | default |", "|---|---|---|---|"]
    for field in fields(Recipe):
        info = INFO[field.name]
        default = "" if field.default in (MISSING, None) else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{field.name}` | {info.help} | {info.allowed} | {default} |")
    return "\n".join(lines)


def drawn_from(path: Path) -> str | None:
    """The digest that a picture of ours carries; None if there is none."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        digest: str | None = image.info.get("Source")
        return digest


def wrapped(text: str) -> str:
    """Text with lines of prose of at most 100 characters; tables stay as they are."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith("|") or not line:
            lines.append(line)
        else:
            indent = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def log_index() -> str:
    """The sections of the log, newest last."""
    text = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    lines = []
    for heading in re.findall(r"^## (.+)$", text, re.M):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        lines.append(f"- [{heading}](#{anchor})")
    return "\n".join(lines)


TEXTS = {
    "README.md": (headline, processors, choices),
    "docs/RESULTS.md": (table, frontier, own_images, outside, subsets, sources),
    "docs/EXPORT.md": (inference, exports),
    "docs/EMBEDDED.md": (boards, board_times),
    "docs/LEADERBOARD.md": (leaderboard, processors),
    "docs/SCALE.md": (scale, many_users),
    "docs/RECIPES.md": (recipe_fields,),
    "docs/LOG.md": (log_index,),
}


def main(arguments: list[str] | None = None) -> int:
    """Update, or with `--check` compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for path, blocks in TEXTS.items():
        text = fresh = (ROOT / path).read_text(encoding="utf-8")
        for block in blocks:
            begin, end = f"<!-- {block.__name__}: written by `make results` -->", f"<!-- {block.__name__} end -->"
            head, rest = fresh.split(begin)
            fresh = f"{head}{begin}\n{wrapped(block())}\n{end}{rest.split(end)[1]}"
        if fresh != text:
            stale.append(path)
            if not check:
                (ROOT / path).write_text(fresh, encoding="utf-8")
    pictures: dict[str, Callable[[], tuple[Figure, str]]] = {HEADLINE: accuracy_against_seconds, "pareto": pareto}
    pictures |= {name: partial(compare_curves, name) for name in RECIPES if name.endswith("-as-run") and records(name)}
    for name, draw in pictures.items():
        path = f"docs/images/{name}.png"
        figure, digest = draw()
        if drawn_from(ROOT / path) != digest:
            stale.append(path)
            if not check:
                (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(ROOT / path, dpi=110, metadata={"Source": digest})
    for path in stale:
        print(f"{path}: {'differs from results/; run `make results`' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
