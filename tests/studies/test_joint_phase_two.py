"""Joint training of phase-II variants on one backbone equals training each of them alone."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.models import inference_logits
from imta_jax.nn.pixels import normalize
from imta_jax.studies.joint_classifier import JointClassifier
from imta_jax.studies.joint_phase_two import (
    can_train_jointly,
    joint_training_key,
    load_joint_classifier,
    train_phase_two_jointly,
)
from imta_jax.training import load_classifier, train_phase_one, train_phase_two

# Three kinds of heads, and losses that differ in numbers and in conventions, in mixed order.
VARIANTS = (
    {"transfer": "none", "alpha": 1.0},
    {"transfer": "linear", "alpha": 0.7, "temperature": 4.0},
    {"transfer": "identity", "teacher": "phase_one_last_exit"},
    {"transfer": "linear", "alpha": 0.2, "temperature": 2.0},
    {"transfer": "none", "reduction": "elements", "temperature_squared": True},
)
pytestmark = pytest.mark.usefixtures("compilation_cache")


def config_of(source, fields):
    changes = {f"phase_two__{name}": value for name, value in fields.items()}
    return RunConfig.from_mapping(tiny_run.tiny_config(source, **changes))


def with_phase_two(config, **changes):
    return dataclasses.replace(config, phase_two=dataclasses.replace(config.phase_two, **changes))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """Configs, dataset, folder with phase I, and the classifier of the jointly trained variants."""
    folder = tmp_path_factory.mktemp("variants")
    configs = [config_of(source, fields) for fields in VARIANTS]
    dataset = load_dataset(configs[0].data)
    train_phase_one(configs[0], dataset, folder)
    train_phase_two_jointly(configs, dataset, folder, folder / "joint")
    joint = load_joint_classifier(configs, dataset, folder, folder / "joint")
    return configs, dataset, folder, joint


@pytest.mark.parametrize("index", [1, 2, 4])
def test_joint_training_equals_separate_training(trained, index):
    configs, dataset, folder, joint = trained
    train_phase_two(configs[index], dataset, folder, folder / f"separate_{index}")
    separate, _ = load_classifier(folder / f"separate_{index}")
    variant = joint.variant(index)
    assert nnx.graphdef(separate.heads) == nnx.graphdef(variant.heads)
    chex.assert_trees_all_close(
        jax.tree.leaves(nnx.state(variant)),
        jax.tree.leaves(nnx.state(separate)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_joint_logits_are_those_of_each_variant_in_order(trained):
    *_, joint = trained
    images = np.asarray(tiny_run.draw_images(6, 3)[0] / 255.0, np.float32)
    each = [joint.variant(index)(images) for index in range(len(VARIANTS))]
    np.testing.assert_allclose(joint(images), np.concatenate(each), rtol=1e-5, atol=1e-5)
    subset = JointClassifier([joint.variant(3), joint.variant(0)])
    np.testing.assert_allclose(
        subset(images), np.concatenate([each[3], each[0]]), rtol=1e-5, atol=1e-5
    )


def test_evaluation_in_slices_gives_the_logits_of_one_batch(trained):
    """One CPU evaluates batches of 64 or more images in slices, in a loop of XLA."""
    *_, joint = trained
    graphdef, state = nnx.split(joint)
    images = tiny_run.draw_images(70, 3)[0]

    def logits(images):
        mesh = data_mesh(jax.devices()[:1])
        return inference_logits(graphdef, [state], images, **tiny_run.PIXELS, mesh=mesh)

    expected = joint(normalize(images, **tiny_run.PIXELS))
    np.testing.assert_allclose(jax.jit(logits)(images), expected, rtol=1e-4, atol=1e-4)


def test_joint_training_changes_heads_and_keeps_the_backbone(trained):
    *_, folder, joint = trained
    before, _ = load_classifier(folder / "phase_one")
    chex.assert_trees_all_equal(nnx.state(joint.backbone), nnx.state(before.backbone))
    first, second = (nnx.state(joint.variant(index).heads) for index in (1, 3))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_configs_that_differ_outside_heads_and_loss_cannot_train_jointly(trained):
    configs, dataset, folder, _ = trained
    longer = with_phase_two(configs[0], total_epochs=5)
    assert joint_training_key(longer) != joint_training_key(configs[0])
    assert joint_training_key(configs[0]) == joint_training_key(configs[3])
    with pytest.raises(ValueError, match=r"total_epochs|phase-II"):
        train_phase_two_jointly([configs[0], longer], dataset, folder, folder / "none")
    assert not (folder / "none").exists()


def test_moving_batch_statistics_cannot_train_jointly(trained):
    configs, dataset, folder, _ = trained
    moving = with_phase_two(configs[0], backbone_statistics="moving")
    assert not can_train_jointly(moving)
    with pytest.raises(ValueError, match=r"backbone_statistics.*frozen"):
        train_phase_two_jointly([moving], dataset, folder, folder / "none")
    assert not (folder / "none").exists()
