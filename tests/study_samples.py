"""Synthetic studies for tests of the study report.

Contents of `study.json` with accuracies from a smooth formula and seeded noise.
"""

import numpy as np

COSTS = (6.79e6, 14.2e6, 27.1e6, 48.1e6, 76.0e6, 108.2e6, 136.6e6, 190.0e6)
IMAGES = {"train": 9000, "validation": 1000, "test": 2000}
TECHNIQUES = {"none": [], "GE": ["GE"], "ISC": ["ISC"], "OFA": ["OFA"], "all": ["GE", "ISC", "OFA"]}


def variant(label, techniques, network="cifar_5_exits", **overrides):
    return {
        "label": label,
        "techniques": techniques,
        "network": network,
        "overrides": {name.replace("__", "."): value for name, value in overrides.items()},
    }


def synthetic_row(name, seed, *, exits=5, gain=0.0, phase_two=True, first=0, measured=False):
    """The row of a finished run, with noise seeded by variant and seed."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    costs = np.array(COSTS[first : first + exits])
    top1 = 65 + 8 * np.log10(costs / COSTS[0]) + gain + rng.normal(0, 0.25, exits)
    points = np.linspace(costs[0], costs[-1], 40)
    curve = 1.2 + np.interp(points, costs, top1) + rng.normal(0, 0.05, 40)
    if exits == 1:
        curve = np.repeat(top1, 40)
    epochs = [1, 2, 3, 4, 5]
    return {
        "arm": name,
        "seed": seed,
        "status": "done",
        "schedule": {
            "phase_one": {"epochs": 5, "batch_size": 64},
            "phase_two": {"epochs": 2, "batch_size": 64} if phase_two else None,
        },
        "exits": [
            {
                "exit": i + 1,
                "macs": float(costs[i]),
                "published_ops": float(1.01 * costs[i]),
                "params": float(3e5 * (i + 1)),
                "top1": float(top1[i]),
                "top5": 99.0,
                "validation_top1": float(top1[i] + rng.normal(0, 0.2)),
                "ece": 0.03,
            }
            for i in range(exits)
        ],
        "budget_curve": [
            {"quota": q, "mean_macs": float(p), "top1": float(c), "validation_top1": float(c + 0.1)}
            for q, p, c in zip(np.linspace(0.05, 2, 40), points, curve, strict=True)
        ],
        "validation_curve": {
            "phase_one": [
                {"epoch": e, "top1": list(top1 - 25 / e + rng.normal(0, 1, exits))} for e in epochs
            ],
            "phase_two": [{"epoch": e, "top1": list(top1 - 1 / e)} for e in (1, 2)]
            if phase_two
            else [],
        },
        "rank_correlation": float(0.7 + 0.02 * gain + rng.normal(0, 0.01)) if exits > 1 else None,
        "confidence_ranks": synthetic_ranks(rng, gain) if seed == 0 and exits > 1 else None,
        "gradient_variance": synthetic_variance(rng, exits, gain) if measured else None,
        "seconds": {"phase_one": 61.0, "phase_two": 12.0},
    }


def synthetic_ranks(rng, gain):
    base = rng.normal(size=400)
    noisy = [base + rng.normal(0, 0.8 / (1 + gain), 400) for _ in range(2)]
    return [np.argsort(np.argsort(values)).tolist() for values in noisy]


def synthetic_variance(rng, exits, gain):
    losses = np.triu(rng.uniform(0.5, 2, (exits, exits))) * 10.0 ** -np.arange(exits)[:, None]
    return {"stages": list(losses.sum(axis=1) * (1.1 - 0.1 * gain)), "losses": losses.tolist()}


def synthetic_study(
    name, variants, rows, *, preset="quickstart", dataset="fashion_mnist_small", seeds=3
):
    return {
        "study": name,
        "preset": preset,
        "environment": {"device": "cpu", "devices": 1, "versions": {"jax": "0.10.2"}},
        "dataset": {"name": dataset, "examples": IMAGES, "image_shape": [28, 28, 1], "note": ""},
        "baseline": next(iter(variants)),
        "arms": variants,
        "seeds": list(range(seeds)),
        "rows": rows,
        "summary": [],
    }


def failed_row(name, seed, error="loss not finite at step 12"):
    return {"arm": name, "seed": seed, "status": "failed", "error": error}


def ablation(*, leave_out=("OFA",), fail=(("ISC", 2),), **settings):
    variants = {
        name: variant(" + ".join(used) or "plain", used) for name, used in TECHNIQUES.items()
    }
    rows = [
        failed_row(name, seed)
        if (name, seed) in fail
        else synthetic_row(name, seed, gain=0.4 * len(used), phase_two=bool(set(used) - {"GE"}))
        for name, used in TECHNIQUES.items()
        if name not in leave_out
        for seed in range(3)
    ]
    return synthetic_study("ablation", variants, rows, **settings)


def exits(**settings):
    variants = {
        "plain": variant("MSDNet", [], "cifar_7_exits"),
        "all": variant("Ours", TECHNIQUES["all"], "cifar_7_exits"),
        "hydra_2": variant("Hydra-Res-d2", None, "hydra_2"),
        "hydra_9": variant("Hydra-Res-d9", None, "hydra_9"),
    }
    rows = [
        synthetic_row(name, seed, exits=7, gain=gain)
        for name, gain in (("plain", 0), ("all", 1))
        for seed in range(3)
    ]
    rows += [synthetic_row("hydra_2", 0, exits=1, first=5, phase_two=False)]
    return synthetic_study("exits", variants, rows, **settings)


def budget(*, seeds=3, **settings):
    variants, rows = {}, []
    for depth in (4, 6, 8):
        for name, used, gain in (("plain", [], 0), ("all", TECHNIQUES["all"], 0.8)):
            key = f"{name}_{depth}"
            label = f"{'MSDNet' if not used else 'Ours'}, {depth} exits"
            variants[key] = variant(label, used, f"cifar_{depth}_exits")
            gain += 0.1 * depth
            rows += [synthetic_row(key, s, exits=depth, gain=gain) for s in range(seeds)]
    for family, lag in (("resnet", -4), ("densenet", -2)):
        for place, depth in enumerate((20, 32, 44)):
            key = f"{family}_{depth}"
            variants[key] = variant(key, None, key)
            rows += [
                synthetic_row(key, s, exits=1, gain=lag, first=2 + place, phase_two=False)
                for s in range(seeds)
            ]
    return synthetic_study("budget", variants, rows, seeds=seeds, **settings)


def equilibrium(**settings):
    variants = {
        "off": variant("without GE", []),
        "coarsest": variant("GE, coarsest map", ["GE"], phase_one__equilibrium="coarsest"),
        "all": variant("GE, all maps", ["GE"], phase_one__equilibrium="all"),
    }
    rows = [
        synthetic_row(name, seed, gain=gain, phase_two=False, measured=True)
        for gain, name in enumerate(variants)
        for seed in range(3)
    ]
    return synthetic_study("equilibrium", variants, rows, **settings)


def distillation(*, seeds=3, **settings):
    variants, rows = {"none": variant("without OFA", ["GE", "ISC"])}, []
    rows += [synthetic_row("none", seed) for seed in range(seeds)]
    for teacher in ("last_exit", "phase_one"):
        for alpha in (0.1, 0.5, 0.9):
            for temperature in (1.0, 3.0, 10.0):
                name = f"{teacher}_{alpha:g}_{temperature:g}"
                variants[name] = variant(
                    f"{teacher}, alpha {alpha:g}, T {temperature:g}",
                    TECHNIQUES["all"],
                    phase_two__alpha=alpha,
                    phase_two__temperature=temperature,
                    phase_two__teacher=teacher,
                    phase_two__reduction="batch",
                    phase_two__temperature_squared=True,
                )
                gain = 0.5 - (alpha - 0.5) ** 2 + 0.1 * np.log(temperature)
                rows += [synthetic_row(name, seed, gain=gain) for seed in range(seeds)]
    rows = [row for row in rows if row["arm"] != "phase_one_0.9_10"]
    return synthetic_study("distillation", variants, rows, seeds=seeds, **settings)


def all_studies():
    return [ablation(), exits(), budget(), equilibrium(), distillation()]
