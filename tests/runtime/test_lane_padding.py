"""Padding of small batches on TPUs."""

import pytest

from imta_jax.runtime.lane_padding import padding_hint


@pytest.mark.parametrize(("batch_size", "chips", "parts"), [(128, 1, 1), (1024, 4, 2), (448, 4, 1)])
def test_batches_that_fill_the_lanes_are_not_reported(batch_size, chips, parts):
    assert padding_hint("config.phase_one.batch_size", batch_size, chips, parts) is None


def test_half_of_a_batch_of_64_images_per_chip_is_padding():
    message = padding_hint("config.phase_one.batch_size", 256, 4)
    assert "batch_size=256" in message and "64 images" in message and "50%" in message
    assert "multiple of 512" in message and message.endswith("config.phase_one.batch_size=512")
