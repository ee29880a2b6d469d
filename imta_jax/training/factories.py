"""Calls of the factories of optimizers and schedules, of this package and of others."""

from collections.abc import Callable, Mapping
from typing import Any

from imta_jax.errors import InputError, UserError
from imta_jax.runtime.factories import failure_of
from imta_jax.runtime.registry import (
    accepted_keywords,
    check_names,
    dotted_path_of,
    required_keywords,
    signature_of,
)


def call_with_options(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    label: str,
    options_field: str,
) -> Any:
    """Calls `function(**arguments, **options)`.

    Args:
      function: factory or function of a component.
      arguments: arguments that every component of this kind gets.
      options: options that the config sets.
      label: config field and value, for error messages.
      options_field: config field of the options, for error messages.

    Raises:
      InputError: the function does not accept an argument, needs another option, or rejects a
        value.
    """
    label = f"{label} ({dotted_path_of(function)})"
    for name in arguments.keys() & options.keys():
        raise InputError(f"option {name!r} of {label}: set the config field instead")
    names = accepted_keywords(function)
    if names is not None:
        check_names(options, names - arguments.keys(), f"option of {label}")
    missing = set(required_keywords(function, num_positional=0)) - arguments.keys() - options.keys()
    if missing and names is not None and arguments.keys() <= names:
        name = sorted(missing)[0]
        raise InputError(f"{label} requires {name!r}; set {options_field}.{name}")
    try:
        signature_of(function).bind(**arguments, **options)
    except TypeError as error:
        raise InputError(
            f"{label} is called with the keywords {', '.join([*arguments, *options])}: {error}"
        ) from error
    try:
        return function(**arguments, **options)
    except UserError:
        raise
    except ValueError as error:
        raise InputError(f"{label} rejects its options {dict(options)}: {error}") from error
    except Exception as error:
        raise failure_of(label, error, f"; options: {dict(options)}") from error
