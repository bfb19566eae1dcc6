"""One self-contained page about a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import torch
from jinja2 import PackageLoader, StrictUndefined, UndefinedError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinycifar import atomic, heatmaps, inference, metrics, recipes, run, trained, typed
from tinycifar.data import Dataset, cifar10, pictures
from tinycifar.environment import Environment
from tinycifar.epochs import plan
from tinycifar.recipes import Recipe
from tinycifar.report import plots, text
from tinycifar.scores import Scores
from tinycifar.summary import summarize
from tinycifar.words import as_options

MISTAKES = 24


def render(template: str, **content: Any) -> str:
    """A page from a file in `templates/`; every value is escaped unless the template says it is markup.

    Raises KeyError for something that the template uses and `content` lacks.
    """
    environment = jinja2.Environment(
        loader=PackageLoader("tinycifar.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        return environment.get_template(template).render(**content)
    except UndefinedError as error:
        raise KeyError(str(error)) from None


def write(directory: Path, dataset: Dataset | None = None) -> Path:
    """Write `report.html` of a run, from what lies in its directory and the images it was evaluated on; gives its path.

    These are of `dataset`, not split, by default of the data it was trained on; where that is gone, the page has no
    images. Raises ValueError, naming the file, if `directory` is no run directory or a file in it is damaged.
    """
    run.check_is_run(directory)
    with run.as_written(directory):
        page = _page(directory, dataset)
    path = directory / "report.html"
    atomic.write_bytes(path, page.encode())
    return path


def _page(directory: Path, dataset: Dataset | None) -> str:
    recipe, environment = run.read_recipe(directory), run.read_environment(directory)
    history = run.read_metrics(directory)
    evaluation: Scores | None = None
    mistakes: list[dict[str, Any]] = []
    hardest: list[dict[str, Any]] = []
    missing = ""
    if (directory / "evaluation.json").exists():
        evaluation = run.read_evaluation(directory)
        try:
            dataset = _dataset(directory) if dataset is None else dataset.with_channels(recipe.channels)
            mistakes = _mistakes(directory, evaluation, dataset)
            hardest = _hardest(directory, dataset)
        except _MissingError as error:
            missing = str(error)
    classes = 10
    if evaluation is not None:
        classes = len(evaluation.classes)
    elif (directory / "model.safetensors").exists():
        classes = len(trained.load(directory, "cpu").classes)
    many = evaluation is not None and classes > metrics.MANY_CLASSES
    best, worst = metrics.best_and_worst(evaluation.classes) if evaluation is not None else ([], [])
    return render(
        "report.html",
        recipe=recipe,
        environment=environment,
        environment_shown=_without_paths(environment),
        history=history,
        table=summarize(recipe.build(classes)),
        changed=recipes.changed(recipe),
        data=Path(environment.data).name or environment.data,
        classes=classes,
        evaluation=evaluation,
        many=many,
        best=best,
        worst=worst,
        confused=metrics.most_confused(evaluation.confusion) if evaluation is not None and many else [],
        text=text,
        mistakes=mistakes,
        hardest=hardest,
        missing=missing,
        train_seconds=sum(entry["train_seconds"] for entry in history),
        figures=_figures(recipe, environment, history, evaluation),
        recipe_fields=asdict(recipe),
    )


def _figures(
    recipe: Recipe,
    environment: Environment,
    history: Sequence[dict[str, Any]],
    evaluation: Scores | None,
) -> dict[str, dict[str, str]]:
    """The page's figures by name; those that the run lacks data for are left out."""
    figures = {}
    if history:
        for quantity in ("accuracy", "loss"):
            title = f"{quantity.capitalize()} after each epoch"
            figures[quantity] = plots.svg(quantity, plots.curves, history, quantity, title)
    epochs, rates = _learning_rates(recipe, environment.train_images)
    figures["rate"] = plots.svg("rate", plots.learning_rates, epochs, rates)
    if evaluation is not None:
        if len(evaluation.classes) <= metrics.MANY_CLASSES:
            figures["confusion"] = plots.svg("confusion", plots.confusion, evaluation)
        figures["reliability"] = plots.svg("reliability", plots.reliability, evaluation)
        if evaluation.robustness is not None:
            figures["robustness"] = plots.svg("robustness", plots.robustness, evaluation.robustness)
    return figures


def _learning_rates(recipe: Recipe, images: int) -> tuple[list[float], dict[str, list[float]]]:
    """At about 200 steps of a run's schedule: how many epochs have passed, and the rate of each of its optimizers."""
    epochs = plan(recipe, images)
    total = sum(epochs.steps)
    passed = [epoch + step / count for epoch, count in enumerate(epochs.steps) for step in range(count)]
    passed.append(float(recipe.epochs))
    steps = sorted({*range(0, total, max(1, total // 200)), total})
    maxima = {"SGD": recipe.max_learning_rate}
    if recipe.optimizer == "muon":
        maxima["Muon"] = recipe.muon_learning_rate
    rates = {name: [largest * epochs.schedule(step)[0] for step in steps] for name, largest in maxima.items()}
    return [passed[step] for step in steps], rates


def _without_paths(environment: Environment) -> dict[str, Any]:
    """An environment as a page shows it to others: data and models by name, not by where they lie."""
    shown: dict[str, Any] = typed.to_json(environment)
    for model in (*shown["teachers"], shown["init"] or {}):
        for name in ("source", "data"):
            model.pop(name, None)
    return shown | {"data": Path(environment.data).name or environment.data}


class _MissingError(Exception):
    """Images that are not available."""


def _dataset(directory: Path) -> Dataset:
    """What a run was trained on, not split; `_MissingError` where that is gone."""
    model = trained.load(directory, "cpu")
    from_cache = model.data == "cifar10" and not model.data_digest and model.data_path in ("", "cifar10")
    if from_cache and not cifar10.in_cache():  # a report begins no download
        raise _MissingError("CIFAR-10 is not in the cache; `tinycifar data fetch` brings it")
    try:
        return model.dataset()
    except (ValueError, OSError) as error:
        where = model.data_path or model.data
        shown = as_options(str(error)).replace(where, model.data)  # pages are shared
        raise _MissingError(shown) from None


def _mistakes(directory: Path, evaluation: Scores, dataset: Dataset) -> list[dict[str, Any]]:
    """The run's most confident mistakes on the images it was evaluated on, with pictures as data URIs."""
    model = trained.load(directory, "cpu")
    stored = read_logits(directory / "evaluation.safetensors")
    split = evaluation.split
    if split == "validation":
        dataset = dataset.split(model.validation_images)
    _, images, labels = inference.evaluation_split(dataset, test=split == "test")
    names = dataset.names.get(split, ())
    if evaluation.data_digest != dataset.data_digest or not torch.equal(stored["labels"], labels):
        raise ValueError(
            f"{directory / 'evaluation.safetensors'} belongs to other data than `data=` names; name the run's own "
            "data, or evaluate the run again"
        )
    probabilities = (stored["logits"] / (model.temperature or 1)).softmax(1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
    if not len(worst):
        return []
    heats = heatmaps.heat_maps(model.model, images[worst], predicted[worst])
    return [
        {
            "name": names[index] if names else f"#{index}",
            "image": _data_uri(pictures.to_image(images[index])),
            "heat": _data_uri(plots.heat_overlay(pictures.to_image(images[index]), heat)),
            "true": model.classes[int(labels[index])],
            "predicted": model.classes[int(predicted[index])],
            "probability": float(confidence[index]),
        }
        for index, heat in zip(worst.tolist(), heats, strict=True)
    ]


def _hardest(directory: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """The training images with the largest losses, with pictures as data URIs; none if the run stored none."""
    names = dataset.names.get("train", ())
    stored = run.read_hardest(directory)[:MISTAKES]
    if any(not 0 <= index < len(dataset.train_labels) for index, _ in stored):
        raise ValueError(f"{directory / 'hardest.json'} is not of the run's own data; remove it")
    return [
        {
            "name": names[index] if names else f"#{index}",
            "image": _data_uri(pictures.to_image(dataset.train_images[index])),
            "label": dataset.classes[int(dataset.train_labels[index])],
            "loss": loss,
        }
        for index, loss in stored
    ]


def read_logits(path: Path) -> dict[str, Tensor]:
    """The tensors of an `evaluation.safetensors`; ValueError, naming the file, if it is missing or damaged."""
    try:
        tensors = load_file(path)
        return {name: tensors[name] for name in ("logits", "logits_tta", "labels")}
    except (SafetensorError, OSError, KeyError):
        raise ValueError(f"{path} is missing or damaged: evaluate the run again") from None


def _data_uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
