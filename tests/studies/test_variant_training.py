"""Arms of phase II on one backbone: each is trained as it would be alone."""

import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.models import inference_logits
from imta_jax.nn.pixels import normalize
from imta_jax.studies.variant_training import (
    ArmsClassifier,
    can_share,
    load_arms,
    shared_settings,
    train_phase_two_arms,
)
from imta_jax.training import load_classifier, train_phase_one, train_phase_two

# Heads of three kinds, and losses that differ in numbers and in conventions, not sorted by either.
ARMS = (
    {"transfer": "none", "alpha": 1.0},
    {"transfer": "linear", "alpha": 0.7, "temperature": 4.0},
    {"transfer": "identity", "teacher": "phase_one_last_exit"},
    {"transfer": "linear", "alpha": 0.2, "temperature": 2.0},
    {"transfer": "none", "reduction": "elements", "temperature_squared": True},
)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    with tiny_run.compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


def config_of(source, arm):
    changes = {f"phase_two__{name}": value for name, value in arm.items()}
    return tiny_run.tiny_config(source, **changes).to_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arms' configs, the data, a folder with phase I, and the arms trained together."""
    folder = tmp_path_factory.mktemp("arms")
    source = tiny_run.write_dataset(folder / "data.npz")
    configs = [config_of(source, arm) for arm in ARMS]
    dataset = load_dataset(configs[0]["data"])
    train_phase_one(configs[0], dataset, folder)
    train_phase_two_arms(configs, dataset, folder, folder / "together")
    return configs, dataset, folder, load_arms(configs, dataset, folder, folder / "together")


@pytest.mark.parametrize("index", [1, 2, 4])
def test_an_arm_is_trained_as_it_would_be_alone(trained, index):
    configs, dataset, folder, arms = trained
    train_phase_two(configs[index], dataset, folder, folder / f"alone_{index}")
    alone, _ = load_classifier(folder / f"alone_{index}")
    assert nnx.graphdef(alone.heads) == nnx.graphdef(arms.arm(index).heads)
    together = jax.tree.leaves(nnx.state(arms.arm(index)))
    for found, expected in zip(together, jax.tree.leaves(nnx.state(alone)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_logits_of_all_arms_are_those_of_each_in_order(trained):
    *_, arms = trained
    images = np.asarray(tiny_run.draw_images(6, 3)[0] / 255.0, np.float32)
    each = [arms.arm(index)(images) for index in range(len(ARMS))]
    np.testing.assert_allclose(arms(images), np.concatenate(each), rtol=1e-5, atol=1e-5)
    # Some of the arms, in another order, as they are judged when memory is short.
    chosen = ArmsClassifier([arms.arm(3), arms.arm(0)])
    np.testing.assert_allclose(
        chosen(images), np.concatenate([each[3], each[0]]), rtol=1e-5, atol=1e-5
    )


def test_arms_are_judged_in_slices_as_at_once(trained):
    """One processor validates 64 images and more in slices, within a loop of XLA's."""
    *_, arms = trained
    graphdef, state = nnx.split(arms)
    images = tiny_run.draw_images(70, 3)[0]

    def logits(images):
        mesh = data_mesh(jax.devices()[:1])
        return inference_logits(graphdef, [state], images, **tiny_run.PIXELS, mesh=mesh)

    expected = arms(normalize(images, **tiny_run.PIXELS))
    np.testing.assert_allclose(jax.jit(logits)(images), expected, rtol=1e-4, atol=1e-4)


def test_arms_differ_and_the_backbone_stays(trained):
    *_, folder, arms = trained
    before, _ = load_classifier(folder / "phase_one")
    tiny_run.assert_same(nnx.state(arms.backbone), nnx.state(before.backbone))
    first, second = (nnx.state(arms.arm(index).heads) for index in (1, 3))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_arms_that_differ_in_more_than_heads_and_loss_cannot_share(trained):
    configs, dataset, folder, _ = trained
    longer = {**configs[0], "phase_two": configs[0]["phase_two"] | {"total_epochs": 5}}
    assert shared_settings(longer) != shared_settings(configs[0])
    assert shared_settings(configs[0]) == shared_settings(configs[3])
    with pytest.raises(ValueError, match="differ in more than their heads"):
        train_phase_two_arms([configs[0], longer], dataset, folder, folder / "none")
    moving = {
        **configs[0],
        "phase_two": configs[0]["phase_two"] | {"backbone_statistics": "moving"},
    }
    assert not can_share(moving)
    with pytest.raises(ValueError, match="cannot share the backbone"):
        train_phase_two_arms([moving], dataset, folder, folder / "none")
    assert not (folder / "none").exists()
