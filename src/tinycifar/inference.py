"""From images to logits: the only inference loop, evaluation, and predictions on pictures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn

from tinycifar import atomic, data, metrics, predictions, run, typed
from tinycifar.data import Dataset, duplicates
from tinycifar.evaluation import outside, subsets
from tinycifar.models import Classifier
from tinycifar.scores import Outside, Robustness, Scores, Seen
from tinycifar.trained import Trained, count_seen, rows_seen

MOST_PAIRS = 2_000_000_000  # of images whose hashes are compared: about ten seconds
NAMED = 3  # images that a model was trained on
COMPARED = ("data", "split", "images", "correct", "loss")  # what tells one evaluation from another


def to_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32 from uint8 ones in 0..255; float images are passed through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it is entered a model is in evaluation mode; then it is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def logits(model: Classifier, images: Tensor, *, flip: bool = False, batch_size: int = 500) -> Tensor:
    """Logits of `images`, float32 on the CPU, shape (N, num_classes).

    `images` is (N, C, H, W), uint8 in 0..255 or float in [0, 1], on any device. With `flip` the logits of each image
    and of its mirror image are averaged (test-time augmentation). The model is put in evaluation mode for the call and
    left as it was.
    """
    parts = []
    with evaluating(model):
        for batch in torch.split(images, batch_size):
            batch = to_float(batch.to(model.mean.device)).contiguous(memory_format=torch.channels_last)
            output = model(batch)
            if flip:
                output = (output + model(batch.flip(3))) / 2
            parts.append(output.float().cpu())
    return torch.cat(parts)


def evaluation_split(dataset: Dataset, test: bool = False) -> tuple[str, Tensor, Tensor]:
    """Which images are open for evaluation: "validation" or "test", and their images and labels.

    If a data set has validation images, only they are open, and the test set stays shut unless `test` opens it.
    """
    if not test and dataset.validation_images is not None and dataset.validation_labels is not None:
        return "validation", dataset.validation_images, dataset.validation_labels
    return "test", dataset.test_images, dataset.test_labels


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model on the images open for evaluation.

    `scores` go into `evaluation.json`; `logits` (N, C) and `logits_tta`, averaged over an image and its mirror
    image, are float32, `labels` (N,) int64.
    """

    scores: Scores
    logits: Tensor
    logits_tta: Tensor
    labels: Tensor

    def save(self, directory: Path) -> None:
        """Write `evaluation.json`, and the tensors it was computed from as `evaluation.safetensors`.

        What was measured there on corrupted images before is kept where the rest is as it was.
        """
        scores, path = self.scores, directory / "evaluation.json"
        if scores.robustness is None and path.exists():
            with contextlib.suppress(ValueError):
                earlier = run.read_evaluation(directory)
                if all(getattr(earlier, name) == getattr(scores, name) for name in COMPARED):
                    scores = replace(scores, robustness=earlier.robustness)
        tensors = {"logits": self.logits, "logits_tta": self.logits_tta, "labels": self.labels}
        atomic.write_bytes(directory / "evaluation.safetensors", save(tensors))
        atomic.write_json(path, typed.to_json(scores))


def evaluate(
    model: Classifier, dataset: Dataset, temperature: float | None = None, *, test: bool = False
) -> Evaluation:
    """Score a model on the images that `dataset` opens, or on its `test` images.

    Gives accuracy, with TTA too, errors by class, calibration and speed.

    Of CIFAR-10's test images it also gives the accuracy on each of `tinycifar.evaluation.subsets`.

    On validation images a temperature is fitted, if they say enough (`metrics.tells_temperature`); what it does for
    calibration is told of each half of the images with the temperature of the other half. `kept` are the thresholds of
    `evaluation.outside`. Nothing may be fitted to test images: there it is `temperature`, if given, which must come
    from elsewhere.
    """
    split, images, labels = evaluation_split(dataset, test)
    start = time.perf_counter()
    plain = logits(model, images)
    seconds = time.perf_counter() - start
    flipped = logits(model, images, flip=True)
    tta = metrics.summarize(flipped, labels)
    confusion = metrics.confusion_matrix(plain, labels)
    balanced_accuracy, macro_f1 = metrics.balanced(confusion)
    scaled = None
    if split == "validation":
        temperature = None
        if metrics.tells_temperature(plain, labels):
            temperature = metrics.fit_temperature(plain, labels)
            scaled = metrics.crossfit_temperature(plain, labels)
    elif temperature is not None:
        scaled = plain / temperature
    scores = Scores(
        data=dataset.known or dataset.name,
        data_digest=dataset.data_digest,
        skipped_images=dict(dataset.skipped),
        split=split,
        **vars(metrics.summarize(plain, labels)),
        balanced_accuracy=balanced_accuracy,
        macro_f1=macro_f1,
        accuracy_tta=tta.accuracy,
        loss_tta=tta.loss,
        subsets=subsets.scores(plain, images, labels) if split == "test" else {},
        top2_accuracy=metrics.top_k_accuracy(plain, labels, 2),
        top3_accuracy=metrics.top_k_accuracy(plain, labels, 3),
        brier=metrics.brier_score(plain, labels),
        ece=metrics.expected_calibration_error(plain, labels),
        temperature=temperature,
        near_duplicates=_near_duplicates(dataset, split),
        kept=tuple(outside.thresholds(plain.numpy(), labels.numpy())) if split == "validation" else None,
        calibrated=None if scaled is None else metrics.calibration(scaled, labels),
        images_per_second=len(labels) / seconds,
        classes=metrics.per_class(confusion, dataset.classes),
        confusion=tuple(map(tuple, confusion.tolist())),
        reliability=metrics.reliability(plain, labels),
        reliability_calibrated=None if scaled is None else metrics.reliability(scaled, labels),
    )
    return Evaluation(scores, plain, flipped, labels)


def _near_duplicates(dataset: Dataset, split: str) -> int | None:
    """How many of a split's images look like training images; None for known data and data too large for it."""
    images, known = dataset.images(split), dataset.train_images
    if not dataset.data_digest or images is None or not 0 < len(images) * len(known) <= MOST_PAIRS:
        return None
    return duplicates.near_duplicates(images, known)


def _seen(trained: Trained, dataset: Dataset, split: str) -> Seen | None:
    """How many of a split's images the model was trained on, and the names of the first; None if that is unknown."""
    known = trained.seen()
    if known is None:
        return None
    rows, names = rows_seen(known, dataset.digests(split)), dataset.names.get(split)
    first = [names[row] if names else f"{split} image {row}" for row in rows[:NAMED]]
    return Seen(len(rows), tuple(first))


def robustness(
    model: Classifier, dataset: Dataset, count: int = 2_000, seed: int = 0, *, test: bool = False
) -> Robustness:
    """Accuracy on `count` images, corrupted as in `tinycifar.evaluation.corruptions`.

    They are the first that are open for evaluation, or the first `test` images. The mean is not CIFAR-10-C's: frost of
    its fifteen corruptions is missing, and three of its extra ones are in.
    """
    from tinycifar.evaluation import corruptions  # SciPy's filters take a quarter of a second to load

    _, images, labels = evaluation_split(dataset, test)
    images, labels = images[:count], labels[:count]

    def accuracy(changed: Tensor) -> float:
        return metrics.correct_count(logits(model, changed), labels) / len(labels)

    accuracies = {
        name: tuple(accuracy(corruptions.corrupt(images, name, severity, seed)) for severity in corruptions.SEVERITIES)
        for name in corruptions.CORRUPTIONS
    }
    return Robustness(
        images=len(labels),
        clean_accuracy=accuracy(images),
        mean_corruption_accuracy=sum(map(sum, accuracies.values())) / sum(map(len, accuracies.values())),
        accuracy=accuracies,
    )


def evaluate_model(
    trained: Trained,
    *,
    source: str | Path | Dataset | None = None,
    test: bool = False,
    corrupted: int = 0,
    others: str | Path | None = None,
    keep: float | None = None,
    threshold: float | None = None,
    display: Progress | None = None,
) -> Evaluation:
    """Evaluate a trained model on the images that it opens, and its `robustness` on `corrupted` of them.

    `others` are pictures that belong to none of its classes, as `data.load_pictures` takes them: `outside` in the
    scores says how many are rejected at the `threshold`, or at that which keeps the share `keep` of right answers,
    0.95 by default.

    `source` is a Dataset or as in `tinycifar.data.load`; by default the data it was trained on. Of that a model which
    was trained with validation images opens only these, unless `test` opens the test images. The progress of reading,
    and what is to be told of the data, goes to `display` (default: nowhere). Raises ValueError for data of other
    classes or of another size, and if what it was trained on is gone or has changed.
    """
    if isinstance(source, Dataset):
        dataset = source.with_channels(trained.channels)
        if dataset.image_size != trained.image_size:
            raise ValueError(f"{trained.name} takes images of {trained.image_size} pixels, not of {dataset.image_size}")
    else:
        dataset = trained.dataset(display) if source is None else _load_to_score(trained, source, display)
    if dataset.classes != trained.classes:
        raise ValueError(
            f"{trained.name} knows {several(trained.classes)}, {dataset.name} has {several(dataset.classes)}"
        )
    if display is not None:
        for line in dataset.notes:
            display.console.print(line)
    if not test and trained.trained_on(dataset):
        dataset = dataset.split(trained.validation_images)
    strangers = limit = None
    if others is not None:  # whatever is wrong with them is reported before the evaluation
        keep = 0.95 if keep is None and threshold is None else keep
        if keep is not None:
            outside.check_share(keep)
        if threshold is not None or evaluation_split(dataset, test=test)[0] != "validation":
            limit = outside.chosen(trained.kept, keep, threshold, trained.name)
        strangers = data.load_pictures(others, **vars(trained.form), display=display)
    evaluation = evaluate(trained.model, dataset, trained.temperature, test=test)
    scores = replace(evaluation.scores, seen=_seen(trained, dataset, evaluation.scores.split))
    if strangers is not None:
        name = Path(str(others)).name
        scores = replace(scores, outside=_outside(trained, evaluation, strangers, name, keep, limit))
    if corrupted:
        scores = replace(scores, robustness=robustness(trained.model, dataset, corrupted, test=test))
    return replace(evaluation, scores=scores)


def _outside(
    trained: Trained, known: Evaluation, strangers: Tensor, source: str, keep: float | None, limit: float | None
) -> Outside:
    """What the threshold `limit` does with the known images and with pictures of other kinds; see `evaluation.outside`.

    Without one, each half of the known images is judged at the threshold that keeps the share `keep` of the other half.
    """
    others, values, labels = logits(trained.model, strangers).numpy(), known.logits.numpy(), known.labels.numpy()
    if limit is None:
        assert keep is not None
        return Outside(source=source, keep=keep, **outside.crossfit(values, labels, others, keep, trained.name))
    return Outside(source=source, keep=keep, **outside.compare(values, labels, others, limit))


def _load_to_score(trained: Trained, source: str | Path, display: Progress | None) -> Dataset:
    """The data at `source`, of which all images are opened if it has no test images and the model has seen none.

    It may lack training images and some of the model's classes.
    """
    own = None if str(source) in data.NAMES else data.examine(source)
    if own is None or ({"train", "test"} <= own.splits.keys() and own.classes == trained.classes):
        return data.load(source, **vars(trained.form), display=display)
    scored = data.load_to_score(source, trained.classes, **vars(trained.form), display=display)
    seen = trained.seen()
    may_be_its_own = "train" in own.splits and own.classes == trained.classes
    if may_be_its_own and (seen is None or count_seen(seen, scored.digests("test"))):
        return data.load(source, **vars(trained.form), display=display)
    return scored


def several(classes: Sequence[str]) -> str:
    """So many classes, and what the first ones are."""
    more = ", ..." if len(classes) > 3 else ""
    return f"{len(classes):,} classes ({', '.join(classes[:3])}{more})"


def predict(
    trained: Trained, given: Sequence[Any], top: int = 3, threshold: float | None = None
) -> Iterator[dict[str, Any]]:
    """The `top` most probable classes of each picture, at the model's temperature; see `predictions.predict`."""

    def computed(images: predictions.Array) -> predictions.Array:
        return logits(trained.model, torch.from_numpy(images)).numpy()

    return predictions.predict(trained, given, computed, top, threshold)
