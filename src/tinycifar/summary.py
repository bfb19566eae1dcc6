"""The layer table of a model: shapes, parameters, multiply-accumulates (MACs) and receptive fields.

The table has the rows, names and sizes of torchsummary, which printed the reference's. MACs and receptive fields come
from watching the operations of one forward pass below the level of modules, so what a model calls as a function
(residual sums, concatenations, convolutions and pooling without a module) counts as much as a layer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MEGABYTE = 1024**2  # torchsummary's
VALUE_BYTES = 4  # float32


@dataclass(frozen=True)
class Layer:
    """One row: a layer after one call, or a named block after its layers.

    `index` counts from 1; `output_shape` is that of one image, without the batch dimension. `parameters` are those the
    layer holds itself and no earlier row showed; `macs` those computed in it and in no row within it, so blocks have 0
    of both unless they hold or compute something of their own. `receptive_field` is in pixels of the image (one side),
    0 if the output does not depend on the image.
    """

    index: int
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int


@dataclass(frozen=True)
class Summary:
    """The rows of a model and its totals, for one image.

    `parameters` counts every parameter once, shared or not, shown in a row or not; `macs` counts matrix products and
    convolutions (no bias, normalisation or activation). `receptive_field` is that of the last convolution before
    pooling, in pixels. Sizes are in units of 1024**2 bytes at float32, by torchsummary's formulas: `activations_mb` is
    twice the outputs of all rows, blocks included, for forward and backward.
    """

    layers: tuple[Layer, ...]
    parameters: int
    trainable_parameters: int
    macs: int
    receptive_field: int
    input_mb: float
    activations_mb: float
    parameters_mb: float

    @property
    def total_mb(self) -> float:
        """Input, activations and parameters together, in units of 1024**2 bytes."""
        return self.input_mb + self.activations_mb + self.parameters_mb


def receptive_field(layers: Sequence[Mapping[str, int]]) -> int:
    """Receptive field, in pixels, of a chain of layers given as kernel size `k`, stride `s` and dilation `d`.

    `s` and `d` may be left out and are 1 then. No layers give 1. Raises ValueError for a missing `k`, another key, or a
    value that is no whole number of at least 1.
    """
    axis = _Axis(size=1)
    for layer in layers:
        if "k" not in layer or not layer.keys() <= {"k", "s", "d"}:
            raise ValueError(f"a layer has the keys k, s and d, of which s and d may be left out, not {dict(layer)}")
        for value in layer.values():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"k, s and d must be whole numbers of at least 1, not {dict(layer)}")
        axis = axis.window(layer["k"], layer.get("s", 1), layer.get("d", 1))
    return int(axis.field)


def summarize(model: nn.Module, image_size: int = 32) -> Summary:
    """Run `model` once on a blank image (1, 3, image_size, image_size) and tabulate what happened.

    Rows come in the order of execution, a block's after those of its layers; the model itself and plain `nn.Sequential`
    have none. A layer that is called twice has two rows. The model's mode, buffers, gradients and device and the state
    of torch's random generators are left as they were. Raises ValueError if `image_size` is below 1; whatever the model
    raises passes.

    Receptive fields follow the textbook: a window grows the field, several inputs give the largest of theirs, and
    global pooling, attention or a linear layer over all positions is a window as large as the map. Of height and width
    the larger one is told, and borders do not count, so it may exceed the image. Windows made by hand from reshapes,
    enlarged maps other than by transposed convolution or pixel shuffle, and statistics of normalisation are not seen.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, not {image_size}")
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    walk = _Walk()
    with _untouched(model, first.device), torch.inference_mode(False), torch.no_grad():
        image = torch.zeros(1, 3, image_size, image_size, dtype=first.dtype, device=first.device)
        walk.remember(image, _View((_Axis(image_size), _Axis(image_size))))
        hooks = []
        try:
            for module in model.modules():
                if module is not model and type(module) is not nn.Sequential:
                    hooks.append(module.register_forward_pre_hook(walk.enter))
                    hooks.append(module.register_forward_hook(walk.leave))
            with walk:
                output = model(image)
        finally:
            for hook in hooks:
                hook.remove()
    parameters = sum(p.numel() for p in model.parameters())
    values = sum(math.prod(row.output_shape) for row in walk.rows)
    return Summary(
        layers=tuple(walk.rows),
        parameters=parameters,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=walk.macs,
        receptive_field=walk.convolution_field or walk.pixels(output),
        input_mb=3 * image_size**2 * VALUE_BYTES / MEGABYTE,
        activations_mb=2 * values * VALUE_BYTES / MEGABYTE,
        parameters_mb=parameters * VALUE_BYTES / MEGABYTE,
    )


def as_json(summary: Summary) -> dict[str, Any]:
    """Give rows and totals as plain values; an output shape is a list of numbers."""
    names = ("layer", "output_shape", "parameters", "macs", "receptive_field")
    layers = [{name: getattr(row, name) for name in names} for row in summary.layers]
    for row in layers:
        row["output_shape"] = list(row["output_shape"])
    return {
        "layers": layers,
        "parameters": summary.parameters,
        "macs": summary.macs,
        "receptive_field": summary.receptive_field,
    }


def render(summary: Summary) -> str:
    """Lay the table out as torchsummary does, with two more columns: MACs, and the receptive field (RF) in pixels."""
    names = [f"{row.layer}-{row.index}" for row in summary.layers]
    width = max([20, *map(len, names)])

    def line(name: str, shape: str, parameters: str, macs: str, field: str) -> str:
        return f"{name:>{width}}  {shape:>25} {parameters:>15} {macs:>13} {field:>5}"

    heading = line("Layer (type)", "Output Shape", "Param #", "MACs", "RF")
    rule = "-" * (len(heading) + 1)
    rows = [
        line(name, str([-1, *row.output_shape]), f"{row.parameters:,}", f"{row.macs:,}", str(row.receptive_field))
        for name, row in zip(names, summary.layers, strict=True)
    ]
    return "\n".join(
        [
            rule,
            heading,
            "=" * len(rule),
            *rows,
            "=" * len(rule),
            f"Total params: {summary.parameters:,}",
            f"Trainable params: {summary.trainable_parameters:,}",
            f"Non-trainable params: {summary.parameters - summary.trainable_parameters:,}",
            f"Total MACs: {summary.macs:,}",
            f"Receptive field: {summary.receptive_field} (at the last convolution)",
            rule,
            f"Input size (MB): {summary.input_mb:.2f}",
            f"Forward/backward pass size (MB): {summary.activations_mb:.2f}",
            f"Params size (MB): {summary.parameters_mb:.2f}",
            f"Estimated Total Size (MB): {summary.total_mb:.2f}",
            rule,
        ]
    )


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards its modes, its buffers and the random generators back."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for module in modes:  # not model.eval(): a model may do more there than set the flag
                module.training = False
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


# --- the walk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """One direction of a map: its positions, how many pixels each sees, and the step between two in pixels."""

    size: int
    field: Fraction = Fraction(1)
    step: Fraction = Fraction(1)  # a true fraction only behind what enlarges a map

    def window(self, kernel: int, stride: int = 1, dilation: int = 1, size: int = 1) -> _Axis:
        return _Axis(size, self.field + (kernel - 1) * dilation * self.step, self.step * stride)


@dataclass(frozen=True)
class _View:
    """How a tensor looks at the image. The axes stay known while a reshape hides them, until they are pooled."""

    axes: tuple[_Axis, ...]
    pooled: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def pixels(self) -> int:
        return max(math.ceil(axis.field) for axis in self.axes)

    def windows(self, sizes: Sequence[int], *geometry: Sequence[int]) -> _View:
        """Slide a window of kernel, stride and dilation (one number an axis, or one for all) to maps of `sizes`."""
        columns = [list(given) * (2 if len(given) == 1 else 1) for given in geometry]
        return _View(tuple(a.window(*g, size=n) for a, n, *g in zip(self.axes, sizes, *columns, strict=True)))

    def everything(self) -> _View:
        return replace(self.windows((1, 1), self.sizes), pooled=True)

    def is_map(self, tensor: Tensor) -> bool:
        """Whether the tensor's layout is (N, C, H, W) or (C, H, W), not tokens or channels last."""
        return tensor.dim() > 2 and tuple(tensor.shape[-2:]) == self.sizes


def _widen(view: _View, other: _View) -> _View:
    """Let `view` see at least what `other` sees."""
    pairs = zip(view.axes, other.axes, strict=True)
    return replace(view, axes=tuple(replace(one, field=max(one.field, two.field)) for one, two in pairs))


def _merge(views: Iterable[_View]) -> _View:
    """Largest field of all; the grid of the finest, as where a gate (one position) scales a map."""
    views = list(views)
    return reduce(_widen, views, max(views, key=lambda view: (not view.pooled, math.prod(view.sizes))))


def _place(tensor: Tensor) -> tuple[int, Hashable]:
    """Memory and layout: PyTorch may wrap a view anew, so that a tensor object is no lasting key."""
    layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    return tensor.untyped_storage()._cdata, layout


class _Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one forward pass: MACs and views as operations are done, rows as modules return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Layer] = []
        self.macs = 0
        self.macs_within: list[int] = []  # of the modules at work, outermost first
        self.parameters_shown: set[int] = set()
        self.convolution_field = 0
        self.views: dict[int, dict[Hashable, _View]] = {}
        self.alive: list[Tensor] = []  # kept to the end, so that no memory is used twice

    def enter(self, module: nn.Module, arguments: Any) -> None:
        self.macs_within.append(0)

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        own = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in self.parameters_shown}
        self.parameters_shown |= own.keys()
        shapes = [tuple(t.shape[1:]) for t in _tensors(output)]
        row = Layer(
            index=len(self.rows) + 1,
            layer=type(module).__name__,
            output_shape=shapes[0] if shapes else (),
            parameters=sum(own.values()),
            macs=self.macs_within.pop(),
            receptive_field=self.pixels(output),
        )
        self.rows.append(row)

    def pixels(self, output: Any) -> int:
        return max((view.pixels for t in _tensors(output) if (view := self.recall(t))), default=0)

    def remember(self, tensor: Tensor, view: _View) -> None:
        memory, layout = _place(tensor)
        self.views.setdefault(memory, {})[layout] = view
        self.alive.append(tensor)

    def recall(self, tensor: Tensor) -> _View | None:
        memory, layout = _place(tensor)
        known = self.views.get(memory, {})
        return known.get(layout) or (_merge(known.values()) if known else None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seen = {t: view for t in _tensors((args, kwargs)) if (view := self.recall(t))}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            macs = count(*args, **kwargs, out_val=out) // 2
            self.macs += macs
            if self.macs_within:
                self.macs_within[-1] += macs
        if seen:
            name = func._overloadpacket.__name__.rstrip("_")  # add_ is add
            for tensor in _tensors(out):
                view = _after(name, args, seen, tensor)
                if name == "convolution" and not view.pooled:
                    self.convolution_field = max(self.convolution_field, view.pixels)
                if func._schema.is_mutable:  # whatever else shows this memory has changed with it
                    shown = self.views.get(_place(tensor)[0], {})
                    shown.update({key: _widen(other, view) for key, other in shown.items()})
                self.remember(tensor, view)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


_RESHAPES = set("view _unsafe_view reshape permute transpose t expand squeeze unsqueeze select unbind".split())
_REDUCTIONS = set("mean sum prod amax amin max min logsumexp var std var_mean linalg_vector_norm".split())


def _after(name: str, args: Any, seen: Mapping[Tensor, _View], out: Tensor) -> _View:
    """Work out how `out`, made by the operation `name` from the tensors `seen`, looks at the image."""
    view = _merge(seen.values())
    if view.pooled:  # what follows sees the same
        return view
    source = next(tensor for tensor in seen if seen[tensor].sizes == view.sizes)
    sizes, positions = tuple(out.shape[-2:]), math.prod(view.sizes)

    if (name == "convolution" or "pool" in name) and not view.is_map(source):  # along tokens or channels
        return view.everything()
    if name == "convolution":
        kernel, stride, dilation = args[1].shape[2:], args[3], args[5]
        if args[6]:  # transposed: as many positions as the kernel meets where the stride spreads them out
            met = [-(-((k - 1) * d + 1) // s) for k, s, d in zip(kernel, stride, dilation, strict=True)]
            axes = view.windows(sizes, met).axes
            return _View(tuple(replace(axis, step=axis.step / s) for axis, s in zip(axes, stride, strict=True)))
        return view.windows(sizes, kernel, stride, dilation)
    if "pool" in name:
        if math.prod(sizes) == 1:
            return view.everything()
        if "adaptive" in name:  # windows that divide the map evenly, or nearly so
            ratios = list(zip(view.sizes, sizes, strict=True))
            kernel, stride = [-(-before // after) for before, after in ratios], [max(1, b // a) for b, a in ratios]
            return view.windows(sizes, kernel, stride)
        kernel, stride = args[1], args[2] if len(args) > 2 and args[2] else args[1]
        dilation = args[4] if name.startswith("max") and len(args) > 4 else [1]
        return view.windows(sizes, kernel, stride, dilation)
    if name == "pixel_unshuffle":
        return view.windows(sizes, [args[1]], [args[1]])
    if name == "pixel_shuffle":
        return _View(tuple(_Axis(n, a.field, a.step / args[1]) for n, a in zip(sizes, view.axes, strict=True)))

    if name in {"bmm", "baddbmm"} or "attention" in name:
        return view.everything()
    if name in {"mm", "addmm"} and source.shape[0] != positions:  # a row is not one position, so it holds them all
        return view.everything()
    if name in _REDUCTIONS and (sizes != view.sizes if view.is_map(source) else positions not in out.shape):
        return view.everything()
    if view.is_map(source) and out.dim() == source.dim() and name not in _RESHAPES:  # perhaps padded or cropped
        dims = (source.dim() - 2, source.dim() - 1)
        every = [args[4] if name == "slice" and len(args) > 4 and args[1] == dim else 1 for dim in dims]
        return view.windows(sizes, [1], every)
    return view
