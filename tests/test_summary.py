"""The layer table against the reference's, against torchinfo, and against gradients."""

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchinfo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tinycifar.models import MODELS, MirroredNet, build
from tinycifar.summary import Summary, as_json, render, summarize

ORIGINAL = Path(__file__).parents[1] / "results" / "original"
# Lines that the reference's README prints; results/original/layers.csv has the numbers of all its rows.
REFERENCE_TEXT = """\
        Layer (type)               Output Shape         Param #
            Conv2d-1           [-1, 32, 30, 30]             864
           Conv2d-12           [-1, 64, 12, 12]           4,096
           Conv2d-20            [-1, 128, 4, 4]          16,384
           Block4-30             [-1, 64, 9, 9]               0
AdaptiveAvgPool2d-31             [-1, 64, 1, 1]               0
           Linear-34                   [-1, 10]             650
Total params: 195,946
Trainable params: 195,946
Non-trainable params: 0
Input size (MB): 0.01
Forward/backward pass size (MB): 3.67
Params size (MB): 0.75
Estimated Total Size (MB): 4.43
"""

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def reference() -> Summary:
    return summarize(build("c1c2c3c4o"))


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_reference_has_the_34_rows_of_its_own_table(reference):
    with (ORIGINAL / "layers.csv").open(newline="") as file:
        expected = [tuple(row.values()) for row in csv.DictReader(file)]
    rows = [
        (str(number), row.layer, "x".join(map(str, row.output_shape)), str(row.parameters))
        for number, row in enumerate(reference.layers, 1)
    ]
    assert len(expected) == 34
    assert rows == expected


def test_the_reference_has_34_7_million_macs(reference):
    assert reference.macs == 34_734_080
    assert sum(row.macs for row in reference.layers) == reference.macs
    # 128 filters of 64 x 3 x 3 at 10 x 10 places; one filter of 3 x 3 a channel at 24 x 24; 64 by 10 of a linear layer
    assert [reference.layers[i - 1].macs for i in (16, 11, 34)] == [7_372_800, 331_776, 640]


def test_the_reference_sees_45_pixels_at_its_last_convolution(reference):
    assert reference.receptive_field == 45
    convolutions = [row.receptive_field for row in reference.layers if row.layer == "Conv2d"]
    # By hand, from the kernel sizes, strides and dilations in the reference's README.
    assert convolutions == [3, 5, 7, 9, 9, 13, 17, 17, 21, 45]


def test_pooling_over_a_map_sees_all_of_its_positions(reference):
    assert [row.receptive_field for row in reference.layers[30:]] == [45 + (9 - 1) * 4] * 4


def test_the_text_is_the_one_of_the_reference_with_more_columns(reference):
    lines = render(reference).splitlines()
    for expected in REFERENCE_TEXT.splitlines():
        assert any(line.startswith(expected) for line in lines), expected
    assert "Total MACs: 34,734,080" in lines
    assert [line for line in lines if line.startswith("Receptive field: 45")]
    rows = [line for line in lines if line.startswith("           Conv2d-27")]
    assert [row.split()[-2:] for row in rows] == [["2,985,984", "45"]]


def test_the_json_form_holds_rows_and_totals_and_survives_writing(reference):
    content = as_json(reference)
    assert json.loads(json.dumps(content)) == content
    assert content.keys() == {"layers", "parameters", "macs", "receptive_field"}
    assert (content["parameters"], content["macs"], content["receptive_field"]) == (195_946, 34_734_080, 45)
    assert len(content["layers"]) == 34
    assert content["layers"][3] == {
        "layer": "Conv2d",
        "output_shape": [32, 28, 28],
        "parameters": 9_216,
        "macs": 7_225_344,
        "receptive_field": 5,
    }


@every_model
def test_torchinfo_counts_the_same_parameters(name):
    model = build(name)
    assert summarize(model).parameters == torchinfo.summary(model, (1, 3, 32, 32), verbose=0).total_params


@pytest.mark.parametrize("name", [name for name in MODELS if not isinstance(build(name), MirroredNet)])
def test_torchinfo_counts_the_same_macs(name):
    model = build(name)
    oracle = torchinfo.summary(model, (1, 3, 32, 32), verbose=0)
    ours = summarize(model)
    # torchinfo counts every parameter of a layer, so biases once a position, and norms; we count products alone.
    # Filters that are used twice it counts once, so mirrored models are left out.
    extra = 0
    for layer in oracle.summary_list:
        if not layer.is_leaf_layer:
            continue
        bias = getattr(layer.module, "bias", None)
        if isinstance(layer.module, (nn.Conv2d, nn.Linear)):
            extra += 0 if bias is None else bias.numel() * int(torch.tensor(layer.output_size[2:]).prod())
        else:
            extra += layer.macs
    assert ours.macs == oracle.total_mult_adds - extra
    assert ours.macs == pytest.approx(oracle.total_mult_adds, rel=0.01)


# --- any model ----------------------------------------------------------------------------------------------------


class Made(nn.Module):
    """A model whose forward pass is the function given; layers by name."""

    def __init__(self, forward: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images)


def conv(inputs: int, outputs: int, kernel: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, bias=False, **options)


def test_bare_parameters_and_functional_products_count_in_the_totals():
    weight = nn.Parameter(torch.rand(5, 3, 3, 3))
    inner = Made(lambda self, x: F.conv2d(x, self.weight), weight=weight)
    outer = Made(lambda self, x: F.linear(self.inner(x).mean((2, 3)), self.head), inner=inner)
    outer.head = nn.Parameter(torch.rand(10, 5))
    summary = summarize(outer)
    assert [(row.layer, row.parameters, row.macs) for row in summary.layers] == [("Made", 135, 135 * 900)]
    assert (summary.parameters, summary.macs) == (185, 135 * 900 + 50)


def test_frozen_and_unused_parameters_count_but_frozen_ones_are_not_trainable():
    frozen, unused = conv(3, 2, 1).requires_grad_(False), conv(2, 2, 1)
    summary = summarize(Made(lambda self, x: self.frozen(x), frozen=frozen, unused=unused))
    assert (summary.parameters, summary.trainable_parameters) == (10, 4)
    assert "Non-trainable params: 6" in render(summary).splitlines()


def test_sizes_grow_with_the_image():
    summary = summarize(build("c1c2c3c4o"), image_size=64)
    assert summary.layers[0].output_shape == (32, 62, 62)
    assert summary.receptive_field == 45
    assert summary.input_mb == pytest.approx(4 * 3 * 32 * 32 * 4 / 2**20)


def test_a_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    summarize(model)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


# --- the receptive field ------------------------------------------------------------------------------------------


class WindowsAsConvolutions(TorchFunctionMode):
    """Keeps the results of convolutions over maps, and replaces each maximum of a window by its mean.

    A maximum passes the gradient of one pixel only. Works on calls to torch's functions, so it shares nothing with
    the way `summarize` watches a model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if "max_pool2d" in name:
            return mean_windows(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if name == "conv2d" and max(args[0].shape[2:]) > 1:  # a single position is behind global pooling
            self.maps.append(out)
        return out


def mean_windows(
    images: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **options: Any
) -> Tensor:
    assert not any(options.values()), "neither ceil_mode nor return_indices can be probed"
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    weight = torch.ones(images.shape[1], 1, *sides, dtype=images.dtype) / (sides[0] * sides[1])
    return F.conv2d(images, weight, None, stride or kernel_size, padding, dilation, images.shape[1])


def probe_receptive_field(model: nn.Module, image_size: int = 64, limit: int = 256) -> int | None:
    """Side of the largest square of pixels that the middle of a convolution's map depends on, found from gradients.

    With positive weights on positive images no gradient cancels. Convolutions over a single position are behind global
    pooling and do not count. The image is doubled till the square lies inside it; None if it does not at `limit`.
    """
    probed = copy.deepcopy(model).double().eval()
    for key, parameter in probed.named_parameters():
        with torch.no_grad():
            parameter.fill_(0 if key.endswith("bias") else 1 / max(1, parameter[0].numel()))
    while image_size <= limit:
        # Above the mean of CIFAR-10, so positive once normalised, and small, so that no bounded activation is full.
        images = torch.full((1, 3, image_size, image_size), 0.6, dtype=torch.double, requires_grad=True)
        with WindowsAsConvolutions() as windows:
            probed(images)
        fields = []
        for output in windows.maps:
            middle = output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum()
            (gradient,) = torch.autograd.grad(middle, images, retain_graph=True)
            touched = gradient[0].abs().sum(0) != 0
            spans = [torch.nonzero(touched.any(axis)).flatten() for axis in (0, 1)]
            inside = all(span[0] > 0 and span[-1] < image_size - 1 for span in spans)
            fields.append(max(int(span[-1] - span[0]) + 1 for span in spans) if inside else None)
        if None not in fields:
            return max(field for field in fields if field)
        image_size *= 2
    return None


def test_filters_that_are_shared_count_once_as_parameters_and_as_often_as_they_are_used_as_macs():
    summary = summarize(build("whitenet"))
    stem, blocks = 48 * 48, [(48, 48, 16), (48, 48, 16), (48, 64, 8), (64, 128, 8), (128, 128, 4)]
    filters = sum(i * o * 9 for i, o, _ in blocks)
    assert summary.parameters == stem + filters // 2 + (48 + 48 + 64 + 128 + 128) // 2 + 64 * 10
    assert summary.macs == stem * 16**2 + sum(i * o * 9 * side**2 for i, o, side in blocks) + 64 * 10
    assert stem + filters + (48 + 48 + 64 + 128 + 128) + 128 * 10 == 294_304  # unshared, as in catalog.py


@every_model
def test_gradients_prove_the_receptive_field_of_every_model(name):
    model = build(name)
    probed = probe_receptive_field(model)
    if probed is None:  # a model whose convolutions see the whole image through a gate
        assert summarize(model).receptive_field >= 32
    else:
        assert summarize(model).receptive_field == probed


def residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.two(F.relu(self.one(x))))
        return self.head(F.relu(self.narrow(x) + self.shortcut(x)).mean((2, 3)))

    return Made(
        forward,
        stem=conv(3, 4, 3, padding=1),
        one=conv(4, 4, 3, padding=1),
        two=conv(4, 4, 3, padding=1),
        narrow=conv(4, 8, 3, stride=2, padding=1),
        shortcut=conv(4, 8, 1, stride=2),  # runs last, sees less
        head=nn.Linear(8, 10),
    )


def concatenated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.cat([self.small(x), self.large(x)], 1)
        return self.last(x)

    small, large = conv(3, 2, 1), conv(3, 2, 5, padding=2)
    return Made(forward, small=small, large=large, last=conv(4, 4, 3))


def pooled() -> nn.Module:
    layers = [conv(3, 4, 3), nn.MaxPool2d(2), conv(4, 4, 3), nn.AvgPool2d(3, stride=2, padding=1), conv(4, 4, 3)]
    head = [nn.AdaptiveAvgPool2d(1), conv(4, 10, 1), nn.Flatten()]
    return nn.Sequential(*layers, *head)


def functional() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, dilation=2)
        x = F.max_pool2d(x, 3, stride=2)
        return F.conv2d(F.avg_pool2d(x, 2), self.second)

    weight, second = nn.Parameter(torch.rand(4, 3, 3, 3)), nn.Parameter(torch.rand(4, 4, 3, 3))
    return Made(forward, weight=weight, second=second)


@pytest.mark.parametrize(
    ("make", "pixels"),
    [
        (residual, 9),
        (concatenated, 5 + 2),
        (pooled, 3 + 1 + 2 * 2 + 2 * 2 + 2 * 4),
        (functional, 5 + 2 + 2 + 2 * 4),
    ],
)
def test_the_walk_and_the_gradients_agree_on_models_of_many_shapes(make, pixels):
    assert probe_receptive_field(make()) == pixels
    assert summarize(make(), image_size=64).receptive_field == pixels


def gated(squeeze: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x * torch.sigmoid(self.gate(squeeze(x))))

    return Made(forward, stem=conv(3, 4, 3), gate=conv(4, 4, 1), last=conv(4, 4, 3))


@pytest.mark.parametrize("squeeze", [lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_avg_pool2d(x, 1)])
def test_a_gate_on_the_pooled_map_sees_the_whole_image_and_so_does_what_follows(squeeze):
    summary = summarize(gated(squeeze))
    assert [(row.layer, row.receptive_field) for row in summary.layers] == [
        ("Conv2d", 3),
        ("Conv2d", 32),
        ("Conv2d", 34),
    ]
    assert summary.receptive_field == 34


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 15 * 15, 225)),
        Made(lambda self, x: x.amax((-1, -2))),
        Made(lambda self, x: x.flatten(2).mean(-1)),
    ],
)
def test_what_merges_all_positions_sees_all_the_image(head):
    summary = summarize(nn.Sequential(conv(3, 4, 4, stride=2), head))
    assert summary.layers[-1].receptive_field == 32
    assert summary.receptive_field == 4


@pytest.mark.parametrize(
    ("layers", "field", "centre"),
    [
        ([nn.Conv2d(3, 4, 3)], 3, 1 + 14),  # 30 positions, the first around pixel 1
        ([nn.Conv2d(3, 4, 3, padding=1)], 3, 15),
        ([nn.Conv2d(3, 4, 4, stride=2, padding=1)], 4, 0.5 + 2 * 7),
        ([nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)], 8, 0.5 + 2 * 7),
        ([nn.Conv2d(3, 4, 3, dilation=3, padding=3)], 7, 15),
    ],
)
def test_the_last_maps_middle_position_looks_at_a_known_place(layers, field, centre):
    table = summarize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    assert (table.map_field, table.map_centre) == (field, centre)
