"""Reading int8 ONNX files: what integers cannot express is named."""

from collections.abc import Callable

import onnx
import pytest

from tinycifar.formats import int8_graph

Change = Callable[[onnx.GraphProto], None]


def attribute(kind: str, name: str, value: object) -> Change:
    """A change of an attribute of the graph's first node of a kind."""

    def change(graph: onnx.GraphProto) -> None:
        node = next(item for item in graph.node if item.op_type == kind)
        for item in list(node.attribute):
            if item.name == name:
                node.attribute.remove(item)
        node.attribute.append(onnx.helper.make_attribute(name, value))

    return change


def operator(kind: str, new: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        next(item for item in graph.node if item.op_type == kind).op_type = new

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("MaxPool", "kernel_shape", [3, 3]), r"MaxPool .* has kernel_shape \[3, 3\]; .* \[2, 2\] only"),
        (attribute("MaxPool", "strides", [1, 1]), r"MaxPool .* has strides \[1, 1\]"),
        (attribute("MaxPool", "pads", [1, 1, 1, 1]), r"MaxPool .* has pads"),
        (attribute("MaxPool", "dilations", [2, 2]), r"MaxPool .* has dilations"),
        (attribute("MaxPool", "ceil_mode", 1), r"MaxPool .* has ceil_mode 1"),
        (attribute("Conv", "strides", [1, 2]), r"Conv .* has strides \[1, 2\]; .* equal values"),
        (attribute("Conv", "pads", [0, 0, 1, 1]), r"Conv .* has pads \[0, 0, 1, 1\]"),
        (attribute("Conv", "dilations", [1, 2]), r"Conv .* has dilations"),
        (attribute("Conv", "auto_pad", "SAME_UPPER"), r"Conv .* has auto_pad SAME_UPPER"),
        (attribute("Gemm", "alpha", 2.0), r"Gemm .* has alpha 2.0"),
        (operator("Add", "Mul"), r"Mul .* has no equivalent in C; Conv, MaxPool, Add and Relu have"),
        (operator("MaxPool", "AveragePool"), r"AveragePool .* has no equivalent in C"),
    ],
)
def test_what_integers_cannot_express_is_named(exports, tmp_path, change, message):
    model = onnx.load(exports / "minute-u8u8.onnx")
    change(model.graph)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ValueError, match=message):
        int8_graph.read(tmp_path / "changed.onnx")
