"""An ONNX graph under construction: its nodes, constants and the shapes of its values.

Maps of images are [N, C, H, W], the layout of ONNX's convolutions, instead of JAX's [N, H, W, C].
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

from imta_jax.errors import MissingPackageError
from imta_jax.interop.quantization import exact_int8
from imta_jax.runtime.optional_packages import install_command

# Position of JAX's axis in ONNX's layout, and the permutations between them.
AXIS_OF_MAP = (0, 2, 3, 1)
TO_ONNX, TO_JAX = (0, 3, 1, 2), (0, 2, 3, 1)
OPSET, IR_VERSION = 17, 8


class Value(NamedTuple):
    """A value that is computed from the graph's inputs.

    Attributes:
      name: name of the value in the graph.
      shape: shape in JAX's layout; the batch size is symbolic.
      dtype: dtype of the array.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype


def import_onnx() -> Any:
    """Imports the package `onnx`.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            f"an ONNX export requires onnx, which cannot be imported ({error}):"
            f" {install_command('onnx')}"
        ) from error
    return onnx


class Graph:
    """Collects nodes and constants.

    Args:
      inputs: inputs of the graph.
      int8: whether weights are stored as int8 where that is exact.
    """

    def __init__(self, inputs: Sequence[Value], *, int8: bool = False):
        self.onnx = import_onnx()
        self.int8 = int8
        self.inputs = list(inputs)
        self.nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._names: dict[tuple[bytes, str, tuple[int, ...]], str] = {}

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        shapes: Sequence[tuple[Any, ...]],
        dtype: np.dtype,
        **attributes: Any,
    ) -> list[Value]:
        """Adds a node; returns its outputs, of the given shapes in JAX's layout."""
        count = len(self.nodes)
        outputs = [f"{operator.lower()}_{count}_{i}" for i in range(len(shapes))]
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), outputs, **attributes))
        return [Value(name, s, dtype) for name, s in zip(outputs, shapes, strict=True)]

    def constant(self, array: Shaped[np.ndarray, "..."]) -> str:
        """Adds a constant in ONNX's layout, equal constants once; returns its name."""
        array = np.ascontiguousarray(array)
        key = (array.tobytes(), array.dtype.name, array.shape)
        if key not in self._names:
            name = self._names[key] = f"constant_{len(self._names)}"
            self._constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return self._names[key]

    def weight(self, array: Float32[np.ndarray, "..."]) -> str:
        """Adds a constant, with `int8` as int8 and a scale per channel where that is exact."""
        stored = exact_int8(array) if self.int8 else None
        if stored is None:
            return self.constant(array)
        axis = int(np.argmax(stored.scale.shape))
        names = [self.constant(stored.integers), self.constant(stored.scale.reshape(-1))]
        (value,) = self.node("DequantizeLinear", names, [array.shape], array.dtype, axis=axis)
        return value.name

    def model(self, outputs: Mapping[str, Value]) -> Any:
        """The checked `onnx.ModelProto`, with the given outputs by name."""
        helper = self.onnx.helper
        named = [helper.make_node("Identity", [v.name], [name]) for name, v in outputs.items()]
        described = [self._describe(v.name, v) for v in self.inputs]
        described_outputs = [self._describe(name, v) for name, v in outputs.items()]
        graph = helper.make_graph(
            [*self.nodes, *named],
            "stage",
            described,
            described_outputs,
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="imta_jax"
        )
        self.onnx.checker.check_model(model)
        return model

    def _describe(self, name: str, value: Value) -> Any:
        helper = self.onnx.helper
        shape = onnx_shape(value.shape) if value.name != "images" else value.shape
        sizes = ["N" if is_symbolic(size) else int(size) for size in shape]
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), sizes
        )


def is_symbolic(size: Any) -> bool:
    """Whether a size depends on the batch size."""
    return not isinstance(size, int | np.integer)


def onnx_shape(shape: Sequence[Any]) -> tuple[Any, ...]:
    """A shape in ONNX's layout."""
    return tuple(shape[i] for i in TO_ONNX) if len(shape) == 4 else tuple(shape)
