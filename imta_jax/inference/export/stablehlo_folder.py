"""The StableHLO format of an export: a program per stage, weights and a manifest.

`folder` describes the files.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from imta_jax.data import EvaluationTransform
from imta_jax.inference.engine.classifier_stages import staged_classifier
from imta_jax.inference.engine.staged import StagedNetwork, StagesAndWeights, with_exit_rule
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.exit_rule import describe_rule, export_rule, for_any_batch_size
from imta_jax.inference.export.golden import write_golden
from imta_jax.inference.export.manifest import check_finite
from imta_jax.inference.export.runner_files import write_runner
from imta_jax.interop.quantization import exact_int8
from imta_jax.models import MultiExitClassifier, computes_faster_images_last
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.files import write_json

_FILE_NAMES = (export_folder.program_name, export_folder.images_last_name, export_folder.rule_name)


def write_stablehlo(
    classifier: MultiExitClassifier,
    manifest: Mapping[str, Any],
    transform: EvaluationTransform,
    *,
    platforms: Sequence[str],
    dtype: str,
    exit_rule: Any,
    int8: bool,
) -> Callable[[Path], None]:
    """Traces a classifier; returns the function that writes it to a folder.

    Args:
      classifier: in inference mode; with `int8`, of `quantize_classifier`.
      manifest: entries of the manifest about classes, exits, operating points and preprocessing.
      transform: preprocessing of its images.
      platforms: platforms to compile for.
      dtype: in which the backbone computes.
      exit_rule: see `export_classifier`.
      int8: whether kernels are stored as int8.

    Raises:
      ValueError: weights that are not finite, or a stage that needs the batch size as a number.
    """
    network = _staged(classifier, platforms, dtype, exit_rule)
    arrays, names = _named_weights(network)
    programs = _export_programs(network, network, platforms)
    for_cpu = _export_programs(network, network.images_last, ("cpu",))
    rules = export_rule(network.rule, network.num_classes, platforms)
    manifest = {**_describe_network(network, programs, names, dtype), **manifest}
    if int8:
        arrays = _as_int8(arrays)
        manifest["weights"] = "int8"

    def write(folder: Path) -> None:
        for name, files in zip(_FILE_NAMES, (programs, for_cpu, rules), strict=True):
            _write_programs(folder, files, name)
        _write_golden(folder, classifier, dtype, transform)
        np.savez(folder / export_folder.WEIGHTS, **arrays)  # pyright: ignore[reportArgumentType]
        write_runner("stablehlo_runner.py", folder)
        write_json(folder / export_folder.MANIFEST, manifest, allow_nan=False)

    return write


def _as_int8(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kernels as int8 with their scales; other arrays are unchanged."""
    stored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        quantized = exact_int8(array)
        stored[name] = array if quantized is None else quantized.integers
        if quantized is not None:
            stored[export_folder.scale_name(name)] = quantized.scale
    return stored


def _staged(
    classifier: MultiExitClassifier, platforms: Sequence[str], dtype: str, exit_rule: Any
) -> StagedNetwork:
    """The network of normalized floats, with stages for larger batches if it may run on a CPU."""
    on_cpu = "cpu" in platforms and dtype == "float32" and computes_faster_images_last(classifier)
    network = staged_classifier(classifier, dtype=dtype, images_last=on_cpu)
    return with_exit_rule(network, exit_rule)


def _write_golden(
    folder: Path, classifier: MultiExitClassifier, dtype: str, transform: EvaluationTransform
) -> None:
    """Writes golden images and the logits of the network of uint8 images."""
    network = staged_classifier(classifier, dtype=dtype, transform=transform, images_last=False)
    write_golden(folder / export_folder.GOLDEN, network, transform)


def _write_programs(
    folder: Path, programs: Sequence[jax.export.Exported], file_name: Callable[[int], str]
) -> None:
    for i, program in enumerate(programs):
        (folder / file_name(i)).write_bytes(program.serialize())


def _export_programs(
    network: StagedNetwork,
    form: StagedNetwork | StagesAndWeights | None,
    platforms: Sequence[str],
) -> list[jax.export.Exported]:
    """Exports each stage for any batch size. The first takes normalized floats [b, H, W, C].

    Args:
      network: network whose images the first stage takes.
      form: stages and weights, of the network or of its `images_last`.
      platforms: platforms to compile for.
    """
    if form is None:
        return []
    (batch_size,) = jax.export.symbolic_shape("b")
    state = (jax.ShapeDtypeStruct((batch_size, *network.image_shape), network.image_dtype),)
    programs = []
    for i, (stage, weights) in enumerate(zip(form.stages, form.weights, strict=True)):
        shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
        export = jax.export.export(jax.jit(stage), platforms=tuple(platforms))
        program = for_any_batch_size(f"stage {i + 1}", lambda e=export, w=shapes, s=state: e(w, s))
        programs.append(program)
        next_state, _ = jax.tree.unflatten(program.out_tree, program.out_avals)
        state = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in next_state)
    return programs


def _named_weights(
    network: StagedNetwork,
) -> tuple[dict[str, np.ndarray], list[list[list[str]]]]:
    """The distinct weights by name, and per form and stage the names of its weights."""
    forms = [network, *filter(None, [network.images_last])]
    names: dict[int, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for weight in (w for form in forms for weights in form.weights for w in weights):
        if id(weight) not in names:
            name = names[id(weight)] = f"weight_{len(names):04d}"
            array = np.asarray(weight)
            check_finite(name, array, "the classifier")
            # NumPy's files have no bfloat16: store its bits.
            arrays[name] = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    return arrays, [
        [[names[id(weight)] for weight in weights] for weights in form.weights] for form in forms
    ]


def _describe_network(
    network: StagedNetwork,
    programs: Sequence[jax.export.Exported],
    names: Sequence[Sequence[Sequence[str]]],
    dtype: str,
) -> dict[str, Any]:
    """The manifest's fields about programs, weights, versions and the exit rule."""
    return {
        "format": export_folder.FORMAT,
        "format_version": export_folder.VERSION,
        "name": network.name,
        "dtype": dtype,
        "evaluated_dtype": "float32",
        "image_shape": list(network.image_shape),
        "platforms": list(programs[0].platforms),
        "calling_convention_version": programs[0].calling_convention_version,
        "versions": package_versions(),
        "stages": [{"weights": list(stage_names)} for stage_names in names[0]],
        **({"images_last": [{"weights": list(n)} for n in names[1]]} if names[1:] else {}),
        **describe_rule(network.rule),
    }
