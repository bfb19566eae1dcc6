"""Subsets of CIFAR-10's test images on which a score says more, or can be laid beside others'.

The indices are facts, taken from:
- near-duplicates: B. Barz and J. Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates" (J. Imaging
  2020, arXiv:1902.00423), `meta/duplicates_cifar10.csv` of github.com/cvjena/cifair, column TestID: 286 test images
  with a near-duplicate among the training images. The 39 pairs within the test set, which the often quoted 3.3% adds,
  are another file.
- MLPerf Tiny: the 200 test images, 20 of each class, on which its rules measure accuracy, drawn from the labels by
  `get_perf_samples_idxs.py` of github.com/mlcommons/tiny with `numpy.random.default_rng(8108)`.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tinycifar import metrics
from tinycifar.scores import Accuracy

TEST_SET = "2c33b053d1cd726af8d86e174a96dd89d7000ba1412add026d68142375b89d51"
"""SHA-256 of CIFAR-10's test images, uint8 (10000, 3, 32, 32), and their labels, int64."""

_NEAR_DUPLICATES = """
31 40 102 104 131 136 149 159 235 374 390 481 506 516 535 546 560 575 576 594 627 654 656 673 779
803 814 856 892 896 902 951 983 985 992 1038 1071 1103 1289 1313 1327 1335 1340 1365 1423 1449 1562
1565 1575 1579 1608 1652 1712 1777 1781 1857 1872 1920 1962 1974 1987 2019 2057 2093 2146 2148 2208
2228 2266 2326 2369 2376 2545 2595 2631 2659 2678 2728 2786 2801 2820 2826 2830 2863 2865 2901 2911
2929 2967 3007 3057 3119 3170 3197 3243 3293 3322 3389 3396 3428 3445 3462 3486 3488 3520 3530 3547
3553 3563 3565 3641 3663 3664 3697 3745 3763 3768 3784 3794 3861 3889 3931 3933 3991 4039 4042 4043
4091 4102 4105 4117 4153 4236 4297 4322 4328 4332 4362 4390 4406 4424 4430 4460 4603 4645 4671 4801
4809 4868 4886 4891 4953 4989 4992 5026 5036 5038 5111 5132 5164 5174 5178 5201 5243 5368 5382 5383
5394 5423 5429 5585 5604 5606 5615 5647 5800 5843 5863 5873 5971 5976 6003 6009 6080 6119 6252 6314
6336 6350 6362 6372 6392 6413 6435 6483 6503 6528 6563 6583 6611 6668 6676 6701 6864 6880 6885 6893
6921 7029 7052 7053 7066 7075 7079 7108 7185 7225 7239 7264 7293 7294 7315 7326 7417 7570 7577 7604
7616 7631 7652 7678 7715 7776 7799 7825 7925 8031 8080 8132 8253 8293 8299 8356 8445 8485 8519 8523
8630 8675 8730 8734 8754 8791 8795 8802 8854 8894 8895 9094 9112 9126 9183 9196 9245 9297 9340 9350
9372 9408 9413 9416 9496 9530 9577 9610 9632 9650 9653 9677 9703 9738 9788 9852 9896 9936 9951
"""
_MLPERF_TINY = """
20 62 64 103 127 232 289 327 393 447 451 517 585 613 634 647 660 673 888 1003 1004 1044 1107 1263
1273 1274 1382 1387 1437 1597 1629 1722 1757 1821 1835 1887 1932 1933 1945 2096 2101 2209 2216 2285
2331 2390 2398 2448 2470 2506 2636 2642 2653 2783 2890 2915 2940 2973 3122 3150 3190 3224 3382 3455
3464 3492 3596 3639 3661 3675 3701 3736 3770 3830 3832 3865 3900 3961 3996 4021 4238 4255 4354 4355
4374 4441 4446 4552 4558 4564 4593 4605 4619 4636 4649 4701 4755 4758 4764 4812 4819 4880 4912 4913
4940 4952 4976 4995 5023 5055 5195 5255 5273 5288 5315 5339 5346 5433 5445 5507 5562 5591 5619 5800
5826 5864 5971 5984 6059 6077 6136 6137 6395 6425 6431 6567 6591 6617 6628 6639 6658 6705 6751 6754
6832 6925 6961 7036 7041 7061 7129 7195 7216 7257 7295 7302 7358 7360 7432 7617 7657 7660 7672 7722
7769 7797 7820 7850 8116 8171 8188 8242 8301 8325 8328 8331 8390 8442 8669 8799 8813 8881 8892 8899
8913 8926 8959 8975 9010 9045 9068 9226 9244 9515 9614 9661 9688 9762 9964 9993
"""
NEAR_DUPLICATES = tuple(map(int, _NEAR_DUPLICATES.split()))
MLPERF_TINY = tuple(map(int, _MLPERF_TINY.split()))


def members(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Indices into CIFAR-10's test set by subset; none if `images` (N, 3, S, S) and `labels` (N,) are other data.

    What they are follows from their content, not from what they are called.
    """
    if len(labels) != 10_000:
        return {}
    digest = hashlib.sha256(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    if digest.hexdigest() != TEST_SET:
        return {}
    without = torch.ones(len(labels), dtype=torch.bool)
    without[list(NEAR_DUPLICATES)] = False
    return {"without-near-duplicates": without.nonzero().flatten(), "mlperf-tiny": torch.tensor(MLPERF_TINY)}


def scores(logits: Tensor, images: Tensor, labels: Tensor) -> dict[str, Accuracy]:
    """Accuracy on each subset from logits (N, C) of these images; none for other data."""
    return {name: metrics.summarize(logits[rows], labels[rows]) for name, rows in members(images, labels).items()}
