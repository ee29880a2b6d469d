"""Logits of two fixed images, by which loading notices that custom code computes another network.

A checkpoint with a custom backbone or custom heads records the logits that its parameters give. The
code may change while names and shapes of all parameters stay, for example from GELU to ReLU; the
logits then differ. They are computed with the highest precision of matrix products, and are
compared up to the rounding of other devices and versions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from imta_jax.distributed import replicated
from imta_jax.models import BACKBONES, MultiExitClassifier
from imta_jax.nn.precision import with_matmul_precision
from imta_jax.runtime.quick_compilation import options_for_one_run
from imta_jax.runtime.registry import HEADS
from imta_jax.training.averaging import evaluated_parts
from imta_jax.training.network_arrays import AnotherNetworkError
from imta_jax.training.network_record import FIX
from imta_jax.training.state import TrainState

EXAMPLE_LOGITS = "example_logits"  # in the `meta` of a checkpoint
_NUM_IMAGES, _MAX_CLASSES = 2, 16
# Largest difference, relative to the largest logit. Layers with a dtype of 16 bits round more.
_TOLERANCE, _TOLERANCE_16_BITS = 2e-3, 5e-2


class ExampleLogits:
    """Computes the record of a training state. It compiles at the first call.

    Args:
      graphdef: the classifier's structure, in any mode.
      mesh: the devices of the state.
      meta: `meta` of the checkpoints.
    """

    def __init__(self, graphdef: nnx.GraphDef, mesh: Mesh, meta: Mapping[str, Any]):
        self._graphdef, self._mesh, self._meta = graphdef, mesh, meta
        self._compiled: jax.stages.Compiled | None = None

    def record(self, state: TrainState) -> dict[str, Any]:
        """Entries of `meta` for a state, or its average; {} for a network of the package."""
        if not foreign_parts(self._meta):
            return {}
        values = np.round(self._logits_of(state).astype(np.float64), 7).tolist()
        return {EXAMPLE_LOGITS: {"values": values, "tolerance": self._tolerance}}

    def check(self, state: TrainState, meta: Mapping[str, Any], checkpoint: str) -> None:
        """`check_example_logits` for a restored state."""
        if EXAMPLE_LOGITS in meta:
            _compare(self._logits_of(state), meta, checkpoint)

    def _logits_of(self, state: TrainState) -> np.ndarray:
        parts = evaluated_parts(state)
        compiled = self._compiled
        if compiled is None:
            compiled, self._tolerance = _compile(
                self._logits, *parts, out_shardings=replicated(self._mesh)
            )
            self._compiled = compiled
        return np.asarray(compiled(*parts))

    def _logits(self, trainable: Any, rest: nnx.State) -> Float[Array, "E N _"]:
        classifier = nnx.merge(self._graphdef, trainable.unpack(), rest, copy=True)
        return _logits(classifier, self._meta)


def foreign_parts(meta: Mapping[str, Any]) -> dict[str, str]:
    """The fields that name a custom component, and their values."""
    model, heads = meta["model"], meta["heads"]
    named = {"model.backbone": (BACKBONES, model.get("backbone"))}
    if meta["phase"] == "phase_two":
        named["phase_two.transfer"] = (HEADS, heads["transfer"])
    else:
        named["model.heads"] = (HEADS, model.get("heads"))
    sources = meta.get("network", {}).get("registered_by", {})
    return {
        field: sources.get(field.partition(".")[2], name)
        for field, (registry, name) in named.items()
        if name is not None and not registry.is_built_in(name)
    }


def check_example_logits(
    classifier: MultiExitClassifier, meta: Mapping[str, Any], checkpoint: str
) -> None:
    """Compares the logits of a restored classifier with those of its checkpoint.

    Args:
      classifier: rebuilt and restored.
      meta: `meta` of the checkpoint; without a record nothing is compared.
      checkpoint: number and folder of the checkpoint, for messages.

    Raises:
      AnotherNetworkError: they differ; the message names the factories and the exit.
    """
    if EXAMPLE_LOGITS not in meta:
        return
    graphdef, state = nnx.split(classifier)

    def logits(state: nnx.State) -> Float[Array, "E N _"]:
        return _logits(nnx.merge(graphdef, state, copy=True), meta)

    compiled, _ = _compile(logits, state)
    _compare(np.asarray(compiled(state)), meta, checkpoint)


def _compare(values: np.ndarray, meta: Mapping[str, Any], checkpoint: str) -> None:
    record = meta[EXAMPLE_LOGITS]
    recorded = np.array(record["values"])
    allowed = record["tolerance"] * np.abs(recorded).max()
    per_exit = np.abs(values - recorded).max(axis=(1, 2))
    wrong = np.flatnonzero(~(per_exit <= allowed))  # also NaN
    if not len(wrong) or not np.isfinite(recorded).all():
        return
    factories = " and ".join(f"{field} {name}" for field, name in foreign_parts(meta).items())
    raise AnotherNetworkError(
        f"{checkpoint}: the code of {factories} computes another network than when it was saved."
        f" With equal parameters, logits of exit {wrong[0] + 1} for two fixed images differ"
        f" by up to {per_exit[wrong[0]]:.3g}; expected at most {allowed:.3g}: {FIX}"
    )


def _logits(classifier: MultiExitClassifier, meta: Mapping[str, Any]) -> Float[Array, "E N _"]:
    """Logits of some classes, for images or, with a backbone of this package, for features."""
    classifier.eval()
    classifier.compute_dtype = jnp.float32
    if "model.backbone" in foreign_parts(meta):
        features = classifier.features(_numbers(classifier.image_shape))
    else:
        features = tuple(jnp.asarray(_numbers([w])) for w in classifier.backbone.feature_widths)
    return classifier.logits(features)[..., :_MAX_CLASSES]


def _numbers(shape: Sequence[int]) -> Float32[np.ndarray, "N ..."]:
    """Irregular numbers that do not depend on the version of a generator of random numbers."""
    count = _NUM_IMAGES * int(np.prod(shape))
    numbers = 1.5 * np.sin(np.arange(1, count + 1, dtype=np.float64) ** 2)
    return numbers.reshape(_NUM_IMAGES, *shape).astype(np.float32)


def _compile(
    function: Callable[..., Any], *arguments: Any, out_shardings: Any = None
) -> tuple[Any, float]:
    """The compiled function and the tolerance of its logits."""
    jitted = jax.jit(
        with_matmul_precision(function, "highest"),
        out_shardings=out_shardings,
        compiler_options=options_for_one_run(),
    )
    lowered = jitted.lower(*arguments)
    has_16_bits = "f16>" in lowered.as_text()
    return lowered.compile(), _TOLERANCE_16_BITS if has_16_bits else _TOLERANCE
