"""What a study's config is made of: a base config, and arms that each change a few of its fields.

A study's preset names the base, `quickstart` (the images in the package, on a laptop's processor),
`cifar10`, `cifar100` or `imagenet`, and after a comma presets of that base's own: `cifar10,short`.
"""

from ml_collections import ConfigDict, config_dict

from configs import cifar10, cifar100, imagenet, quickstart


def _quickstart(preset):
    config = quickstart.get_config(preset)
    # Long enough for the exits to differ, short enough for three seeds of every arm on a laptop.
    config.phase_one.total_epochs = 12
    config.phase_two.total_epochs = 6
    return config


BASES = {
    "quickstart": _quickstart,
    "cifar10": cifar10.get_config,
    "cifar100": cifar100.get_config,
    "imagenet": imagenet.get_config,
}


def base(preset):
    """The base config that a study's preset names.

    Raises:
      ValueError: an unknown name; the valid ones are listed.
    """
    name, _, own = preset.partition(",")
    if name not in BASES:
        raise ValueError(f"unknown preset {name!r}; valid: {', '.join(BASES)}")
    return BASES[name](own or "paper")


def study(name, preset, base_config, baseline):
    """A study without arms yet."""
    config = ConfigDict()
    # Which tables and figures its rows are drawn as: the name of its file.
    config.study = name
    # Which variant of it.
    config.preset = preset
    # Every arm is trained once with each; () trains nothing and records the costs alone.
    config.seeds = (0, 1, 2)
    # The arm that the others are compared with.
    config.baseline = baseline
    # Images of the validation split on which the variance of gradients is measured after phase I;
    # 0 leaves that out.
    config.gradient_variance_images = 0
    # A whole config (configs/common.py); arms change it.
    config.base = base_config
    # Names of the arms to run, in the order of the tables.
    config.chosen = ()
    # By name: label, techniques, the arm it is compared with, and the changed fields of the base.
    config.arms = ConfigDict()
    return config


def add_arm(config, name, label, techniques, changes, against=None):
    """Adds an arm to a study.

    Args:
      config: of the study.
      name: of the arm, also of its folder.
      label: in tables and figures.
      techniques: those of "GE", "ISC", "OFA" that it uses; None for other networks than MSDNet.
      changes: {"phase_one.equilibrium": "off", ...}: fields of the base.
      against: the arm it is compared with; default, the study's baseline.
    """
    arm = ConfigDict()
    # Empty for whatever baseline the study has in the end: it may be set on the command line.
    arm.against = against or ""
    arm.label = label
    arm.techniques = config_dict.placeholder(tuple) if techniques is None else tuple(techniques)
    arm.changes = ConfigDict()
    for field, value in changes.items():
        *parts, last = field.split(".")
        node = arm.changes
        for part in parts:
            if part not in node:
                node[part] = ConfigDict()
            node = node[part]
        node[last] = value
    config.arms[name] = arm
    config.chosen += (name,)


# What each technique is in fields; the base's own values are the paper's method.
EQUILIBRIUM = {True: {"phase_one.equilibrium": "all"}, False: {"phase_one.equilibrium": "off"}}
COLLABORATION = {True: {}, False: {"phase_two.transfer": "none"}}
DISTILLATION = {True: {}, False: {"phase_two.alpha": 1.0}}
NO_PHASE_TWO = {"phase_two.total_epochs": 0}
# A network with one exit knows neither equilibrium nor collaboration.
SINGLE_EXIT = NO_PHASE_TWO | {"phase_one.equilibrium": "off"}


def add_technique_arm(
    config, name, techniques, label=None, changes=None, phase_two=True, against=None
):
    """Adds an arm by the techniques it uses.

    Args:
      config: of the study.
      name: of the arm.
      techniques: those of "GE", "ISC", "OFA" that it uses.
      label: default, the techniques joined by "+".
      changes: further ones, as in `add_arm`.
      phase_two: whether there is a second phase; without ISC and OFA it trains the linear layers
        on, which tells what the techniques do from what more training does.
      against: as in `add_arm`.
    """
    fields = dict(EQUILIBRIUM["GE" in techniques])
    fields |= COLLABORATION["ISC" in techniques] | DISTILLATION["OFA" in techniques]
    if not phase_two:
        fields = EQUILIBRIUM["GE" in techniques] | NO_PHASE_TWO
    label = label or " + ".join(techniques)
    add_arm(config, name, label, techniques, fields | (changes or {}), against)
