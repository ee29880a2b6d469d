"""A package with own components, written to a folder outside the repository by tests."""

from pathlib import Path

SOURCE = """
import imta_jax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from imta_jax.data import ImageSource
from imta_jax.techniques import IndependentHeads


class ConvBackbone(nnx.Module):
    def __init__(self, widths, channels, *, rngs):
        self.num_exits = len(widths)
        self.feature_widths = tuple(widths)
        inputs = (4, *widths[:-1])
        self.first = nnx.Conv(channels, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List(
            [
                nnx.Conv(i, o, (3, 3), strides=2, rngs=rngs)
                for i, o in zip(inputs, widths, strict=True)
            ]
        )

    def stem(self, images):
        return (nnx.relu(self.first(images)),)

    def stage(self, i, state):
        return (nnx.relu(self.blocks[i](state[-1])),)

    def exit_features(self, i, state):
        return jnp.mean(state[-1], axis=(1, 2))


def make_backbone(options, *, num_classes, image_shape, rngs):
    return ConvBackbone(options.get("widths", (4, 8)), image_shape[2], rngs=rngs)


class BoostedHeads(IndependentHeads):
    def __call__(self, i, features, carry):
        logits, _ = super().__call__(i, features, None)
        logits = logits if carry is None else logits + jax.lax.stop_gradient(carry)
        return logits, logits


@imta_jax.register_heads("my_boosted")
def make_heads(options, *, feature_widths, num_classes, rngs):
    return BoostedHeads(feature_widths, num_classes, rngs=rngs)


def focal_loss(logits, labels, *, gamma=2.0):
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, labels[None, :, None], axis=-1)[..., 0]
    return (-((1 - jnp.exp(own)) ** gamma) * own).mean(axis=-1)


def summed_probability(logits, carry, *, factor=1.0):
    total = jax.nn.softmax(logits) + (0 if carry is None else carry)
    return factor * total.max(axis=-1), total


def make_source(options):
    arrays = np.load(options.path)
    splits = {n: (arrays[f"{n}_images"], arrays[f"{n}_labels"]) for n in ("train", "test")}
    return ImageSource(splits, class_names=("low", "middle", "high"), name="own_thirds")
"""


def write_package(folder: Path, name: str = "my_package") -> Path:
    """Writes `NAME/net.py` with `SOURCE`; returns `folder`, which is to be importable."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "net.py").write_text(SOURCE)
    return folder
