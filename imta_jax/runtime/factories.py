"""Calls of custom factories with their options, with errors that name the fix."""

import contextlib
import re
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from ml_collections import ConfigDict

from imta_jax.errors import InputError, UserError, closest_first
from imta_jax.runtime.registry import accepted_keywords, dotted_path_of, signature_of

_Frame = tuple[types.FrameType, int]  # with the line
_MAX_FRAMES = 3
# Frames of these packages are not in messages.
_PACKAGES = ("imta_jax", "jax", "jaxlib", "jaxtyping", "flax", "ml_collections")
_UNKNOWN_KEYWORD = re.compile(
    r"(?P<function>[\w.<>]+)\(\) got an unexpected keyword argument '(?P<name>\w+)'"
)


class UnreadOptionError(InputError, UserWarning):
    """An option that a factory does not read: an error for a new run, a warning elsewhere."""


class Options(ConfigDict):
    """Options that record which names are read, also those that are not set."""

    _read: set[str]
    _fields: dict[str, Any]

    def __init__(self, options: Mapping[str, Any]):
        object.__setattr__(self, "_read", set())
        super().__init__(dict(options))
        self._read.clear()

    def read_names(self) -> frozenset[str]:
        """The names that were read so far."""
        return frozenset(self._read)

    def __getitem__(self, key: str) -> Any:
        """The value of an option. ConfigDict's own error would replace a missing name."""
        self._read.add(str(key).partition(".")[0])
        if key not in self._fields and "." not in str(key):
            raise KeyError(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Whether an option is set, which counts as reading it."""
        self._read.add(str(key))
        return key in self._fields

    @property
    def _ordered_fields(self) -> Mapping[str, Any]:
        """Iterations, keys and copies read all options."""
        self._read.update(self._fields)
        ordered: Any = super()._ordered_fields
        return ordered

    def copy_and_resolve_references(self, visit_map: Any = None) -> ConfigDict:
        """A copy, which may be read in any way."""
        self._read.update(self._fields)
        return ConfigDict(self.to_dict())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles and deep copies are of ConfigDict."""
        return ConfigDict, (self.to_dict(),)


def call_factory(
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    field: str,
    options_field: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Calls `factory(options, **arguments)`.

    Args:
      factory: factory of a backbone, heads, a data source or a metrics writer.
      options: the factory gets them as a `ConfigDict`.
      field: config field and value, for error messages.
      options_field: config field of the options, for error messages.
      defaults: further options, which the factory need not read.
      **arguments: arguments that every factory of this kind gets.

    Raises:
      InputError: the factory has another signature, fails, or needs another option.
      UnreadOptionError: the factory reads no option of a name. By default this is a warning; see
        `unread_options_raise`.
    """
    label = f"{field}: {dotted_path_of(factory)}"
    try:
        signature_of(factory).bind(options, **arguments)
    except TypeError as error:
        accepted = ", ".join(["options", *(["*"] if arguments else []), *arguments])
        raise InputError(f"{label} must accept ({accepted}): {error}") from error
    recorded = Options({**(defaults or {}), **options})
    try:
        result = factory(recorded, **arguments)
    except UserError:
        raise
    except Exception as error:
        read = recorded.read_names()
        missing = str(error).strip("\"'")
        is_unset = missing in read and missing not in options
        if is_unset and isinstance(error, AttributeError | KeyError):
            raise InputError(
                f"{label} requires option {missing!r}, which is not set; set "
                f"{options_field}.{missing} (set so far: {_as_text(options)})"
            ) from error
        raise _failure(label, error, options, set(arguments)) from error
    for name in options:
        if name not in recorded.read_names():
            unread = _unknown_option(label, name, recorded.read_names())
            warnings.warn(UnreadOptionError(unread), stacklevel=2)
    return result


@contextlib.contextmanager
def unread_options_raise() -> Iterator[None]:
    """Within this context, an option that a factory does not read raises an error.

    Outside, a run or checkpoint that recorded such an option can be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadOptionError)
        yield


def _failure(
    label: str, error: Exception, options: Mapping[str, Any], arguments: Set[str]
) -> InputError:
    """The error for an exception that a factory raised."""
    options_text = _as_text(options)
    frames = _own_frames(error)
    name, accepted = _unknown_keyword(error, frames)
    if name in options and accepted is not None:
        return InputError(_unknown_option(label, name, accepted - arguments))
    lines = _source_lines(frames)
    if isinstance(error, ValueError):
        return InputError(f"{label} rejects its options ({options_text}): {error}{lines}")
    reason = f"{type(error).__name__}: {error}{lines}"
    return InputError(f"{label} failed: {reason}; options: {options_text}")


def _as_text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none"


def failure_of(label: str, error: Exception, fix: str = "") -> UserError:
    """The error for an exception that a custom component raised.

    Args:
      label: the call that failed, for example "config.phase_one.objective 'focal'".
      error: the exception. A `UserError` is returned unchanged.
      fix: advice, appended to the message.
    """
    if isinstance(error, UserError):
        return error
    reason = str(error).strip().partition("\n")[0]
    lines = _source_lines(_own_frames(error))
    return InputError(f"{label} failed: {type(error).__name__}: {reason}{lines}{fix}")


def _source_lines(frames: Sequence[_Frame]) -> str:
    """The last lines of code of an exception, in parentheses."""
    lines = "; ".join(
        f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
        for frame, line in frames[-_MAX_FRAMES:]
    )
    return f" ({lines})" if lines else ""


def _unknown_option(label: str, name: str, valid: Iterable[str]) -> str:
    closest = ", ".join(closest_first(name, valid)) or "none"
    return f"{label} has no option {name!r}; valid, the closest first: {closest}"


def _unknown_keyword(
    error: Exception, frames: Sequence[_Frame]
) -> tuple[str, frozenset[str] | None]:
    """An unknown keyword of a call, and those that the called function has, if it is found."""
    match = _UNKNOWN_KEYWORD.search(str(error)) if isinstance(error, TypeError) else None
    if not match or not frames:
        return "", None
    frame, _ = frames[-1]
    path = match["function"].removesuffix(".__init__").split(".")
    called: Any = {**frame.f_globals, **frame.f_locals}.get(path[0])
    for name in path[1:]:
        called = getattr(called, name, None)
    return match["name"], accepted_keywords(called) if callable(called) else None


def _own_frames(error: Exception) -> list[_Frame]:
    """The frames of an exception that are neither of this package nor of JAX and Flax."""
    return [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _PACKAGES
    ]
