"""Converts a traced JAX function to an ONNX model.

The function is traced with a symbolic batch size. Weights become constants, and what depends on
weights only is computed now. A call of `nn.convolution.convolve` becomes one `Conv`, whatever form
it has on this device. Converters for any JAX function, such as jax2onnx, are not used: jax2onnx
0.17 requires an orbax-checkpoint below the one that this package uses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np
from jaxtyping import Shaped

from imta_jax.interop.onnx.graph import Graph, Value, is_symbolic
from imta_jax.interop.onnx.operators import Operand, add_convolution, handler_of

# Parameters that hold the jaxpr of a call.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def convert(
    function: Callable[..., Any],
    weights: Sequence[Any],
    state: Sequence[Any],
    names: Sequence[str],
    *,
    int8: bool = False,
) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """Converts `function(weights, state) -> (next state, logits)`.

    Args:
      function: a stage of a `StagedNetwork`.
      weights: arrays, which become constants.
      state: shapes, with a symbolic batch size; of images [N, H, W, C] at the first stage, whose
        name is "images".
      names: names of the state's arrays.
      int8: whether weights are stored as int8 where that is exact.

    Returns:
      The ONNX model, and the shapes of the next state. Its outputs are `next_0`, `next_1`, ...
      and `logits`. 4-D states have ONNX's layout [N, C, H, W].

    Raises:
      InputError: a primitive that has no operator here.
    """
    shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
    closed, out = jax.make_jaxpr(function, return_shape=True)(shapes, tuple(state))
    inputs = [
        Value(name, tuple(s.shape), np.dtype(s.dtype)) for name, s in zip(names, state, strict=True)
    ]
    graph = Graph(inputs, int8=int8)
    known = [np.asarray(weight) for weight in weights]
    read = [_in_onnx_layout(graph, value) for value in inputs]
    results = _run(graph, closed.jaxpr, closed.consts, [*known, *read])
    next_state, _ = out
    outputs = {f"next_{i}": value for i, value in enumerate(results[:-1])}
    return graph.model(outputs | {"logits": results[-1]}), list(next_state)  # type: ignore[arg-type]


def _in_onnx_layout(graph: Graph, value: Value) -> Value:
    if value.name != "images":
        return value
    (x,) = graph.node("Transpose", [value.name], [value.shape], value.dtype, perm=(0, 3, 1, 2))
    return x


def _run(
    graph: Graph, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Operand]
) -> list[Operand]:
    """Adds the equations of a jaxpr to the graph; returns its outputs."""
    values: dict[Any, Operand] = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {v: np.asarray(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val) if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        values |= dict(zip(equation.outvars, _equation(graph, equation, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, operands: list[Operand]) -> list[Operand]:
    """Computes an equation of known arrays, or adds it to the graph."""
    outs = [v.aval for v in equation.outvars]
    if equation.params.get("name") == "convolve":
        x, kernel = operands
        return [_convolve(graph, x, kernel, outs[0])]  # type: ignore[arg-type]
    for name in _CALLS:
        if name in equation.params:
            inner = equation.params[name]
            jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            return _run(graph, jaxpr, consts, operands)
    if all(isinstance(operand, np.ndarray) for operand in operands):
        return _computed(equation, operands, outs)
    return handler_of(equation.primitive.name)(graph, operands, equation.params, outs)


def _convolve(graph: Graph, x: Value, kernel: Shaped[np.ndarray, "k k I O"], out: Any) -> Value:
    """A call of `convolve`: padding k // 2, and a stride that the shapes give."""
    half = kernel.shape[0] // 2
    stride = 1 if x.shape[1:3] == out.shape[1:3] else 2
    padding = [(half, half), (half, half)]
    return add_convolution(graph, x, kernel, out, strides=(stride, stride), padding=padding)


def _computed(equation: Any, operands: Sequence[Any], outs: Sequence[Any]) -> list[Operand]:
    """The results of an equation of known arrays.

    A broadcast over the batch is left to the operators that read the array.
    """
    if any(is_symbolic(size) for out in outs for size in out.shape):
        (array,), (out,) = operands, outs
        shape = np.ones(len(out.shape), int)
        for axis, size in zip(equation.params["broadcast_dimensions"], array.shape, strict=True):
            shape[axis] = size
        return [array.reshape(shape)]
    arguments = [jax.numpy.asarray(operand) for operand in operands]
    outputs = equation.primitive.bind(*arguments, **equation.params)
    many = equation.primitive.multiple_results
    return [np.asarray(array) for array in (outputs if many else [outputs])]
