#!/usr/bin/env bash
# KD-Lib offers methods of knowledge distillation by the names of their papers. Four of its distillers do something else
# than these:
#   - `train_student` calls train() once and switches the student to eval() to validate it after an epoch. From the
#     second epoch on dropout is off, and batch normalisation uses the averages of the first epoch, in training too.
#     `VanillaKD`, the README's example, shares this with all distillers that have no loop of their own.
#     `train_teacher` validates a copy, and trains as it should;
#   - `ProbShift` and `LabelSmoothReg` ("Preparing Lessons", Wen et al. 2019) minimise KL(target || student). KLDivLoss
#     takes the student's log-probabilities and the target; it is given the target and the student's probabilities.
#     What is minimised, the sum of q (log q - target), has one minimum, at softmax(target): there no class of ten can
#     have more than 23%, however sure the teacher is, and a student that gives the target is driven away from it;
#   - `ProbShift` "swaps" the probabilities of the right class and of the teacher's wrong one through a variable that is
#     a view of the tensor, so that both get the right class's old, smaller one;
#   - `Attention` (Zagoruyko and Komodakis) treats the logits as maps, and divides each number by its own size: its part
#     of the loss is 0 for any student. Maps of layers beside the logits, which the paper compares, raise an error.
# The dropped shares and running means are counted in steps of training and compared with NumPy's, the targets are
# computed with NumPy. A slope is the largest entry of the gradient of distillation's part alone, at temperature 4; the
# teacher errs on every fourth image. Modules that other parts of KD-Lib import are replaced by empty ones here.
#
# Seen with KD-Lib 0.0.32 and torch 2.13.0, Python 3.11, 4 epochs of 8 steps:
#   train_teacher: dropped 0.50, 0.50, 0.50, 0.50; running mean right in 32 of 32 steps
#   train_student: dropped 0.50, 0.00, 0.00, 0.00; running mean right in 8 of 32 steps
#   VanillaKD      student gives the target : right class 0.55, where the teacher errs 0.17; loss   0.000, slope 9e-11
#   VanillaKD      student gives the softmax: right class 0.16, where the teacher errs 0.10; loss   0.549, slope 6e-04
#   ProbShift      student gives the target : right class 0.68, where the teacher errs 0.69; loss -21.957, slope 1e-02
#   ProbShift      student gives the softmax: right class 0.16, where the teacher errs 0.11; loss -38.574, slope 2e-09
#   LabelSmoothReg student gives the target : right class 0.73, where the teacher errs 0.90; loss -23.141, slope 8e-03
#   LabelSmoothReg student gives the softmax: right class 0.19, where the teacher errs 0.21; loss -38.952, slope 2e-09
#   VanillaKD      student with the logits in reverse order: loss 1.631, slope 7e-04
#   Attention      student with the logits in reverse order: loss 0.000, slope 0e+00
#   Attention      with logits and a map: unsupported operand type(s) for /: 'tuple' and 'float'
# Exit code 0 while all of this stands, 1 if any of it has changed.
set -euo pipefail
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "KD-Lib==0.0.32"
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import contextlib
import importlib.abc
import importlib.machinery
import io
import sys
import types

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

UNUSED = ("matplotlib", "pandas", "tensorboard", "torchtext", "torchvision", "tqdm", "transformers")


class Empty(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in UNUSED or name.startswith("torch.utils.tensorboard"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Unused())
from KD_Lib.KD import Attention, LabelSmoothReg, ProbShift, VanillaKD

EPOCHS, BATCHES, SIZE, CLASSES, TEMPERATURE = 4, 8, 16, 10, 4.0


class Watch(nn.Module):
    """A small classifier that notes what its batch normalisation and dropout do in steps of training."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(16 * 36, CLASSES)
        self.noting, self.dropped, self.means, self.inputs = True, [], [], []

    def forward(self, images):
        x = self.convolution(images)
        z = self.dropout(self.norm(x).flatten(1))
        if torch.is_grad_enabled() and self.noting:
            self.inputs.append(x.detach().double().numpy().mean((0, 2, 3)))
            self.means.append(self.norm.running_mean.numpy().copy())
            self.dropped.append(float((z == 0).double().mean()))
        return self.linear(z)

    def report(self, name):
        """The share of dropped values in each epoch, and for how many steps the running mean is NumPy's."""
        mean, errors = 0.0, []
        for batch, seen in zip(self.inputs, self.means, strict=True):
            mean = 0.9 * mean + 0.1 * batch
            errors.append(np.abs(mean - seen).max())
        agreed = int((np.array(errors) < 1e-5).sum())
        dropped = np.reshape(self.dropped, (EPOCHS, BATCHES)).mean(1)
        print(
            f"{name}: dropped {', '.join(f'{share:.2f}' for share in dropped)}; running mean right in {agreed} of "
            f"{len(errors)} steps"
        )
        return dropped, agreed


torch.manual_seed(0)
labels = torch.randint(CLASSES, (BATCHES * SIZE,))
images = torch.randn(BATCHES * SIZE, 3, 8, 8) + torch.randn(CLASSES, 3, 8, 8)[labels]
data = DataLoader(TensorDataset(images, labels), batch_size=SIZE)
teacher, student = Watch(), Watch()
optimizers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in (teacher, student)]
distiller = VanillaKD(teacher, student, data, data, *optimizers)
with contextlib.redirect_stdout(io.StringIO()):
    distiller.train_teacher(epochs=EPOCHS, plot_losses=False, save_model=False)
    teacher.noting = False
    distiller.train_student(epochs=EPOCHS, plot_losses=False, save_model=False)
taught, learnt = teacher.report("train_teacher"), student.report("train_student")
stands = bool((taught[0] > 0.45).all()) and taught[1] == EPOCHS * BATCHES
stands &= learnt[0][0] > 0.45 and not learnt[0][1:].any() and learnt[1] == BATCHES

# The loss of distillation alone: its slope for a student that gives the paper's target, and for one that gives the
# softmax of what KD-Lib takes for the target. The teacher is wrong for every fourth image.
net = nn.Linear(1, 1)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
logits = 12 * torch.randn(200, CLASSES)
order = logits.argsort(1)
truth = torch.where(torch.arange(200) % 4 == 0, order[:, -2], order[:, -1])


def softmax(values):
    values = np.exp(values - values.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


rows, right, first = np.arange(200), truth.numpy(), order[:, -1].numpy()
wrong = right != first
soft = softmax(logits.double().numpy() / TEMPERATURE)
swapped, overwritten, smoothed = soft.copy(), soft.copy(), soft.copy()
swapped[rows, right], swapped[rows, first] = soft[rows, first], soft[rows, right]
overwritten[rows, first] = soft[rows, right]
smoothed[wrong] = 0.1 / (CLASSES - 1)
smoothed[rows[wrong], right[wrong]] = 0.9
for distiller, weight, target, taken in (
    (VanillaKD, "distil_weight", soft, soft),
    (ProbShift, "ka_weight", swapped, overwritten),
    (LabelSmoothReg, "ka_weight", smoothed, smoothed),
):
    made = distiller(net, net, None, None, optimizer, optimizer, temp=TEMPERATURE, **{weight: 1.0})
    slopes = []
    for name, probabilities in (("target", target), ("softmax", softmax(taken))):
        student_logits = torch.tensor(TEMPERATURE * np.log(probabilities), dtype=torch.float32, requires_grad=True)
        loss = made.calculate_kd_loss(student_logits, logits.clone(), truth)
        slopes.append(torch.autograd.grad(loss, student_logits)[0].abs().max().item())
        sure = probabilities[rows, right]
        print(
            f"{distiller.__name__:14} student gives the {name:7}: right class {sure.mean():.2f}, where the teacher "
            f"errs {sure[wrong].mean():.2f}; loss {loss.item():7.3f}, slope {slopes[-1]:.0e}"
        )
    good, bad = slopes if distiller is VanillaKD else slopes[::-1]
    stands &= good < 1e-7 and bad > 1e-4

for distiller in (VanillaKD, Attention):
    made = distiller(net, net, None, None, optimizer, optimizer, temp=TEMPERATURE, distil_weight=1.0)
    student_logits = logits.flip(1).requires_grad_()
    loss = made.calculate_kd_loss(student_logits, logits, truth)
    slope = torch.autograd.grad(loss, student_logits)[0].abs().max().item()
    print(
        f"{distiller.__name__:14} student with the logits in reverse order: loss {loss.item():.3f}, slope {slope:.0e}"
    )
    stands &= loss.item() == 0 and slope < 1e-12 if distiller is Attention else loss.item() > 0.1 and slope > 1e-4
try:
    made.calculate_kd_loss((logits, images), (logits, images), truth)
    stands = False
except TypeError as error:
    print(f"Attention      with logits and a map: {error}")
sys.exit(0 if stands else 1)
PY
