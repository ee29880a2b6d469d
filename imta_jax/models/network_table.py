"""A network as a table: one row per stem, layer and exit, with maps, costs and parameters.

python -m imta_jax.models cifar_7_exits --classes=100
python -m imta_jax.models my_package.vit:make_vit --option=depth=6
"""

import argparse
import ast
from collections.abc import Iterator
from typing import Any, cast

import jax
from flax import nnx
from tabulate import tabulate

from imta_jax.errors import InputError, UserError, unknown_name
from imta_jax.models.baselines.single_scale import SingleScaleBackbone
from imta_jax.models.build import build_classifier
from imta_jax.models.classifier import MultiExitClassifier, State
from imta_jax.models.costs import Mark, cumulative_costs
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.presets import NETWORK_PRESETS
from imta_jax.runtime.factories import unread_options_raise
from imta_jax.runtime.registry import BACKBONES, colon_hint


def network_rows(classifier: MultiExitClassifier) -> list[dict[str, object]]:
    """Returns one row per stem, layer and exit of a phase-I classifier.

    "maps" are the heights, widths and channels of the output, finest scale first; of an exit, the
    width of its features. Costs are counted as in `costs.exit_costs`. A custom backbone has one row
    per stage.
    """
    parts: list[tuple[object, str, str]] = []

    def drive(network: MultiExitClassifier, images: jax.Array, mark: Mark) -> None:
        for stage, part, maps, outputs in _run_parts(network, images):
            parts.append((stage, part, maps))
            mark(outputs)

    costs = cumulative_costs(classifier, drive)
    before, rows = (0, 0, 0), []
    for (stage, part, maps), total in zip(parts, costs, strict=True):
        rows.append(
            {
                "stage": stage,
                "part": part,
                "maps": maps,
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
) -> Iterator[tuple[object, str, str, Any]]:
    """Yields (stage, name, maps, outputs) after each part has run."""
    state, carry, number = network.backbone.stem(images), None, 0
    yield "", "stem", _sizes(state), state
    for i in range(network.num_exits):
        for maps in _run_layers(network, i, state):
            state, number = maps, number + 1
            name = f"layer {number}" if _has_layers(network.backbone) else f"stage {i + 1}"
            yield i + 1, name, _sizes(state), state
        logits, carry = network.exit_logits(i, state, carry)
        yield i + 1, f"exit {i + 1}", str(network.backbone.feature_widths[i]), logits


def _sizes(state: State) -> str:
    return " ".join("x".join(map(str, x.shape[1:])) for x in jax.tree.leaves(state))


def _run_layers(network: MultiExitClassifier, i: int, state: State) -> Iterator[State]:
    """Yields the state after each layer of stage i."""
    if not _has_layers(network.backbone):
        yield network.backbone.stage(i, state)
        return
    stages: Any = cast(Any, network.backbone).stages
    for layer in stages[i]:
        state = layer(state) if isinstance(network.backbone, MSDNet) else (layer(*state),)
        yield state


def _has_layers(backbone: object) -> bool:
    """Whether the layers of each stage are known, as those of the included backbones are."""
    return isinstance(backbone, MSDNet | SingleScaleBackbone)


def main(argv: list[str] | None = None) -> None:
    """Prints the table of a network; `--help` lists the arguments."""
    arguments = _parser().parse_args(argv)
    try:
        with unread_options_raise():
            print(_described(arguments))
    except UserError as error:
        _parser().error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "network",
        help="a backbone as package.module:name or by its registered name, or a preset: "
        + ", ".join(NETWORK_PRESETS),
    )
    parser.add_argument("--classes", type=int, default=None, help="default: 10; ImageNet: 1000")
    parser.add_argument("--image", default=None, help="HxWxC; default: 32x32x3 or 224x224x3")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of config.model.options, for a custom backbone; may be repeated",
    )
    parser.add_argument("--heads", default="independent", help="as config.model.heads")
    return parser


def _described(arguments: argparse.Namespace) -> str:
    name = arguments.network
    fields: dict[str, Any] = dict(NETWORK_PRESETS.get(name, {}))
    imagenet = fields.get("backbone") == "googlenet" or fields.get("stem") == "imagenet"
    if not fields:
        if ":" not in name and name not in BACKBONES:
            valid = dict.fromkeys([*NETWORK_PRESETS, *BACKBONES])
            raise InputError(f"{unknown_name('network', name, valid)}{colon_hint(name)}")
        fields = {"backbone": name, "options": dict(map(_option, arguments.option))}
    fields["heads"] = arguments.heads
    image = arguments.image or ("224x224x3" if imagenet else "32x32x3")
    classes = arguments.classes or (1000 if imagenet else 10)
    classifier = nnx.eval_shape(
        lambda: build_classifier(
            fields, num_classes=classes, image_shape=_image_shape(image), rngs=nnx.Rngs(0)
        )
    )
    table = tabulate(network_rows(classifier), headers="keys", intfmt=",")
    return f"{name} on images of {image}; per image, {arguments.heads} heads\n{table}"


def _image_shape(text: str) -> tuple[int, int, int]:
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdigit() for side in sides):
        raise InputError(f"--image must be HxWxC, for example 32x32x3; found {text!r}")
    height, width, channels = map(int, sides)
    return height, width, channels


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option must be NAME=VALUE; found {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):  # text without quotes
        return name, value
