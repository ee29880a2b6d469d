"""The model card of an export: README.md, with the metadata that Hugging Face reads."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from imta_jax.inference.export.folder import CARD

_UNKNOWN = "not recorded"
_USE = {
    "stablehlo": "`python -m imta_jax.inference FOLDER image.jpg --budget=0.5`, or"
    " `imta_jax.inference.load_exported`. Without imta_jax: `python run.py image.jpg`, with jax,"
    " NumPy, flatbuffers and Pillow.",
    "onnx": "`python run.py image.jpg --budget=0.5`, with onnxruntime, NumPy and Pillow.",
    "safetensors": "The variables by name: `--config.phase_one.init_from=model.safetensors`.",
}


def write_model_card(
    folder: Path,
    manifest: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    format: str,
    weights: str,
) -> None:
    """Writes the card.

    Args:
      folder: existing folder.
      manifest: entries of the manifest about classes, exits, operating points and preprocessing.
      results: sections `dataset` and `phases` of a `results.json`; may be empty.
      format: format of the export.
      weights: "float32" or "int8".
    """
    lines = [*_front_matter(), *_body(manifest, results, format, weights), ""]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _front_matter() -> Iterator[str]:
    yield from ("---", "license: other", "pipeline_tag: image-classification")
    yield from ("library_name: imta_jax", "tags: [early-exit, adaptive-inference]", "---", "")


def _body(
    manifest: Mapping[str, Any], results: Mapping[str, Any], format: str, weights: str
) -> Iterator[str]:
    origin, classes = manifest["origin"], manifest["class_names"]
    dataset = results.get("dataset", {})
    name = origin.get("dataset", dataset.get("name", _UNKNOWN))
    yield f"# Image classifier with {len(manifest['exits'])} exits, trained on {name}"
    yield from ("", _wrapped(_INTRODUCTION))
    yield from ("", "## Use", "", _wrapped(_USE[format]), "")
    yield _wrapped(manifest["preprocessing"]["description"])
    yield from ("", f"{len(classes)} classes: {', '.join(classes)}.")
    yield from ("", "## Data and training", "")
    yield from _data(dataset, name)
    yield from _schedule(results.get("phases", {}), origin)
    yield from ("", "## Exits", "", _exits(manifest["exits"]))
    yield from ("", "## Operating points", "", _wrapped(_POINTS), "")
    yield _points(manifest["operating_points"])
    yield from ("", f"Weights: {weights}. {_WEIGHTS[weights]}")
    yield from ("", "## Intended use and limits", "", _LIMITS)
    yield from ("", "## License", "", _wrapped(_LICENSE))


_INTRODUCTION = (
    "A multi-exit network with adaptive inference: an image leaves at the first exit that is "
    "confident enough. Method: Li et al., Improved Techniques for Training Adaptive Deep Networks, "
    "ICCV 2019."
)
_POINTS = (
    "The budget is the mean multiply-adds per validation image, as a fraction of the full "
    "network's. Thresholds apply to the score of the exit rule, by default the highest softmax "
    "probability. They were chosen on validation images; test images were only measured."
)
_WEIGHTS = {
    "float32": "Batch normalization may be folded.",
    "int8": "One scale per output channel; the network computes in float32.",
}
_LIMITS = """- For images like those of the dataset. Other images get one of the classes too.
- A confidence is not a probability of being right: see the calibration error of the exits.
- Accuracies are those of one training run on one test split. Robustness and fairness were not
  measured.
- Monitor the exit fractions in use (`imta_jax.inference.DriftMonitor`)."""
_LICENSE = (
    "The code of imta_jax is under the Apache License 2.0. The weights are derived from the "
    "dataset, whose terms apply; state their license before you publish them."
)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False)


def _data(dataset: Mapping[str, Any], name: str) -> Iterator[str]:
    counts = dataset.get("examples", {})
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    yield f"- Data: {name}; images: {sizes or _UNKNOWN}"
    if dataset:
        yield f"- Preprocessing: {dataset['preprocessing']}"
        yield f"- Validation: {dataset['note']}"


def _schedule(phases: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    for name, record in phases.items():
        if record is not None:
            fields = ("epochs", "steps", "checkpoint_epoch", "final_learning_rate")
            values = ", ".join(f"{field} {record.get(field, _UNKNOWN)}" for field in fields)
            yield f"- {name}: {values}"
    yield f"- Exported: {origin.get('phase', _UNKNOWN)}, epoch {origin.get('epoch', _UNKNOWN)}"


def _exits(rows: Sequence[Mapping[str, Any]]) -> str:
    names = {"top1": "test top-1, %", "validation_top1": "validation top-1, %", "ece": "ECE, %"}
    costs = {"exit": "exit", "macs": "multiply-adds", "params": "parameters"}
    columns = costs | {key: text for key, text in names.items() if key in rows[0]}
    table = [{text: row[key] for key, text in columns.items()} for row in rows]
    return tabulate(table, headers="keys", tablefmt="github", intfmt=",", floatfmt=".2f")


def _points(points: Sequence[Mapping[str, Any]]) -> str:
    table = [
        {
            "budget": f"{point['budget']:.3f}",
            "thresholds": " ".join(f"{t:.4f}" if abs(t) < 10 else "-" for t in point["thresholds"]),
            "left at exits, %": " ".join(f"{100 * f:.1f}" for f in point["exit_fractions"]),
            "validation top-1, %": f"{point['validation_top1']:.2f}",
            "test top-1, %": f"{point['top1']:.2f}",
        }
        for point in points
    ]
    return tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)
