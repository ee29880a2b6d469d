"""JAX primitives as ONNX operators: those of convolutional networks in inference mode."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from imta_jax.errors import InputError
from imta_jax.interop.onnx.graph import (
    AXIS_OF_MAP,
    TO_JAX,
    TO_ONNX,
    Graph,
    Value,
    is_symbolic,
)

# What a primitive is applied to: a value of the graph, or an array that is known now.
Operand = Value | np.ndarray
Handler = Callable[[Graph, Sequence[Any], Mapping[str, Any], Sequence[Any]], list[Operand]]

_ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "abs": "Abs",
    "erf": "Erf",
    "logistic": "Sigmoid",
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"}
IDENTITIES = ("stop_gradient", "copy", "copy_p", "optimization_barrier")


def handler_of(primitive: str) -> Handler:
    """The function that adds a primitive's operators to a graph.

    Raises:
      InputError: the primitive has none.
    """
    if primitive in _HANDLERS:
        return _HANDLERS[primitive]
    raise InputError(
        f"the network uses the JAX primitive {primitive!r}, which the ONNX export does not "
        f"translate; expected some of {', '.join(sorted(_HANDLERS))}; export it as StableHLO"
    )


def add_convolution(
    graph: Graph,
    x: Value,
    kernel: Shaped[np.ndarray, "h w I O"],
    out: Any,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **attributes: Any,
) -> Value:
    """Adds a convolution of maps [N, H, W, C] with a kernel [h, w, I, O]."""
    weight = graph.weight(np.asarray(kernel, np.float32).transpose(3, 2, 0, 1))
    begin, end = zip(*padding, strict=True)
    (y,) = graph.node(
        "Conv",
        [x.name, weight],
        [out.shape],
        x.dtype,
        strides=[int(s) for s in strides],
        pads=[int(p) for p in (*begin, *end)],
        kernel_shape=[int(size) for size in kernel.shape[:2]],
        **attributes,
    )
    return y


def _convolution(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    x, kernel = operands
    dimensions = params["dimension_numbers"]
    channels_last = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    layout = (dimensions.lhs_spec, dimensions.rhs_spec, dimensions.out_spec)
    if layout != channels_last or not isinstance(kernel, np.ndarray):
        raise InputError(f"a convolution has the layout {dimensions}; expected NHWC, HWIO, NHWC")
    dilation = [int(d) for d in params["rhs_dilation"]]
    return [
        add_convolution(
            graph,
            x,
            kernel,
            outs[0],
            strides=params["window_strides"],
            padding=params["padding"],
            group=int(params["feature_group_count"]),
            dilations=dilation,
        )
    ]


def _name_of(graph: Graph, operand: Operand, dtype: np.dtype) -> str:
    """The name of a value, or of a constant in ONNX's layout."""
    if isinstance(operand, Value):
        return operand.name
    array = np.asarray(operand, dtype)
    return graph.constant(array.transpose(TO_ONNX) if array.ndim == 4 else array)


def _elementwise(operator: str) -> Handler:
    def add(
        graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
    ) -> list[Operand]:
        dtype = next(operand.dtype for operand in operands if isinstance(operand, Value))
        zeros = [o for o in operands if isinstance(o, np.ndarray) and o.ndim == 0 and o == 0]
        if operator == "Max" and zeros:
            (x,) = (operand for operand in operands if isinstance(operand, Value))
            return [*graph.node("Relu", [x.name], [outs[0].shape], dtype)]
        names = [_name_of(graph, operand, dtype) for operand in operands]
        return [*graph.node(operator, names, [outs[0].shape], dtype)]

    return add


def _reduction(operator: str) -> Handler:
    def add(
        graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
    ) -> list[Operand]:
        (x,) = operands
        axes = [AXIS_OF_MAP[a] if len(x.shape) == 4 else int(a) for a in params["axes"]]
        if len(x.shape) == 4 and sorted(axes) != [2, 3]:
            raise InputError(f"{operator} over axes {params['axes']}; expected (1, 2) of maps")
        if operator == "ReduceSum":  # its axes are an input
            inputs, attributes = [x.name, graph.constant(np.array(axes, np.int64))], {}
        else:
            inputs, attributes = [x.name], {"axes": axes}
        return [*graph.node(operator, inputs, [outs[0].shape], x.dtype, keepdims=0, **attributes)]

    return add


def _rsqrt(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    (x,) = operands
    (root,) = graph.node("Sqrt", [x.name], [x.shape], x.dtype)
    return [*graph.node("Reciprocal", [root.name], [x.shape], x.dtype)]


def _convert(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    (x,) = operands
    dtype = np.dtype(params["new_dtype"])
    to = graph.onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return [*graph.node("Cast", [x.name], [x.shape], dtype, to=to)]


def _concatenate(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    if not all(isinstance(operand, Value) for operand in operands):
        raise InputError("concatenate with a constant; expected values that depend on the images")
    axis = int(params["dimension"])
    axis = AXIS_OF_MAP[axis] if len(outs[0].shape) == 4 else axis
    names = [operand.name for operand in operands]
    return [*graph.node("Concat", names, [outs[0].shape], operands[0].dtype, axis=axis)]


def _split(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    (x,), sizes = operands, np.array(params["sizes"], np.int64)
    if len(sizes) == 1:
        return [x]
    axis = AXIS_OF_MAP[params["axis"]] if len(x.shape) == 4 else int(params["axis"])
    shapes = [out.shape for out in outs]
    return [*graph.node("Split", [x.name, graph.constant(sizes)], shapes, x.dtype, axis=axis)]


def _dot_general(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    x, y = operands
    if params["dimension_numbers"] != (((1,), (0,)), ((), ())) or len(x.shape) != 2:
        dimensions = params["dimension_numbers"]
        raise InputError(
            f"dot_general has dimension_numbers={dimensions}; expected a matrix product"
        )
    dtype = x.dtype if isinstance(x, Value) else y.dtype
    names = [x.name if isinstance(x, Value) else graph.weight(np.asarray(x, dtype)) for x in (x, y)]
    return [*graph.node("MatMul", names, [outs[0].shape], dtype)]


def _reshape(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    (x,), shape = operands, outs[0].shape
    if sum(map(is_symbolic, shape)) != 1:
        raise InputError(f"reshape to {shape}; expected one size that depends on the batch size")
    if len(x.shape) == 4:
        (x,) = graph.node("Transpose", [x.name], [x.shape], x.dtype, perm=TO_JAX)
    sizes = np.array([-1 if is_symbolic(size) else size for size in shape], np.int64)
    (y,) = graph.node("Reshape", [x.name, graph.constant(sizes)], [shape], x.dtype)
    if len(shape) == 4:
        (y,) = graph.node("Transpose", [y.name], [shape], x.dtype, perm=TO_ONNX)
    return [y]


def _max_pool(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    (x,) = operands
    begin, end = zip(*params["padding"][1:3], strict=True)
    return [
        *graph.node(
            "MaxPool",
            [x.name],
            [outs[0].shape],
            x.dtype,
            kernel_shape=[int(s) for s in params["window_dimensions"][1:3]],
            strides=[int(s) for s in params["window_strides"][1:3]],
            pads=[int(p) for p in (*begin, *end)],
        )
    ]


def _identity(
    graph: Graph, operands: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]
) -> list[Operand]:
    return list(operands)


_HANDLERS: dict[str, Handler] = {
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "concatenate": _concatenate,
    "split": _split,
    "dot_general": _dot_general,
    "reshape": _reshape,
    "reduce_window_max": _max_pool,
    "rsqrt": _rsqrt,
    **{name: _elementwise(operator) for name, operator in _ELEMENTWISE.items()},
    **{name: _reduction(operator) for name, operator in _REDUCTIONS.items()},
    **dict.fromkeys(IDENTITIES, _identity),
}
