"""Keep a recorded run in the repository, so that it can teach without being trained again: `keep_run.py RUN`.

It goes to `results/RECIPE/seed-N/`, without checkpoints and without what says where things lay on the machine. Refused
unless its recipe is unchanged and its accuracy that of its record in `results/`, which only whole runs have.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from ship import PATHS, ROOT
from tinycifar import atomic, recipes, run, typed

FILES = ("recipe.json", "metrics.jsonl", "evaluation.json", "model.safetensors", run.SEEN)


def keep(directory: Path) -> Path:
    """Copy the run; gives its new directory. ValueError says why it is not fit."""
    recipe, environment = run.read_recipe(directory), run.read_environment(directory)
    if not recipes.same(recipe, recipes.get(recipe.name)):
        raise ValueError(f"{directory} changed its recipe")
    kept = ROOT / "results" / recipe.name / f"seed-{environment.seed}"
    record = atomic.read_json(kept.with_suffix(".json"))
    accuracy = record["validation_accuracy"] if recipe.validation_images else record["test_accuracy"]
    if run.read_evaluation(directory).accuracy != accuracy:
        raise ValueError(f"{directory} does not have the accuracy of its record, {accuracy}")
    kept.mkdir()
    for name in FILES:
        shutil.copyfile(directory / name, kept / name)
    content = {name: value for name, value in typed.to_json(environment).items() if name not in PATHS}
    atomic.write_json(kept / "environment.json", content)
    return kept


def main() -> int:
    """Keep the run that the argument names; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    try:
        print(keep(parser.parse_args().run))
    except (OSError, ValueError) as error:
        print(f"keep_run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
