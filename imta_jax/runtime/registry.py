"""Registries: components by name, from this package and from other packages.

A config field that names a component takes one of

- a registered name: `@register_backbone("my_vit")` above a factory, in a module that was imported;
- a dotted path, "my_package.vit:make_vit", whose module is imported when it is used;
- the name of an entry point of an installed package, for example in its pyproject.toml

      [project.entry-points."imta_jax.backbones"]
      my_vit = "my_package.vit:make_vit"

The components of this package are registered in the same way.
"""

import functools
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from imta_jax.errors import InputError, MissingPackageError, closest_first, unknown_name

Component = TypeVar("Component", bound=Callable[..., Any])

_PACKAGE = "imta_jax"
_PATH_OF_DOTS = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_DOTTED_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Registry:
    """Components of one kind by name.

    Args:
      kind: kind of component in error messages, for example "backbone".
      group: the group of entry points that is searched, for example "imta_jax.backbones".
      included: dotted paths of components of this package that are imported when they are used.
    """

    def __init__(self, kind: str, group: str, included: Mapping[str, str] | None = None):
        self.kind, self.group, self._included = kind, group, dict(included or {})
        self._components: dict[str, Callable[..., Any]] = {}

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered or an entry point. Dotted paths are not contained."""
        return name in self._components or name in self._paths()

    def accepts(self, name: str) -> bool:
        """Whether `get` looks for a component of this name: it is contained or a dotted path."""
        return name in self or _DOTTED_PATH.fullmatch(name) is not None

    def __iter__(self) -> Iterator[str]:
        """The registered names, then those of entry points."""
        return iter([*self._components, *(self._paths().keys() - self._components.keys())])

    def register(self, name: str) -> Callable[[Component], Component]:
        """Returns a decorator that registers a component and returns it unchanged.

        A module may be executed again, for example in a notebook: a component of the same module
        and name replaces the earlier one.

        Raises:
          InputError: the name is a dotted path or belongs to another component.
        """
        if not name or ":" in name:
            raise InputError(
                f"name of a {self.kind} must be text without a colon; found {name!r}: a dotted "
                "path needs no registration"
            )

        def decorate(component: Component) -> Component:
            earlier = self._components.get(name)
            if earlier is not None and dotted_path_of(earlier) != dotted_path_of(component):
                raise InputError(
                    f"{self.kind} {name!r} is registered already, by {dotted_path_of(earlier)}; "
                    f"choose another name for {dotted_path_of(component)}"
                )
            self._components[name] = component
            return component

        return decorate

    def get(self, name: str, field: str = "") -> Callable[..., Any]:
        """The component of a registered name, an entry point or a dotted path.

        Args:
          name: see the module.
          field: the config field that has this value, for error messages.

        Raises:
          InputError: an unknown name; the message lists the closest valid one first.
          MissingPackageError: the module of a dotted path or entry point cannot be imported.
        """
        field = field or self.kind
        if name in self._components:
            return self._components[name]
        if _DOTTED_PATH.fullmatch(name):
            return _import_dotted_path(name, field)
        if name in (points := self._paths()):
            return _import_dotted_path(points[name], f"{field} {name!r}, an entry point:")
        error = unknown_name(field, name, self)
        if hint := colon_hint(name):
            raise InputError(f"{error}{hint}")
        raise InputError(
            f'{error}; one of your own is given as "package.module:name", or registered in a '
            "module that was imported"
        )

    def is_built_in(self, name: str) -> bool:
        """Whether a name is that of a component of this package."""
        component = self._components.get(name)
        if component is None:
            return name in self._included
        return dotted_path_of(component).startswith(f"{_PACKAGE}.")

    def source(self, name: str, field: str = "") -> str | None:
        """The dotted path of a component that another package registers by a name; else None.

        Checkpoints record it, so that `restore_source` finds a registered name in another process.
        """
        component = self.get(name, field)
        elsewhere = name in self._components and not self.is_built_in(name)
        return dotted_path_of(component) if elsewhere else None

    def restore_source(self, name: str, source: str, field: str) -> None:
        """Imports the component that was registered by a name, unless the name is known.

        Args:
          name: recorded name of the component.
          source: return value of `source`.
          field: config field in error messages.

        Raises:
          InputError: the module no longer has the component.
          MissingPackageError: the module cannot be imported.
        """
        if name in self:
            return
        label = f"{field} {name!r}, registered by"
        if source.startswith("__main__:") or "<" in source:
            raise InputError(
                f"{label} {source}, cannot be imported: register it in this process, or move it to "
                "a module"
            )
        component = _import_dotted_path(source, label)
        # Another module than the one that defines it may have registered it.
        self._components.setdefault(name, component)

    def _paths(self) -> dict[str, str]:
        """Dotted paths by name, of entry points and of components that are imported late."""
        return {**_entry_points(self.group), **self._included}


def colon_hint(name: str) -> str:
    """The end of a message for an unknown name that has the dots of a dotted path; else ""."""
    if not _PATH_OF_DOTS.fullmatch(name):
        return ""
    module, _, last = name.rpartition(".")
    return f"; a dotted path has a colon: {module}:{last}"


def dotted_path_of(component: Any) -> str:
    """The "module:name" of a function or class; of an instance, that of its class."""
    named = component if hasattr(component, "__qualname__") else type(component)
    return f"{named.__module__}:{named.__qualname__}"


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a call; the metaclass of `nnx.Module` hides that of a class."""
    if not inspect.isclass(function):
        try:
            return inspect.signature(function)
        except ValueError as error:
            raise InputError(
                f"{dotted_path_of(function)} cannot be a component: {error}"
            ) from error
    signature = inspect.signature(function.__init__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def accepted_keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the parameters that may be passed as keywords; None if any keyword is accepted."""
    parameters = signature_of(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in by_keyword)


def required_keywords(function: Callable[..., Any], num_positional: int) -> list[str]:
    """Names of the parameters without a default after the first positional ones."""
    later = list(signature_of(function).parameters.values())[num_positional:]
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in later if p.kind in by_keyword and p.default is p.empty]


def check_names(names: Iterable[str], valid: Iterable[str], label: str) -> None:
    """Raises an `InputError` for the first name that is not valid."""
    valid = list(valid)
    for name in names:
        if name not in valid:
            if not valid:
                raise InputError(f"unknown {label} {name!r}; expected none")
            raise unknown_name(label, name, valid)


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], label: str, num_positional: int
) -> None:
    """Checks that a function accepts options as keywords.

    Args:
      function: called with positional arguments and the options.
      options: values by name.
      label: description of the function, for messages.
      num_positional: number of positional arguments of the call.

    Raises:
      InputError: an unknown option, with the closest valid one first.
    """
    names = accepted_keywords(function)
    if names is not None:
        positional = list(signature_of(function).parameters)[:num_positional]
        check_names(options, names - set(positional), f"option of {label}")


@functools.cache
def _entry_points(group: str) -> dict[str, str]:
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


def _import_module(name: str, field: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", None) or ""
        if name == missing or name.startswith(f"{missing}."):
            raise MissingPackageError(
                f"{field} no module {missing!r}; install the package, start in its parent folder, "
                "or add that folder to PYTHONPATH"
            ) from error
        raise MissingPackageError(f"{field} importing {name} failed: {error}") from error


def _import_dotted_path(path: str, field: str) -> Callable[..., Any]:
    module_name, _, attributes = path.partition(":")
    module = target = _import_module(module_name, f"{field} {path!r}:")
    for attribute in attributes.split("."):
        if not hasattr(target, attribute):
            raise InputError(
                f"{field} {path!r}: {getattr(module, '__file__', module_name)} has no "
                f"{attribute!r}; defined there, the closest first: "
                f"{', '.join(closest_first(attribute, _names_in(module))[:5]) or 'nothing'}"
            )
        target = getattr(target, attribute)
    if not callable(target):
        raise InputError(f"{field} {path!r} must be a function or class; found {target!r}")
    return target


def _names_in(module: Any) -> list[str]:
    """Names that a module defines; of a package that only imports them, all public callables."""
    names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    defined = [n for n, x in names.items() if getattr(x, "__module__", "") == module.__name__]
    return defined or [n for n, x in names.items() if callable(x) and not n.startswith("_")]


BACKBONES = Registry("backbone", "imta_jax.backbones")
HEADS = Registry("heads", "imta_jax.heads")
OBJECTIVES = Registry("objective", "imta_jax.objectives")
EXIT_RULES = Registry(
    "exit rule",
    "imta_jax.exit_rules",
    {"learned_gate": "imta_jax.evaluation.gate_rule:learned_gate"},
)
OPTIMIZERS = Registry("optimizer", "imta_jax.optimizers")
SCHEDULES = Registry("schedule", "imta_jax.schedules")
SOURCES = Registry("data source", "imta_jax.sources")
METRICS_WRITERS = Registry("metrics writer", "imta_jax.metrics_writers")


def register_backbone(name: str) -> Callable[[Component], Component]:
    """Registers `make(options, *, num_classes, image_shape, rngs) -> Backbone`."""
    return BACKBONES.register(name)


def register_heads(name: str) -> Callable[[Component], Component]:
    """Registers `make(options, *, feature_widths, num_classes, rngs) -> Heads`."""
    return HEADS.register(name)


def register_objective(name: str) -> Callable[[Component], Component]:
    """Registers `loss(logits, labels, **options)`, a scalar or one loss per exit."""
    return OBJECTIVES.register(name)


def register_exit_rule(name: str) -> Callable[[Component], Component]:
    """Registers `rule(logits, **options)`, a score per image: an image leaves at high scores."""
    return EXIT_RULES.register(name)


def register_optimizer(name: str) -> Callable[[Component], Component]:
    """Registers `make(learning_rate, **options) -> optax.GradientTransformation`."""
    return OPTIMIZERS.register(name)


def register_schedule(name: str) -> Callable[[Component], Component]:
    """Registers `make(learning_rate, total_steps, **options)`, a learning rate by step."""
    return SCHEDULES.register(name)


def register_source(name: str) -> Callable[[Component], Component]:
    """Registers `make(options) -> imta_jax.data.ImageSource`, a dataset."""
    return SOURCES.register(name)


def register_metrics_writer(name: str) -> Callable[[Component], Component]:
    """Registers `make(options, *, run) -> writer` with `write(step, scalars)` and `close()`."""
    return METRICS_WRITERS.register(name)
