"""The published networks, array by array: what the authors' code computed against what ours does.

Every array of the recorded files is recomputed under its own name, so that one missing fails. The
loader is held to its promises on networks that nobody recorded.
"""

import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.interop import load_published_weights, published_slots, read_weights
from imta_jax.models import (
    Backbone,
    MultiExitClassifier,
    optimize_classifier,
    with_collaborative_heads,
)
from imta_jax.nn.cpu.layout import Layout
from imta_jax.techniques import cross_entropy, one_for_all_loss, teacher_divergence

Arrays = dict[str, np.ndarray]
PARITY_FILES = ("msdnet_cifar_small", "msdnet_lin_grow", "msdnet_imagenet_tiny", "phase2")
# The reference code calls them T and gamma.
TAGS = {"T1_g0.1": (1.0, 0.1), "T3_g0.9": (3.0, 0.9)}
HEADS = nnx.All(nnx.Param, nnx.PathContains("heads"))

in_mode = nnx.jit(lambda network, images: network.features(images))


@nnx.jit
def backbone_features(backbone: Backbone, images: jax.Array) -> tuple[jax.Array, ...]:
    """The features without the heads, so that both phases share one compilation."""
    state, collected = backbone.stem(images), []
    for i in range(backbone.num_exits):
        state = backbone.stage(i, state)
        collected.append(backbone.exit_features(i, state))
    return tuple(collected)


def renamed(values: Mapping[str, np.ndarray], prefix: str, keep: tuple[str, ...] = ("",)) -> Arrays:
    return {prefix + name: a for name, a in values.items() if name.endswith(keep)}


def statistics(network: MultiExitClassifier) -> Arrays:
    return renamed(golden.published_arrays(network), "", ("running_mean", "running_var"))


# Recomputing.


@nnx.jit
def everything(network: MultiExitClassifier, images: jax.Array) -> dict[str, jax.Array]:
    found = {"eval/logits": network(images)}
    for i, pooled in enumerate(network.features(images)):
        found[f"eval/features_{i}"] = pooled

    def record_channel_means(b: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        for s, features in enumerate(state):
            found[f"eval/block{b}_scale{s}_chmean"] = features.mean(axis=(1, 2))
        return state

    network.features(images, tap=record_channel_means)
    return found


def evaluation_of(name: str) -> Arrays:
    network = golden.phase_one_network(name)
    network.eval()
    return everything(network, golden.images(name))


def gradients_of(
    name: str, equilibrium: str, layout: Layout | None = None
) -> tuple[Arrays, Arrays]:
    """(results of a training step's forward pass, gradients by published name).

    A `layout` chooses the optimized form that training uses, None the plain network.
    """
    network, images = golden.phase_one_network(name), golden.images(name)
    labels = jnp.asarray(golden.arrays(name)["labels"])
    network.train()

    graphdef, parameters, rest = nnx.split(network, nnx.Param, ...)

    @jax.jit
    def step(parameters: nnx.State, rest: nnx.State) -> tuple:
        def loss(parameters: nnx.State) -> tuple[jax.Array, tuple[jax.Array, nnx.State]]:
            copy = nnx.merge(graphdef, parameters, rest, copy=True)
            used = optimize_classifier(copy, layout=layout) if layout else copy
            logits = used(images, equilibrium)
            return cross_entropy(logits, labels).sum(), (logits, nnx.state(copy, nnx.BatchStat))

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    (loss, (logits, moved)), gradients = step(parameters, rest)
    nnx.update(network, moved)
    results = {
        "train/logits": logits,
        "train/loss": loss,
        "train/loss_per_exit": cross_entropy(logits, labels),
    }
    by_name = golden.published_gradients(network, gradients, nnx.Param)
    return results | renamed(statistics(network), "bn_after/"), by_name


def recomputed_phase_one(name: str) -> Arrays:
    found = evaluation_of(name)
    if "train/loss" not in golden.arrays(name):
        return found
    _, plain = gradients_of(name, "off")
    results, coarsest = gradients_of(name, "coarsest", Layout.CHWN)
    _, everywhere = gradients_of(name, "all", Layout.NHWC)
    found |= results | renamed(plain, "grad_plain/")
    for prefix, gradients in (("grad_ge/", coarsest), ("grad_ge_allscales/", everywhere)):
        blocks = {key: value for key, value in gradients.items() if key.startswith("blocks.")}
        found |= renamed(blocks, prefix)
        # Not recorded, because the authors' code gives what it gives without equilibrium.
        for key in gradients.keys() - blocks.keys():
            assert_gradient_close(gradients[key], golden.arrays(name)[f"grad_plain/{key}"], 1e-4)
    return found


def phase_two_losses(
    prefix: str, logits: jax.Array, frozen: jax.Array, labels: jax.Array
) -> Arrays:
    """All losses of one setting; `frozen` are the phase-I last exit's logits."""
    found = {f"{prefix}/ce_per_exit": cross_entropy(logits, labels)}
    for tag, (temperature, gamma) in TAGS.items():
        kwargs = {"alpha": 1 - gamma, "temperature": temperature}
        found[f"{prefix}/official_loss_{tag}"] = one_for_all_loss(
            logits,
            labels,
            frozen,
            reduction="elements",
            temperature_squared=True,
            last_exit="cross_entropy",
            **kwargs,
        )
        for teacher, taught in (("frozen", frozen), ("own", logits[-1])):
            found[f"{prefix}/kl_per_exit_{teacher}_{tag}"] = teacher_divergence(
                logits, taught, temperature=temperature
            )
            for variant, last in (("lastCE", "cross_entropy"), ("eq7all", "mixed")):
                for squared in (False, True):
                    key = f"{variant}_{teacher}_{'TT' if squared else 'noTT'}_{tag}"
                    found[f"{prefix}/paper_loss_{key}"] = one_for_all_loss(
                        logits,
                        labels,
                        taught,
                        temperature_squared=squared,
                        last_exit=last,
                        **kwargs,
                    )
    return found


@nnx.jit
def heads_gradients(
    network: MultiExitClassifier,
    features: tuple[jax.Array, ...],
    labels: jax.Array,
    temperature: jax.Array,
    gamma: jax.Array,
) -> nnx.State:
    def loss(network: MultiExitClassifier) -> jax.Array:
        return one_for_all_loss(
            network.logits(features),
            labels,
            network.phase_one_logits(features),
            alpha=1 - gamma,
            temperature=temperature,
            reduction="elements",
            temperature_squared=True,
            last_exit="cross_entropy",
        )

    return nnx.grad(loss, argnums=nnx.DiffState(0, HEADS))(network)


def phase_two_setting(prefix: str, backbone_trains: bool) -> Arrays:
    labels = jnp.asarray(golden.arrays("phase2")["labels"])
    network = golden.phase_two_network(stop_gradient=False)
    network.train()
    if not backbone_trains:
        network.backbone.eval()
    features = in_mode(network, golden.images("phase2"))
    logits, teacher = network.logits(features), network.phase_one_logits(features)
    found = {f"{prefix}/logits": logits, f"{prefix}/teacher_logits": teacher}
    found |= phase_two_losses(prefix, logits, teacher, labels)
    moved = statistics(network)
    if not backbone_trains:
        moved = {key: value for key, value in moved.items() if key.startswith("isc_modules.")}
    found |= renamed(moved, f"{prefix}/bn_after/")
    for path, stop_gradient in (("nostop", False), ("stopgrad", True)):
        network = golden.phase_two_network(stop_gradient)
        network.train()
        for tag, numbers in TAGS.items():
            gradients = heads_gradients(network, features, labels, *map(jnp.float32, numbers))
            by_name = golden.published_gradients(network, gradients, HEADS)
            found |= renamed(by_name, f"{prefix}/grad_{path}_{tag}/")
    return found


def recomputed_phase_two() -> Arrays:
    network, images = golden.phase_two_network(stop_gradient=False), golden.images("phase2")
    network.eval()
    features = in_mode(network, images)
    earlier = [network.phase_one_heads(i, f, None)[0] for i, f in enumerate(features)]
    found = {"eval/logits": network.logits(features), "eval/phase1_logits": jnp.stack(earlier)}
    found |= phase_two_setting("train", backbone_trains=True)
    return found | phase_two_setting("bbeval", backbone_trains=False)


@functools.cache
def recomputed(name: str) -> Arrays:
    found = recomputed_phase_two() if name == "phase2" else recomputed_phase_one(name)
    return {key: np.asarray(value) for key, value in found.items()}


# Comparing.


def assert_gradient_close(
    found: np.ndarray, expected: np.ndarray, tolerance: float, floor: float = 0.0
) -> None:
    """Within `tolerance` of the tensor's largest element, or of `floor` if that is larger."""
    scale = max(np.abs(expected).max(), floor)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * scale


def group(key: str) -> str:
    """Gradients and statistics are checked a set at a time, everything else by itself."""
    return key.rsplit("/", 1)[0] if "grad_" in key or "bn_after" in key else key


GROUPS = [
    (name, one)
    for name in PARITY_FILES
    for one in dict.fromkeys(group(key) for key in golden.outputs(name))
]


@pytest.mark.parametrize(("name", "one"), GROUPS, ids=[f"{n}-{g}" for n, g in GROUPS])
def test_recorded_arrays_come_out_again(name: str, one: str):
    expected = {key: golden.arrays(name)[key] for key in golden.outputs(name) if group(key) == one}
    found = {key: recomputed(name)[key] for key in expected}
    largest = max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        if "grad_" in key:
            # BatchNorm over four samples amplifies rounding in phase II (golden numbers' README).
            phase_two = name == "phase2"
            tolerance, floor = (1e-3, 1e-3 * largest) if phase_two else (1e-4, 0.0)
            assert_gradient_close(found[key], value, tolerance, floor)
        elif "loss" in key or key.split("/")[-1].startswith(("ce_", "kl_")):
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-7, err_msg=key)
        else:
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", PARITY_FILES)
def test_every_recorded_array_is_recomputed_and_nothing_else(name: str):
    assert set(recomputed(name)) == set(golden.outputs(name))
    assert set(golden.arrays(name)) - set(golden.outputs(name)) <= {
        "x",
        "labels",
        *(f"w/{key}" for key in golden.below(name, "w/")),
    }


def test_parameters_that_nothing_reads_have_no_gradient():
    unread = golden.facts("msdnet_cifar_small")["params_without_gradient"]
    found = recomputed("msdnet_cifar_small")
    still = [
        key.removeprefix("grad_plain/")
        for key, value in found.items()
        if key.startswith("grad_plain/") and not value.any()
    ]
    assert sorted(still) == sorted(unread)


# The loader.

ROUND_TRIPS = {
    "pruned_late_without_transitions": golden.TINY
    | {
        "num_exits": 4,
        "step_mode": "lin_grow",
        "prune": "min",
        "growth_rate": 5,
        "growth_factors": (1, 2, 4),
        "bottleneck_factors": (1, 2, 4),
        "reduction": 0,
    },
    "imagenet_stem": golden.TINY | {"stem": "imagenet", "num_exits": 3, "base": 2, "prune": "min"},
}


def randomised(network: MultiExitClassifier, seed: int) -> Arrays:
    """Fills every array, statistics too, with draws of its own; returns them by published name."""
    generator = np.random.default_rng(seed)
    for slot in published_slots(network).values():
        draw = generator.uniform(0.5, 1.5, slot.variable[...].shape)
        slot.variable[...] = jnp.asarray(draw, jnp.float32)
    return golden.published_arrays(network)


@pytest.fixture(scope="module", params=ROUND_TRIPS)
def pair(request: pytest.FixtureRequest) -> tuple[MultiExitClassifier, MultiExitClassifier]:
    """Two networks of one topology and different seeds, for images of 32x32."""
    fields, sizes = ROUND_TRIPS[request.param], {"num_classes": 7, "image_shape": (32, 32, 3)}
    return golden.untrained(fields, seed=1, **sizes), golden.untrained(fields, seed=2, **sizes)


def phase_two(network: MultiExitClassifier, seed: int, transfer: str) -> MultiExitClassifier:
    return with_collaborative_heads(
        network, {"transfer": transfer}, num_classes=7, rngs=nnx.Rngs(seed)
    )


@pytest.mark.parametrize("transfer", [None, "linear", "identity"])
def test_exported_arrays_load_into_the_same_logits(pair, transfer: str | None):
    first, second = pair
    if transfer:
        first, second = phase_two(first, 3, transfer), phase_two(second, 4, transfer)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    exported = randomised(first, seed=5)
    randomised(second, seed=6)

    def logits(network: MultiExitClassifier) -> np.ndarray:
        network.eval()
        return np.asarray(network.logits(backbone_features(network.backbone, images)))

    assert not np.array_equal(logits(first), logits(second))
    load_published_weights(second, exported)
    np.testing.assert_array_equal(logits(first), logits(second))
    for name, value in golden.published_arrays(second).items():
        np.testing.assert_array_equal(value, exported[name])


def every_array(network: MultiExitClassifier) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


@pytest.mark.parametrize("transfer", [None, "linear"])
def test_every_array_of_a_network_has_a_published_name(pair, transfer: str | None):
    network = phase_two(pair[0], 3, transfer) if transfer else pair[0]
    variables = [slot.variable for slot in published_slots(network).values()]
    assert len({id(variable) for variable in variables}) == len(variables)
    assert len(variables) == len(every_array(network))


@pytest.fixture
def tiny() -> MultiExitClassifier:
    return golden.untrained(golden.TINY)


def test_differing_weights_are_one_error_that_lists_all_and_changes_nothing(tiny):
    given = randomised(golden.untrained(golden.TINY, seed=1), seed=0)
    del given["blocks.0.0.layers.0.net.0.weight"], given["classifier.1.linear.bias"]
    given["blocks.9.0.layers.0.net.0.weight"] = np.zeros(3)
    given["isc_modules.0.0.bias"] = np.zeros(128)
    given["classifier.0.linear.weight"] = given["classifier.0.linear.weight"].T
    before = every_array(tiny)
    with pytest.raises(ValueError, match="5 differences") as raised:
        load_published_weights(tiny, given)
    for line in (
        "missing: blocks.0.0.layers.0.net.0.weight",
        "missing: classifier.1.linear.bias",
        "not in this network: blocks.9.0.layers.0.net.0.weight",
        "not in this network: isc_modules.0.0.bias",
        "shape of classifier.0.linear.weight: expected (10, 128), found (128, 10)",
    ):
        assert line in str(raised.value)
    for value, after in zip(before, every_array(tiny), strict=True):
        np.testing.assert_array_equal(value, after)


def test_batch_counters_are_ignored(tiny):
    given = randomised(golden.untrained(golden.TINY, seed=1), seed=0)
    counters = {
        key.replace("running_mean", "num_batches_tracked"): np.int64(7)
        for key in given
        if key.endswith("running_mean")
    }
    load_published_weights(tiny, given | counters)
    for name, value in golden.published_arrays(tiny).items():
        np.testing.assert_array_equal(value, given[name])


def test_half_precision_weights_become_float32(tiny):
    given = randomised(golden.untrained(golden.TINY, seed=1), seed=0)
    load_published_weights(tiny, {key: value.astype(np.float16) for key, value in given.items()})
    assert {leaf.dtype for leaf in every_array(tiny)} == {np.dtype(np.float32)}


def test_a_backbone_that_was_never_published_is_refused(tiny):
    class Other(nnx.Module):
        num_exits, feature_widths = 1, (4,)

    other = MultiExitClassifier(Other(), tiny.heads, num_classes=10, image_shape=(32, 32, 3))
    with pytest.raises(ValueError, match="MSDNet only; found Other"):
        published_slots(other)


# Files.


class Trap:
    """Unpickling one raises the alarm: it creates the file that it names."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.path), "w")


def pickled_arrays(folder: Path, trap: Trap) -> Path:
    np.savez(folder / "objects.npz", weight=np.array([trap], dtype=object))
    return folder / "objects.npz"


def old_checkpoint(folder: Path, trap: Trap) -> Path:
    (folder / "old.pth").write_bytes(pickle.dumps({"weight": trap}))
    return folder / "old.pth"


def zipped_checkpoint(folder: Path, trap: Trap) -> Path:
    with zipfile.ZipFile(folder / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": trap}))
        archive.writestr("archive/data/0", bytes(12))
    return folder / "new.pth"


@pytest.mark.parametrize("write", [pickled_arrays, old_checkpoint, zipped_checkpoint])
def test_pickles_are_refused_and_never_run(tmp_path: Path, write: Callable):
    alarm = tmp_path / "alarm"
    path = write(tmp_path, Trap(alarm))
    with pytest.raises(ValueError, match=r"not an \.npz of plain arrays.*numpy\.savez"):
        read_weights(path)
    assert not alarm.exists()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"not weights at all", single_array(), b"PK\x03\x04cut"])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"not an \.npz of plain arrays"):
        read_weights(tmp_path / "weights.npz")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        read_weights(tmp_path / "nowhere.npz")


def test_plain_arrays_are_read_as_they_were_written(tmp_path: Path):
    written = {"classifier.0.bias": np.arange(3.0), "classifier.0.weight": np.ones((3, 2))}
    np.savez(tmp_path / "weights.npz", **written)
    found = read_weights(tmp_path / "weights.npz")
    assert found.keys() == written.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(found[name], value)
