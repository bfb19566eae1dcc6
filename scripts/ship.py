"""Put a trained run's weights into the package: `ship.py RUN TWIN`.

RUN is a run of an unchanged recipe, TWIN one of the same recipe and seed with 5,000 validation images, from which the
temperature is taken. Refused unless RUN is seed 0, so that no seed is chosen by its test accuracy, and unless it gives
what its record in `results/` says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinycifar import atomic, catalog, recipes, run, trained, typed
from tinycifar.summary import summarize

ROOT = Path(__file__).resolve().parents[1]
VALIDATION_IMAGES = 5_000
PATHS = ("command", "platform", "teachers")  # what says where things lay on the machine, of no use to others


def ship(directory: Path, twin: Path) -> dict[str, Any]:
    """Write weights and their JSON; gives the latter. ValueError says why a run is not fit."""
    recipe = run.read_recipe(directory)
    if not recipes.same(recipe, recipes.get(recipe.name)):
        raise ValueError(f"{directory} changed its recipe")
    environment, evaluation = run.read_environment(directory), run.read_evaluation(directory)
    record = atomic.read_json(ROOT / "results" / recipe.name / "seed-0.json")
    if (environment.seed, evaluation.accuracy) != (0, record["test_accuracy"]):
        raise ValueError(f"{directory} is not seed 0 with the test accuracy of its record, {record['test_accuracy']}")
    if not recipes.same(run.read_recipe(twin), replace(recipe, validation_images=VALIDATION_IMAGES)):
        raise ValueError(f"{twin} is not the same recipe with {VALIDATION_IMAGES} validation images")
    held_out, of_twin = run.read_evaluation(twin), run.read_environment(twin)
    digests = [
        [teacher.sha256 for teacher in environment.teachers],
        [teacher.sha256 for teacher in of_twin.teachers],
        [teacher["sha256"] for teacher in record.get("teachers", [])],
    ]
    if not digests[0] == digests[1] == digests[2]:
        raise ValueError(f"{directory}, its record and {twin} do not have the same teachers")
    images = 50_000 - VALIDATION_IMAGES
    if (of_twin.seed, of_twin.data, of_twin.train_images) != (0, "cifar10", images):
        raise ValueError(f"{twin} is not of seed 0 on {images} images of CIFAR-10")
    if (held_out.split, len(run.read_metrics(twin))) != ("validation", recipe.epochs):
        raise ValueError(f"{twin} was not trained to its end and evaluated on its validation images")

    model = trained.load(directory, "cpu")
    catalog.WEIGHTS.mkdir(exist_ok=True)
    file = catalog.WEIGHTS / f"{recipe.name}.safetensors"
    trained.save_weights(
        file,
        model.model,
        model_name=model.model_name,
        recipe=recipe.name,
        classes=model.classes,
        data=model.data,
        validation_images=0,
        temperature=held_out.temperature,
    )
    table = summarize(model.model)
    content = {
        "model": model.model_name,
        "parameters": table.parameters,
        "macs": table.macs,
        "classes": list(model.classes),
        "test_accuracy": evaluation.accuracy,
        "test_accuracy_interval": list(evaluation.accuracy_interval),
        "test_subsets": {name: subset.accuracy for name, subset in evaluation.subsets.items()},
        "temperature": held_out.temperature,
        "temperature_from": {
            "validation_images": VALIDATION_IMAGES,
            "validation_accuracy": held_out.accuracy,
            "ece": held_out.ece,
            "ece_calibrated": held_out.calibrated.ece if held_out.calibrated else None,
        },
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "recipe": asdict(recipe),
        "teachers": record.get("teachers", []),
        "environment": {name: value for name, value in typed.to_json(environment).items() if name not in PATHS},
    }
    atomic.write_json(file.with_suffix(".json"), content)
    return content


def main() -> int:
    """Ship the runs that the arguments name; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("twin", type=Path)
    arguments = parser.parse_args()
    try:
        print(json.dumps(ship(arguments.run, arguments.twin), indent=2))
    except (OSError, ValueError) as error:
        print(f"ship: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
