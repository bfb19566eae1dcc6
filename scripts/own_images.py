"""Measure on Fashion-MNIST what the README says of own images; writes `results/fashion-mnist.json`.

`minute` as it is on all 60,000 training images, and 60 epochs of `accuratenet` on 50 images a class, drawn anew for
each seed, in batches of 256: from random weights with the learning rates of `minute`, from random weights with the best
of four pairs of rates on training images that are in none of these (`docs/LOG.md`), and from the weights of the shipped
`accurate` with the rates of `minute`. The test images are opened once for each run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tinycifar import atomic, data, machine, recipes, run, trained, training
from tinycifar.data import Dataset
from tinycifar.epochs import epoch_generator
from tinycifar.recipes import Recipe

PLACE = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
SEEDS = 5
EACH = 50
FEW = replace(recipes.get("minute"), name="few", model="accuratenet", epochs=60, batch_size=256)
# Chosen for random weights on other images, when `minute` had momentum 0.7 and no reduced images.
TUNED = replace(FEW, small_fraction=0.0, max_learning_rate=1.0, muon_learning_rate=0.2, muon_momentum=0.7)
WAYS = {"scratch": (FEW, None), "scratch-tuned": (TUNED, None), "init": (FEW, "accurate")}  # a recipe and where from
TOLD = ("seed", "train_images", "parameters", "test_accuracy", "test_accuracy_tta", "train_seconds")


def few(dataset: Dataset, seed: int) -> Dataset:
    """`EACH` training images of each class, drawn with `seed`, and all test images."""
    order = torch.randperm(len(dataset.train_labels), generator=epoch_generator(seed, 0))
    of_class = [order[dataset.train_labels[order] == label][:EACH] for label in range(len(dataset.classes))]
    rows = torch.cat(of_class)
    return replace(
        dataset,
        train_images=dataset.train_images[rows],
        train_labels=dataset.train_labels[rows],
        names={},
        path="",
        name=f"{EACH} images a class",
    )


def measure(recipe: Recipe, dataset: Dataset, seed: int, init: str | None = None) -> dict[str, Any]:
    """Train once; gives what is told of it."""
    out = Path(tempfile.mkdtemp())
    begun = None if init is None else trained.load(init, "cpu")
    record = training.train(recipe, dataset, out=out, seed=seed, init=begun, device="cpu").record
    shutil.rmtree(out)
    print(f"{dataset.name}, {recipe.name}, from {init}, seed {seed}: {record['test_accuracy']:.2%}", flush=True)
    return {name: record[name] for name in TOLD}


def main() -> None:
    """Write the record, or train once on little where `--quick` asks whether all of it works."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="One seed, one epoch and 2,000 images, and write nothing.")
    quick = parser.parse_args().quick
    seeds = range(1 if quick else SEEDS)
    path = None if quick else run.record_path("", "fashion-mnist", torch.device("cpu"))
    dataset = data.load(PLACE).limit(2_000) if quick else data.load(PLACE)

    def shortened(recipe: Recipe) -> Recipe:
        return replace(recipe, epochs=1) if quick else recipe

    minute = [measure(shortened(recipes.get("minute")), dataset, seed) for seed in seeds]
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in seeds:
        chosen = few(dataset, seed)
        for way, (recipe, init) in WAYS.items():
            runs[way].append(measure(shortened(recipe), chosen, seed, init))
    content = {
        "data": {"name": dataset.name, "digest": dataset.digest, "test_images": len(dataset.test_labels)},
        "minute": minute,
        "few": {
            "images_a_class": EACH,
            **{way: {"recipe": asdict(of), "init": init, "runs": runs[way]} for way, (of, init) in WAYS.items()},
        },
        **machine.measured_on(torch.device("cpu")),
    }
    if path is not None:
        atomic.write_json(path, content)
        print(f"Record: {path}")


if __name__ == "__main__":
    main()
