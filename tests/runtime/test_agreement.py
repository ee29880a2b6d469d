"""Errors and values that several processes share; the other processes are simulated."""

import pytest

from imta_jax.errors import InputError, StorageError
from imta_jax.runtime import agreement
from imta_jax.training.checkpoint_reading import check_same_epoch


@pytest.fixture
def others_have(monkeypatch):
    """Simulates two other processes, given what they pass."""

    def simulate(*values):
        monkeypatch.setattr(agreement, "_gather", lambda value: [*values[:1], value, *values[1:]])
        monkeypatch.setattr(agreement.jax, "process_count", lambda: 3)
        monkeypatch.setattr(agreement.jax, "process_index", lambda: 1)

    return simulate


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(28, "No space left on device", "a/b"), StorageError),
        (InputError("a field"), InputError),
        (KeyError("a bug"), RuntimeError),
    ],
)
def test_an_error_of_one_process_is_raised_in_the_others(error, expected, others_have):
    others_have(agreement._description(error), None)
    with pytest.raises(expected, match=r"process 0.*(a/b: No space|a field|KeyError)") as raised:
        agreement.run_in_first_process(pytest.fail)
    assert getattr(raised.value, "errno", 28) == 28


def test_each_process_raises_its_own_error(others_have):
    others_have(agreement._description(OSError(28, "disk")), None)
    with pytest.raises(KeyError, match="mine"):
        agreement.raise_in_all_processes(KeyError("mine"))


def test_without_an_error_nothing_is_raised(others_have):
    others_have(None, None)
    agreement.run_in_first_process(pytest.fail)
    agreement.raise_in_all_processes(None)


def test_values_of_process_0_and_of_all(others_have):
    others_have([3, 2], True)
    assert agreement.from_first_process([1]) == [3, 2]
    assert agreement.true_in_all_processes(True)
    others_have(True, False)
    assert not agreement.true_in_all_processes(True)


def test_one_process_does_not_communicate():
    calls = []
    agreement.run_in_first_process(lambda: calls.append(1))
    assert calls == [1] and agreement.from_first_process(2) == 2
    with pytest.raises(OSError, match="disk"):
        agreement.raise_in_all_processes(OSError("disk"))


def test_processes_that_read_different_checkpoints_stop(others_have, tmp_path):
    check_same_epoch(3, tmp_path)
    others_have(2, None)
    with pytest.raises(OSError, match=rf"{tmp_path}: process 1 reads checkpoint 3.*0 checkpoint 2"):
        check_same_epoch(3, tmp_path)
