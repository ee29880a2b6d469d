"""Chooses alpha, temperature and transfer of phase II on validation images.

The paper gives neither alpha nor the temperature. Phase I of the quickstart is trained once per
seed; phase II differs only in its heads, so that the frozen backbone's features (of every image and
its mirror image) are computed once, and every setting trains heads on them. Test images are not
looked at.

    python benchmarks/distillation_sweep.py --workdir=runs/sweep \
        --out=benchmarks/results/distillation_sweep.json
"""

import argparse
import itertools
import json
import platform
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import quickstart
from imta_jax.data import PaddedCrop, Split, epoch_plan, load_dataset
from imta_jax.evaluation import exit_of, geometric_quota, thresholds_for_quota
from imta_jax.models import MultiExitClassifier, with_collaborative_heads
from imta_jax.pixels import normalize
from imta_jax.techniques import one_for_all_loss
from imta_jax.training import load_classifier, train_phase_one

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0)
MIRRORED = PaddedCrop(padding=0, flip=True)
TRANSFERS = ("none", "identity", "linear")
LEARNING_RATES = (0.1, 0.01)


def features_of(classifier: MultiExitClassifier, split: Split, pixels: dict) -> np.ndarray:
    """Features [2, E, N, F] of images and of their mirror images, for exits of equal width."""
    compute = nnx.jit(lambda network, x: jnp.stack(network.features(x)))
    sides = []
    for images in (split.images, split.images[:, :, ::-1]):
        parts = np.split(images, range(500, len(images), 500))
        found = [
            np.asarray(compute(classifier, normalize(jnp.asarray(p), **pixels))) for p in parts
        ]
        sides.append(np.concatenate(found, axis=1))
    return np.stack(sides)


def make_epoch(graphdef: nnx.GraphDef, phase: dict, steps: int):
    """Compiles one epoch of head training; alpha, temperature and learning rate are arguments."""

    def epoch(params, stats, momenta, batches, alpha, temperature, rates):
        tx = _sgd(phase)

        def step(carry, inputs):
            params, stats, momenta = carry
            features, labels, rate = inputs

            def loss_of(params):
                heads = nnx.merge(graphdef, params, stats, copy=True)
                logits = run_heads(heads, features)
                _, _, moved = nnx.split(heads, nnx.Param, ...)
                settings = {"alpha": alpha, "temperature": temperature}
                return one_for_all_loss(logits, labels, logits[-1], **settings), moved

            grads, stats = jax.grad(loss_of, has_aux=True)(params)
            updates, momenta = tx.update(grads, momenta, params)
            params = optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates))
            return (params, stats, momenta), None

        return jax.lax.scan(step, (params, stats, momenta), (*batches, rates), length=steps)[0]

    return jax.jit(epoch)


def _sgd(phase: dict) -> optax.GradientTransformation:
    """The phase's optimiser without its learning rate, which is an argument here."""
    return optax.chain(
        optax.add_decayed_weights(phase["weight_decay"]),
        optax.trace(decay=phase["momentum"], nesterov=phase["nesterov"]),
    )


def run_heads(heads: nnx.Module, features: jax.Array) -> jax.Array:
    """Logits [E, N, K] of heads on features [E, N, F]."""
    carry, logits = None, []
    for i, pooled in enumerate(features):
        out, carry = heads(i, pooled, carry)
        logits.append(out)
    return jnp.stack(logits)


def train_heads(epoch, start, features, labels, phase, seed, setting) -> tuple:
    """Trains heads from `start` (parameters, statistics) with one setting."""
    params, stats = start
    momenta, total = _sgd(phase).init(params), phase["total_epochs"]
    count = features.shape[2] // phase["batch_size"] * phase["batch_size"]
    steps = count // phase["batch_size"]
    for e in range(total):
        plan = epoch_plan(MIRRORED, np.ones((features.shape[2], 2)), seed=seed, epoch=e)
        order = plan.order[:count]
        picked = features[plan.flip[order].astype(int), :, order]  # [count, E, F]
        shape = (steps, phase["batch_size"])
        batches = (
            picked.reshape(*shape, *picked.shape[1:]).swapaxes(1, 2),
            labels[order].reshape(shape),
        )
        done = np.arange(e * steps, (e + 1) * steps) / (total * steps)
        drops = sum(done >= drop for drop in phase["learning_rate_drops"])
        rates = setting["learning_rate"] * phase["drop_factor"] ** drops
        params, stats, momenta = epoch(
            params, stats, momenta, batches, setting["alpha"], setting["temperature"],
            rates.astype(np.float32),
        )  # fmt: skip
    return params, stats


def judge(graphdef, trained, features, labels, macs) -> dict:
    """Validation accuracy per exit, and of adaptive inference at about half of the compute."""
    heads = nnx.merge(graphdef, *trained, copy=True)
    heads.eval()
    p = np.asarray(jax.nn.softmax(run_heads(heads, jnp.asarray(features))))
    sure, right = p.max(-1), p.argmax(-1) == labels
    rows = np.arange(len(labels))
    curve = []
    for q in np.arange(1, 41) / 20:
        exits = exit_of(sure, thresholds_for_quota(sure, geometric_quota(q, len(p))))
        curve.append((macs[exits].mean() / macs[-1], 100 * right[exits, rows].mean()))
    within = [accuracy for share, accuracy in curve if share <= 0.5]
    return {
        "validation_top1": (100 * right.mean(axis=1)).tolist(),
        "validation_top1_at_half": max(within, default=float("nan")),
    }


def sweep_seed(seed: int, arguments: argparse.Namespace) -> list[dict]:
    """All settings on one phase-I network, which is trained if it is not there yet."""
    from imta_jax.evaluation import exit_costs

    config = quickstart.get_config()
    config.seed = seed
    if arguments.quick:
        config.phase_one.total_epochs = 1
    config = config.to_dict()
    dataset, workdir = load_dataset(config["data"]), Path(arguments.workdir) / f"seed_{seed}"
    train_phase_one(config, dataset, workdir)
    classifier, _ = load_classifier(workdir / "phase_one")
    macs, pixels = exit_costs(classifier).macs, {"mean": dataset.mean, "std": dataset.std}
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    features = features_of(classifier, train, pixels)
    held_out = features_of(classifier, validation, pixels)[0]
    phase, rows = config["phase_two"], []
    for transfer in TRANSFERS:
        heads = with_collaborative_heads(
            classifier, {"transfer": transfer}, num_classes=dataset.num_classes, rngs=nnx.Rngs(seed)
        ).heads
        heads.train()
        graphdef, *start = nnx.split(heads, nnx.Param, ...)
        epoch = make_epoch(graphdef, phase, len(train) // phase["batch_size"])
        for alpha, temperature, rate in settings(arguments.quick):
            setting = {"alpha": alpha, "temperature": temperature, "learning_rate": rate}
            trained = train_heads(epoch, start, features, train.labels, phase, seed, setting)
            found = judge(graphdef, trained, held_out, validation.labels, macs)
            rows.append({"seed": seed, "transfer": transfer, **setting, **found})
    return rows


def settings(quick: bool) -> list[tuple[float, float, float]]:
    """(alpha, temperature, learning rate); at alpha 1 the temperature has no effect."""
    alphas, temperatures = ((0.5, 1.0), (1.0,)) if quick else (ALPHAS, TEMPERATURES)
    grid = itertools.product(alphas, temperatures, LEARNING_RATES)
    return [s for s in grid if s[0] < 1 or s[1] == temperatures[0]]


def summarise(rows: list[dict]) -> list[dict]:
    """Mean over seeds per setting, the best mean over exits first."""
    names = ("transfer", "alpha", "temperature", "learning_rate")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    means = [
        {
            **dict(zip(names, key, strict=True)),
            "mean_top1": float(np.mean([r["validation_top1"] for r in group])),
            "last_top1": float(np.mean([r["validation_top1"][-1] for r in group])),
            "top1_at_half": float(np.mean([r["validation_top1_at_half"] for r in group])),
            "seed_spread": float(np.std([np.mean(r["validation_top1"]) for r in group])),
        }
        for key, group in groups.items()
    ]
    return sorted(means, key=lambda row: -row["mean_top1"])


def main() -> None:
    """Runs the sweep and prints and writes its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="phase-I runs are kept here")
    parser.add_argument("--out", required=True, help="JSON")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one epoch, a corner of the grid")
    arguments = parser.parse_args()
    rows = [row for seed in range(arguments.seeds) for row in sweep_seed(seed, arguments)]
    table = summarise(rows)
    print(tabulate(table[:20], headers="keys", floatfmt=".2f"))
    result = {
        "hardware": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
        "seeds": list(range(arguments.seeds)),
        "data": "fashion_mnist_small, 1,000 validation images held out of 10,000",
        "rows": rows,
        "summary": {"best": table[0], "by_setting": table},
    }
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
