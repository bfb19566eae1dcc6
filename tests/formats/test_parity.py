"""How far exports may be off, and on which images that is measured."""

import pytest
import torch

from tinycifar.formats import parity


def test_parity_counts_images_that_change_class_and_those_that_are_undecided():
    expected = torch.tensor([[4.0, 0.0], [0.0, 4.0], [2.1, 2.0], [4.0, 0.0]])
    exported = torch.tensor([[4.0, 0.0], [0.0, 4.0], [2.0, 2.1], [1.0, 1.1]])
    found = parity.compare(expected, exported)
    assert (found.images, found.same_class, found.undecided) == (4, 2, 1)
    assert found.largest_difference == 3.0
    error, spread = (2 * 0.01 + 9 + 1.21) / 8, (3 * 4 + 0.0025) / 4
    assert found.relative_error == pytest.approx((error / spread) ** 0.5)


def test_the_second_of_nearly_equal_logits_may_win_but_not_another():
    expected = torch.tensor([[1.0, 0.999, -1.0]] * 30)
    second, last = expected.clone(), expected.clone()
    second[0], last[0] = torch.tensor([0.99, 1.0, -1.0]), torch.tensor([0.0, 0.0, 0.1])
    assert [parity.compare(expected, exported).undecided for exported in (second, last)] == [1, 0]


@pytest.fixture
def logits() -> torch.Tensor:
    """Logits of 200 images that leave no doubt."""
    torch.manual_seed(0)
    return 10 * torch.eye(10)[torch.arange(200) % 10] + torch.randn(200, 10)


def test_logits_that_are_too_far_off_do_not_pass_though_every_class_is_kept(logits):
    assert parity.INT8.check(logits, 1.09 * logits, "it").same_class == 200
    with pytest.raises(parity.ParityError, match=r"it: 0 of 200 images get another class, .* not written"):
        parity.INT8.check(logits, 1.15 * logits, "it")


def test_classes_that_change_do_not_pass_though_logits_are_close_enough(logits):
    changed = torch.cat([logits[:3].roll(1, 1), logits[3:]])
    assert parity.Tolerance(classes=0.985, logits=0.3).check(logits, changed, "it").same_class == 197
    with pytest.raises(parity.ParityError, match="it: 3 of 200 images get another class, 0 of them undecided"):
        parity.Tolerance(classes=0.99, logits=0.3).check(logits, changed, "it")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_do_not_pass(logits, value):
    with pytest.raises(parity.ParityError):
        parity.INT8.check(logits, torch.full_like(logits, value), "it")
    with pytest.raises(parity.ParityError):
        parity.INT8.check(torch.full_like(logits, value), logits, "it")


def test_logits_of_one_class_and_logits_that_are_all_equal_are_compared():
    assert parity.compare(torch.zeros(3, 1), torch.zeros(3, 1)) == parity.Parity(3, 3, 0, 0.0, 0.0)
    with pytest.raises(parity.ParityError):
        parity.FLOAT.check(torch.zeros(3, 2), torch.ones(3, 2), "it")


def test_images_are_taken_from_all_over_the_data():
    assert parity.spread_out(torch.arange(10), 4).tolist() == [0, 2, 5, 7]
    assert parity.spread_out(torch.arange(400), 400).tolist() == list(range(400))
    assert parity.spread_out(torch.arange(3), 400).tolist() == [0, 1, 2]
