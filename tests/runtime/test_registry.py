"""Registries: names, dotted paths, entry points and their errors."""

import importlib.metadata
import sys

import pytest

from imta_jax.errors import InputError
from imta_jax.runtime import registry
from imta_jax.runtime.registry import Registry, check_options


@pytest.fixture
def losses():
    return Registry("loss", "tests.losses")


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "temporary_package").mkdir()
    (tmp_path / "temporary_package" / "__init__.py").write_text("")
    (tmp_path / "temporary_package" / "parts.py").write_text(
        "def make(): return 1\nclass Group:\n    make = staticmethod(lambda: 2)\nvalue = 3\n"
    )
    (tmp_path / "temporary_package" / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "temporary_package"
    for name in [name for name in sys.modules if name.startswith("temporary_package")]:
        del sys.modules[name]


def hinge(logits, labels, *, margin=1.0):
    return margin


def test_decorator_registers_and_returns_the_component(losses):
    assert losses.register("hinge")(hinge) is hinge
    assert losses.get("hinge") is hinge
    assert "hinge" in losses and list(losses) == ["hinge"]


def test_same_component_may_be_registered_again_and_another_may_not(losses):
    losses.register("hinge")(hinge)
    losses.register("hinge")(hinge)
    with pytest.raises(InputError, match=r"'hinge'.*test_registry:hinge"):
        losses.register("hinge")(lambda logits, labels: 0)


def test_unknown_name_of_a_package_that_imports_all_names_lists_the_closest(losses, package):
    with open(f"{sys.path[0]}/{package}/__init__.py", "w") as file:
        file.write(f"from {package}.parts import Group, make\n")
    with pytest.raises(InputError, match=r"'mak'; .*first: make, Group"):
        losses.get(f"{package}:mak", "config.x")


@pytest.mark.parametrize("name", ["", "a:b"])
def test_names_with_a_colon_or_without_text_are_rejected(losses, name):
    with pytest.raises(InputError, match=repr(name)):
        losses.register(name)


def test_unknown_name_lists_the_closest_first(losses):
    losses.register("cross_entropy")(hinge)
    losses.register("hinge")(hinge)
    with pytest.raises(InputError, match=r"config\.x 'hingee'.*first: hinge, cross_entropy"):
        losses.get("hingee", "config.x")


def test_dotted_path_finds_functions_and_attributes_of_classes(losses, package):
    assert losses.get(f"{package}.parts:make")() == 1
    assert losses.get(f"{package}.parts:Group.make")() == 2


@pytest.mark.parametrize(
    "path, error, message",
    [
        ("no_such_package.x:make", ModuleNotFoundError, "config.x.*'no_such_package'.*PYTHONPATH"),
        ("{}.absent:make", ModuleNotFoundError, "config.x.*temporary_package.absent"),
        ("{}.broken:make", ModuleNotFoundError, "config.x.*broken failed.*no_such_library"),
        ("{}.parts:mkae", ValueError, "config.x.*no 'mkae'.*first: make"),
        ("{}.parts:value", ValueError, "config.x.*found 3"),
    ],
)
def test_errors_of_dotted_paths_name_field_module_and_fix(losses, package, path, error, message):
    with pytest.raises(error, match=message):
        losses.get(path.format(package), "config.x")


def test_a_dotted_path_without_a_colon_is_suggested_with_one(losses):
    with pytest.raises(InputError, match=r"'my_package\.vit\.make'.* my_package\.vit:make"):
        losses.get("my_package.vit.make", "config.x")


def test_entry_points_are_found_by_name(losses, package, monkeypatch):
    point = importlib.metadata.EntryPoint("own", f"{package}.parts:make", "tests.losses")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    registry._entry_points.cache_clear()
    try:
        assert losses.get("own")() == 1
        assert "own" in losses and list(losses) == ["own"]
    finally:
        registry._entry_points.cache_clear()


@pytest.mark.parametrize(
    "components, names",
    [
        (registry.BACKBONES, {"msdnet", "resnet", "densenet", "googlenet", "hydranet"}),
        (registry.HEADS, {"independent", "none", "identity", "linear"}),
        (registry.OBJECTIVES, {"cross_entropy", "one_for_all"}),
        (registry.EXIT_RULES, {"confidence", "entropy", "margin", "patience"}),
    ],
)
def test_components_of_this_package_are_registered_too(components, names):
    import imta_jax.models  # noqa: F401

    assert names <= set(components)
    assert all(components.is_built_in(name) for name in names)
    assert all(components.source(name) is None for name in names)


def test_a_recorded_source_restores_the_name(losses, package):
    losses.restore_source("late", f"{package}.parts:make", "config.x")
    assert losses.get("late")() == 1 and losses.source("late") == f"{package}.parts:make"
    losses.restore_source("late", "no_such_package.parts:make", "config.x")  # is known


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("no_such_package.parts:make", ModuleNotFoundError, r"config\.x 'own'.*'no_such_package'"),
        ("{}.parts:absent", ValueError, r"config\.x 'own'.*no 'absent'"),
        ("__main__:make", ValueError, r"config\.x 'own'.*__main__:make"),
        ("{}.parts:f.<locals>.make", ValueError, r"config\.x 'own'.*<locals>"),
    ],
)
def test_a_source_that_is_gone_is_named(losses, package, source, error, message):
    with pytest.raises(error, match=message):
        losses.restore_source("own", source.format(package), "config.x")


def test_unknown_options_list_the_closest_first():
    check_options(hinge, {"margin": 2}, "loss", num_positional=2)
    with pytest.raises(InputError, match=r"option of loss 'margn'.*first: margin"):
        check_options(hinge, {"margn": 2}, "loss", num_positional=2)
    with pytest.raises(InputError, match=r"option of loss 'labels'"):
        check_options(hinge, {"labels": 2}, "loss", num_positional=2)
