"""The checks of an export's files by `run.py`."""

import os

import pytest

from imta_jax.inference.export.runner_manifest import read_manifest


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
def test_a_pipe_in_place_of_a_file_is_named_and_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{tmp_path}/{name} is not a regular file"):
        read_manifest(tmp_path, newest=2, stages="stages")
