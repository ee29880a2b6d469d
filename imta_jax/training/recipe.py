"""The record of the optimizer and schedule in a checkpoint, which a resumed phase must equal."""

from collections.abc import Mapping
from typing import Any

from imta_jax.config import PhaseConfig
from imta_jax.errors import InputError
from imta_jax.runtime.config_diff import config_differences, to_json_types

# The entry of a checkpoint's `meta`.
RECIPE = "recipe"
_FIELDS = (
    *("optimizer", "optimizer_options", "schedule", "schedule_options", "warmup_epochs"),
    *("gradient_clip_norm", "learning_rate_multipliers", "freeze"),
    *("ema_decay", "early_stopping_epochs", "init_from", "init_from_map"),
    *("batch_statistics", "statistics_group_size", "matmul_precision"),
)


class AnotherRecipeError(InputError):
    """A checkpoint was trained with another optimizer or schedule than this launch sets."""


def recipe_record(settings: PhaseConfig) -> dict[str, Any]:
    """The fields of a phase that are recorded, by field, without those at their default."""
    values, defaults = to_json_types(settings.to_dict()), to_json_types(type(settings).defaults())
    changed = {n: values[n] for n in _FIELDS if n in values and values[n] != defaults[n]}
    return {"section": settings.section, "fields": changed}


def check_same_recipe(meta: Mapping[str, Any], recipe: Mapping[str, Any], checkpoint: str) -> None:
    """Compares the recorded fields with those of this launch.

    Args:
      meta: `meta` of the checkpoint. Without a record (earlier versions), all fields have defaults.
      recipe: return value of `recipe_record`.
      checkpoint: description of the checkpoint, for the message.

    Raises:
      AnotherRecipeError: lists the fields that differ; None stands for the default.
    """
    recorded, fields = dict(meta.get(RECIPE, {}).get("fields", {})), dict(recipe["fields"])
    if "init_from" in recorded and "init_from" in fields:  # `began_with` compares the content
        del recorded["init_from"], fields["init_from"]
    lines = config_differences(recorded, fields, recipe["section"])
    if lines:
        raise AnotherRecipeError(
            f"{checkpoint} was trained with other fields; use its values or another --workdir "
            "(None is the default):\n  " + "\n  ".join(lines)
        )
