"""Custom factories: options that are unknown or not read, and exceptions."""

import copy
import warnings

import pytest
from flax import nnx
from ml_collections import ConfigDict

from imta_jax.errors import InputError
from imta_jax.runtime.factories import UnreadOptionError, call_factory, unread_options_raise

FIELD = "config.model.backbone 'mine'"
OPTIONS = "config.model.options"


class Network(nnx.Module):
    def __init__(self, width, depth=2, *, rngs):
        self.sizes = (width, depth)


def passing_on(options, *, rngs):
    return Network(**options, rngs=rngs)


def call(factory, options, **arguments):
    with unread_options_raise():
        return call_factory(factory, options, FIELD, OPTIONS, **arguments)


@pytest.mark.parametrize(
    "read",
    [
        lambda options: options.width,
        lambda options: options["width"],
        lambda options: options.get("width", 3),
        lambda options: "width" in options,
        lambda options: dict(options),
        lambda options: {**options},
        lambda options: list(options.items()),
        lambda options: ConfigDict(options),
        lambda options: options.to_dict(),
        lambda options: options.copy_and_resolve_references(),
        lambda options: copy.deepcopy(options),
    ],
)
def test_an_option_may_be_read_in_any_way_of_a_config_dict(read):
    call(read, {"width": 4})


def test_an_option_that_is_not_read_is_named_with_the_closest_one():
    def make(options):
        return options.get("width", 3), options.get("depth", 2)

    with pytest.raises(InputError, match=r"mine.*'widht'.*first: width, depth"):
        call(make, {"widht": 4, "depth": 1})
    with pytest.warns(UnreadOptionError, match="widht"):
        assert call_factory(make, {"widht": 4}, FIELD, OPTIONS) == (3, 2)


def test_defaults_need_not_be_read_and_options_override_them():
    with warnings.catch_warnings(action="error"):
        made = call_factory(
            lambda options: options.width,
            {"width": 4},
            FIELD,
            OPTIONS,
            defaults={"width": 1, "stop_gradient": True},
        )
    assert made == 4


def test_an_option_that_a_called_function_does_not_have_is_named_with_those_it_has():
    with pytest.raises(InputError, match=r"'widht'.*first: width, depth$"):
        call(passing_on, {"widht": 4}, rngs=nnx.Rngs(0))


def test_a_misspelled_option_that_hides_a_required_one_is_reported_as_missing():
    def make(options):
        return options.width

    with pytest.raises(InputError, match=r"'width'.*set config\.model\.options\.width.*widht=4"):
        call(make, {"widht": 4})


@pytest.mark.parametrize(
    "raise_error, message",
    [
        (lambda: Network(rngs=nnx.Rngs(0)), r"TypeError.*'width'"),
        (lambda: (1, 2)[3], r"IndexError.*range"),
        (lambda: None.shape, r"AttributeError.*'shape'"),
        (lambda: int("x"), r"rejects its options \(width=4\).*'x'"),
    ],
)
def test_an_exception_of_the_factory_is_one_message_with_its_lines(raise_error, message):
    def make(options):
        assert options.width
        return raise_error()

    line = make.__code__.co_firstlineno + 2
    with pytest.raises(InputError, match=message) as raised:
        call(make, {"width": 4})
    assert f"{__file__}:{line} in make" in str(raised.value)
    assert "registry.py" not in str(raised.value) and "\n" not in str(raised.value)
