"""Initial parameters from files and checkpoints: what is loaded, reported and refused."""

import ast
import json
import logging
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.cli.run_records import check_same_config
from imta_jax.config import PhaseOneConfig
from imta_jax.distributed import data_mesh
from imta_jax.errors import InputError
from imta_jax.runtime.array_files import read_safetensors
from imta_jax.training.checkpoints import CheckpointStore
from imta_jax.training.init_from import (
    RECORD,
    began_with,
    check_init_from,
    load_initial_parameters,
)
from imta_jax.training.recipe import RECIPE, check_same_recipe, recipe_record
from imta_jax.training.setup import new_phase_one
from imta_jax.training.state import create_state, named_arrays

NAMES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}


def write_safetensors(path, arrays):
    """The format of the safetensors library, written by hand."""
    header, parts, at = {"__metadata__": {"format": "np"}}, [], 0
    for name, x in arrays.items():
        offsets = [at, at := at + x.nbytes]
        header[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": offsets}
        parts.append(x.tobytes())
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def new_network(seed):
    return new_phase_one(tiny_run.run_config("unused.npz", seed=seed), tiny_run.INFO)


def arrays_of(classifier):
    variables = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
    return tiny_run.to_host(named_arrays(variables))


def settings(source, *pairs):
    return PhaseOneConfig(
        total_epochs=1, batch_size=1, init_from=str(source), init_from_map=tuple(pairs)
    )


@pytest.fixture(scope="module")
def other():
    """Arrays of another network of the same structure."""
    return arrays_of(new_network(1))


@pytest.fixture
def caplog_of_package(caplog):
    logger = logging.getLogger("imta_jax")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "imta_jax")
    yield caplog
    logger.removeHandler(caplog.handler)


def test_all_arrays_of_a_checkpoint_are_loaded(tmp_path, other):
    source, target, mesh = new_network(1), new_network(0), data_mesh()
    tx = tiny_run.make_phase("phase_one", mesh).optimizer
    _, state = create_state(source, nnx.Param, tx, mesh)
    with CheckpointStore(tmp_path / "phase_one") as checkpoints:
        checkpoints.save(3, state, {}, 0.0)
    for folder in (tmp_path / "phase_one", tmp_path / "phase_one" / "3"):
        load_initial_parameters(target, settings(folder), tmp_path / "new")
        actual = arrays_of(target)
        assert actual.keys() == other.keys()
        assert all(np.array_equal(actual[name], other[name]) for name in actual)
        target = new_network(0)
    with pytest.raises(ValueError, match=r"init_from.*folder of a run.*phase_one"):
        load_initial_parameters(target, settings(tmp_path), tmp_path / "new")


@pytest.mark.parametrize("dtype", NAMES)
def test_matching_arrays_are_loaded_and_the_others_are_reported(
    tmp_path, other, dtype, caplog_of_package
):
    arrays = {f"module.{name}": x.astype(dtype) for name, x in other.items()}
    missing = next(name for name in other if name.endswith("mean"))
    wide = next(name for name in other if name.startswith("heads"))
    del arrays[f"module.{missing}"]
    arrays[f"module.{wide}"] = np.zeros((2, 1000), dtype)
    arrays["module.unknown"] = np.zeros(3, dtype)
    write_safetensors(tmp_path / "weights.safetensors", arrays)
    target, folder = new_network(0), tmp_path / "phase_one"
    before = arrays_of(target)
    source = settings(tmp_path / "weights.safetensors", (r"^module\.", ""))
    load_initial_parameters(target, source, folder)
    for name, x in arrays_of(target).items():
        kept = name in (missing, wide)
        expected = before[name] if kept else other[name].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(x, expected)
    record = json.loads((folder / RECORD).read_text())
    assert record["not_loaded"] == [missing] and record["not_used"] == ["module.unknown"]
    assert list(record["shapes_differ"]) == [wide] and "(2, 1000)" in record["shapes_differ"][wide]
    assert len(record["loaded"]) == len(other) - 2
    log = caplog_of_package.text
    assert missing in log and f"{wide} ((2, 1000) in the source" in log and "module.unknown" in log
    assert f"{len(other) - 2} of {len(other)} arrays" in log


def pytorch_arrays(arrays):
    """The arrays with PyTorch's names and layout."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

    def convert(name, x):
        parent, _, last = name.rpartition(".")
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}
        moved = x.transpose(axes[x.ndim]) if last == "kernel" else x
        return f"{parent}.{names.get(last, last)}", np.ascontiguousarray(moved)

    return dict(convert(name, x) for name, x in arrays.items())


def test_arrays_in_the_names_and_layout_of_pytorch_are_loaded(tmp_path, other):
    write_safetensors(tmp_path / "weights.safetensors", pytorch_arrays(other))
    target = new_network(0)
    load_initial_parameters(target, settings(tmp_path / "weights.safetensors"), tmp_path / "new")
    actual = arrays_of(target)
    assert all(np.array_equal(x, other[name]) for name, x in actual.items())
    record = json.loads((tmp_path / "new" / RECORD).read_text())
    assert set(record["transposed"]) == {name for name in other if name.endswith("kernel")}
    assert not record["not_used"]


@pytest.mark.parametrize(
    ("pairs", "layout"),
    [(((r"weight$", "kernel"),), "PyTorch"), (((r"kernel$", "weight"),), "Flax")],
)
def test_a_name_that_contradicts_the_layout_raises(tmp_path, other, pairs, layout):
    arrays = pytorch_arrays(other) if layout == "PyTorch" else other
    kernels = {n: x for n, x in arrays.items() if x.ndim > 1}
    np.savez(tmp_path / "weights.npz", **kernels)
    with pytest.raises(InputError, match=rf"init_from.*{layout}.*init_from_map"):
        load_initial_parameters(
            new_network(0), settings(tmp_path / "weights.npz", *pairs), tmp_path / "new"
        )


@pytest.mark.parametrize("make", [dict, pytorch_arrays])
@pytest.mark.parametrize(
    ("prefix", "pair"),
    [
        ("module.", ["^module[.]", ""]),
        ("model.module.", ["^model[.]module[.]", ""]),
    ],
)
def test_a_prefix_that_would_match_is_suggested(tmp_path, other, prefix, pair, make):
    arrays = {f"{prefix}{name}": x for name, x in make(other).items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(InputError) as raised:
        load_initial_parameters(new_network(0), settings(tmp_path / "weights.npz"), tmp_path / "a")
    code = str(raised.value).partition("init_from_map='")[2].partition("'")[0]
    assert ast.literal_eval(code) == (tuple(pair),)
    target = new_network(0)
    source = settings(tmp_path / "weights.npz", *ast.literal_eval(code))
    load_initial_parameters(target, source, tmp_path / "b")
    assert all(np.array_equal(x, other[name]) for name, x in arrays_of(target).items())


def test_a_prefix_is_suggested_if_little_is_loaded(tmp_path, other, caplog_of_package):
    arrays = {n.removeprefix("backbone."): x for n, x in other.items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    check_init_from(new_network(0), settings(tmp_path / "weights.npz"), tmp_path / "new")
    assert """init_from_map='(("^","backbone."),)'""" in caplog_of_package.text


def test_values_that_are_not_finite_raise(tmp_path, other):
    name = next(iter(other))
    np.savez(tmp_path / "weights.npz", **other | {name: np.full_like(other[name], np.nan)})
    with pytest.raises(InputError, match=rf"init_from.*{name}.*finite"):
        check_init_from(new_network(0), settings(tmp_path / "weights.npz"), tmp_path / "new")


def test_an_npz_is_loaded_with_expressions_in_order(tmp_path, other):
    np.savez(
        tmp_path / "weights.npz", **{name.replace("backbone", "net"): other[name] for name in other}
    )
    target = new_network(0)
    pairs = [(r"^net\.", "x."), (r"^x\.(\w)", r"backbone.\1")]
    load_initial_parameters(target, settings(tmp_path / "weights.npz", *pairs), tmp_path / "new")
    assert all(np.array_equal(x, other[name]) for name, x in arrays_of(target).items())


def test_the_source_may_be_moved_or_deleted_but_not_replaced(tmp_path, other, caplog_of_package):
    folder, source, moved = (tmp_path / name for name in ("phase_one", "a.npz", "b.npz"))
    assert began_with("a.npz", folder) is None
    np.savez(source, **other)
    load_initial_parameters(new_network(0), settings(source), folder)
    assert began_with(str(source), folder)
    source.rename(moved)
    assert began_with(str(moved), folder)
    assert began_with(str(source), folder)
    assert f"{source} does not exist" in caplog_of_package.text
    name = next(iter(other))
    np.savez(source, **other | {name: other[name] + 1})
    assert began_with(str(source), folder) is False
    recorded, config = (
        tiny_run.run_config("a.npz", phase_one__init_from=str(path)) for path in (source, moved)
    )
    check_same_config(config, recorded, tmp_path, "all")
    with pytest.raises(ValueError, match=r"init_from: .*with other arrays"):
        check_same_config(recorded, recorded, tmp_path, "all")


def test_a_checkpoint_accepts_another_path_of_the_source_but_not_its_absence():
    recorded = {RECIPE: recipe_record(settings("a.npz"))}
    check_same_recipe(recorded, recipe_record(settings("moved/a.npz")), "checkpoint 1")
    for meta, source in ((recorded, ""), ({}, "a.npz")):
        with pytest.raises(ValueError, match=r"phase_one\.init_from"):
            check_same_recipe(meta, recipe_record(settings(source)), "checkpoint 1")


def test_nothing_is_loaded_when_phase_one_resumes(tmp_path, other):
    target, mesh = new_network(0), data_mesh()
    tx = tiny_run.make_phase("phase_one", mesh).optimizer
    with CheckpointStore(tmp_path / "partial") as checkpoints:
        checkpoints.save(1, create_state(target, nnx.Param, tx, mesh)[1], {}, 0.0)
    load_initial_parameters(target, settings(tmp_path / "deleted.npz"), tmp_path)
    shutil.rmtree(tmp_path / "partial")
    with pytest.raises(FileNotFoundError, match=r"init_from.*deleted\.npz"):
        load_initial_parameters(target, settings(tmp_path / "deleted.npz"), tmp_path)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], r"init_from=.*none of its \d+ arrays.*net\.backbone\S+ \([\d, ]*\).*backbone\S+ \("),
        ([("no_such_name", "")], r"init_from_map: 'no_such_name'.*net\."),
        ([(".*kernel", "kernel")], r"init_from_map gives .* and .* the name kernel"),
        ([("(net)", r"\2")], r"init_from_map.*invalid group"),
    ],
)
def test_a_map_that_cannot_be_used_raises(tmp_path, other, pairs, message):
    np.savez(tmp_path / "weights.npz", **{f"net.{name}": x for name, x in other.items()})
    network = nnx.eval_shape(lambda: new_network(0))
    with pytest.raises(ValueError, match=message):
        check_init_from(network, settings(tmp_path / "weights.npz", *pairs), tmp_path / "new")


def test_another_kind_of_file_raises(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"init_from.*\.safetensors.*weights\.pth"):
        load_initial_parameters(new_network(0), settings(tmp_path / "weights.pth"), tmp_path / "a")


def damaged(header, data=b"12345678", length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "weights"),
        (damaged({"a": ENTRY}, length=2**60), "header"),
        (damaged({"a": ENTRY}, b"1234"), "a: bytes 0 to 8 of 4"),
        (damaged({"a": {**ENTRY, "shape": [3]}}), "a: bytes"),
        (damaged({"a": {**ENTRY, "data_offsets": [-8, 0]}}), "a: bytes"),
        (damaged({"a": {**ENTRY, "dtype": "F8"}}), "F8.*F32"),
        (damaged({"a": {"dtype": "F32"}}), "shape"),
        (damaged({"a": ENTRY}, b"", length=1000), "1000 bytes"),
        (damaged({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "b begins"),
        (damaged([1]), "weights"),
        (struct.pack("<Q", 4) + b"nota" + bytes(4), "weights"),
    ],
)
def test_a_damaged_safetensors_file_raises(tmp_path, content, message):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.safetensors.*{message}|{message}.*safetens"):
        read_safetensors(tmp_path / "weights.safetensors")
