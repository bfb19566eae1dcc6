#!/usr/bin/env bash
# APS and RAPS of puncc are conformal classifiers: their sets of classes hold the right one with a probability of at
# least 1-alpha, however many images are predicted. The number of classes in a set is cut to the number of images in
# the call of `predict` (`pred_len`, where the number of classes is meant), without a message. Images that come one by
# one, as on a device, in a service or in a loop, get sets of the most probable class alone, or empty ones, and the
# coverage is the accuracy of the net at best, whatever alpha is. With as many images as classes or more, as in the
# examples and when the coverage is measured, all is right: the sets are those of Angelopoulos et al. (2021), computed
# in NumPy. LAC of the same package gives the same sets for any number of images.
# The images here are the probabilities of ten classes that a net would give, and the labels are drawn from them.
#
# Seen with puncc 0.9.3, scikit-learn 1.5.2 and numpy 1.26.4, Python 3.11, alpha 0.1, 1,000 images for calibration:
#   the most probable class is right in 0.558
#   LAC, 600 at a time               coverage 0.925, sets of 3.60 classes on average, 7 at most
#   LAC, 5 at a time                 coverage 0.925, sets of 3.60 classes on average, 7 at most
#   LAC, 3 at a time                 coverage 0.925, sets of 3.60 classes on average, 7 at most
#   LAC, 2 at a time                 coverage 0.925, sets of 3.60 classes on average, 7 at most
#   LAC, 1 at a time                 coverage 0.925, sets of 3.60 classes on average, 7 at most
#   APS, definition                  coverage 0.958, sets of 5.09 classes on average, 9 at most
#   APS, 600 at a time               coverage 0.958, sets of 5.09 classes on average, 9 at most
#   APS, 5 at a time                 coverage 0.943, sets of 4.43 classes on average, 5 at most
#   APS, 3 at a time                 coverage 0.858, sets of 2.94 classes on average, 3 at most
#   APS, 2 at a time                 coverage 0.775, sets of 1.99 classes on average, 2 at most
#   APS, 1 at a time                 coverage 0.558, sets of 1.00 classes on average, 1 at most
#   RAPS, definition                 coverage 0.952, sets of 4.76 classes on average, 6 at most
#   RAPS, 600 at a time              coverage 0.952, sets of 4.76 classes on average, 6 at most
#   RAPS, 5 at a time                coverage 0.948, sets of 4.61 classes on average, 5 at most
#   RAPS, 3 at a time                coverage 0.858, sets of 3.00 classes on average, 3 at most
#   RAPS, 2 at a time                coverage 0.775, sets of 2.00 classes on average, 2 at most
#   RAPS, 1 at a time                coverage 0.558, sets of 1.00 classes on average, 1 at most
#   APS, randomised, 600 at a time   coverage 0.933, sets of 4.02 classes on average, 7 at most
#   APS, randomised, 5 at a time     coverage 0.928, sets of 3.83 classes on average, 5 at most
#   APS, randomised, 3 at a time     coverage 0.852, sets of 2.80 classes on average, 3 at most
#   APS, randomised, 2 at a time     coverage 0.772, sets of 1.96 classes on average, 2 at most
#   APS, randomised, 1 at a time     coverage 0.558, sets of 1.00 classes on average, 1 at most
# Exit code 0 while the sets are cut so, 1 otherwise.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "puncc==0.9.3" "scikit-learn==1.5.2" "numpy==1.26.4" "pandas==3.0.6"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
from deel.puncc.api.prediction import BasePredictor
from deel.puncc.classification import APS, LAC, RAPS

CLASSES, ALPHA, BATCHES = 10, 0.1, (600, 5, 3, 2, 1)
generator = np.random.default_rng(0)


class Given(BasePredictor):
    """The 'images' are probabilities already, as a net would give them."""

    def predict(self, X, **kwargs):
        return X


def draw(images):
    """Probabilities of a net that is calibrated: the label is drawn from them."""
    logits = 2 * generator.standard_normal((images, CLASSES))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > generator.random((images, 1))).argmax(1)
    return probabilities, labels


def by_definition(lambd, k_reg):
    """Sets of the paper without randomisation: classes in order until the penalised sum reaches the quantile."""

    def totals(probabilities):
        order = np.argsort(-probabilities, axis=1)
        total = np.take_along_axis(probabilities, order, 1).cumsum(1)
        return order, total + lambd * np.maximum(np.arange(1, CLASSES + 1) - k_reg, 0)

    order, total = totals(calibration)
    scores = total[np.arange(len(total)), (order == calibration_labels[:, None]).argmax(1)]
    level = np.ceil((len(scores) + 1) * (1 - ALPHA)) / len(scores)
    quantile = np.quantile(scores, level, method="inverted_cdf")
    order, total = totals(test)
    return [row[: (sums < quantile).sum() + 1].tolist() for row, sums in zip(order, total)]


calibration, calibration_labels = draw(1000)
test, test_labels = draw(600)


def sets(method, batch):
    method.fit(X_calib=calibration, y_calib=calibration_labels)
    found = []
    for start in range(0, len(test), batch):
        found += method.predict(test[start : start + batch], alpha=ALPHA)[1]
    return [[int(label) for label in one] for one in found]


def summary(found):
    covered = np.mean([label in one for label, one in zip(test_labels, found)])
    return covered, np.mean([len(one) for one in found]), max(map(len, found))


stands = True


def report(name, found):
    covered, size, largest = summary(found)
    print(f"{name:32} coverage {covered:.3f}, sets of {size:.2f} classes on average, {largest} at most")
    return covered


right = (test.argmax(1) == test_labels).mean()
print(f"the most probable class is right in {right:.3f}")
for name, build, reference in (
    ("LAC", lambda: LAC(Given(None, is_trained=True), train=False), None),
    ("APS", lambda: APS(Given(None, is_trained=True), train=False, rand=False), by_definition(0, 1)),
    (
        "RAPS",
        lambda: RAPS(Given(None, is_trained=True), train=False, lambd=0.05, k_reg=2, rand=False),
        by_definition(0.05, 2),
    ),
    ("APS, randomised", lambda: APS(Given(None, is_trained=True), train=False), None),
):
    if reference:
        report(f"{name}, definition", reference)
    covered = {}
    for batch in BATCHES:
        np.random.seed(0)
        found = sets(build(), batch)
        covered[batch] = report(f"{name}, {batch} at a time", found)
        if reference:
            stands &= found == [one[:batch] for one in reference]
        elif name == "LAC":
            stands &= covered[batch] == covered[BATCHES[0]]
    stands &= covered[BATCHES[0]] > 0.87 and (name == "LAC" or covered[1] <= right)
sys.exit(0 if stands else 1)
PY
