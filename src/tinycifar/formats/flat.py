"""TFLite's tables as FlatBuffers: the fields that are used here, written and read.

The order of fields is that of the public schema, version 3 (tensorflow/compiler/mlir/lite/schema/schema.fbs); fields
that are not used stand for their slots. See https://flatbuffers.dev for the encoding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes, which the schema demands of buffers; flatbuffers' own Python code ignores it
NEEDED = 'exporting TFLite needs one more package: pip install "tinycifar[tflite]"'

# Names of fields by slot, each with its type and, unless 0, the value that is not written.
TABLES = {
    "Model": "version:Uint32 operator_codes:[OperatorCode] subgraphs:[SubGraph] description:string buffers:[Buffer] "
    "metadata_buffer:[Int32] metadata:[Metadata] signature_defs:[SignatureDef]",
    "OperatorCode": "deprecated_builtin_code:Int8 custom_code:string version:Int32=1 builtin_code:Int32",
    "SubGraph": "tensors:[Tensor] inputs:[Int32] outputs:[Int32] operators:[Operator] name:string",
    "Tensor": "shape:[Int32] type:Int8 buffer:Uint32 name:string quantization:QuantizationParameters",
    "QuantizationParameters": "min:[Float32] max:[Float32] scale:[Float32] zero_point:[Int64] details_type:Uint8 "
    "details:union quantized_dimension:Int32",
    "Operator": "opcode_index:Uint32 inputs:[Int32] outputs:[Int32] builtin_options_type:Uint8 builtin_options:union",
    "Buffer": "data:[Uint8]",
    "Metadata": "name:string buffer:Uint32",
    "SignatureDef": "inputs:[TensorMap] outputs:[TensorMap] signature_key:string deprecated:string "
    "subgraph_index:Uint32",
    "TensorMap": "name:string tensor_index:Uint32",
    "Conv2DOptions": "padding:Int8 stride_w:Int32 stride_h:Int32 activation:Int8 dilation_w:Int32=1 dilation_h:Int32=1",
    "DepthwiseConv2DOptions": "padding:Int8 stride_w:Int32 stride_h:Int32 depth_multiplier:Int32 activation:Int8 "
    "dilation_w:Int32=1 dilation_h:Int32=1",
    "Pool2DOptions": "padding:Int8 stride_w:Int32 stride_h:Int32 filter_width:Int32 filter_height:Int32 "
    "activation:Int8",
    "FullyConnectedOptions": "activation:Int8",
    "AddOptions": "activation:Int8",
    "ReducerOptions": "keep_dims:Bool",
    "PadOptions": "",
    "PadV2Options": "",
}
OPTIONS = {
    1: "Conv2DOptions",
    2: "DepthwiseConv2DOptions",
    5: "Pool2DOptions",
    8: "FullyConnectedOptions",
    11: "AddOptions",
    22: "PadOptions",
    27: "ReducerOptions",
    43: "PadV2Options",
}
"""The tables of operators' options by their number in the union."""
OPTION_NUMBERS = {name: number for number, name in OPTIONS.items()}

Table = dict[str, Any]


def _fields(table: str) -> list[tuple[str, str, int]]:
    """Name, type and default of each slot."""
    parts = (field.partition("=") for field in TABLES[table].split())
    return [(*name.split(":"), int(default or 0)) for name, _, default in parts]  # type: ignore[misc]


def _flatbuffers() -> Any:
    try:
        import flatbuffers
        import flatbuffers.encode
        import flatbuffers.number_types
        import flatbuffers.table
    except ImportError:
        raise ValueError(NEEDED) from None
    return flatbuffers


def check_installed() -> None:
    """Raise ValueError, saying what to install, unless flatbuffers is installed."""
    _flatbuffers()


def write(model: Table) -> bytes:
    """A `Model`, nested dictionaries and lists by the names in `TABLES`, as the bytes of a file."""
    builder = _flatbuffers().Builder(1 << 20)
    builder.Finish(_write_table(builder, "Model", model), IDENTIFIER)
    return bytes(builder.Output())


def _write_table(builder: Any, table: str, values: Table) -> int:
    fields = _fields(table)
    unknown = values.keys() - {name for name, _, _ in fields}
    assert not unknown, (table, unknown)
    offsets = {
        name: _write_value(builder, OPTIONS[values["builtin_options_type"]] if kind == "union" else kind, values[name])
        for name, kind, _ in fields
        if name in values and (kind in TABLES or not kind[0].isupper())
    }
    builder.StartObject(len(fields))
    for slot, (name, kind, default) in enumerate(fields):
        if name in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[name], 0)
        elif name in values:
            getattr(builder, f"Prepend{kind}Slot")(slot, values[name], default)
    return int(builder.EndObject())


def _write_value(builder: Any, kind: str, value: Any) -> int:
    if kind == "string":
        return int(builder.CreateString(value))
    if kind in TABLES:
        return _write_table(builder, kind, value)
    item = kind[1:-1]
    if item in TABLES:
        offsets = [_write_table(builder, item, entry) for entry in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())
    values = np.asarray(value, np.dtype(item.lower()).newbyteorder("<"))
    builder.StartVector(values.itemsize, values.size, ALIGNMENT if item == "Uint8" else values.itemsize)
    content = values.tobytes()
    builder.head -= len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return int(builder.EndVector())


def read(content: bytes) -> Table:
    """The `Model` in the bytes of a file, as `write` takes it, with defaults for what is not in it."""
    flatbuffers = _flatbuffers()
    if content[4:8] != IDENTIFIER:
        raise ValueError("this is no TFLite file")
    start = flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0)
    return _read_table(flatbuffers, content, start, "Model")


def _read_table(flatbuffers: Any, content: bytes, start: int, name: str) -> Table:
    table = flatbuffers.table.Table(content, start)
    values: Table = {}
    for slot, (field, kind, default) in enumerate(_fields(name)):
        offset = table.Offset(4 + 2 * slot)
        at = start + offset
        if kind == "string":
            values[field] = table.String(at).decode() if offset else ""
        elif kind == "union" or kind in TABLES:
            union = OPTIONS.get(values.get("builtin_options_type", 0), "")
            known = union if kind == "union" else kind
            values[field] = _read_table(flatbuffers, content, table.Indirect(at), known) if offset and known else {}
        elif kind[0] == "[":
            values[field] = _read_vector(flatbuffers, content, table, offset, kind[1:-1])
        else:
            flags = getattr(flatbuffers.number_types, f"{kind}Flags")
            values[field] = table.Get(flags, at) if offset else default
    return values


def _read_vector(flatbuffers: Any, content: bytes, table: Any, offset: int, item: str) -> Any:
    length, start = (table.VectorLen(offset), table.Vector(offset)) if offset else (0, 0)
    if item in TABLES:
        return [_read_table(flatbuffers, content, table.Indirect(start + 4 * i), item) for i in range(length)]
    return np.frombuffer(content, np.dtype(item.lower()).newbyteorder("<"), length, start)
