"""The arms of a study: whole configs, each a few fields away from the base."""

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imta_jax.errors import unknown_name
from imta_jax.evaluation import check_evaluation_config
from imta_jax.training import check_training_config

# What of a config decides the phase-I network, besides the seed.
_OF_PHASE_ONE = ("data", "model", "phase_one", "mesh")
TECHNIQUES = ("GE", "ISC", "OFA")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a study's table.

    Attributes:
      name: also in file names.
      label: in tables and figures.
      techniques: those of `TECHNIQUES` that it uses; None for another network than MSDNet.
      against: the arm it is compared with.
      overrides: {"phase_one.equilibrium": "off", ...}: where it differs from the base.
      config: the whole config.
    """

    name: str
    label: str
    techniques: tuple[str, ...] | None
    against: str
    overrides: Mapping[str, Any]
    config: Mapping[str, Any]

    def seeded(self, seed: int) -> dict[str, Any]:
        """The config with this seed."""
        return {**self.config, "seed": seed}

    @property
    def phase_one_key(self) -> str:
        """Equal for arms that start from the same phase-I network."""
        parts = [self.config[part] for part in _OF_PHASE_ONE]
        return json.dumps(parts, sort_keys=True, default=list)

    @property
    def network(self) -> str:
        """The network's preset, or its backbone."""
        model = self.config["model"]
        return model.get("preset") or model.get("backbone") or "custom"


def is_study(config: Mapping[str, Any]) -> bool:
    """Whether a config is a study's (configs/studies) and not a run's."""
    return "arms" in config and "base" in config


def study_arms(config: Mapping[str, Any]) -> list[Arm]:
    """All arms of a study, in the order of its tables; each config is checked, nothing computed.

    Args:
      config: a study's config (configs/studies/shared.py) as nested mappings.

    Raises:
      ValueError: not a study, seeds that are not different integers, an unknown baseline, an arm
        that changes a field the base does not have or compares itself with an unknown arm, or a
        config that does not fit, with the arm's name.
    """
    if not is_study(config):
        raise ValueError(
            "--mode=study wants the config of a study, e.g. configs/studies/ablation.py:quickstart;"
            " this one has no arms: leave --mode away to run it"
        )
    names, seeds = list(config["arms"]), tuple(config["seeds"])
    for name in config["chosen"]:
        if name not in names:
            raise unknown_name("arm in config.chosen", name, names)
    if config["baseline"] not in names:
        raise unknown_name("arm in config.baseline", config["baseline"], names)
    if len(set(seeds)) < len(seeds) or any(not isinstance(s, int) or s < 0 for s in seeds):
        raise ValueError(f"config.seeds must be different integers, 0 or more; found {seeds}")
    arms = [_arm(config, name) for name in config["chosen"]]
    for arm in arms:
        if arm.against not in names:
            raise unknown_name(f"arm that {arm.name} is compared with,", arm.against, names)
        try:
            check_training_config(arm.config)
            check_evaluation_config(arm.config)
        except ValueError as error:
            raise ValueError(f"arm {arm.name}: {error}") from error
    return arms


def other_arms(config: Mapping[str, Any], names: Iterable[str]) -> list[Arm]:
    """Of the arms that are not chosen this time those with one of the names, unchecked."""
    wanted = set(names) - set(config["chosen"])
    return [_arm(config, name) for name in config["arms"] if name in wanted]


def _arm(config: Mapping[str, Any], name: str) -> Arm:
    arm, whole = config["arms"][name], copy.deepcopy(dict(config["base"]))
    overrides = dict(_flat(arm["changes"]))
    for field, value in overrides.items():
        *parts, last = field.split(".")
        node: Any = whole
        for part in parts:
            node = node.get(part, {})
        if last not in node:
            raise unknown_name(f"field {field!r} of arm {name}: no {last!r}", last, node)
        node[last] = value
    techniques = arm["techniques"]
    return Arm(
        name=name,
        label=arm["label"],
        techniques=None if techniques is None else tuple(techniques),
        against=arm["against"] or config["baseline"],
        overrides=overrides,
        config=whole,
    )


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
