"""Whether an ONNX file may be handed to an engine, decided from its bytes alone, and what it says of itself. Nothing of it runs here.

`export` looks with it at what a stranger logged and at what its sandbox left; the gate `golden_set` before it loads a model. Refused are
files that are cut off, reach for other files, declare tensors that they do not hold or that no machine does, have cycles, nest or
unfold without end, or use operators that the servers' ONNX Runtime does not have. Whether the answers are right, it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from onnx import TensorProto

LIMIT_BYTES = (2 << 30) - 1  # protobuf's own limit for one message, and ours for one tensor
LIMIT_NODES = 1_000_000  # with every function unfolded; the largest language models have some ten thousand
LIMIT_DEPTH = 16  # graphs in graphs: loops in conditions in loops
LIMIT_RANK = 16
UNKNOWN = -1
OPSETS: Mapping[str, tuple[int, int]] = {"": (7, 26), "ai.onnx.ml": (1, 5), "com.microsoft": (1, 1)}
IR_VERSIONS = (3, 13)
"""What ONNX Runtime 1.31 reads, oldest and newest (measured: the next of each is refused by it; older than opset 7 it does not promise)."""

CONTRIBUTED = frozenset(
    (
        *("Tokenizer", "CDist", "Inverse", "MurmurHash3", "Trilu", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "FusedMatMul", "FusedGemm"),
        *("FusedConv", "Attention", "MultiHeadAttention", "GroupQueryAttention", "EmbedLayerNormalization", "SkipLayerNormalization"),
        *("SkipSimplifiedLayerNormalization", "BiasSoftmax", "RotaryEmbedding", "QAttention", "QLinearAdd", "QLinearMul", "QLinearConcat"),
        *(
            "QLinearSigmoid",
            "QLinearLeakyRelu",
            "QLinearAveragePool",
            "QLinearGlobalAveragePool",
            "QLinearSoftmax",
            "QLinearWhere",
            "QGemm",
        ),
        *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulNBits", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators of `com.microsoft` that converters, optimisers, quantisers write. Others are refused: EPContext opens a file that it names."""

ELEMENT_TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.STRING: "BYTES",
    TensorProto.BOOL: "BOOL",
    TensorProto.FLOAT16: "FP16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
}
"""ONNX's element types and Triton's words."""

BITS = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
}
"""Of one element; all other types have 8."""

HELD_IN = {
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"),
    **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    "INT64": "int64_data",
    "STRING": "string_data",
}
"""Which field holds a tensor's elements where `raw_data` does not (onnx.proto3); all other types are in `int32_data`."""

LOG_AGAIN = "log it with mlflow.onnx.log_model"
EXPORT_AGAIN = "export it again with a current exporter"
ONE_FILE = "export it as one file"


Shape = tuple[int, ...]
Scopes = tuple[dict[str, Shape], ...]  # names given so far, outermost graph first, each with the shape that it is known to spell


class BadModel(ValueError):
    """An ONNX file that no engine is given: `thing` has or does `value`, where `limit` holds; `advice` says what to do."""

    def __init__(self, thing: str, *, value: str, limit: str, advice: str) -> None:
        super().__init__(f"{thing[:200]} {value[:300]}; {limit}")
        self.thing, self.value, self.limit, self.advice = thing, value, limit, advice


@dataclass(frozen=True, kw_only=True)
class OnnxTensor:
    """An input or output of the graph. `shape` with the batch first; -1 where the size is not fixed."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def open_axes(self) -> tuple[int, ...]:
        """Those of `row_shape` whose size is not fixed."""
        return tuple(axis for axis, size in enumerate(self.row_shape) if size == UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a checked ONNX model says of itself; `inputs` without those that only name weights."""

    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    opset: int
    ir_version: int


def check_onnx(path: Path, *, weights_beside: bool = False) -> Outline:
    """Checks the file at `path`. Raises `BadModel`, and `OSError` when it cannot be read.

    With `weights_beside`, weights may lie in plain files below the folder of `path`, as MLflow writes them; else nowhere but in the file.
    """
    size = path.stat().st_size
    if size > LIMIT_BYTES:
        raise _too_large(size)
    return check_onnx_bytes(path.read_bytes(), folder=path.parent if weights_beside else None)


def check_onnx_bytes(data: bytes, *, folder: Path | None = None) -> Outline:
    """The same for a file's bytes; `folder` is where weights may lie outside of it, None for nowhere."""
    try:
        return _checked(_parsed(data), folder)
    except BadModel:
        raise
    except Exception as error:  # names that are no text, and whatever else a damaged file holds where nobody looks for it
        limit = "every field must be of the kind that ONNX defines"
        raise BadModel("the model", value=f"is damaged: {type(error).__name__}: {error}", limit=limit, advice=EXPORT_AGAIN) from error


def _checked(model: onnx.ModelProto, folder: Path | None) -> Outline:
    opsets = _opsets(model.opset_import)
    _insist_on_versions(model)
    file = _File(functions={_key(each): each for each in model.functions}, folder=folder)
    _insist_on_bounded_functions(file.functions)
    for function in model.functions:
        _check_function(file, function)
    _check_graph(file, model.graph, opsets, ())
    if folder is None:
        _insist_on_checker(model)
    return Outline(
        inputs=_inputs(model), outputs=tuple(map(_tensor, model.graph.output)), opset=opsets.get("", 0), ir_version=model.ir_version
    )


@dataclass(frozen=True, kw_only=True)
class _File:
    """What holds for the whole file. `nodes` counts those seen so far, in its one element."""

    functions: Mapping[tuple[str, str], onnx.FunctionProto]
    folder: Path | None
    nodes: list[int] = field(default_factory=lambda: [0])


def _parsed(data: bytes) -> onnx.ModelProto:
    if len(data) > LIMIT_BYTES:
        raise _too_large(len(data))
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        limit = "it must be one whole protobuf message"
        raise BadModel("the model", value=f"is no ONNX file, or is cut off: {error}", limit=limit, advice=LOG_AGAIN) from error
    for thing, holds in (("no graph with nodes", model.graph.node), ("no graph with outputs", model.graph.output)):
        if not holds:
            raise BadModel("the model", value=f"is no ONNX file, or is cut off: it has {thing}", limit="it needs one", advice=LOG_AGAIN)
    if model.training_info:
        raise BadModel("the model", value="carries graphs for training", limit="only inference is served", advice=EXPORT_AGAIN)
    return model


def _too_large(size: int) -> BadModel:
    return BadModel("the model", value=f"has {size} bytes", limit=f"one ONNX file can have {LIMIT_BYTES}", advice="export a smaller model")


def _opsets(imports: Iterable[Any]) -> dict[str, int]:
    """Versions by domain, as a model or function imports them; domains that ONNX Runtime does not have are refused only when used."""
    found: dict[str, int] = {}
    for each in imports:
        domain = _domain(each.domain)
        if found.setdefault(domain, each.version) != each.version:
            raise BadModel(f"domain {domain!r}", value="is imported in two versions", limit="one is allowed", advice=EXPORT_AGAIN)
        oldest, newest = OPSETS.get(domain, (each.version, each.version))
        if not oldest <= each.version <= newest:
            advice = f"export it for an opset from {oldest} to {newest}"
            raise BadModel(
                f"opset {domain or 'ai.onnx'}", value=f"is {each.version}", limit=f"{oldest} to {newest} are known", advice=advice
            )
    return found


def _insist_on_versions(model: onnx.ModelProto) -> None:
    oldest, newest = IR_VERSIONS
    if not oldest <= model.ir_version <= newest:
        limit = f"{oldest} to {newest} are known"
        raise BadModel("the IR version", value=f"is {model.ir_version}", limit=limit, advice="export it with an older onnx package")
    if not model.opset_import:
        raise BadModel("the model", value="names no opset", limit="it needs one: it may be cut off", advice=EXPORT_AGAIN)


def _insist_on_bounded_functions(functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> None:
    """No function calls itself, and unfolded they stay below the limit: ten levels of ten calls are ten thousand million nodes."""
    calls = {key: [_key(node) for node in _all_nodes(each.node)] for key, each in functions.items()}
    try:
        order = list(TopologicalSorter({key: [name for name in names if name in functions] for key, names in calls.items()}).static_order())
    except CycleError as error:
        name = error.args[1][0][1]
        raise BadModel(
            f"function {name!r}", value="calls itself", limit="functions are unfolded and must end", advice=EXPORT_AGAIN
        ) from error
    sizes: dict[tuple[str, str], int] = {}
    for key in order:
        sizes[key] = sum(sizes.get(name, 1) for name in calls[key])
        if sizes[key] > LIMIT_NODES:
            value = f"unfolds to {sizes[key]} nodes"
            raise BadModel(f"function {key[1]!r}", value=value, limit=f"the limit is {LIMIT_NODES}", advice="export a smaller model")


def _all_nodes(nodes: Iterable[onnx.NodeProto], depth: int = 0) -> Iterator[onnx.NodeProto]:
    """With those of the graphs inside them."""
    if depth > LIMIT_DEPTH:
        raise _too_deep(depth)
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _all_nodes(graph.node, depth + 1)


def _too_deep(depth: int) -> BadModel:
    return BadModel("the graph", value=f"nests {depth} graphs", limit=f"the limit is {LIMIT_DEPTH}", advice="export a flatter model")


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_function(file: _File, function: onnx.FunctionProto) -> None:
    opsets = _opsets(function.opset_import)
    known: dict[str, Shape] = dict.fromkeys(function.input, ())
    _check_nodes(file, function.node, opsets, (known,))
    _insist_on_outputs(function.output, (known,), f"function {function.name!r}")


def _check_graph(file: _File, graph: onnx.GraphProto, opsets: Mapping[str, int], outer: Scopes) -> None:
    """`outer` are the names that the graphs around this one have given so far."""
    if len(outer) > LIMIT_DEPTH:
        raise _too_deep(len(outer))
    for tensor in graph.initializer:
        _check_tensor(file, tensor)
    for sparse in graph.sparse_initializer:
        _check_sparse(file, sparse)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_declared(value)
    weights = {each.name: _numbers(each) for each in graph.initializer} | {each.values.name: () for each in graph.sparse_initializer}
    known: dict[str, Shape] = {each.name: () for each in graph.input} | weights
    if not outer and len(known) == len(weights):
        raise BadModel("the graph", value="takes no inputs", limit="it needs one: nothing would depend on a request", advice=EXPORT_AGAIN)
    _check_nodes(file, graph.node, opsets, (*outer, known))
    _insist_on_outputs([each.name for each in graph.output], (*outer, known), "the graph")


def _check_nodes(file: _File, nodes: Any, opsets: Mapping[str, int], scopes: Scopes) -> None:
    """Every name is given before it is used, by one node; so there is no cycle. Adds what the nodes give to the last of `scopes`."""
    file.nodes[0] += len(nodes)
    if file.nodes[0] > LIMIT_NODES:
        raise BadModel(
            "the graph", value=f"has {file.nodes[0]} nodes", limit=f"the limit is {LIMIT_NODES}", advice="export a smaller model"
        )
    later = {name for node in nodes for name in node.output if name}
    for node in nodes:
        _insist_on_operator(file, node, opsets)
        _insist_on_given(node, scopes, later)
        _check_attributes(file, node, opsets, scopes)
        _insist_on_bounded_result(node, scopes)
        _add(node, scopes[-1])


def _insist_on_operator(file: _File, node: onnx.NodeProto, opsets: Mapping[str, int]) -> None:
    """It is a function of the file, or an operator that the imported version of a known domain has."""
    domain = _domain(node.domain)
    if (domain, node.op_type) in file.functions:
        return
    known = domain in OPSETS and domain in opsets and _has(node.op_type, domain, opsets[domain])
    if not known:
        value = f"is {domain or 'ai.onnx'} {node.op_type!r} of opset {opsets.get(domain, 'none')}"
        limit = f"known are those of {', '.join(name or 'ai.onnx' for name in OPSETS)} in the version that the file imports"
        raise BadModel(f"operator of node {_name(node)!r}", value=value, limit=limit, advice="rebuild the layer from standard operators")


def _has(operator: str, domain: str, version: int) -> bool:
    if domain == "com.microsoft":
        return operator in CONTRIBUTED
    try:
        return not onnx.defs.get_schema(operator, version, domain).deprecated
    except onnx.defs.SchemaError:
        return False


def _insist_on_given(node: onnx.NodeProto, scopes: Scopes, later: set[str]) -> None:
    for name in node.input:
        if name and not any(name in scope for scope in scopes):
            value = f"takes {name[:100]!r}, which {'it or a later node gives' if name in later else 'nothing gives'}"
            limit = "nodes take what inputs, weights and earlier nodes give; a cycle has no first node"
            raise BadModel(f"node {_name(node)!r}", value=value, limit=limit, advice=EXPORT_AGAIN)


def _add(node: onnx.NodeProto, known: dict[str, Shape]) -> None:
    for name in filter(None, node.output):
        if name in known:
            value = f"gives {name[:100]!r} a second time"
            raise BadModel(f"node {_name(node)!r}", value=value, limit="a name stands for one value", advice=EXPORT_AGAIN)
        known[name] = next((_numbers(each.t) for each in node.attribute if each.name == "value" and node.op_type == "Constant"), ())


def _insist_on_outputs(names: Iterable[str], scopes: Scopes, thing: str) -> None:
    for name in names:
        if not any(name in scope for scope in scopes):
            value = f"promises the output {name[:100]!r}, which nothing gives"
            raise BadModel(thing, value=value, limit="every output comes from a node: the file may be cut off", advice=EXPORT_AGAIN)


def _check_attributes(file: _File, node: onnx.NodeProto, opsets: Mapping[str, int], scopes: Scopes) -> None:
    for attribute in node.attribute:
        for tensor in [attribute.t] * attribute.HasField("t") + list(attribute.tensors):
            _check_tensor(file, tensor)
        for sparse in [attribute.sparse_tensor] * attribute.HasField("sparse_tensor") + list(attribute.sparse_tensors):
            _check_sparse(file, sparse)
    for graph in _subgraphs(node):
        _check_graph(file, graph, opsets, scopes)


def _insist_on_bounded_result(node: onnx.NodeProto, scopes: Scopes) -> None:
    """A few bytes that become a huge tensor when they run: where the shape is written down, it is counted."""
    written = [_written(node.input[-1], scopes)] if node.op_type in {"ConstantOfShape", "Expand"} and node.input else []
    written += [tuple(each.ints) for each in node.attribute if each.name == "shape"]
    for shape in written:
        _insist_on_size(f"the result of node {_name(node)!r}", shape, 32)


def _written(name: str, scopes: Scopes) -> Shape:
    return next((scope[name] for scope in reversed(scopes) if name in scope), ())


def _numbers(tensor: TensorProto) -> Shape:
    """The whole numbers of a small tensor, which may be a shape; of any other nothing."""
    plain = tensor.data_type == TensorProto.INT64 and list(tensor.dims) == [len(tensor.int64_data) or len(tensor.raw_data) // 8]
    small = plain and tensor.dims[0] <= LIMIT_RANK and tensor.data_location != TensorProto.EXTERNAL
    return tuple(map(int, onnx.numpy_helper.to_array(tensor))) if small else ()


def _check_tensor(file: _File, tensor: TensorProto) -> None:
    """It holds as many bytes as its dimensions say, here or in a file that it may name."""
    thing = f"tensor {tensor.name[:100]!r}"
    kind = _kind(tensor.data_type, thing)
    _insist_on_size(thing, tensor.dims, BITS.get(kind, 8))
    elements = math.prod(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        _check_external(file, tensor, thing, _bytes(elements, kind))
        return
    held, wanted, unit = _held(tensor, kind, elements)
    if held != wanted:
        limit = f"its dimensions {list(tensor.dims)[:8]} need {wanted}"
        raise BadModel(thing, value=f"holds {held} {unit}", limit=limit, advice="the file is damaged: " + EXPORT_AGAIN)


def _held(tensor: TensorProto, kind: str, elements: int) -> tuple[int, int, str]:
    """What is there, what should be, and in which unit. Elements of less than a byte are packed, also in `int32_data`."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), _bytes(elements, kind), "bytes"
    bits = BITS.get(kind, 8)
    parts = 2 if kind.startswith("COMPLEX") else 1
    return len(getattr(tensor, HELD_IN.get(kind, "int32_data"))), -(-elements * parts * min(bits, 8) // 8), "elements"


def _bytes(elements: int, kind: str) -> int:
    return -(-elements * BITS.get(kind, 8) // 8)


def _check_sparse(file: _File, sparse: onnx.SparseTensorProto) -> None:
    _check_tensor(file, sparse.values)
    _check_tensor(file, sparse.indices)
    thing = f"sparse tensor {sparse.values.name[:100]!r}"
    _insist_on_size(thing, sparse.dims, BITS.get(_kind(sparse.values.data_type, thing), 8))


def _kind(number: int, thing: str) -> str:
    kinds = TensorProto.DataType
    if number not in kinds.values() or number == TensorProto.UNDEFINED:
        raise BadModel(thing, value=f"has element type {number}", limit="it must be one that ONNX defines", advice=EXPORT_AGAIN)
    return str(kinds.Name(number))


def _insist_on_size(thing: str, dims: Iterable[int], bits: int) -> None:
    sizes = list(dims)
    if min(sizes, default=0) < 0:
        raise BadModel(thing, value=f"has dimensions {sizes[:8]}", limit="none can be negative", advice=EXPORT_AGAIN)
    if (size := math.prod(sizes) * bits // 8) > LIMIT_BYTES:
        raise BadModel(thing, value=f"declares {size} bytes", limit=f"the limit is {LIMIT_BYTES}", advice="export a smaller model")


def _check_external(file: _File, tensor: TensorProto, thing: str, wanted: int) -> None:
    """The bytes lie in a plain file below the model's folder, all of them; neither absolute names nor `..` nor links lead there."""
    entries = {each.key: each.value for each in tensor.external_data}
    location = entries.get("location", "")
    if file.folder is None:
        limit = "a model that is delivered is one file"
        raise BadModel(thing, value=f"keeps its values in another file, {location[:100]!r}", limit=limit, advice=ONE_FILE)
    path = file.folder / location
    if not _is_inside(path, location, file.folder):
        limit = "weights lie in plain files in the model's own folder"
        raise BadModel(thing, value=f"names {location[:100]!r}, which lies outside or is no plain file", limit=limit, advice=ONE_FILE)
    start, length = _whole(entries.get("offset", "0")), _whole(entries.get("length", str(wanted)))
    if start < 0 or length != wanted or start + length > path.stat().st_size:
        value = f"takes {length} bytes from {start} on of {location[:100]!r}, which has {path.stat().st_size}"
        raise BadModel(thing, value=value, limit=f"its dimensions need {wanted} bytes", advice="the file is damaged: " + EXPORT_AGAIN)


def _is_inside(path: Path, location: str, folder: Path) -> bool:
    parts = PurePosixPath(location).parts
    plain = bool(parts) and ".." not in parts and not location.startswith("/") and "\\" not in location and "\0" not in location
    if not plain:
        return False
    steps = [folder.joinpath(*parts[: number + 1]) for number in range(len(parts))]
    return path.is_file() and not any(step.is_symlink() for step in steps)


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 20 else UNKNOWN


def _check_declared(value: Any) -> None:
    if value.type.HasField("tensor_type"):
        kind = value.type.tensor_type
        sizes = [size.dim_value for size in kind.shape.dim if size.HasField("dim_value")]
        _insist_on_size(f"value {value.name[:100]!r}", sizes, BITS.get(_kind(kind.elem_type, f"value {value.name[:100]!r}"), 8))


def _insist_on_checker(model: onnx.ModelProto) -> None:
    """What ONNX's own rules say beyond all this: attributes that are missing, types that do not fit."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        value = f"is refused by the ONNX checker: {' '.join(str(error).split())}"
        raise BadModel("the model", value=value, limit="it must pass", advice="export it as one file of standard operators") from error


def _inputs(model: onnx.ModelProto) -> tuple[OnnxTensor, ...]:
    weights = {each.name for each in model.graph.initializer}
    return tuple(_tensor(each) for each in model.graph.input if each.name not in weights)


def _tensor(value: Any) -> OnnxTensor:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in ELEMENT_TYPES:
        limit = f"it must be a tensor of {', '.join(ELEMENT_TYPES.values())}"
        raise BadModel(
            value.name, value="is not a tensor of a type that Triton serves", limit=limit, advice="for a classifier turn ZipMap off"
        )
    shape = tuple(size.dim_value if size.HasField("dim_value") else UNKNOWN for size in kind.shape.dim)
    if not shape or shape[0] != UNKNOWN:
        fixed = f"has the shape {list(shape)}" if shape else "has no batch dimension"
        advice = "export it with a dynamic first dimension, so that requests can be batched"
        raise BadModel(value.name, value=fixed, limit="the first dimension must be open", advice=advice)
    return OnnxTensor(name=value.name, dtype=ELEMENT_TYPES[kind.elem_type], shape=shape)


def _key(row: Any) -> tuple[str, str]:
    """Of a function, or of the function that a node calls: domain and name."""
    return _domain(row.domain), row.op_type if isinstance(row, onnx.NodeProto) else row.name


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _name(node: onnx.NodeProto) -> str:
    return (node.name or node.op_type)[:100]
