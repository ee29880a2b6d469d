"""A network as a table a person can read: stage, layer, scales, channels, cost, parameters.

Of an MSDNet, which has a plan; other backbones are traced block by block (`traced_table.py`). The
multiply-adds and parameters are computed here from the plan's integers, independently of
`evaluation.exit_costs`, which traces the real network; a test holds the two together.
"""

import argparse
import math
from collections.abc import Iterator

from flax import nnx
from tabulate import tabulate

from imta_jax.errors import unknown_name
from imta_jax.models.build import build_classifier
from imta_jax.models.classifier import MultiExitClassifier
from imta_jax.models.plan import Layer, NetworkPlan
from imta_jax.models.presets import NETWORK_PRESETS
from imta_jax.models.traced_table import traced_rows

# Of backbones whose opening is no choice.
_STEMS = {"googlenet": "imagenet"}

# (multiply-adds, parameters) of a part of the network.
Cost = tuple[int, int]


def _conv(inputs: int, outputs: int, kernel: int, pixels: int, bias: bool = False) -> Cost:
    """A convolution and the scale and shift of its batch normalisation."""
    weights = inputs * outputs * kernel * kernel
    return weights * pixels, weights + 2 * outputs + (outputs if bias else 0)


def _sum(costs: Iterator[Cost] | list[Cost]) -> Cost:
    macs, params = zip(*costs, strict=True)
    return sum(macs), sum(params)


def _pixels(plan: NetworkPlan, image_shape: tuple[int, int, int], scale: int) -> int:
    """Positions of the map at `scale`: every stride of 2 halves, rounding up."""
    halvings = scale + (2 if plan.spec.stem == "imagenet" else 0)
    return math.prod(math.ceil(side / 2**halvings) for side in image_shape[:2])


def stem_cost(plan: NetworkPlan, image_shape: tuple[int, int, int]) -> Cost:
    """Cost of the stem on images (H, W, C)."""
    channels = plan.stem_channels
    pixels = [_pixels(plan, image_shape, scale) for scale in range(len(channels))]
    if plan.spec.stem == "imagenet":
        halves = math.prod(math.ceil(side / 2) for side in image_shape[:2])
        first = _conv(image_shape[2], channels[0], 7, halves, bias=True)
    else:
        first = _conv(image_shape[2], channels[0], 3, pixels[0])
    coarser = zip(channels, channels[1:], pixels[1:], strict=False)
    return _sum([first, *(_conv(i, o, 3, p) for i, o, p in coarser)])


def layer_cost(plan: NetworkPlan, layer: Layer, image_shape: tuple[int, int, int]) -> Cost:
    """Cost of one layer with its transition on images (H, W, C)."""
    costs = []
    for offset, branches in enumerate(zip(layer.strided, layer.normal, strict=True)):
        scale = layer.first_scale + offset
        out = _pixels(plan, image_shape, scale)
        for branch in filter(None, branches):
            read = _pixels(plan, image_shape, scale - (branch.stride - 1))
            costs.append(_conv(branch.inputs, branch.width, 1, read))
            costs.append(_conv(branch.width, branch.outputs, 3, out))
        if layer.transition:
            costs.append(_conv(*layer.transition[offset], 1, out))
    return _sum(costs)


def exit_cost(
    plan: NetworkPlan, exit_index: int, image_shape: tuple[int, int, int], num_classes: int
) -> Cost:
    """Cost of an exit: two strided convolutions and an independent linear layer."""
    inputs, width = plan.head_inputs[exit_index], plan.head_widths[exit_index]
    coarsest = len(plan.stem_channels) - 1
    once, twice = (_pixels(plan, image_shape, coarsest + n) for n in (1, 2))
    head = (width * num_classes, (width + 1) * num_classes)
    return _sum([_conv(inputs, width, 3, once), _conv(width, width, 3, twice), head])


def rows(
    plan: NetworkPlan, image_shape: tuple[int, int, int], num_classes: int
) -> Iterator[dict[str, object]]:
    """One row per stem, layer and exit, with its own cost and the running total."""
    total = (0, 0)

    def row(stage: object, what: str, scales: str, channels: object, cost: Cost) -> dict:
        nonlocal total
        total = (total[0] + cost[0], total[1] + cost[1])
        return {
            "stage": stage,
            "what": what,
            "scales": scales,
            "channels": " ".join(map(str, channels)),
            "multiply-adds": cost[0],
            "parameters": cost[1],
            "multiply-adds so far": total[0],
            "parameters so far": total[1],
        }

    scales = len(plan.stem_channels)
    yield row("", "stem", f"1-{scales}", plan.stem_channels, stem_cost(plan, image_shape))
    for i, stage in enumerate(plan.stages):
        for layer in stage:
            what = f"layer {layer.number}" + (" + transition" if layer.transition else "")
            live = f"{layer.first_scale + 1}-{scales}"
            yield row(i + 1, what, live, layer.outputs, layer_cost(plan, layer, image_shape))
        width = (plan.head_widths[i],)
        yield row(
            i + 1, f"exit {i + 1}", f"{scales}", width, exit_cost(plan, i, image_shape, num_classes)
        )


def network_rows(classifier: MultiExitClassifier) -> Iterator[dict[str, object]]:
    """Rows of a phase-I classifier: layer by layer where it has a plan, else traced by blocks."""
    plan = getattr(classifier.backbone, "plan", None)
    if plan is None:
        return traced_rows(classifier)
    return rows(plan, classifier.image_shape, classifier.num_classes)


def main(argv: list[str] | None = None) -> None:
    """Prints the table of a network preset; `--help` lists the arguments."""
    parser = argparse.ArgumentParser(prog="python -m imta_jax.models", description=__doc__)
    parser.add_argument("preset", help="one of: " + ", ".join(NETWORK_PRESETS))
    parser.add_argument("--classes", type=int, default=None, help="default: 10, ImageNet 1000")
    parser.add_argument("--image", default=None, help="HxWxC, default 32x32x3 or 224x224x3")
    arguments = parser.parse_args(argv)
    if arguments.preset not in NETWORK_PRESETS:
        parser.error(str(unknown_name("network preset", arguments.preset, NETWORK_PRESETS)))
    fields = NETWORK_PRESETS[arguments.preset]
    imagenet = "imagenet" in (fields.get("stem"), _STEMS.get(fields["backbone"]))
    image = arguments.image or ("224x224x3" if imagenet else "32x32x3")
    classifier = build_classifier(
        fields,
        num_classes=arguments.classes or (1000 if imagenet else 10),
        image_shape=tuple(int(side) for side in image.split("x")),
        rngs=nnx.Rngs(0),
    )
    print(f"{arguments.preset} on images of {image}; per image, independent heads")
    print(tabulate(list(network_rows(classifier)), headers="keys", intfmt=","))
