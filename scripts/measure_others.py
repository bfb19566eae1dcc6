"""Measure what else could run on these cores beside `minute`; writes `results/others.json`.

Each network trains in tinycifar's own loop and in the precision of `minute`: the reference, ResNet-18 as most tutorials
train it (SGD, cosine, crops and flips), and a network like that of airbench94_muon. First `minute` is trained as it is.
Then every other network gets as many images as it can take in the same time, with a whole schedule over them, and is
tested. Last it is trained with its own schedule, and if it does not reach 85% then with one twice as long, tested after
every epoch, to see when it passes 85%; a schedule that would take longer than `--give-up` seconds is not trained. The
reference has records of its own schedule: the epoch in which they pass 85% and the time of an epoch here give the
seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinycifar import atomic, augment, data, machine, memory, models, recipes, run, training
from tinycifar.augment import Parameters, Translation
from tinycifar.data import Dataset
from tinycifar.recipes import Recipe

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.85
TIMED_STEPS = 4


class CropAndFlip(Translation):
    """Shifts by up to `most` pixels, and every second image mirrored."""

    def draw(self, count: int, generator: torch.Generator) -> Parameters:
        """Draw the shifts, and who is mirrored."""
        return super().draw(count, generator) | {"flipped": torch.rand(count, generator=generator) < 0.5}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Images (B, C, H, W), uint8 -> float32 in [0, 1]."""
        return augment.flip(super().apply(images, parameters), parameters["flipped"])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            *models.norm_act(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return functional.relu(self.layers(inputs) + self.shortcut(inputs))


class ResNet18(models.Classifier):
    """ResNet-18 with a 3x3 stem for images of 32x32 pixels."""

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        counts = [models.scaled(channels, width) for channels in (64, 64, 128, 256, 512)]
        blocks = []
        for level, (before, channels) in enumerate(pairwise(counts)):
            blocks += [BasicBlock(before, channels, 1 if level == 0 else 2), BasicBlock(channels, channels, 1)]
        super().__init__(
            nn.Conv2d(3, counts[0], 3, padding=1, bias=False),
            *models.norm_act(counts[0]),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(counts[-1], num_classes),
        )


class AirbenchLike(models.Classifier):
    """A whitening 2x2 stem and six 3x3 convolutions, as wide as in airbench94_muon (Jordan 2024, arXiv:2404.00498)."""

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        stem = nn.Conv2d(3, 24, 2, bias=False)
        stem.weight.requires_grad_(False)
        counts = [24, *(models.scaled(channels, width) for channels in (64, 256, 256))]
        layers: list[nn.Module] = [stem, nn.GELU()]
        for before, channels in pairwise(counts):
            first = nn.Conv2d(before, channels, 3, padding=1, bias=False)
            second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            nn.init.dirac_(first.weight[:before].detach())
            nn.init.dirac_(second.weight.detach())
            layers += [first, nn.MaxPool2d(2), nn.BatchNorm2d(channels), nn.GELU()]
            layers += [second, nn.BatchNorm2d(channels), nn.GELU()]
        super().__init__(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(counts[-1], num_classes))

    def prepare(self, images: Tensor) -> None:
        """Set the filters of the stem: principal components of 2x2 patches, each of variance 1, and their negatives."""
        patches = functional.unfold(self.normalize(images[:5_000] / 255), 2).transpose(1, 2).flatten(0, 1)
        variances, components = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
        filters = (components / (variances + 5e-4).sqrt()).T.view(-1, 3, 2, 2).float()
        stem = self[0]
        assert isinstance(stem, nn.Conv2d)
        with torch.no_grad():
            stem.weight.copy_(torch.cat([filters, -filters]))


models.MODELS |= {"resnet18": ResNet18, "airbench-like": AirbenchLike}
augment.AUGMENTATIONS["crop-and-flip"] = lambda image_size, mean: CropAndFlip(4)
_MINUTE = recipes.get("minute")
REFERENCE = "reference-30-as-run"
OTHERS = {
    "the reference": replace(recipes.get(REFERENCE), precision="auto"),
    "ResNet-18": Recipe(
        "resnet18",
        model="resnet18",
        epochs=30,
        augmentation="crop-and-flip",
        max_learning_rate=0.1,
        warmup_fraction=0.05,
        base_momentum=0.9,
        max_momentum=0.9,
        precision="auto",
    ),
    "like airbench94_muon": replace(
        _MINUTE,
        name="airbench-like",
        model="airbench-like",
        epochs=1,
        augmentation="crop-and-flip",
        batch_size=125,
        skip_easiest=0.0,
        small_fraction=0.0,
    ),
}


def train(recipe: Recipe, dataset: Dataset, limit: int | None = None) -> dict[str, Any]:
    """Train with seed 0: the run's record."""
    with tempfile.TemporaryDirectory() as folder:
        record = training.train(recipe, dataset, out=Path(folder) / "run", device="cpu", limit=limit).record
    seconds, accuracy = record["train_seconds"], record["test_accuracy"]
    print(
        f"{recipe.name}, {recipe.epochs} x {record['train_images']:,} images: {accuracy:.2%} after {seconds:.1f} s",
        flush=True,
    )
    return record


def seconds_an_image(recipe: Recipe, dataset: Dataset) -> float:
    """The training time of an image, by a few steps after one that is not counted."""
    short = replace(recipe, epochs=1, watch_test=False)
    with tempfile.TemporaryDirectory() as folder:
        first, all_of_them = (
            training.train(
                short, dataset, out=Path(folder) / str(steps), limit=steps * recipe.batch_size, evaluate=False
            ).record["train_seconds"]
            for steps in (1, 1 + TIMED_STEPS)
        )
    return max(float(all_of_them - first), 1e-9) / (TIMED_STEPS * recipe.batch_size)


def seconds_to_target(record: dict[str, Any]) -> float | None:
    """The training time until the end of the first epoch with `TARGET` on the test images; None if none has it."""
    seconds = 0.0
    for entry in record["history"]:
        seconds += float(entry["train_seconds"])
        if entry["test_accuracy"] >= TARGET:
            return seconds
    return None


def measure(recipe: Recipe, dataset: Dataset, budget: float, give_up: float) -> dict[str, Any]:
    """What the recipe reaches within `budget` seconds, and when its own schedule passes the target."""
    total = len(dataset.train_labels)
    each = seconds_an_image(recipe, dataset)
    images = max(int(budget / each), 2 * recipe.batch_size)
    epochs, limit = max(1, round(images / total)), min(images, total)
    short = train(replace(recipe, epochs=epochs, watch_test=False), dataset, limit)
    row = described(short) | {"images": epochs * limit, "seconds_an_epoch": each * total, "seconds_to_target": None}
    if recipe.name == REFERENCE:
        recorded = atomic.read_json(ROOT / "results" / REFERENCE / "seed-0.json")["history"]
        epoch = next(entry["epoch"] for entry in recorded if entry["test_accuracy"] >= TARGET)
        return row | {"seconds_to_target": epoch * each * total, "recorded_epochs": epoch}
    if each * total * recipe.epochs > give_up:
        return row
    whole = train(replace(recipe, watch_test=True), dataset)
    if whole["test_accuracy"] < TARGET:
        whole = train(replace(recipe, epochs=2 * recipe.epochs, watch_test=True), dataset)
    return row | {
        "seconds_to_target": seconds_to_target(whole),
        "whole_seconds": whole["train_seconds"],
        "whole_accuracy": whole["test_accuracy"],
    }


def described(record: dict[str, Any]) -> dict[str, Any]:
    """What of a run's record goes into a row."""
    return {name: record[name] for name in ("parameters", "macs", "precision", "train_seconds", "test_accuracy")}


def main() -> None:
    """Train all of them, and write the record; with `--quick` little is trained and nothing written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--give-up", type=float, default=3600, help="Longest own schedule to train, in seconds.")
    parser.add_argument("--quick", action="store_true", help="A few steps of each on little, and write nothing.")
    options = parser.parse_args()
    path = None if options.quick else run.record_path("", "others", torch.device("cpu"))
    measured_on = machine.measured_on(torch.device("cpu"))
    memory.keep_freed()
    dataset = data.load("sample" if options.quick else "cifar10")
    if options.quick:
        images, labels = dataset.train_images.repeat(7, 1, 1, 1), dataset.train_labels.repeat(7)
        dataset = replace(dataset, train_images=images, train_labels=labels, names={})
    minute = train(replace(recipes.get("minute"), watch_test=True), dataset)
    budget, give_up = (1.0, 0.0) if options.quick else (minute["train_seconds"], options.give_up)
    rows = {name: measure(recipe, dataset, budget, give_up) for name, recipe in OTHERS.items()}
    rows["`minute`"] = described(minute) | {
        "images": round(minute["images_per_second"] * minute["train_seconds"]),
        "seconds_to_target": seconds_to_target(minute),
    }
    content = {"target": TARGET, "train_images": len(dataset.train_labels), "rows": rows, **measured_on}
    if path is not None:
        atomic.write_json(path, content)
        print(f"Record: {path}")


if __name__ == "__main__":
    main()
