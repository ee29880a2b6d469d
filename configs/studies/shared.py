"""Parts of all studies: a base config, and variants ("arms") that each change a few of its fields.

A study's preset names the base: `quickstart` (the packaged images, on a laptop's CPU), `cifar10`,
`cifar100` or `imagenet`. Presets of the base may follow after a comma: `cifar10,short`.
"""

from ml_collections import ConfigDict, config_dict

from configs import cifar10, cifar100, imagenet, quickstart


def _quickstart(preset):
    config = quickstart.get_config(preset)
    # The network of the published rows in benchmarks/results/studies.
    config.model.preset = "quickstart"
    # Long enough for the exits to differ, short enough for three seeds per variant on a laptop.
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
      ValueError: an unknown name. The message lists the valid ones.
    """
    name, _, own = preset.partition(",")
    if name not in BASES:
        raise ValueError(f"unknown preset {name!r}; valid: {', '.join(BASES)}")
    return BASES[name](own or "paper")


def study(name, preset, base_config, baseline):
    """The config of a study, without variants."""
    config = ConfigDict()
    # Name of the study (that of its file); selects the tables and figures of its report.
    config.study = name
    # Preset of this file.
    config.preset = preset
    # Every variant is trained once per seed; () records costs only.
    config.seeds = (0, 1, 2)
    # Name of the variant that the others are compared with.
    config.baseline = baseline
    # Validation images for the variance of gradients after phase I; 0 skips it.
    config.gradient_variance_images = 0
    # Config of a run (configs/common.py), which variants change.
    config.base = base_config
    # Names of the variants to run, in the order of the tables.
    config.chosen = ()
    # By variant: label, techniques, the variant it is compared with, and changes of the base.
    config.arms = ConfigDict()
    return config


def add_variant(config, name, label, techniques, changes, against=None):
    """Adds a variant to a study.

    Args:
      config: config of the study.
      name: name of the variant, also used in file names.
      label: name in tables and figures.
      techniques: subset of "GE", "ISC", "OFA" that it uses; None for networks other than MSDNet.
      changes: new values of fields of the base, `{"phase_one.equilibrium": "off", ...}`.
      against: name of the variant it is compared with; the study's baseline by default.
    """
    variant = ConfigDict()
    # Empty stands for config.baseline, which the command line may change.
    variant.against = against or ""
    variant.label = label
    variant.techniques = config_dict.placeholder(tuple) if techniques is None else tuple(techniques)
    variant.changes = ConfigDict()
    for field, value in changes.items():
        *parts, last = field.split(".")
        node = variant.changes
        for part in parts:
            if part not in node:
                node[part] = ConfigDict()
            node = node[part]
        node[last] = value
    config.arms[name] = variant
    config.chosen += (name,)


# The fields that switch each technique on or off. The base's values are the paper's method.
EQUILIBRIUM = {True: {"phase_one.equilibrium": "all"}, False: {"phase_one.equilibrium": "off"}}
COLLABORATION = {True: {}, False: {"phase_two.transfer": "none"}}
DISTILLATION = {True: {}, False: {"phase_two.alpha": 1.0}}
NO_PHASE_TWO = {"phase_two.total_epochs": 0}
# Equilibrium and collaboration need several exits.
SINGLE_EXIT = NO_PHASE_TWO | {"phase_one.equilibrium": "off"}


def add_technique_variant(
    config, name, techniques, label=None, changes=None, phase_two=True, against=None
):
    """Adds a variant that is defined by the techniques it uses.

    Args:
      config: config of the study.
      name: name of the variant.
      techniques: subset of "GE", "ISC", "OFA" that it uses.
      label: name in tables and figures; by default the techniques joined by "+".
      changes: further changes, as in `add_variant`.
      phase_two: whether there is a phase II. Without ISC and OFA it only continues to train the
        linear layers, which separates the effect of the techniques from that of more training.
      against: as in `add_variant`.
    """
    fields = dict(EQUILIBRIUM["GE" in techniques])
    fields |= COLLABORATION["ISC" in techniques] | DISTILLATION["OFA" in techniques]
    if not phase_two:
        fields = EQUILIBRIUM["GE" in techniques] | NO_PHASE_TWO
    label = label or " + ".join(techniques)
    add_variant(config, name, label, techniques, fields | (changes or {}), against)
