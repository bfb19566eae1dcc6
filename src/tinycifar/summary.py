"""The layer table of a model: shapes, parameters, multiply-accumulates (MACs) and receptive fields.

The table has the rows, names and sizes of torchsummary, which printed the reference's. MACs and receptive fields come
from watching the operations of one forward pass below the level of modules, so residual sums, concatenations and
whatever else a model calls as a function count as much as a layer.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MEGABYTE = 1024**2  # torchsummary's
VALUE_BYTES = 4  # float32


@dataclass(frozen=True)
class Layer:
    """One row: a layer, or a named block after its layers.

    `output_shape` is that of one image, without the batch dimension. `parameters` are those the layer holds itself,
    `macs` those computed in it and in no row within it. `receptive_field` is in pixels of the image, one side.
    """

    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int


@dataclass(frozen=True)
class Summary:
    """The rows of a model and its totals, for one image.

    `macs` counts convolutions and matrix products (no bias, normalisation or activation). `receptive_field` is that of
    the last convolution before global pooling, in pixels. Sizes are in units of 1024**2 bytes at float32, by
    torchsummary's formulas: `activations_mb` is twice the outputs of all rows, for forward and backward.
    `map_field` is the receptive field of the last feature map before global pooling, `map_centre` the pixel, counted
    from 0 and with a fraction, in the middle of what the map's middle position sees.
    """

    layers: tuple[Layer, ...]
    parameters: int
    trainable_parameters: int
    macs: int
    receptive_field: int
    input_mb: float
    activations_mb: float
    parameters_mb: float
    map_field: int
    map_centre: float


class View(NamedTuple):
    """How one position of a tensor looks at the image."""

    field: int = 1
    """Side of the square it depends on, in pixels."""
    step: int = 1
    """Distance between two neighbouring positions, in pixels."""
    pooled: bool = False
    """Whether global pooling lies behind it."""
    start: float = 0.0
    """The pixel in the middle of what the first position sees, from 0; with a fraction, perhaps negative."""

    def window(self, kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> View:
        """What one position sees after a convolution or pooling of that geometry."""
        reach = (kernel - 1) * dilation
        start = self.start + (reach / 2 - padding) * self.step
        return self._replace(field=self.field + reach * self.step, step=self.step * stride, start=start)


def summarize(model: nn.Module, image_size: int | None = None) -> Summary:
    """Run a copy of `model` once on a blank image (1, C, image_size, image_size) and tabulate what happened.

    The size is by default the model's own `image_size`, or 32 where it has none; C is its `channels`, or 3. Rows come
    in the order of execution, a block's after those of its layers; the model itself and plain `nn.Sequential` have
    none. The model is left as it was.

    Receptive fields follow the textbook: a window grows the field, several inputs give the largest of theirs, and what
    merges all positions (global pooling, flattening) is a window as large as the map. Of a kernel's sides the larger
    counts, borders do not: a field may exceed the image. Raises ValueError for a model whose fields it cannot follow
    (transposed convolution, enlarging, adaptive pooling to more than one position).
    """
    model = copy.deepcopy(model).eval().cpu()
    walk = _Walk()
    for module in model.modules():
        if module is not model and type(module) is not nn.Sequential:
            module.register_forward_pre_hook(walk.enter)
            module.register_forward_hook(walk.leave)
    side = int(image_size or getattr(model, "image_size", 32))  # type: ignore[arg-type]
    image = torch.zeros(1, int(getattr(model, "channels", 3)), side, side)
    walk.remember(image, View())
    with torch.no_grad(), walk:
        model(image)
    parameters = sum(p.numel() for p in model.parameters())
    values = sum(math.prod(row.output_shape) for row in walk.rows)
    return Summary(
        layers=tuple(walk.rows),
        parameters=parameters,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=walk.macs,
        receptive_field=walk.convolution_field,
        input_mb=image.numel() * VALUE_BYTES / MEGABYTE,
        activations_mb=2 * values * VALUE_BYTES / MEGABYTE,
        parameters_mb=parameters * VALUE_BYTES / MEGABYTE,
        map_field=walk.last_map.field,
        map_centre=walk.last_map.start + walk.last_map.step * ((walk.last_side - 1) // 2),
    )


class _Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one forward pass: MACs and views as operations are done, rows as modules return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Layer] = []
        self.macs = 0
        self.macs_within: list[int] = []  # of the modules at work, outermost first
        self.convolution_field = 1
        self.last_map, self.last_side = View(), 1
        self.views: dict[int, tuple[View, Tensor]] = {}  # by id; the tensor is kept so that no id is used twice

    def remember(self, tensor: Tensor, view: View) -> None:
        self.views[id(tensor)] = view, tensor
        if tensor.dim() == 4 and not view.pooled:
            self.last_map, self.last_side = view, tensor.shape[-1]

    def enter(self, module: nn.Module, arguments: Any) -> None:
        self.macs_within.append(0)

    def leave(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.rows.append(
            Layer(
                layer=type(module).__name__,
                output_shape=tuple(output.shape[1:]),
                parameters=sum(p.numel() for p in module.parameters(recurse=False)),
                macs=self.macs_within.pop(),
                receptive_field=self.views[id(output)][0].field,
            )
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            macs = count(*args, **(kwargs or {}), out_val=output) // 2
            self.macs += macs
            if self.macs_within:
                self.macs_within[-1] += macs
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.views]
        if inputs:
            result = tree_leaves(output)[0]  # others are statistics or indices
            view = self.after(func._overloadpacket.__name__, args, inputs, result)
            self.remember(result, view)
        return output

    def after(self, name: str, args: Any, inputs: list[Tensor], output: Tensor) -> View:
        """How `output`, made by the operation `name` from `inputs`, looks at the image."""
        views = [self.views[id(tensor)][0] for tensor in inputs]
        widest = max(views, key=lambda view: view.field)
        view = widest._replace(step=max(v.step for v in views), pooled=all(v.pooled for v in views))
        side = max(tensor.shape[-1] if tensor.dim() == 4 else 1 for tensor in inputs)
        if name == "convolution":
            if args[6]:
                raise ValueError("receptive fields of transposed convolutions are not known here")
            view = view.window(max(args[1].shape[2:]), max(args[3]), max(args[5]), max(args[4]))
            if not view.pooled:
                self.convolution_field = max(self.convolution_field, view.field)  # a shortcut may run last
        elif name in ("max_pool2d_with_indices", "avg_pool2d"):
            stride = args[2] if len(args) > 2 and args[2] else args[1]
            dilation = args[4] if name.startswith("max") and len(args) > 4 else [1]
            padding = args[3] if len(args) > 3 else [0]
            view = view.window(max(args[1]), max(stride), max(dilation), max(padding))
        elif side > 1 and (output.dim() < 4 or output.shape[-1] == 1):
            view = view.window(side)._replace(pooled=True)
        elif "pool" in name or "upsample" in name:
            raise ValueError(f"receptive fields after {name} are not known here")
        return view


def as_json(summary: Summary) -> dict[str, Any]:
    """Rows and totals as plain values: `layers`, `parameters`, `macs`, `receptive_field`."""
    layers = [asdict(row) | {"output_shape": list(row.output_shape)} for row in summary.layers]
    totals = {name: getattr(summary, name) for name in ("parameters", "macs", "receptive_field")}
    return {"layers": layers, **totals}


def render(summary: Summary) -> str:
    """The table as torchsummary prints it, with two more columns: MACs, and the receptive field (RF) in pixels."""

    def line(name: str, shape: str, parameters: str, macs: str, field: str) -> str:
        return f"{name:>20}  {shape:>25} {parameters:>15} {macs:>13} {field:>5}"

    heading = line("Layer (type)", "Output Shape", "Param #", "MACs", "RF")
    total_mb = summary.input_mb + summary.activations_mb + summary.parameters_mb
    return "\n".join(
        [
            "-" * len(heading),
            heading,
            "=" * len(heading),
            *(
                line(
                    f"{row.layer}-{number}",
                    str([-1, *row.output_shape]),
                    f"{row.parameters:,}",
                    f"{row.macs:,}",
                    str(row.receptive_field),
                )
                for number, row in enumerate(summary.layers, 1)
            ),
            "=" * len(heading),
            f"Total params: {summary.parameters:,}",
            f"Trainable params: {summary.trainable_parameters:,}",
            f"Non-trainable params: {summary.parameters - summary.trainable_parameters:,}",
            f"Total MACs: {summary.macs:,}",
            f"Receptive field: {summary.receptive_field} (of the last convolution)",
            "-" * len(heading),
            f"Input size (MB): {summary.input_mb:.2f}",
            f"Forward/backward pass size (MB): {summary.activations_mb:.2f}",
            f"Params size (MB): {summary.parameters_mb:.2f}",
            f"Estimated Total Size (MB): {total_mb:.2f}",
            "-" * len(heading),
        ]
    )
