"""A training phase assembled from a config: classifier, objective, optimizer, state and step.

The training loop, the tests and the benchmarks all set up their phases here.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from imta_jax.config import PHASES, PhaseConfig, PhaseOneConfig, PhaseTwoConfig, RunConfig
from imta_jax.data import Dataset, DatasetInfo
from imta_jax.data.pipeline.batch_augmentation import BatchAugmentation
from imta_jax.distributed import data_mesh
from imta_jax.models import (
    MultiExitClassifier,
    build_classifier,
    dtype_deviations,
    gate_weight_of,
    optimize_classifier,
    with_collaborative_heads,
)
from imta_jax.nn.batch_norm import set_statistics_groups
from imta_jax.nn.precision import with_matmul_precision
from imta_jax.techniques import FeatureDetachment
from imta_jax.training.averaging import new_average, with_average
from imta_jax.training.batch_statistics import statistics_groups
from imta_jax.training.frozen import freeze_statistics, trained_variables
from imta_jax.training.gate_objective import GateSupervisedObjective
from imta_jax.training.learned_weights import LearnedWeightsObjective
from imta_jax.training.loss_objective import LossObjective, loss_objective
from imta_jax.training.objectives import (
    ALL_PARAMETERS,
    HEAD_PARAMETERS,
    Objective,
    PhaseOneObjective,
    PhaseTwoObjective,
    StatefulObjective,
)
from imta_jax.training.packed_statistics import moving_statistics, packs_statistics
from imta_jax.training.state import TrainState, check_variables, create_state
from imta_jax.training.step import TrainStep, augmented_step, train_step

_log = logging.getLogger(__name__)

# NNX filters of the parameters that a phase trains if none is frozen.
PARAMETERS = {"phase_one": ALL_PARAMETERS, "phase_two": HEAD_PARAMETERS}
AnyObjective = TypeVar("AnyObjective", bound=PhaseOneObjective | PhaseTwoObjective)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase that is ready to train.

    Attributes:
      classifier: the initial network, in the modes that the objective sets.
      objective: the loss.
      trainable: NNX filter of the trained variables; all others are frozen.
      optimizer: optimizer of the trained variables.
      graphdef: the classifier's structure.
      variables: the classifier's variables when the phase was assembled.
      step: one training step, a pure function that is not compiled yet.
      mesh: the devices.
      has_average: whether the state has a moving average.
    """

    classifier: MultiExitClassifier
    objective: Objective
    trainable: Any
    optimizer: optax.GradientTransformation
    graphdef: nnx.GraphDef
    variables: nnx.State
    step: TrainStep
    mesh: Mesh
    has_average: bool = False

    def packed_statistics(self, state: TrainState) -> Any:
        """The NNX filter of the statistics that a dispatch packs, or None if it packs none."""
        return moving_statistics(self.classifier) if packs_statistics(state, self.mesh) else None

    def new_state(self) -> TrainState:
        """A new initial state on the mesh. A compiled step donates the state that it gets."""
        extra = None
        if isinstance(self.objective, StatefulObjective):
            extra = self.objective.new_state(self.classifier)
        _, state = create_state(self.classifier, self.trainable, self.optimizer, self.mesh, extra)
        if not self.has_average:
            return state
        return dataclasses.replace(state, average=new_average(state))


def assemble_phase(
    name: str,
    config: RunConfig,
    classifier: MultiExitClassifier,
    objective: Objective,
    trainable: Any,
    optimizer: optax.GradientTransformation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
) -> Phase:
    """Sets the classifier's modes and builds the training step.

    Args:
      name: "phase_one" or "phase_two"; selects the section of the config.
      config: the run's config. The `compute_dtype`, `matmul_precision`, `accumulate_parts`,
        `batch_statistics`, `freeze`, `ema_decay` and augmentation of the section are used.
      classifier: the initial network; its modes and `compute_dtype` are set in place.
      objective: the loss. `phase_parts` gives the network, the loss and the filter of a config.
      trainable: NNX filter of the trained variables.
      optimizer: optimizer of the trained variables.
      mean: mean of the pixels per channel, in 0..1.
      std: standard deviation of the pixels per channel, in 0..1.
      mesh: the devices.
    """
    settings = phase_settings(config, name)
    classifier.compute_dtype = jnp.dtype(settings.compute_dtype)
    objective.set_mode(classifier)
    freeze_statistics(classifier, settings)
    set_statistics_groups(classifier, statistics_groups(settings, mesh.size), mesh)
    graphdef, intermediates, variables = nnx.split(classifier, nnx.Intermediate, ...)
    if intermediates:  # Left by earlier calls; a step does not return any.
        nnx.pop(classifier, nnx.Intermediate)
        graphdef, variables = nnx.split(classifier)
    check_variables(variables)
    _warn_of_other_dtypes(classifier)
    if isinstance(objective, StatefulObjective):
        step = objective.make_step(graphdef, trainable, optimizer, mean=mean, std=std, mesh=mesh)
    else:
        step = train_step(
            graphdef,
            objective,
            trainable,
            optimizer,
            mean=mean,
            std=std,
            mesh=mesh,
            accumulate_parts=settings.accumulate_parts,
        )
    augmentation = BatchAugmentation(settings, classifier.num_classes, phase_seed(config, name))
    step = augmented_step(with_matmul_precision(step, settings.matmul_precision), augmentation)
    has_average = settings.ema_decay > 0
    if has_average:
        step = with_average(step, settings.ema_decay)
    return Phase(
        classifier, objective, trainable, optimizer, graphdef, variables, step, mesh, has_average
    )


def describe_parameters(trained: Any, frozen: Any) -> str:
    """The number of parameters, and how many of them are trained, for the log."""
    count, not_trained = optax.tree.size(trained), optax.tree.size(frozen)
    text = f"{count + not_trained:,} parameters"
    return f"{text}, {count:,} trained" if not_trained else text


def _warn_of_other_dtypes(classifier: MultiExitClassifier) -> None:
    """Logs which parts of the backbone do not compute in `compute_dtype`."""
    if classifier.compute_dtype == jnp.float32:
        return
    if deviations := dtype_deviations(optimize_classifier(classifier, "training")):
        _log.warning(
            "compute_dtype is %s, but %s computes in another dtype (%s); create its layers with"
            " dtype=None, or cast its maps to the dtype of the images",
            classifier.compute_dtype,
            type(classifier.backbone).__name__,
            ", ".join(deviations),
        )


def phase_parts(
    name: str, config: RunConfig, classifier: MultiExitClassifier
) -> tuple[MultiExitClassifier, Objective, Any]:
    """The initial network of a phase, its loss, and the NNX filter of its trained variables.

    Args:
      name: "phase_one" or "phase_two".
      config: the run's config.
      classifier: a phase-I classifier; phase II gets new heads on its backbone.
    """
    trainable = trained_variables(PARAMETERS[name], phase_settings(config, name))
    if name == "phase_one":
        return classifier, phase_one_objective(config), trainable
    return new_phase_two(config, classifier), phase_two_objective(config), trainable


def phase_settings(config: RunConfig, name: str) -> PhaseOneConfig | PhaseTwoConfig:
    """`config.phase_one` or `config.phase_two`, by name."""
    return {"phase_one": config.phase_one, "phase_two": config.phase_two}[name]


def phase_seed(config: RunConfig, name: str) -> int:
    """The seed of a phase's batches: the phases see the images in different orders."""
    return 2 * config.seed + PHASES.index(name)


def new_phase_one(config: RunConfig, info: Dataset | DatasetInfo) -> MultiExitClassifier:
    """The untrained phase-I classifier of a config, reproducible from `config.seed`."""
    return build_classifier(
        config.model,
        num_classes=info.num_classes,
        image_shape=info.image_shape,
        rngs=nnx.Rngs(config.seed),
    )


def new_phase_two(config: RunConfig, classifier: MultiExitClassifier) -> MultiExitClassifier:
    """A phase-II classifier with untrained heads on the backbone of a phase-I classifier."""
    return with_collaborative_heads(
        classifier,
        config.heads,
        num_classes=classifier.num_classes,
        rngs=nnx.Rngs(config.seed + 1),
    )


def phase_one_objective(config: RunConfig) -> PhaseOneObjective | LossObjective:
    """The loss of `config.phase_one`; a backbone with a gate adds the gate's loss."""
    phase, weight = config.phase_one, gate_weight_of(config.model)
    arguments = {
        "detachment": FeatureDetachment(
            maps=phase.detach, fraction=phase.detach_fraction, from_exit=phase.detach_exit
        )
    }
    if not _is_default(phase):
        return loss_objective(phase, _objective(PhaseOneObjective, phase, **arguments))
    if weight:
        return _objective(GateSupervisedObjective, phase, gate_weight=weight, **arguments)
    if phase.sample_weights == "learned":
        return _objective(LearnedWeightsObjective, phase, **arguments, seed=config.seed)
    return _objective(PhaseOneObjective, phase, **arguments)


def phase_two_objective(config: RunConfig) -> PhaseTwoObjective | LossObjective:
    """The loss of `config.phase_two`."""
    default = _objective(PhaseTwoObjective, config.phase_two)
    return default if _is_default(config.phase_two) else loss_objective(config.phase_two, default)


def _is_default(settings: PhaseOneConfig | PhaseTwoConfig) -> bool:
    default = type(settings).defaults()["objective"]
    return settings.objective == default and not settings.objective_options


def _objective(kind: type[AnyObjective], phase: PhaseConfig, **attributes: Any) -> AnyObjective:
    """An objective whose attributes that are not given are fields of the phase."""
    names = {field.name for field in dataclasses.fields(kind)} - attributes.keys()
    return kind(**attributes, **{name: getattr(phase, name) for name in names})


def mesh_of(config: RunConfig) -> Mesh:
    """A mesh over all devices, as `config.mesh` describes it."""
    return data_mesh(parameter_shards=config.mesh.parameter_shards)
