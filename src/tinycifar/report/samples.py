"""A figure of training images by class."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tinycifar.data import Dataset, pictures
from tinycifar.report.plots import shortened

MOST_ROWS = 20  # classes that are drawn
COLUMNS = 10  # images of each
GAP = 2  # pixels between images


def draw(dataset: Dataset) -> Figure:
    """The first training images of each class, a row for each of the first classes, as a model sees them."""
    rows = min(len(dataset.classes), MOST_ROWS)
    pitch = dataset.image_size + GAP
    sheet = np.full((rows * pitch - GAP, COLUMNS * pitch - GAP, 3), 255, np.uint8)
    for label in range(rows):
        for column, index in enumerate((dataset.train_labels == label).nonzero()[:COLUMNS, 0].tolist()):
            image = np.asarray(pictures.to_image(dataset.train_images[index]))
            top, left = label * pitch, column * pitch
            sheet[top : top + dataset.image_size, left : left + dataset.image_size] = image
    figure = Figure(figsize=(7, 0.9 + 0.55 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    counts = dataset.train_labels.bincount(minlength=len(dataset.classes)).tolist()
    axes.set_yticks(
        [label * pitch + dataset.image_size / 2 for label in range(rows)],
        [f"{shortened(name)} ({count:,})" for name, count in zip(dataset.classes[:rows], counts, strict=False)],
    )
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    shown = f", {rows} of {len(dataset.classes):,} classes" if rows < len(dataset.classes) else ""
    axes.set_title(f"{dataset.name}: training images by class{shown}", wrap=True)
    return figure
