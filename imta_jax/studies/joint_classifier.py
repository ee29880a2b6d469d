"""Phase-II classifiers of several variants on one backbone, as one classifier.

Heads of equal structure are stacked, [V, ...], and mapped over with `jax.vmap`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models import Heads, MultiExitClassifier, run_heads


class StackedHeads(nnx.Module):
    """Heads of V variants as one module whose variables have a leading axis [V]."""

    def __init__(self, heads: Sequence[Heads]):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(nnx.state(h) for h in heads))
        self.heads = nnx.merge(nnx.graphdef(heads[0]), stacked)

    def __call__(self, features: Sequence[Float[Array, "N _"]]) -> Float[Array, "V E N K"]:
        """The logits of all variants from the features of all exits."""
        graphdef, state = nnx.split(self.heads)

        def run_variant(state: nnx.State) -> tuple[jax.Array, nnx.State]:
            heads = nnx.merge(graphdef, state, copy=True)
            return run_heads(heads, features), nnx.state(heads)

        logits, state = jax.vmap(run_variant)(state)
        nnx.update(self.heads, state)  # Batch statistics, in training mode.
        return logits

    def variant(self, index: int) -> Heads:
        """The heads of one variant, without the leading axis."""
        graphdef, state = nnx.split(self.heads)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], state))


class JointClassifier(MultiExitClassifier):
    """Phase-II classifiers on one backbone as one classifier with V * E exits, in variant order."""

    def __init__(self, variants: Sequence[MultiExitClassifier]):
        first = variants[0]
        groups: dict[nnx.GraphDef, list[int]] = {}
        for index, variant in enumerate(variants):
            groups.setdefault(nnx.graphdef(variant.heads), []).append(index)
        # For each entry of the concatenated logits: group, index in the group, and variant.
        entries = [(g, i, v) for g, m in enumerate(groups.values()) for i, v in enumerate(m)]
        stacked_order = [variant for _, _, variant in entries]
        self.order = tuple(stacked_order.index(v) for v in range(len(variants)))
        self.members = tuple(entries[position][:2] for position in self.order)
        stacked = nnx.List(
            [StackedHeads([variants[v].heads for v in members]) for members in groups.values()]
        )
        super().__init__(
            first.backbone,
            first.heads,
            num_classes=first.num_classes,
            image_shape=first.image_shape,
            phase_one_heads=first.phase_one_heads,
        )
        self.heads: Any = stacked

    def logits(self, features: tuple[Float[Array, "N _"], ...]) -> Float[Array, "VE N K"]:
        """Logits of V variants in float32 from the features of all E exits."""
        stacked = jnp.concatenate([heads(features) for heads in self.heads])
        in_order = stacked[jnp.array(self.order)]
        return in_order.reshape(-1, *in_order.shape[2:]).astype(jnp.float32)

    def variant(self, index: int) -> MultiExitClassifier:
        """One variant as an ordinary phase-II classifier on the shared backbone."""
        group, member = self.members[index]
        return MultiExitClassifier(
            self.backbone,
            self.heads[group].variant(member),
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            phase_one_heads=self.phase_one_heads,
        )
