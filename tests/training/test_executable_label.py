"""The label of a cached executable."""

import tiny_run

from imta_jax.training import executable_label


def test_the_label_depends_on_the_sections_that_determine_the_step():
    def label(phase: str = "phase_one", **changes) -> str:
        return executable_label(tiny_run.run_config("images.npz", **changes), phase)

    assert label() == label(seed=5) == label(log__check_every_steps=7)
    others = [
        label("phase_two"),
        label(phase_one__batch_size=32),
        label(model__growth_rate=6),
        label(data__source="others.npz"),
        label(mesh__parameter_shards=2),
    ]
    assert len({label(), *others}) == 6
