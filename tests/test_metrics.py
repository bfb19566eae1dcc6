import math
import statistics

import pytest
import scipy.stats
import sklearn.metrics
import torch
from torch import Tensor

from tinycifar import metrics
from tinycifar.scores import ClassScores


def test_those_logits_count_as_correct_where_the_largest_logit_is_the_label():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 0, 1])
    assert metrics.correct_count(logits, labels) == 2
    assert metrics.summarize(logits, labels).accuracy == 0.5


@pytest.mark.parametrize(
    ("correct", "count", "interval"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_the_wilson_interval_equals_published_examples_and_stays_inside_zero_and_one(correct, count, interval):
    low, high = metrics.wilson_interval(correct, count)
    assert (low, high) == pytest.approx(interval, abs=5e-5)
    assert 0 <= low < high <= 1


@pytest.mark.parametrize(("correct", "count"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_an_impossible_count_has_no_interval(correct, count):
    with pytest.raises(ValueError, match="cannot give an interval"):
        metrics.wilson_interval(correct, count)


def test_a_summary_gives_loss_in_nats():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    result = metrics.summarize(logits, torch.tensor([0, 0]))
    assert result.loss == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2)
    assert (result.images, result.correct, result.accuracy) == (2, 2, 1.0)


def test_the_interval_of_a_mean_equals_a_published_example():
    # Student 1908, The probable error of a mean: hours of sleep gained with the second drug; R's t.test gives the ends.
    hours = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert metrics.mean_interval(hours) == pytest.approx((0.8976775, 3.7623225), abs=1e-6)
    low, high = metrics.mean_interval(hours, confidence=0.5)
    assert 0.8976775 < low < 2.33 < high < 3.7623225
    with pytest.raises(ValueError, match="two values"):
        metrics.mean_interval([1.0])


def noisy(count: int = 400, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not, and labels; the last class is never predicted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    logits[:, -1] = -10
    return logits, labels


def test_confusion_and_scores_of_classes_equal_scikit_learns():
    logits, labels = noisy()
    predicted = logits.argmax(1)
    confusion = metrics.confusion_matrix(logits, labels)
    assert confusion.tolist() == sklearn.metrics.confusion_matrix(labels, predicted, labels=range(5)).tolist()
    classes = metrics.per_class(confusion, "abcde")
    assert [row.name for row in classes] == list("abcde")
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        assert [getattr(row, name) for row in classes] == pytest.approx(values.tolist())


def test_balanced_scores_equal_scikit_learns():
    logits, labels = noisy()
    predicted = logits.argmax(1)
    accuracy, f1 = metrics.balanced(metrics.confusion_matrix(logits, labels))
    assert accuracy == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    assert f1 == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_equals_scikit_learns(k):
    logits, labels = noisy()
    expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(5))
    assert metrics.top_k_accuracy(logits, labels, k) == pytest.approx(expected)
    assert metrics.top_k_accuracy(logits, labels, 6) == 1


def test_loss_and_brier_score_equal_scikit_learns():
    logits, labels = noisy()
    probabilities = logits.double().softmax(1).numpy()
    found = metrics.calibration(logits, labels)
    assert found.loss == pytest.approx(sklearn.metrics.log_loss(labels, probabilities, labels=range(5)))
    by_class = [sklearn.metrics.brier_score_loss(labels == c, probabilities[:, c]) for c in range(5)]
    assert found.brier == pytest.approx(sum(by_class))


def test_calibration_error_of_a_hand_worked_example():
    # Of two classes: three images at 0.9, two of them right; one at 0.6, right. In 15 bins 0.9 lies in the 14th.
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.6], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], dim=1)
    labels = torch.tensor([0, 0, 1, 0])
    rows = metrics.reliability(logits, labels)
    assert [row.images for row in rows] == [0] * 8 + [1] + [0] * 4 + [3, 0]
    assert (rows[13].confidence, rows[13].accuracy) == pytest.approx((0.9, 2 / 3))
    expected = 3 / 4 * (0.9 - 2 / 3) + 1 / 4 * (1 - 0.6)
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_the_fitted_temperature_is_the_one_that_logits_were_sharpened_by():
    generator = torch.Generator().manual_seed(1)
    honest = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    assert metrics.fit_temperature(honest * 3, labels) == pytest.approx(3, rel=0.03)
    before, after = (
        metrics.calibration(logits, labels) for logits in (honest * 3, metrics.crossfit_temperature(honest * 3, labels))
    )
    assert after.ece < 0.02 < before.ece
    assert after.loss < before.loss


def test_a_temperature_is_told_only_by_mistakes_and_right_answers():
    logits = torch.eye(2).repeat(50, 1)
    labels = torch.tensor([0, 1]).repeat(50)
    assert not metrics.tells_temperature(logits, labels)  # the lowest would be best
    assert not metrics.tells_temperature(logits, 1 - labels)
    labels[:10] = 1 - labels[:10]
    assert metrics.tells_temperature(logits, labels)
    labels[0] = 1 - labels[0]
    assert not metrics.tells_temperature(logits, labels)


def test_crossfitting_divides_each_half_by_the_temperature_of_the_other():
    logits, labels = noisy()
    scaled = metrics.crossfit_temperature(logits, labels)
    even, odd = (metrics.fit_temperature(logits[half::2], labels[half::2]) for half in range(2))
    torch.testing.assert_close(scaled[::2], logits[::2] / odd)
    torch.testing.assert_close(scaled[1::2], logits[1::2] / even)


def test_mcnemar_is_the_exact_binomial_test_on_the_images_that_one_model_alone_has_right():
    first = torch.tensor([True] * 90 + [False] * 10)
    second = torch.tensor([True] * 80 + [False] * 10 + [True] * 2 + [False] * 8)
    only_first, only_second, p = metrics.mcnemar(first, second)
    assert (only_first, only_second) == (10, 2)
    assert p == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
    assert metrics.mcnemar(first, first) == (0, 0, 1.0)


def test_welchs_interval_follows_his_formula():
    first, second = [0.851, 0.853, 0.856, 0.85], [0.861, 0.871, 0.866]
    errors = [statistics.variance(values) / len(values) for values in (first, second)]
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)
    half = scipy.stats.t.ppf(0.975, freedom) * sum(errors) ** 0.5
    difference = statistics.mean(second) - statistics.mean(first)
    assert metrics.welch_interval(first, second) == pytest.approx((difference - half, difference + half))
    assert metrics.welch_interval([0.5, 0.5], [0.6, 0.6]) == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="at least two values on each side"):
        metrics.welch_interval([0.5], [0.6, 0.7])


def test_the_prediction_interval_is_wider_than_that_of_the_mean_by_the_root_of_n_plus_1():
    values = [0.85, 0.86, 0.87]
    low, high = metrics.mean_interval(values)
    wide = metrics.prediction_interval(values)
    assert (wide[1] - wide[0]) == pytest.approx(2 * (high - low))
    assert sum(wide) == pytest.approx(low + high)


def test_the_best_and_the_worst_classes_share_none_and_leave_out_those_without_images():
    classes = [ClassScores(str(index), 10, 0.5, 0.5, index / 20) for index in range(12)]
    best, worst = metrics.best_and_worst([*classes, ClassScores("none", 0, 0.0, 0.0, 0.0)])
    assert [row.f1 for row in best] == [index / 20 for index in range(11, 1, -1)]
    assert [row.f1 for row in worst] == [0.0, 0.05]


def test_the_most_confused_pairs_are_told_by_count_and_right_answers_are_not():
    assert metrics.most_confused([[9, 2, 0], [3, 9, 0], [0, 0, 5]]) == [(1, 0, 3), (0, 1, 2)]
    assert metrics.most_confused([[9, 2, 0], [3, 9, 0], [0, 0, 5]], 1) == [(1, 0, 3)]
