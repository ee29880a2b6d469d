"""Messages of exceptions: without the error number that OSError prints before them."""

import errno

import pytest

from imta_jax import errors

OS_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.UserError) and issubclass(kind, OSError)
]


@pytest.mark.parametrize("kind", OS_ERRORS, ids=lambda kind: kind.__name__)
def test_the_message_of_a_user_error_has_no_error_number(kind):
    assert str(kind(errno.ENOSPC, "the disk of /runs is full; free space")).startswith("the disk")
    assert str(kind("no checkpoint in /runs")) == "no checkpoint in /runs"
    with_path = kind(errno.EACCES, "no read permission; run chmod u+r", "images.npz")
    assert str(with_path) == "images.npz: no read permission; run chmod u+r"


def test_the_message_of_an_os_error_starts_with_its_path():
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/v.npz")
    assert errors.message_of(error) == "runs/v.npz: No such file or directory"
    assert errors.message_of(ValueError("text")) == "text"
