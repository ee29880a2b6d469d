"""Checks of a run's config before anything is trained, without and with its dataset."""

from pathlib import Path

from flax import nnx

from imta_jax.config import PHASES, RunConfig
from imta_jax.data import Dataset
from imta_jax.distributed import check_batch_size
from imta_jax.models import BACKBONES, check_model
from imta_jax.runtime.registry import EXIT_RULES, HEADS, OPTIMIZERS
from imta_jax.techniques.exit_rules import check_exit_rule, get_exit_rule
from imta_jax.training.batch_statistics import (
    batch_parts,
    check_group_size,
    check_statistics_groups,
)
from imta_jax.training.callbacks import check_writers
from imta_jax.training.combinations import check_combinations
from imta_jax.training.feed import check_feed
from imta_jax.training.frozen import check_expressions, trained_variables
from imta_jax.training.init_from import check_init_from
from imta_jax.training.loss_objective import LossObjective, check_loss
from imta_jax.training.optimizer import check_optimizer
from imta_jax.training.schedules import check_schedule
from imta_jax.training.setup import (
    PARAMETERS,
    mesh_of,
    new_phase_one,
    new_phase_two,
    phase_one_objective,
    phase_settings,
    phase_two_objective,
)
from imta_jax.training.validation import evaluation_batch_size


def check_field_values(config: RunConfig) -> None:
    """Checks the values of fields, for both phases; needs no devices.

    Raises:
      InputError: a value is invalid, or the network's fields do not fit each other.
    """
    phase_one_objective(config)
    phase_two_objective(config)
    check_model(config.model)
    config.check_components()
    check_combinations(config)
    check_writers(config.log)
    for name in PHASES:
        check_schedule(phase_settings(config, name))
        check_optimizer(phase_settings(config, name))
        check_group_size(phase_settings(config, name))


def check_training_config(config: RunConfig) -> None:
    """Checks what needs several fields or the devices, for both phases; computes nothing.

    Raises:
      InputError: the network's fields do not fit each other, or the devices do not divide a batch.
    """
    check_field_values(config)
    mesh = mesh_of(config)
    for name in PHASES:
        settings = phase_settings(config, name)
        field = f"config.{name}.batch_size"
        check_batch_size(settings.batch_size, mesh, field, batch_parts(settings))
        check_statistics_groups(settings, mesh.size)
    evaluation_batch_size(config, mesh)


def check_training_data(config: RunConfig, dataset: Dataset) -> None:
    """Checks what needs the dataset, for both phases; computes nothing.

    Raises:
      InputError: no full batch, a pipeline that cannot produce these images, or a custom
        backbone, heads or loss that do not fulfill their contracts.
      ModuleNotFoundError: the library of the pipeline is not installed.
    """
    _check_own_components(config, dataset)
    for name in PHASES:
        if phase_settings(config, name).total_epochs > 0:
            check_feed(config, name, dataset, mesh_of(config))
            _check_trained_parameters(config, dataset, name)


def check_initial_parameters(config: RunConfig, dataset: Dataset, workdir: Path) -> None:
    """Checks `config.phase_one.init_from` on an abstract network, unless phase I resumes.

    Raises:
      MissingFileError: the source does not exist.
      InputError: see `check_init_from`.
    """
    if config.phase_one.init_from:
        classifier = nnx.eval_shape(lambda: new_phase_one(config, dataset))
        check_init_from(classifier, config.phase_one, workdir / "phase_one")


def _check_own_components(config: RunConfig, dataset: Dataset) -> None:
    """Calls custom components abstractly, on an abstract network."""
    evaluation = config.evaluation
    first, second = phase_one_objective(config), phase_two_objective(config)
    losses = {
        name: objective
        for name, objective in zip(PHASES, (first, second), strict=True)
        if isinstance(objective, LossObjective)
    }
    included = (
        BACKBONES.is_built_in(config.model.backbone or "msdnet"),
        HEADS.is_built_in(config.model.heads),
        HEADS.is_built_in(config.phase_two.transfer),
        EXIT_RULES.is_built_in(evaluation.exit_rule),
    )
    if not losses and all(included):
        return
    classifier = nnx.eval_shape(lambda: new_phase_one(config, dataset))
    if config.phase_two.total_epochs > 0:
        nnx.eval_shape(lambda: new_phase_two(config, new_phase_one(config, dataset)))
    for name, objective in losses.items():
        check_loss(
            objective,
            classifier.num_exits,
            dataset.num_classes,
            mixed_labels=phase_settings(config, name).mixes_labels,
        )
    rule = get_exit_rule(
        evaluation.exit_rule, evaluation.exit_rule_options, "config.evaluation.exit_rule"
    )
    check_exit_rule(rule, classifier.num_exits, dataset.num_classes)


def _check_trained_parameters(config: RunConfig, dataset: Dataset, name: str) -> None:
    """Checks regular expressions and an optimizer of another package on an abstract network."""
    settings = phase_settings(config, name)
    if not (settings.freeze or settings.learning_rate_multipliers) and OPTIMIZERS.is_built_in(
        settings.optimizer
    ):
        return

    def new_network() -> nnx.Module:
        classifier = new_phase_one(config, dataset)
        return classifier if name == "phase_one" else new_phase_two(config, classifier)

    classifier = nnx.eval_shape(new_network)
    check_expressions(settings, classifier, PARAMETERS[name])
    trained = trained_variables(PARAMETERS[name], settings)
    check_optimizer(settings, nnx.state(classifier, trained))
