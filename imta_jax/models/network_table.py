"""A network as a table: one row per stem, layer and exit, with maps, costs and parameters.

python -m imta_jax.models cifar_7_exits --classes=100
"""

import argparse
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from tabulate import tabulate

from imta_jax.errors import unknown_name
from imta_jax.models.build import build_classifier
from imta_jax.models.classifier import MultiExitClassifier, State
from imta_jax.models.costs import Mark, cumulative_costs
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.presets import NETWORK_PRESETS


def network_rows(classifier: MultiExitClassifier) -> list[dict[str, object]]:
    """Returns one row per stem, layer and exit of a phase-I classifier.

    "maps" are the heights, widths and channels of the output, finest scale first. Costs are counted
    as in `costs.exit_costs`. A backbone without `stages` has one row per stage.
    """
    parts: list[tuple[object, str, State]] = []

    def drive(network: MultiExitClassifier, images: jax.Array, mark: Mark) -> None:
        for stage, part, outputs, end in _run_parts(network, images):
            parts.append((stage, part, outputs))
            mark(end)

    costs = cumulative_costs(classifier, drive)
    before, rows = (0, 0, 0), []
    for (stage, part, outputs), total in zip(parts, costs, strict=True):
        rows.append(
            {
                "stage": stage,
                "part": part,
                "maps": " ".join("x".join(map(str, x.shape[1:])) for x in outputs),
                "multiply-adds": total[0] - before[0],
                "parameters": total[2] - before[2],
                "total multiply-adds": total[0],
                "total parameters": total[2],
            }
        )
        before = total
    return rows


def _run_parts(
    network: MultiExitClassifier, images: jax.Array
) -> Iterator[tuple[object, str, State, Any]]:
    """Yields (stage, name, outputs, arrays that end the part) after each part has run."""
    state, carry, number = network.backbone.stem(images), None, 0
    yield "", "stem", state, state
    for i in range(network.num_exits):
        for maps in _run_layers(network, i, state):
            state, number = maps, number + 1
            name = f"layer {number}" if hasattr(network.backbone, "stages") else f"stage {i + 1}"
            yield i + 1, name, state, state
        features = network.backbone.exit_features(i, state)
        logits, carry = network.heads(i, features, carry)
        yield i + 1, f"exit {i + 1}", (features,), logits


def _run_layers(network: MultiExitClassifier, i: int, state: State) -> Iterator[State]:
    """Yields the state after each layer of stage i."""
    stages = getattr(network.backbone, "stages", None)
    if stages is None:
        yield network.backbone.stage(i, state)
        return
    for layer in stages[i]:
        state = layer(state) if isinstance(network.backbone, MSDNet) else (layer(*state),)
        yield state


def main(argv: list[str] | None = None) -> None:
    """Prints the table of a network preset; `--help` lists the arguments."""
    parser = argparse.ArgumentParser(prog="python -m imta_jax.models", description=__doc__)
    parser.add_argument("preset", help="one of: " + ", ".join(NETWORK_PRESETS))
    parser.add_argument("--classes", type=int, default=None, help="default: 10; ImageNet: 1000")
    parser.add_argument("--image", default=None, help="HxWxC; default: 32x32x3 or 224x224x3")
    arguments = parser.parse_args(argv)
    if arguments.preset not in NETWORK_PRESETS:
        parser.error(str(unknown_name("network preset", arguments.preset, NETWORK_PRESETS)))
    fields = NETWORK_PRESETS[arguments.preset]
    imagenet = fields["backbone"] == "googlenet" or fields.get("stem") == "imagenet"
    image = arguments.image or ("224x224x3" if imagenet else "32x32x3")
    height, width, channels = (int(side) for side in image.split("x"))
    shape = (height, width, channels)
    classes = arguments.classes or (1000 if imagenet else 10)
    classifier = nnx.eval_shape(
        lambda: build_classifier(fields, num_classes=classes, image_shape=shape, rngs=nnx.Rngs(0))
    )
    print(f"{arguments.preset} on images of {image}; per image, independent heads")
    print(tabulate(network_rows(classifier), headers="keys", intfmt=","))
