import math

import pytest
import torch

from tinycifar.metrics import correct_count, mean_interval, summarize, wilson_interval


def test_those_logits_count_as_correct_where_the_largest_logit_is_the_label() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 0, 1])
    assert correct_count(logits, labels) == 2
    assert summarize(logits, labels)["accuracy"] == 0.5


def test_the_wilson_interval_equals_a_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81 of 263 and 15 of 148.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_the_wilson_interval_stays_inside_zero_and_one() -> None:
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    low, high = wilson_interval(20, 20)
    assert low == pytest.approx(0.8389, abs=5e-5)
    assert high == 1.0


@pytest.mark.parametrize(("correct", "count"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_an_impossible_count_has_no_interval(correct: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot give an interval"):
        wilson_interval(correct, count)


def test_a_summary_gives_loss_in_nats() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    result = summarize(logits, torch.tensor([0, 0]))
    assert result["loss"] == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2)
    assert (result["images"], result["correct"], result["accuracy"]) == (2, 2, 1.0)


def test_the_interval_of_a_mean_equals_a_published_example() -> None:
    # Student 1908, The probable error of a mean: hours of sleep gained with the second drug; R's t.test gives the ends.
    hours = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert mean_interval(hours) == pytest.approx((0.8976775, 3.7623225), abs=1e-6)
    low, high = mean_interval(hours, confidence=0.5)
    assert 0.8976775 < low < 2.33 < high < 3.7623225


def test_one_value_gives_no_interval_of_the_mean() -> None:
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0])
