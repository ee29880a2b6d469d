"""Recipes: the paper's techniques and later ones, on one network, schedule and protocol.

    python launch.py --mode=study --config=configs/studies/recipes.py:cifar100,12+4 \
        --workdir=runs/recipes
    python launch.py --mode=study --config=configs/studies/recipes.py:cifar100,12+4,40+10 \
        --workdir=runs/recipes --config.chosen="('plain', 'imta', 'plain_40_10', 'imta_40_10')"

Presets as in `configs/studies/ablation.py`. `A+B` after a comma is a schedule: A epochs of phase I
and B of phase II, the same for all variants. Variants of further schedules have its numbers in
their names. The ablation study trains the same phase-I networks; a common --workdir shares them.
"""

import re

from configs.studies import shared

NETWORKS = {"cifar10": "cifar_5_exits", "cifar100": "cifar_5_exits"}
_SCHEDULE = re.compile(r"(\d+)\+(\d+)")

OFF, COARSEST, ALL = ({"phase_one.equilibrium": name} for name in ("off", "coarsest", "all"))
BOOSTED = {"model.heads": "boosted"}
# Label, techniques and changes of the variants that have a phase I only.
PHASE_ONE = {
    "plain": ("plain", (), OFF),
    "ge_coarsest": ("GE, coarsest map", ("GE",), COARSEST),
    "ge": ("GE", ("GE",), ALL),
    # With gradient equilibrium on the coarsest map, as in the authors' code.
    "boost": ("boosted logits", ("GE", "boost"), COARSEST | BOOSTED),
    "dfs": ("DFS, coarsest map", ("DFS",), OFF | {"phase_one.detach": "coarsest"}),
    "dfs_all": ("DFS, all maps", ("DFS",), OFF | {"phase_one.detach": "all"}),
    "boost_dfs": (
        "boosted logits + DFS",
        ("boost", "DFS"),
        OFF | BOOSTED | {"phase_one.detach": "coarsest"},
    ),
    "mixed": ("mixed regime", ("mixed",), OFF),  # `last_exit_epochs` depends on the schedule.
    "l2w": ("learned weights", ("L2W",), OFF | {"phase_one.sample_weights": "learned"}),
}
# Phase II on networks of phase I: with both of ISC and OFA, one, or only more training.
PHASE_TWO = {"longer": (), "isc": ("ISC",), "ofa": ("OFA",), "isc_ofa": ("ISC", "OFA")}


def get_config(preset="cifar100"):
    parts = preset.split(",")
    schedules = [
        tuple(map(int, match.groups())) for match in map(_SCHEDULE.fullmatch, parts) if match
    ]
    base = shared.base(",".join(part for part in parts if not _SCHEDULE.fullmatch(part)))
    base.model.preset = NETWORKS.get(parts[0], base.model.preset)
    if schedules:
        base.phase_one.total_epochs, base.phase_two.total_epochs = schedules[0]
    config = shared.study("recipes", preset, base, baseline="plain")
    _add_variants(config)
    for epochs in schedules[1:]:
        _add_variants(config, *epochs)
    return config.lock()


def _add_variants(config, phase_one_epochs=None, phase_two_epochs=None):
    """Adds all variants on the base's schedule, or on one of its own."""
    first = phase_one_epochs is None
    # A reference: half of the epochs that the command line sets.
    epochs = config.base.phase_one.get_ref("total_epochs") if first else phase_one_epochs
    suffix = "" if first else f"_{phase_one_epochs}_{phase_two_epochs}"
    words = "" if first else f", {phase_one_epochs} + {phase_two_epochs} epochs"
    own_epochs = {} if first else {"phase_one.total_epochs": phase_one_epochs}

    def add(name, label, techniques, changes):
        baseline = f"plain{suffix}"
        named = (name + suffix, label + words, techniques, changes | own_epochs)
        shared.add_variant(config, *named, against=baseline)

    for name, (label, techniques, changes) in PHASE_ONE.items():
        changes = changes | shared.NO_PHASE_TWO
        if name == "mixed":
            changes = changes | {"phase_one.last_exit_epochs": epochs // 2}
        add(name, label, techniques, changes)
    second = {} if first else {"phase_two.total_epochs": phase_two_epochs}
    for name, used in PHASE_TWO.items():
        fields = shared.COLLABORATION["ISC" in used] | shared.DISTILLATION["OFA" in used] | second
        for start, changes in (("plain", OFF), ("ge", ALL)):
            techniques = ("GE", *used) if start == "ge" else used
            if techniques == ("GE", "ISC", "OFA"):
                add("imta", "IMTA: GE + ISC + OFA", techniques, changes | fields)
                continue
            label = " + ".join(techniques) if used else f"{PHASE_ONE[start][0]}, phase II only"
            add(f"{start}_{name}", label, techniques, changes | fields)
    fields = {"phase_two.transfer": "boosted"} | COARSEST | BOOSTED | second
    add("boost_ofa", "boosted logits + OFA", ("GE", "boost", "OFA"), fields)
