import hashlib

import numpy as np
import pytest
import torch

from tinycifar import data
from tinycifar.data import cifar10, loading
from tinycifar.data.dataset import CLASSES, MEAN
from tinycifar.epochs import epoch_generator, hardest


def test_the_packaged_sample_holds_real_images_of_every_class():
    sample = data.load("sample")
    assert (sample.name, sample.classes) == ("sample", CLASSES)
    assert sample.train_images.shape == (400, 3, 32, 32)
    assert sample.test_images.shape == (200, 3, 32, 32)
    assert sample.train_images.dtype == torch.uint8
    assert sample.train_labels.dtype == torch.int64
    assert sorted(set(sample.train_labels.tolist())) == list(range(10))
    assert sample.train_labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile: as published
    mean = sample.train_images.float().div(255).mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(MEAN), atol=0.02)


def test_a_damaged_packaged_sample_is_refused(monkeypatch):
    monkeypatch.setitem(loading.SAMPLE, "test.bin", (200, "0" * 32))
    with pytest.raises(cifar10.DataError, match=r"test\.bin: MD5 .* expected 0000"):
        data.sample()


def test_limit_keeps_the_first_training_images_and_the_whole_test_set():
    whole = data.sample()
    limited = whole.limit(7)
    assert torch.equal(limited.train_images, whole.train_images[:7])
    assert torch.equal(limited.train_labels, whole.train_labels[:7])
    assert limited.test_images is whole.test_images
    for count in (0, -1, 401):
        with pytest.raises(ValueError, match="allowed are 1 to 400"):
            whole.limit(count)


def test_split_holds_out_the_last_training_images():
    whole = data.sample()
    parts = whole.split(100)
    assert torch.equal(parts.train_images, whole.train_images[:300])
    assert torch.equal(parts.validation_images, whole.train_images[300:])
    assert torch.equal(parts.validation_labels, whole.train_labels[300:])
    assert len(parts.limit(10).validation_labels) == 100
    assert whole.split(0).validation_images is None
    for count in (-1, 400):
        with pytest.raises(ValueError, match="allowed are 0 to 399"):
            whole.split(count)
    with pytest.raises(ValueError, match="already"):
        parts.split(10)


def test_an_epochs_generator_depends_on_seed_and_epoch_and_nothing_else():
    def draw(seed, epoch):
        return tuple(torch.randint(0, 2**31, (4,), generator=epoch_generator(seed, epoch)).tolist())

    torch.manual_seed(1)
    first = draw(3, 5)
    torch.manual_seed(2)
    assert draw(3, 5) == first
    assert len({draw(seed, epoch) for seed in range(10) for epoch in range(10)}) == 100


def test_the_six_files_are_loaded_in_order_with_channels_first(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    records = {name: rng.integers(0, 10, (3, cifar10.RECORD_BYTES), np.uint8) for name in cifar10.FILES}
    digests = {name: hashlib.md5(part.tobytes(), usedforsecurity=False).hexdigest() for name, part in records.items()}
    monkeypatch.setattr(cifar10, "FILES", digests)
    monkeypatch.setattr(cifar10, "RECORDS", 3)
    folder = tmp_path / "cache" / cifar10.FOLDER
    folder.mkdir(parents=True)
    for name, part in records.items():
        (folder / name).write_bytes(part.tobytes())
    train = np.concatenate(list(records.values())[:5])
    for loaded in (data.load(), data.load(cache=folder.parent), data.load(str(folder))):
        assert (loaded.name, loaded.classes) == ("cifar10", CLASSES)
        assert loaded.train_labels.tolist() == train[:, 0].tolist()
        assert torch.equal(loaded.train_images, torch.from_numpy(train[:, 1:].reshape(-1, 3, 32, 32)))
        assert loaded.train_images.is_contiguous()
        assert loaded.test_labels.tolist() == records["test_batch.bin"][:, 0].tolist()
        assert loaded.validation_images is None


@pytest.mark.parametrize(
    "load", [data.load, data.load_pictures, lambda *own, **form: data.load_to_score(*own, (), **form)]
)
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"fit": "bend"}, "unknown fit 'bend'; allowed are: crop, pad, squash"),
        ({"image_size": 0}, "image_size must be a number of pixels, 1 or more, not 0"),
        ({"image_size": "32"}, "image_size must be a number of pixels, 1 or more, not '32'"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(red, green and blue\), not 2"),
    ],
)
def test_forms_that_no_images_have_are_refused(load, form, words):
    with pytest.raises(ValueError, match=words):
        load("own", **form)


def test_pictures_without_labels_may_be_of_one_class(tmp_path):
    np.savez(tmp_path / "own.npz", test_images=np.full((5, 8, 8), 7, np.uint8), test_labels=np.zeros(5, int))
    assert data.load_pictures(tmp_path / "own.npz").shape == (5, 3, 32, 32)


@pytest.mark.full_data
def test_the_real_cache_is_all_of_cifar_10():
    problems = [state.problem for state in cifar10.verify()]
    if set(problems) == {cifar10.MISSING}:
        pytest.skip("CIFAR-10 is not in the cache")
    assert problems == [None] * 6
    loaded = data.load()
    assert loaded.train_images.shape == (50_000, 3, 32, 32)
    assert loaded.test_images.shape == (10_000, 3, 32, 32)
    assert loaded.train_labels.bincount().tolist() == [5000] * 10
    assert loaded.test_labels.bincount().tolist() == [1000] * 10
    mean = loaded.train_images.sum((0, 2, 3), dtype=torch.int64) / (255 * 50_000 * 32 * 32)
    assert torch.allclose(mean, torch.tensor(MEAN), atol=1e-4)
    sample = data.sample()
    assert torch.equal(sample.train_images, loaded.train_images[:400])
    assert torch.equal(sample.test_images, loaded.test_images[:200])


def test_the_hardest_images_stay_in_their_order():
    losses = torch.tensor([0.5, 0.1, 0.9, 0.2, 0.7])
    order = torch.tensor([4, 1, 3, 0, 2])
    assert hardest(order, losses, 3).tolist() == [4, 0, 2]
    assert hardest(order, losses, 5).tolist() == order.tolist()
    assert hardest(order, losses, 0).tolist() == []


def test_of_equal_losses_as_many_stay_as_asked():
    assert hardest(torch.arange(10).flip(0), torch.zeros(10), 5).tolist() == [9, 8, 7, 6, 5]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            None,
            "own does not exist; allowed are cifar10, sample, a folder or zip archive with pictures as train/CLASS/",
        ),
        ([], "own holds no images that are known here; allowed are .*train-images-idx3-ubyte"),
        (["a/b/c.png", "notes.txt"], "own has pictures two folders deep, as in a/b; expected are train/CLASS/"),
        (["cat/1.png"], "own has pictures of one class alone, cat, and no folder train; expected are train/CLASS/"),
        (["1.JPG"], "own has 1 picture, but no folders of classes and no table of labels"),
        (["train"], "own holds no images that are known here"),
        (["batches.meta"], "own is the pickled version, refused"),
    ],
)
def test_paths_that_hold_no_known_data_are_refused_with_what_is_allowed(tmp_path, files, words):
    for name in files or []:
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(b"")
    if files == []:
        (tmp_path / "own").mkdir()
    with pytest.raises(cifar10.DataError, match=words) as told:
        data.load(tmp_path / "own")
    assert len(str(told.value).splitlines()) == 1
