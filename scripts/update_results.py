"""Write the documents' figures and pictures from the records in `results/`; with `--check`, only compare them.

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
from collections.abc import Callable, Iterable, Sequence
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

from tinycifar.catalog import ARCHITECTURES, shipped
from tinycifar.metrics import mean_interval, wilson_interval
from tinycifar.models import build, written_out
from tinycifar.recipe import INFO, Recipe
from tinycifar.recipes import RECIPES
from tinycifar.report.plots import BLUE, ORANGE, new_axes
from tinycifar.words import counted

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
HEADLINE, REFERENCE = "minute", "reference-30-as-run"
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
Drawing = tuple[Figure, list[Any]]
"""A picture, and all that is drawn in it."""

# --- records ------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, Any]:
    """A record in `results/`."""
    content: dict[str, Any] = json.loads((RESULTS / path).read_text(encoding="utf-8"))
    return content


def records(recipe: str) -> list[dict[str, Any]]:
    """The records of a recipe's runs on a CPU, by seed."""
    paths = sorted((RESULTS / recipe).glob("seed-*.json"), key=lambda path: int(path.stem.removeprefix("seed-")))
    return [read(path) for path in paths]


def benchmarks(folder: str) -> list[dict[str, Any]]:
    """What `tinycifar bench --record` wrote into a folder, one for each processor, each with `processor`, its name.

    The first records are older than the names of processors: the name of their file ends in the instruction set.
    """
    benches = []
    for path in sorted((RESULTS / folder).glob("*.json")):
        bench = read(path)
        unnamed = f"{bench['device'].removeprefix('cpu: ')}, {path.stem.rpartition('-')[2]} (family not recorded)"
        benches.append({"processor": unnamed, **bench})
    return benches


def bench_trains() -> list[dict[str, Any]]:
    """The benchmarks of the default recipe's training, the fastest first."""
    return sorted(benchmarks(f"{HEADLINE}/bench-train"), key=lambda bench: float(bench["train_seconds"]))


def bench_beside(recipe: str) -> dict[str, Any] | None:
    """The benchmark of a recipe on the processor that its runs were recorded on; None if there is none."""
    run = records(recipe)[0]
    names = ("device", "instruction_set")
    benches = benchmarks(f"{recipe}/bench-train")
    return next((bench for bench in benches if all(bench.get(name) == run.get(name) for name in names)), None)


def headline_bench() -> dict[str, Any]:
    """The benchmark of the default recipe on the processor of its records."""
    bench = bench_beside(HEADLINE)
    assert bench is not None, f"{HEADLINE} needs a benchmark on the processor of its records"
    return bench


def original(epochs: int) -> list[dict[str, float]]:
    """The original's log of its run over that many epochs."""
    with (RESULTS / "original" / f"log-{epochs}-epochs.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def published() -> list[dict[str, str]]:
    """What others published, a row each with its source; `macs` may be empty."""
    with (RESULTS / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- numbers and tables -------------------------------------------------------------------------------------------


def accuracies(runs: Iterable[dict[str, Any]]) -> list[float]:
    """The test accuracy of each run."""
    return [run["test_accuracy"] for run in runs]


def mean_of(runs: Iterable[dict[str, Any]], field: str) -> float:
    """The mean of a field."""
    return float(statistics.mean(run[field] for run in runs))


def percent(values: Sequence[float]) -> str:
    """Mean in per cent, with the standard deviation where there are several values."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def interval(values: Sequence[float]) -> str:
    """The 95% interval of the mean, in per cent."""
    low, high = mean_interval(values)
    return f"{100 * low:.2f} to {100 * high:.2f}"


def measured_on(run: dict[str, Any]) -> str:
    """Device, instruction set, threads and version of a measurement."""
    instruction_set = f", {run['instruction_set']}" if run.get("instruction_set") else ""
    device = run["device"].removeprefix("cpu: ")
    return f"{device}{instruction_set}, {counted(run['threads'], 'thread')}, torch {run['torch_version']}"


def rounded(value: float) -> str:
    """A value of at least a tenth with two digits that count."""
    return f"{round(value, 1 - math.floor(math.log10(value))):,.{1 if value < 10 else 0}f}"


def millions(macs: float) -> str:
    """Multiply-accumulates in millions."""
    return f"{macs / 1e6:.1f}M"


def table(heading: str, rows: Iterable[str], *notes: str) -> str:
    """A table in Markdown, of lines with cells between bars, and paragraphs below it."""
    lines = [f"| {line} |" for line in (heading, *rows)]
    lines.insert(1, "|---" * (heading.count("|") + 1) + "|")
    return "\n\n".join(["\n".join(lines), *notes])


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


# --- texts, each a block of a document ----------------------------------------------------------------------------


def headline() -> str:
    """What the default recipe reaches, in which time, and how that compares with the reference."""
    runs, reference, bench = records(HEADLINE), records(REFERENCE), headline_bench()
    processor = bench["processor"].split(" (")[0].replace("(R)", "")
    slowest = bench_trains()[-1]
    others = (
        f" On {slowest['processor']} `minute` takes {slowest['train_seconds']:.0f} seconds."
        if slowest["processor"] != bench["processor"]
        else ""
    )
    return (
        f"**{percent(accuracies(runs))}% on CIFAR-10's test set after {mean_of(runs, 'train_seconds'):.1f} seconds of "
        f"training on two CPU cores, with {runs[0]['parameters']:,} parameters.** This is `{HEADLINE}`, the default "
        f"recipe, on {processor}: mean of {len(runs)} seeds (95% interval {interval(accuracies(runs))}), last "
        f"weights, no test-time augmentation. The reference, the network that tinycifar started from, "
        f"takes {bench['reference_seconds']['float32'] / 60:.1f} minutes there and reaches "
        f"{percent(accuracies(reference))}% ({counted(len(reference), 'seed')}).{others}"
    )


def processors() -> str:
    """What the default recipe takes on each processor that was measured, and how many times the reference takes."""
    return table(
        f"processor | threads, torch | `{HEADLINE}`, seconds | speed-up over the reference in float32 "
        "| in the recipe's own precision | test % | date",
        (
            f"{bench['processor']} | {bench['threads']}, {bench['torch_version']} | {bench['train_seconds']:.1f} "
            f"| {bench['ratios']['float32']:.1f} | {bench['ratios'][bench['precision']]:.1f} in {bench['precision']} "
            f"| {percent(accuracies(bench['runs']))} ({len(bench['runs'])} seeds) | {bench['date'][:10]}"
            for bench in bench_trains()
        ),
        "`tinycifar bench train` measures yours and says how to add it.",
    )


def choices() -> str:
    """Which command gives what: accuracy, size and time of the recipes that a user chooses from."""
    few = read("fashion-mnist.json")["few"]
    rows = []
    for name, wish, command in (
        ("minute", "to see a network learn; a baseline", "tinycifar train"),
        ("nano", "a model for a microcontroller", "tinycifar export nano --format c"),
        ("micro", "the smallest one", "tinycifar export micro --format c"),
        ("accurate", "the most accurate model", "tinycifar predict cat.png"),
    ):
        runs = records(name)
        minutes = mean_of(runs, "train_seconds") / 60
        time = f"{60 * minutes:.0f} s of training" if minutes < 2 else f"shipped; {minutes:.0f} min of training"
        rows.append(
            f"{wish} | `{command}` | {percent(accuracies(runs))}% ({counted(len(runs), 'seed')}), "
            f"{runs[0]['parameters']:,} parameters ({written_out(build(RECIPES[name].model)):,} with mirrored filters "
            f"written out), {millions(runs[0]['macs'])} MACs; {time}"
        )
    runs = few["init"]["runs"]
    rows += [
        "my own classes | `tinycifar train --data photos --init accurate --set model=accuratenet --set batch_size=256 "
        f"--epochs 60` | {percent(accuracies(runs))}% on Fashion-MNIST from {few['images_a_class']} images per class "
        f"({len(runs)} seeds), {mean_of(runs, 'train_seconds'):.0f} s",
        "a web page that classifies | `tinycifar export nano --format web` | runs in the visitor's browser",
        "to know whether A beats B | `tinycifar compare RUN RUN` | a test on the same images, or over seeds",
    ]
    return table("I want | command | CIFAR-10 test accuracy, size, time", rows)


def results() -> str:
    """The result table, our records beside what the original logged, and where they were measured."""
    rows, machines = [], set()
    for name, recipe in RECIPES.items():
        runs = records(name)
        cells = [NOT_MEASURED] + [""] * 5
        if runs:
            names = ("train_accuracy", "test_accuracy", "test_accuracy_tta", "best_test_accuracy")
            scores = [percent([run[field] for run in runs]) if runs[0][field] else "–" for field in names]
            if recipe.validation_images:
                scores[1] = f"not opened; validation {percent([run['validation_accuracy'] for run in runs])}"
            time = f"{mean_of(runs, 'train_seconds') / 60:.1f} min, {mean_of(runs, 'images_per_second'):,.0f} images/s"
            if not recipe.skip_easiest:  # else epochs differ in length
                fastest = min(epoch["train_seconds"] for run in runs for epoch in run["history"])
                time += f"; fastest epoch {fastest:.1f} s"
            cells = [str(len(runs)), *scores, time]
            machines |= {measured_on(run) for run in runs}
        logged = "–"
        if name.endswith("-as-run"):
            log = original(recipe.epochs)
            last, best = log[-1], max(row["test_accuracy"] for row in log)
            logged = ", ".join(f"{100 * value:.2f}" for value in (last["train_accuracy"], last["test_accuracy"], best))
        rows.append(f"`{name}` | {' | '.join(cells)} | {logged}")
    return table(
        "recipe | seeds | train % | test %, last epoch | with flip TTA | best on test¹ | training "
        "| original: train, test, best on test",
        rows,
        "¹ The epoch chosen by its test accuracy, as the original did: shown for comparison only, not a fair score.",
        f"Measured on: {'; '.join(sorted(machines))}. One run over 10,000 images has a standard error of 0.35 points.",
    )


def frontier() -> str:
    """What the most accurate recipes reach at which size, and what that is measured on."""
    lines = []
    for name in ("micro", "nano", "accurate"):
        recipe, runs = RECIPES[name], records(name)
        first, several = runs[0], len(runs) > 1
        if several:
            known = f"mean of {len(runs)} seeds, 95% interval of the mean {interval(accuracies(runs))}"
        else:
            low, high = wilson_interval(round(first["test_accuracy"] * TEST_IMAGES), TEST_IMAGES)
            known = f"one run, 95% interval over the test images {100 * low:.2f} to {100 * high:.2f}"
        bold = "**" if several else ""  # a single seed is no headline
        line = (
            f"- {bold}`{name}`: {percent(accuracies(runs))}% with {first['parameters']:,} parameters and "
            f"{millions(first['macs'])} multiply-accumulates an image{bold} ({known}; last weights, "
            f"no test-time augmentation; {written_out(build(recipe.model)):,} parameters if mirrored filters were "
            f"written out). Training: {mean_of(runs, 'train_seconds') / 60:.0f} minutes"
        )
        if recipe.teacher:
            teachers = first["teachers"]
            minutes = sum(teacher["train_seconds"] for teacher in teachers) / 60
            sizes = [f"{ARCHITECTURES[RECIPES[name].model].parameters:,}" for name in recipe.teachers]
            line += (
                f", after {minutes:.0f} minutes for {counted(len(teachers), 'teacher')} of {' and '.join(sizes)} "
                f"parameters with {percent([teacher['accuracy'] for teacher in teachers])}% on held-out training images"
            )
        lines.append(f"{line}. Measured on: {measured_on(first)}.")
    return "\n".join(lines)


def own_images() -> str:
    """What `minute` reaches on Fashion-MNIST, and what shipped weights do for few images."""
    record = read("fashion-mnist.json")
    runs, few = record["minute"], record["few"]
    scratch, tuned, fine_tuned = (accuracies(few[way]["runs"]) for way in ("scratch", "scratch-tuned", "init"))
    better = max(scratch, tuned, key=statistics.mean)
    gains = [after - before for before, after in zip(better, fine_tuned, strict=True)]
    return (
        f"**`minute` on Fashion-MNIST: {percent(accuracies(runs))}%** on its "
        f"{record['data']['test_images']:,} test images after {mean_of(runs, 'train_seconds'):.1f} seconds of "
        f"training ({len(runs)} seeds; 95% interval of the mean {interval(accuracies(runs))}). **With "
        f"{few['images_a_class']} images per class**, {few['init']['recipe']['epochs']} epochs of "
        f"`{few['init']['recipe']['model']}` reach {percent(fine_tuned)}% from the weights of "
        f"`{few['init']['init']}`, in {mean_of(few['init']['runs'], 'train_seconds'):.0f} seconds. From random weights "
        f"they reach {percent(scratch)}% at the same learning rates and "
        f"{percent(tuned)}% at rates chosen for random weights on other images. The gain over the better of these is "
        f"{100 * statistics.mean(gains):.2f} points ({len(gains)} seeds, each with images of its own; 95% interval "
        f"{interval(gains)}). Measured on: {measured_on(record)}."
    )


def outside() -> str:
    """What thresholds for none of these keep and reject, by score, of `scripts/measure_outside.py`."""
    record = read("outside.json")
    measured = [(f"`{name}`", row) for name, rows in record["shipped"].items() for row in rows]
    note = (
        f"Thresholds keep {record['keep']:.0%} of the right answers on the images that they were chosen on. The "
        "shipped models were trained on all training images, so theirs were chosen on CIFAR-10's test images 0 to "
        "4,999; the table has the other 5,000. In parentheses is the area under the ROC curve between known and "
        "foreign images; 0.5 is chance."
    )
    if held := record.get("held-out"):
        classes = " and ".join(held["classes"])
        measured += [(f"`minute` without {classes}", row) for row in held["rows"]]
        note += (
            f" `minute` without {classes} was trained once, seed 0, on the eight other classes with "
            f"{held['validation_images']:,} validation images, which gave its thresholds; the table has its test "
            f"images, of which it classifies {held['test_accuracy']:.1%} correctly."
        )
    rows = []
    for model, row in measured:
        cells = [row["score"], *(f"{row[key]:.1%}" for key in ("right_kept", "wrong_kept"))]
        for kind in ("fashion-mnist", "held-out classes"):
            cells.append(f"{row[kind]['rejected']:.1%} ({row[kind]['auroc']:.3f})" if kind in row else "")
        rows.append(f"{model} | {' | '.join(cells)}")
    heading = "model | score | right kept | wrong kept | Fashion-MNIST rejected | held-out classes rejected"
    return table(heading, rows, note)


def subsets() -> str:
    """What the shipped weights score on subsets of CIFAR-10's test images."""
    rows = []
    for name, about in shipped().items():
        scored = about.get("test_subsets", {})
        values = [about["test_accuracy"], scored.get("without-near-duplicates"), scored.get("mlperf-tiny")]
        shown = (NOT_MEASURED if value is None else f"{100 * value:.2f}" for value in values)
        rows.append(f"`{name}` | {' | '.join(shown)}")
    return table(
        "weights, seed 0 | 10,000 test images | the 9,714 without near-duplicates in the training set "
        "| MLPerf Tiny's 200",
        rows,
        "Accuracy in %. Of the 200 images one is half a point. `tinycifar evaluate` prints these for every model of "
        "CIFAR-10.",
    )


def sources() -> str:
    """The published models of the picture, with where their figures come from."""
    rows = []
    for row in sorted(published(), key=lambda row: -float(row["test_accuracy"])):
        source, macs = row["source"], millions(float(row["macs"])) if row["macs"] else "not given"
        link = f"[{source.split('/')[3]}]({source})" if source.startswith("https://github.com/") else source
        rows.append(
            f"{row['name']} | {int(row['parameters']):,} | {macs} | {100 * float(row['test_accuracy']):.2f} "
            f"| {row['note']} | {link}"
        )
    return table("published model | parameters | MACs | test % | note | source", rows)


def inference() -> str:
    """What inference costs in each form, ours beside published models, by processor."""
    benches = benchmarks("bench-infer")
    measured: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # by model and form, then by processor
    for bench in benches:
        for row in bench["rows"]:
            measured.setdefault((row["model"], FORMS[row["kind"]]), {})[bench["processor"]] = row
    models, forms = list(dict.fromkeys(model for model, _ in measured)), list(dict.fromkeys(FORMS.values()))
    exported = {
        (row["model"], EXPORTED_FORMS.get(file["form"], "")): file["accuracy"]
        for row in read("exports.json")["rows"]
        for file in row["files"]
    }
    rows = []
    for model, form in sorted(measured, key=lambda key: (models.index(key[0]), forms.index(key[1]))):
        by_processor = measured[model, form]
        *_, known = by_processor.values()
        accuracy = exported.get((model, form)) if known["accuracy"] is None else known["accuracy"]
        shown = NOT_MEASURED if accuracy is None else f"{100 * accuracy:.2f}"
        size = "" if known["bytes"] is None else f"{known['bytes'] / 1000:,.0f} kB"
        times = [
            f"{row['latency_ms']:.2f} ms; {row['images_per_second']:,.0f} images/s" if row else NOT_MEASURED
            for row in (by_processor.get(bench["processor"]) for bench in benches)
        ]
        rows.append(f"`{model}` | {form} | {size} | {shown} | {' | '.join(times)}")
    runtimes = sorted(
        {f"{b['threads']} threads, torch {b['torch_version']}, onnxruntime {b['onnxruntime_version']}" for b in benches}
    )
    return table(
        " | ".join(["model | in | file | test %", *(f"one image; batches of 256: {b['processor']}" for b in benches)]),
        rows,
        f"Medians of {benches[-1]['rounds']} rounds, every model in every form in turn; {'; '.join(runtimes)}. "
        "`resnet8` and `resnet20` have random weights.",
    )


def exports() -> str:
    """What TFLite files and C keep of the accuracy, as `scripts/measure_exports.py` recorded it."""
    record = read("exports.json")
    rows = []
    for row in record["rows"]:
        for file in row["files"]:
            names = ("same_class_in_tflite_micro", "same_logits_in_tflite_micro")
            micro = ", ".join(f"{file[name]:.1%}" for name in names if name in file)
            rows.append(
                f"`{row['model']}` | {file['form']} | {file['bytes'] / 1000:,.0f} kB | {100 * file['accuracy']:.2f} "
                f"| {100 * row['accuracy']:.2f} | {file['same_class_as_pytorch']:.2%} | {micro}"
            )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return table(
        "model | in | size | test % | PyTorch, test % | class as in PyTorch | TFLite Micro: class, logits as in LiteRT",
        rows,
        f"Accuracy on all {record['images']:,} test images, of TFLite in LiteRT; TFLite Micro on the first "
        f"{record['images_in_tflite_micro']:,}. Measured by `scripts/measure_exports.py` with {versions}.",
    )


def boards() -> str:
    """What exported C needs on emulated cores, and TFLite Micro beside it."""
    record, other = read("boards.json"), read("tflite-micro.json")
    names = {
        "nano": "`nano`",
        "micro": "`micro`",
        "nanonet": "`nanonet`, the former `nano`",
        "plainnet": "PlainNet of [EXTENDING](EXTENDING.md)",
        "thousand": "`whitenet`, 1,000 classes",
        "grey": "`nano`, one channel",
    }
    rows = []
    for entry in record["models"]:
        for row in entry["cores"]:
            sizes = " | ".join(f"{row[name]:,}" for name in ("flash_bytes", "ram_bytes", "stack_bytes"))
            rows.append(
                f"{names[entry['model']]} | {row['core']} | {row['instructions'] / 1e6:.2f}M "
                f"| {row['instructions'] / entry['macs']:.2f} | {sizes}"
            )
    former = next(entry for entry in record["models"] if entry["model"] == "nanonet")
    ours = {row["core"]: row["instructions"] for row in former["cores"]}
    shares = [
        f"{row['instructions'] / 1e6:.2f}M on {row['core']}, of which ours needs "
        f"{ours[row['core']] / row['instructions']:.2f}"
        for row in other["rows"]
        if row["model"] == "nano" and row["kernels"] == "CMSIS-NN"
    ]
    low, high = (size // 1000 for size in other["flash_bytes"])
    return table(
        "model | core | instructions per image | per MAC | flash | RAM | stack in it",
        rows,
        "Sizes are bytes. Flash is what the model adds to a program, with the library functions that it uses and "
        "without the names of classes, which this program does not print; RAM is working memory, pixels and stack. "
        "`nanonet`, `whitenet` and `nano` of one channel have random weights. "
        f"Means of {record['images']} images. The logits of all images are equal in every bit on all cores. Compiled "
        f"with `{record['options']}`; {'; '.join(dict.fromkeys(record['tools']))}.",
        f"TFLite Micro with CMSIS-NN needs for `nanonet` {'; '.join(shares)}. It takes {low} to {high} kB of flash "
        f"and {other['ram_bytes'] / 1000:.1f} kB of RAM. This was measured earlier and is quoted; [the "
        "record](../results/tflite-micro.json) has versions and how to reproduce it.",
    )


def board_times() -> str:
    """Arithmetic: instructions of `nano` and `micro` as milliseconds at common clock rates."""
    rates = (64, 120, 480)
    rows = []
    for entry in read("boards.json")["models"][:2]:
        for row in entry["cores"]:
            times = (row["instructions"] / rate / 1e3 for rate in rates)
            cells = [f"`{entry['model']}`", row["core"], *(f"{time:,.0f} to {1.5 * time:,.0f} ms" for time in times)]
            rows.append(" | ".join(cells))
    return table(
        " | ".join(["model", "core", *(f"{rate} MHz" for rate in rates)]),
        rows,
        "**Arithmetic, not measured:** one image at 1 to 1.5 cycles per instruction. Not every core exists at every "
        "clock rate.",
    )


def scale() -> str:
    """What one core and two train and serve."""
    record = read("scale.json")
    ways = list(next(iter(record["training"].values())))
    training = [
        " | ".join([f"`{recipe}`", *(f"{speed:,.0f} ({speed / speeds['2 threads']:.2f})" for speed in speeds.values())])
        for recipe, speeds in record["training"].items()
    ]
    serving = [f"`{model}` | {speed:,.0f}" for model, speed in record["serving"].items()]
    return table(
        " | ".join(["training, images a second", *ways]),
        training,
        table("serving, one process on one core | pictures of 32x32 a second", serving),
        f"In brackets: speed relative to one process with two threads. Medians of {record['rounds']} rounds, all in "
        f"turn; {record['images']:,} images in batches of 250, none left out as easy, "
        f"in the precision that the recipe has here. The service decodes PNG files and is asked over HTTP "
        f"by clients on the other core. Measured on: {measured_on(record)}, {record['date'][:10]}.",
        *["`whitenet` and `nanonet` are the nets that `minute` and `nano` trained then."]
        * ("nanonet" in record["serving"]),
    )


def many_users() -> str:
    """What the measured rates come to for many users, by arithmetic."""
    record = read("scale.json")
    rate, page_mb = record["serving"]["accurate"], record["page_bytes"] / 1e6
    rows = []
    for users in (1_000, 1_000_000, 100_000_000):
        visits = users * PEAK / 86_400
        pictures = visits * PICTURES_A_DAY
        cores = math.ceil(pictures / (rate * LOADED))
        rows.append(f"{users:,} | {rounded(pictures)} | {cores:,} | {rounded(visits * page_mb)}")
    return table(
        "users | pictures a second at the peak | cores for `accurate` over HTTP | or the page: MB a second",
        rows,
        f"Assumed: {PICTURES_A_DAY} pictures a user and day, a peak of {PEAK} times the mean, cores loaded to "
        f"{LOADED:.0%} of the {rate:,.0f} pictures a second above; the page, {page_mb:.1f} MB, fetched once "
        "a user and day.",
    )


def leaderboard() -> str:
    """The recipes whose ten seeds have a mean above 85% for sure, the fastest beside the reference first."""
    entries = [
        (bench, runs)
        for name, recipe in RECIPES.items()
        if not recipe.teacher
        and not recipe.validation_images
        and len(runs := records(name)) >= 10
        and mean_interval(accuracies(runs))[0] > 0.85
        and (bench := bench_beside(name)) is not None
    ]
    rows = []
    for bench, runs in sorted(entries, key=lambda entry: -entry[0]["ratio"]):
        first = runs[0]
        rows.append(
            f"`{first['recipe']}` | {bench['ratio']:.1f}; {bench['ratios'][first['precision']]:.1f} "
            f"| {first['parameters']:,} | {millions(first['macs'])} | {first['precision']} "
            f"| {percent(accuracies(runs))} | {interval(accuracies(runs))} | {mean_of(runs, 'train_seconds'):.1f} "
            f"| {measured_on(first)} | {first['date'][:10]}"
        )
    return table(
        "recipe | times as fast as the reference: float32; own precision | parameters | MACs | precision | test % "
        "| 95% interval of the mean | seconds | machine | date",
        rows,
    )


def others() -> str:
    """What other networks reach on the same cores, as `scripts/measure_others.py` measured it."""
    record = read("others.json")
    minute = record["rows"]["`minute`"]
    rows = []
    for name, row in sorted(record["rows"].items(), key=lambda item: -float(item[1]["test_accuracy"])):
        images = row["images"] / record["train_images"]
        epochs = f"{images:.1f} epochs" if images >= 1 else f"{100 * images:.0f}% of an epoch"
        if row["seconds_to_target"] is not None:
            until = f"{row['seconds_to_target']:.0f}"
            if "recorded_epochs" in row:
                until += f" ({row['recorded_epochs']} epochs)"
            elif "whole_accuracy" in row:
                until += f"; {100 * row['whole_accuracy']:.2f}% in the end"
        elif "whole_accuracy" in row:
            until = f"not reached; {100 * row['whole_accuracy']:.2f}% after {row['whole_seconds']:.0f}"
        elif "seconds_an_epoch" not in row:
            until = "not reached"
        else:
            until = f"not trained so long; an epoch takes {row['seconds_an_epoch']:.0f}"
        rows.append(
            f"{name} | {row['parameters']:,} | {millions(row['macs'])} | {100 * row['test_accuracy']:.2f} ({epochs}) "
            f"| {until}"
        )
    return table(
        f"network | parameters | MACs | test % after {minute['train_seconds']:.0f} seconds "
        f"| seconds until {100 * record['target']:.0f}%",
        rows,
        f"Measured on: {measured_on(record)}, {minute['precision']}.",
    )


def recipe_fields() -> str:
    """Every field of a recipe: its meaning, its allowed values and its default."""
    rows = []
    for field in fields(Recipe):
        info = INFO[field.name]
        default = "" if field.default in (MISSING, None) else f"`{json.dumps(field.default)}`"
        rows.append(f"`{field.name}` | {info.help} | {info.allowed} | {default}")
    return table("field | meaning | allowed | default", rows)


def log_index() -> str:
    """The sections of the log, newest last."""
    text = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    lines = []
    for heading in re.findall(r"^## (.+)$", text, re.M):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        lines.append(f"- [{heading}](#{anchor})")
    return "\n".join(lines)


# --- pictures -----------------------------------------------------------------------------------------------------


def set_logarithmic(axes: Axes, ticks: Sequence[float], unit: str) -> None:
    """A logarithmic horizontal axis with these ticks."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(unit)


def compare_curves(recipe: str) -> Drawing:
    """Accuracy over the epochs, ours (first seed) and the original's."""
    ours = records(recipe)[0]["history"]
    theirs = original(len(ours))
    ends = " and ".join(f"{100 * rows[-1]['test_accuracy']:.2f}%" for rows in (ours, theirs))
    title = f"{recipe}, ours beside the original's log: {ends} on test at the end"
    figure, axes = new_axes(8, 4.5, title, "epoch", "accuracy (%)")
    for label, colour, style, rows in (("ours", BLUE, "-", ours), ("original's log", ORANGE, "--", theirs)):
        epochs = [row["epoch"] for row in rows]
        for split, width in (("test", 2), ("train", 1)):
            values = [100 * row[f"{split}_accuracy"] for row in rows]
            axes.plot(epochs, values, colour, linestyle=style, linewidth=width, label=f"{split}, {label}")
    axes.legend()
    return figure, [title, ours, theirs]


def accuracy_against_seconds() -> Drawing:
    """Test accuracy against seconds of training, the default recipe and the reference.

    The reference's accuracies are those of its recorded run, its seconds those of the steps in the benchmark.
    """
    ends = [(run["train_seconds"], 100 * run["test_accuracy"]) for run in records(HEADLINE)]
    history = records(REFERENCE)[0]["history"]
    epoch_seconds = headline_bench()["reference_seconds"]["float32"] / len(history)
    curve = [(entry["epoch"] * epoch_seconds, 100 * entry["test_accuracy"]) for entry in history]
    title = "CIFAR-10 on two CPU cores: test accuracy against seconds of training"
    figure, axes = new_axes(8, 4.5, title, "seconds of training (logarithmic)", "test accuracy (%)")
    reference_label = f"{REFERENCE}, recorded accuracies at timed rate"
    axes.plot(*zip(*curve, strict=True), ORANGE, marker=".", label=reference_label)
    our_label = f"{HEADLINE}, {len(ends)} seeds at their end"
    axes.plot(*zip(*ends, strict=True), BLUE, marker="o", alpha=0.6, linestyle="", label=our_label)
    axes.axhline(85, color="grey", linewidth=1, linestyle=":", label="85%")
    set_logarithmic(axes, [10, 20, 50, 100, 200, 500, 1000, 2000], "{x:,.0f}")
    axes.set_xlim(10, 1.3 * curve[-1][0])
    axes.legend(loc="center left")
    return figure, [title, ends, curve]


def pareto() -> Drawing:
    """Test accuracy against parameters and against MACs, our best recipe of each model and what others published."""
    best: dict[str, tuple[str, int, int, float]] = {}  # of each model
    for name, recipe in RECIPES.items():
        if (runs := records(name)) and runs[0]["test_accuracy"] is not None:
            accuracy = 100 * statistics.mean(accuracies(runs))
            if recipe.model not in best or accuracy > best[recipe.model][3]:
                label = f"{name} ({counted(len(runs), 'seed')})"
                best[recipe.model] = (label, runs[0]["parameters"], runs[0]["macs"], accuracy)
    ours = list(best.values())
    sizes = [(parameters, written_out(build(model)), accuracy) for model, (_, parameters, _, accuracy) in best.items()]
    shared = [size for size in sizes if size[1] > size[0]]
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
        (panels[1], 1, "multiply-accumulates an image, in millions", [3, 5, 10, 20, 50, 100, 200], "{x:g}"),
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
        set_logarithmic(axes, ticks, unit)
        axes.set_xlim(0.7 * ticks[0], 2.2 * ticks[-1])
        axes.set_xlabel(f"{what} (logarithmic)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.draw_without_rendering()  # the layout, on which the room for names depends
    for axes, named in labels.items():
        name_points(axes, named, shared if axes is panels[0] else [])
    return figure, [title, ours, shared, theirs]


def name_points(
    axes: Axes, points: list[tuple[str, float, float, str]], lines: Sequence[tuple[float, float, float]] = ()
) -> None:
    """Write the name of each point, with its x, y and colour, beside it, if possible where nothing else is.

    `lines` are horizontal ones, from x to x at y.
    """
    taken = [Bbox(axes.transData.transform([(left, y), (right, y)])).padded(2) for left, right, y in lines]
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


def drawn_from(path: Path) -> str | None:
    """The digest that a picture of ours carries; None if there is none."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        digest: str | None = image.info.get("Source")
        return digest


# --- documents ----------------------------------------------------------------------------------------------------

TEXTS = {
    "README.md": (headline, processors, choices),
    "docs/RESULTS.md": (results, frontier, own_images, outside, subsets, sources),
    "docs/EXPORT.md": (inference, exports),
    "docs/EMBEDDED.md": (boards, board_times),
    "docs/LEADERBOARD.md": (leaderboard, processors, others),
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
    pictures: dict[str, Callable[[], Drawing]] = {HEADLINE: accuracy_against_seconds, "pareto": pareto}
    pictures |= {name: partial(compare_curves, name) for name in RECIPES if name.endswith("-as-run") and records(name)}
    for name, draw in pictures.items():
        path = f"docs/images/{name}.png"
        figure, content = draw()
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
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
