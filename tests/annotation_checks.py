"""The type checker that jaxtyping's import hook applies in tests (conftest.py)."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

# An int is accepted where a float is annotated (PEP 484).
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_checked: dict[tuple, Callable] = {}


def check(signature: Callable) -> Callable:
    """Adds checks to `signature`, a function without a body that the hook makes for each function.

    The hook decorates a nested function in every call of the outer one: 1,600 times for the
    initializers of `cifar_7_exits`. Definitions with equal annotations share one check.
    """
    defaults = len(signature.__defaults__ or ()), tuple(signature.__kwdefaults__ or ())
    annotations = tuple(signature.__annotations__.items())
    key = (signature.__module__, signature.__qualname__, signature.__code__, defaults, annotations)
    try:
        known = key in _checked
    except TypeError:  # an annotation without a hash
        return _check(signature)
    if not known:
        _checked[key] = _check(signature)
    return _checked[key]
