"""Planned programs are those of a run: the same text on the devices of this host."""

import jax
import pytest
import tiny_run

from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh, place_batch, place_indices
from imta_jax.planning.data_description import DataDescription, describe_data
from imta_jax.planning.programs import build_program, program_names
from imta_jax.training.abstract_phase import abstract_phase, abstract_state
from imta_jax.training.feed import training_feed
from imta_jax.training.optimizer import phase_optimizer
from imta_jax.training.schedules import epochs_schedule
from imta_jax.training.setup import assemble_phase, new_phase_one, phase_parts, phase_settings

PHASES = ("phase_one", "phase_two")


def optimizer_of(config, name, steps):
    settings = phase_settings(config, name)
    return phase_optimizer(settings, epochs_schedule(settings, range(settings.total_epochs), steps))


def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


def lowered_by_a_run(config, dataset, name, mesh):
    """The step that the feed of a run calls first, lowered with the run's arrays."""
    optimizer = optimizer_of(config, name, len(dataset.splits["train"]) // 16)
    classifier = new_phase_one(config, dataset)
    pixels = {"mean": dataset.mean, "std": dataset.std}
    phase = assemble_phase(
        name, config, *phase_parts(name, config, classifier), optimizer, **pixels, mesh=mesh
    )
    state = phase.new_state()
    feed = training_feed(config, name, dataset, phase, state)
    closure = dict(zip(feed.advance.__code__.co_freevars, feed.advance.__closure__, strict=True))
    step = closure["step"].cell_contents._jitted
    item = next(iter(feed.items(0, 0)))
    if feed.name != "device":
        return step.lower(state, place_batch(item, mesh))
    images = closure["images"].cell_contents
    return step.lower(state, images, place_indices(item, mesh))


@pytest.mark.parametrize(
    ("name", "pipeline", "changes"),
    [
        ("phase_one", "numpy", {"mesh__parameter_shards": 2}),
        ("phase_one", "device", {"log__check_every_steps": 2}),
        ("phase_two", "numpy", {"phase_two__compute_dtype": "bfloat16"}),
        (
            "phase_one",
            "numpy",
            {"phase_one__batch_statistics": "per_device", "phase_one__matmul_precision": "high"},
        ),
    ],
)
def test_a_planned_step_is_the_step_of_a_run(name, pipeline, changes, source):
    config = tiny_run.run_config(source, data__pipeline=pipeline, **changes)
    dataset = load_dataset(config.data)
    mesh = data_mesh(jax.devices()[:2], parameter_shards=config.mesh.parameter_shards)
    on_device = pipeline == "device"
    data = describe_data(config.data)
    planned = build_program(name, config, data, mesh, on_device_data=on_device).lower()
    assert planned.as_text() == lowered_by_a_run(config, dataset, name, mesh).as_text()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("phase_one", {}),
        ("phase_one", {"mesh__parameter_shards": 2}),
        ("phase_one", {"phase_one__sample_weights": "learned"}),
        ("phase_one", {"phase_one__optimizer": "lamb"}),
        ("phase_two", {}),
    ],
)
def test_an_abstract_state_has_shapes_types_and_shardings_of_a_new_one(name, changes):
    config = tiny_run.run_config("unused.npz", **changes)
    mesh = data_mesh(jax.devices()[:2], parameter_shards=config.mesh.parameter_shards)
    optimizer = optimizer_of(config, name, 3)
    arguments = {**tiny_run.PIXELS, "mesh": mesh}
    classifier = new_phase_one(config, tiny_run.INFO)
    real = assemble_phase(
        name, config, *phase_parts(name, config, classifier), optimizer, **arguments
    ).new_state()
    phase = abstract_phase(name, config, tiny_run.INFO, optimizer, **arguments)
    assert described(abstract_state(phase)) == described(real)


def test_a_program_is_described(source):
    config = tiny_run.run_config(source, log__check_every_steps=5)
    mesh, data = data_mesh(jax.devices()[:2]), describe_data(config.data)
    info = build_program("phase_one", config, data, mesh, on_device_data=True).info
    assert (info.batch_size, info.chips, info.images_per_chip) == (16, 2, 8)
    assert info.image_bytes == data.examples["train"] * 16 * 16
    assert info.gradient_bytes > 0 and info.statistics_bytes > 0 and info.matrix_operations > 0
    frozen = build_program("phase_two", config, data, mesh, on_device_data=False).info
    assert 0 < frozen.gradient_bytes < info.gradient_bytes


def test_a_run_without_phase_two_has_two_programs(source):
    assert program_names(tiny_run.run_config(source)) == ["phase_one", "phase_two", "evaluation"]
    config = tiny_run.run_config(source, "baseline", phase_two__total_epochs=0)
    assert program_names(config) == ["phase_one", "evaluation"]


def test_well_known_data_is_described_without_reading_it():
    changes = {"data__validation_examples": 5000}
    data = describe_data(tiny_run.run_config("cifar100", **changes).data)
    assert data.examples == {"train": 45000, "validation": 5000, "test": 10000}
    assert (data.info.num_classes, data.info.image_shape, data.is_exact) == (100, (32, 32, 3), True)
    changes = {"data__preprocessing": "random_area_crop", "data__validation_split": "hold_out"}
    data = describe_data(tiny_run.run_config("imagenet2012", **changes).data)
    assert data.info.image_shape == (224, 224, 3) and not data.are_arrays
    assert data.examples["train"] == 1281167 - 24


def test_a_description_survives_json(source):
    data = describe_data(tiny_run.run_config(source).data)
    assert data.examples == {"train": 48, "validation": 24, "test": 21}
    assert DataDescription.from_dict(data.to_dict()) == data
