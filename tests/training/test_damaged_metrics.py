"""Metrics of a checkpoint, which Orbax reads when a folder is opened."""

import pytest

from imta_jax.training.checkpoint_manager import open_manager


def test_damaged_metrics_raise_with_the_folder_of_the_checkpoint(tmp_path):
    metrics = tmp_path / "3" / "metrics" / "metrics"
    metrics.parent.mkdir(parents=True)
    metrics.write_bytes(b'{"top1": \xa0}')
    with pytest.raises(ValueError, match=rf"{tmp_path}: metrics.*delete.*{tmp_path}/3/metrics$"):
        open_manager(tmp_path)
