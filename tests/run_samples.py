"""A synthetic run folder and an HTML parser for the tests of reports."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd

CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]
CLOTHES += ["Bag", "Ankle boot"]


def simulate(rng, exits, labels, classes):
    """Predictions and confidences [E, N] of exits whose skill grows with depth."""
    difficulty = np.linspace(-2.2, 0.6, classes)[labels] + rng.normal(size=len(labels))
    skill = np.linspace(0.3, 1.3, exits)[:, None]
    score = skill - difficulty + 0.5 * rng.normal(size=(exits, len(labels)))
    prediction = np.where(score > 0, labels, (labels + 1) % classes)
    return prediction, 1 / (1 + np.exp(-2.0 * np.abs(score)))


def budget_rows(validation, test, macs):
    """A sweep over quotas: thresholds from validation images, results on both splits."""
    rows = []
    for quota in np.geomspace(0.05, 20, 40):
        fractions = quota ** np.arange(len(macs))
        thresholds = choose(validation[1], fractions / fractions.sum())
        exit_, correct = leave(test, thresholds)
        shares = np.bincount(exit_, minlength=len(macs)) / len(exit_)
        rows.append(
            {
                "quota": float(quota),
                "thresholds": thresholds,
                "top1": 100 * correct.mean(),
                "validation_top1": 100 * leave(validation, thresholds)[1].mean(),
                "mean_macs": float(shares @ macs),
                "exit_fractions": shares.tolist(),
            }
        )
    return rows


def choose(confidence, fractions):
    left, thresholds = np.ones(confidence.shape[1], bool), []
    for row, fraction in zip(confidence[:-1], fractions[:-1], strict=True):
        count = min(int(fraction * len(left)), int(left.sum()))
        threshold = np.sort(row[left])[-count] if count else 1e8
        left &= row < threshold
        thresholds.append(float(threshold))
    return [*thresholds, -1e8]


def leave(split, thresholds):
    prediction, confidence, labels = split
    exit_ = (confidence >= np.array(thresholds)[:, None]).argmax(0)
    return exit_, prediction[exit_, np.arange(len(labels))] == labels


def metric_rows(phase, epochs, exits, start, end):
    """Metrics with accuracy that rises to `end`, and drops of the learning rate."""
    for epoch in range(1, epochs + 1):
        level = start + (1 - start) * (1 - np.exp(-5 * epoch / epochs))
        rate = 0.1 * 0.1 ** ((epoch > epochs / 2) + int(epoch > 0.75 * epochs))
        for split, shift in (("train", 1.5), ("validation", 0.0)):
            top1 = (level * end + shift + np.sin(7 * epoch + np.arange(exits))).tolist()
            losses = [float(4 * (1.02 - t / 100)) for t in top1]
            row = {"phase": phase, "epoch": epoch, "step": 90 * epoch, "split": split}
            row |= {"loss": sum(losses), "loss_per_exit": losses, "top1_per_exit": top1}
            if split == "train":
                row |= {"learning_rate": rate, "images_per_second": 1234.5}
            yield json.dumps(row)


def write_run(folder, *, exits=4, names=CLOTHES, epochs=(30, 18), images=None, seed=0):
    """Writes a run's folder in the format of `launch.py`; `images` are uint8 [M, H, W, C]."""
    rng, classes = np.random.default_rng(seed), len(names)
    macs = (4.2e6 * np.cumsum(np.linspace(1, 3, exits))).astype(int)
    splits = []
    for count in (1000, 2000):
        labels = rng.integers(classes, size=count)
        splits.append((*simulate(rng, exits, labels, classes), labels))
    top1 = 100 * (splits[1][0] == splits[1][2]).mean(1)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": {"backbone": "msdnet"}, "seed": 3}))
    curve = budget_rows(*splits, macs)
    write_results(folder, names, epochs, macs, top1, curve)
    write_samples(folder, splits[1], macs, curve)
    write_arrays(folder, splits[1], exits, rng, images)
    for phase, count, start in zip(("phase_one", "phase_two"), epochs, (0.4, 0.99), strict=True):
        if count:
            (folder / phase).mkdir()
            lines = metric_rows(phase, count, exits, start, top1 + 0.4 * (phase == "phase_two"))
            (folder / phase / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_results(folder, names, epochs, macs, top1, curve):
    exits = [
        {
            "exit": i + 1,
            "macs": int(m),
            "published_ops": int(1.1 * m),
            "params": int(m / 60),
            "top1": float(t),
            "top5": min(100.0, float(t) + 10),
            "validation_top1": float(t) + 0.2,
            "ece": 2.0 + i,
            "auroc": 0.8 + 0.01 * i,
        }
        for i, (m, t) in enumerate(zip(macs, top1, strict=True))
    ]
    phases = [
        {"epochs": e, "steps": 90 * e, "seconds": 61.0 * e, "final_learning_rate": 0.001}
        if e
        else None
        for e in epochs
    ]
    results = {
        "dataset": {
            "name": "fashion_mnist",
            "class_names": list(names),
            "image_shape": [28, 28, 1],
            "examples": {"train": 9000, "validation": 1000, "test": 2000},
            "statistics_source": "training images",
            "note": "a | b",
        },
        "phases": dict(zip(("phase_one", "phase_two"), phases, strict=True)),
        "environment": {
            "device": "cpu",
            "devices": 1,
            "versions": {"jax": "0.8"},
            "seed": 3,
            "command": "python launch.py --workdir='a b'",
            "commit": "0123abcd (modified)",
            "finished": "2026-01-02T03:04:05",
        },
        "exits": exits,
        "budget_curve": curve,
        "reported_budgets": [{"budget": b, **nearest(curve, b * macs[-1])} for b in (0.3, 0.5)],
    }
    (folder / "results.json").write_text(json.dumps(results))


def nearest(curve, macs):
    return min(curve, key=lambda row: abs(row["mean_macs"] - macs))


def write_samples(folder, test, macs, curve):
    prediction, confidence, labels = test
    columns = {"index": np.arange(len(labels)), "label": labels}
    for budget in (30, 50):
        exit_, _ = leave(test, nearest(curve, budget / 100 * macs[-1])["thresholds"])
        at = exit_, np.arange(len(labels))
        columns |= {
            f"budget_{budget}_exit": exit_,
            f"budget_{budget}_prediction": prediction[at],
            f"budget_{budget}_confidence": confidence[at],
            f"budget_{budget}_macs": macs[exit_],
        }
    pd.DataFrame(columns).to_parquet(folder / "evaluation" / "samples.parquet")


def write_arrays(folder, test, exits, rng, images):
    prediction, _, labels = test
    images = rng.integers(256, size=(24, 28, 28, 1), dtype=np.uint8) if images is None else images
    count = len(images)
    first = np.arange(count) < count // 2
    np.savez(
        folder / "evaluation" / "gallery.npz",
        images=images,
        index=np.arange(count),
        label=labels[:count],
        prediction=prediction[0, :count],
        first=first,
        exit=np.where(first, 0, exits - 1),
        confidence=np.where(first, 0.99, 0.5),
    )
    confidence = np.tile(np.linspace(0.05, 0.95, 10), (exits, 1))
    np.savez(
        folder / "evaluation" / "calibration.npz",
        confidence=confidence,
        accuracy=confidence**1.2,
        count=np.tile(np.arange(10), (exits, 1)),
    )


class References(HTMLParser):
    """Collects every address a page refers to, and every tag."""

    def __init__(self):
        super().__init__()
        self.addresses, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "poster", "data")]


def without_attributes(html):
    """The page with tags that have no attributes."""
    return re.sub(r"<(\w+) [^>]*>", r"<\1>", html)


def references(html):
    parser = References()
    parser.feed(html)
    return parser
