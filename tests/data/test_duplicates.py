import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dct

from tinycifar import data
from tinycifar.data import duplicates, pictures


def test_hashes_are_those_of_phash():
    images = data.sample().train_images[:20]
    for image, signs in zip(images, duplicates.perceptual_hashes(images), strict=True):
        red, green, blue = image.numpy().astype(np.float64)
        low = dct(dct(0.299 * red + 0.587 * green + 0.114 * blue, axis=0), axis=1)[:8, :8]
        assert torch.equal(signs > 0, torch.from_numpy(low > np.median(low)).flatten())


@pytest.mark.parametrize("change", ["jpeg", "brighter", "smaller"])
def test_changed_copies_are_found_and_other_photographs_are_not(change):
    sample = data.sample()
    copies = []
    for image in sample.train_images[:50]:
        picture, content = pictures.to_image(image), io.BytesIO()
        if change == "jpeg":
            picture.save(content, "JPEG", quality=85)
            picture = Image.open(content)
        elif change == "brighter":
            picture = picture.point(lambda level: min(255, int(level * 1.05) + 2))
        else:
            picture = picture.resize((28, 28), Image.Resampling.LANCZOS)
        copies.append(pictures.to_tensor(picture))
    assert duplicates.near_duplicates(torch.stack(copies), sample.train_images) >= 47
    assert duplicates.near_duplicates(sample.test_images, sample.train_images) <= 2
