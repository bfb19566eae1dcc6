"""What an evaluation found: the content of `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tinycifar import typed


@dataclass(frozen=True)
class Accuracy:
    """Images and how many of them are right, with a 95% Wilson interval and the mean cross-entropy in nats."""

    images: int
    correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float


@dataclass(frozen=True)
class Calibration:
    """How reliable probabilities are: NLL in nats, Brier score and ECE, all better if lower."""

    loss: float
    brier: float
    ece: float


@dataclass(frozen=True)
class ClassScores:
    """Images of a class, precision, recall and F1; 0 instead of 0 / 0."""

    name: str = field(metadata=typed.key("class"))
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Images whose predicted class has a probability in one interval, with their mean confidence and accuracy."""

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Robustness:
    """Accuracy on corrupted images: by corruption at severities 1 to 5, their mean, and without corruption."""

    images: int
    clean_accuracy: float
    mean_corruption_accuracy: float
    accuracy: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Seen:
    """How many of the images the model was trained on, and the names of the first."""

    images: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Outside:
    """What a threshold for "none of these" keeps of the `images`, and rejects of `outside` pictures from `source`.

    `keep` is the share of right answers to keep that gave the threshold; None if it was given as a value. `right_kept`
    and `wrong_kept` are shares of right and wrong answers, None without any, `outside_rejected` that of the pictures
    outside. `auroc`, from 0 to 1, is how often a known image scores above one of these; see `evaluation.outside`.
    """

    source: str
    keep: float | None
    threshold: float
    images: int
    right: int
    right_kept: float | None
    wrong_kept: float | None
    outside: int
    outside_rejected: float
    auroc: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a model on the images of a split, "validation" or "test".

    `data` is the name of the data, `data_digest` the digest of own data; `skipped_images` counts unreadable files by
    reason. `subsets` are parts of CIFAR-10's test images. `calibrated` and `reliability_calibrated` are at
    `temperature`, None without one. `confusion` has the true classes as rows. Files of earlier versions lack some
    of the fields that have a default. `near_duplicates` of the images look like training images, `kept` are the
    thresholds of `evaluation.outside`.
    """

    data: str
    data_digest: str = ""
    skipped_images: Mapping[str, int] = field(default_factory=dict, metadata=typed.OMIT_EMPTY)
    split: str
    images: int
    correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    accuracy_tta: float
    loss_tta: float | None = None
    subsets: Mapping[str, Accuracy] = field(default_factory=dict)
    top2_accuracy: float
    top3_accuracy: float
    brier: float
    ece: float
    temperature: float | None = None
    near_duplicates: int | None = field(default=None, metadata=typed.OMIT_EMPTY)
    kept: tuple[float, ...] | None = field(default=None, metadata=typed.OMIT_EMPTY)
    calibrated: Calibration | None = None
    images_per_second: float
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]
    reliability_calibrated: tuple[Bin, ...] | None = None
    seen: Seen | None = field(default=None, metadata=typed.OMIT_EMPTY)
    outside: Outside | None = field(default=None, metadata=typed.OMIT_EMPTY)
    robustness: Robustness | None = field(default=None, metadata=typed.OMIT_EMPTY)
