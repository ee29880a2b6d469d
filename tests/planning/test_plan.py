"""Plans, sweeps and their command line, with stored programs in place of the compilers."""

import dataclasses
import json

import pytest
import tiny_run

from imta_jax.cli.plan import PlanOptions, plan
from imta_jax.errors import InputError, MissingPackageError
from imta_jax.planning import plan as planning
from imta_jax.planning.compilation import Compiled, Request, _worker_failure
from imta_jax.planning.data_description import describe_data
from imta_jax.planning.dump import assigned_bytes
from imta_jax.planning.estimates import best_batch
from imta_jax.planning.figure import write_sweep_figure
from imta_jax.planning.launches import Launches
from imta_jax.planning.plan import make_plan
from imta_jax.planning.programs import ProgramInfo
from imta_jax.planning.report import plan_record, plan_text
from imta_jax.planning.sweep import sweep, sweep_text
from imta_jax.planning.topologies import parse_topology
from imta_jax.planning.worker import needed_bytes

MEMORY = {"phase_one": 3e9, "phase_two": 1e9, "evaluation": 1e9}


class Compiler:
    """Stands for `compile_program`. Attributes: requests, bytes by program, and launches."""

    def __init__(self, text):
        self.requests, self.memory, self.text = [], dict(MEMORY), text
        self.launches = None

    def __call__(self, request):
        self.requests.append(request)
        name, chips = request.program, request.topology.chips
        size = getattr(request.config, name).batch_size
        info = ProgramInfo(name, size, chips, 1, 1e9 * size / chips, 10**6, 10**4, 0)
        memory = self.memory[name]
        text = self.text if memory is not None else ""
        return Compiled(
            info, text, memory, {}, memory is not None, False, 1.0, 2.0, launches=self.launches
        )


@pytest.fixture
def compiler(hlo, monkeypatch):
    actual = Compiler(hlo("step"))
    monkeypatch.setattr(planning, "compile_program", actual)
    monkeypatch.setattr(planning, "check_compiler", lambda topology: None)
    return actual


@pytest.fixture
def config(source):
    return tiny_run.run_config(source)


def test_a_plan_has_the_programs_and_hours_of_the_run(compiler, config):
    actual = make_plan(config, parse_topology("v5e:2x2"))
    assert actual.fits and [p.name for p in actual.programs] == list(MEMORY)
    assert {request.program for request in compiler.requests} == set(MEMORY)
    step = actual.programs[0].estimate.step
    assert step.low < step.expected < step.high
    evaluation = actual.programs[2].estimate.step.expected / 3600
    # 3 epochs of 3 steps, and 2 validation batches after each.
    assert actual.hours["phase_one"].expected == pytest.approx(
        3 * (3 * step.expected / 3600 + 2 * evaluation)
    )
    parts = [hours.expected for name, hours in actual.hours.items() if name != "total"]
    assert actual.hours["total"].expected == pytest.approx(sum(parts))


def test_a_plan_is_text_and_json(compiler, config):
    actual = make_plan(config, parse_topology("v5e:2x2"))
    text = plan_text(actual)
    for part in ("3.00 of 16.9", "16 (4)", "3 all-reduce", "not", "phase_two", "128"):
        assert part in text
    record = json.loads(json.dumps(plan_record(actual), allow_nan=False))
    assert record["programs"][0]["messages_in_a_row"] == 2
    assert record["programs"][0]["cycles"] == 4500
    assert record["fits"] and record["hours"]["total"]["expected"] > 0


def test_launches_of_the_host_are_in_the_plan_of_a_gpu(compiler, config):
    compiler.launches = Launches(graphs=73, in_graphs=1035, single=248)
    actual = make_plan(config, parse_topology("h100:2"))
    assert "73 CUDA graphs, 248 operations" in plan_text(actual)
    assert plan_record(actual)["programs"][0]["launches"]["in_graphs"] == 1035


def test_a_step_that_waits_for_statistics_names_the_field(compiler, config):
    actual = make_plan(config, parse_topology("v5e:2x2"))
    assert "batch_statistics" not in plan_text(actual)
    first = actual.programs[0]
    waiting = dataclasses.replace(
        first,
        profile=dataclasses.replace(first.profile, chain=75),
        estimate=dataclasses.replace(first.estimate, messages=first.estimate.step.times(0.4)),
    )
    text = plan_text(dataclasses.replace(actual, programs=[waiting, *actual.programs[1:]]))
    assert "40%" in text and "75 of them" in text
    assert "--config.phase_one.batch_statistics=per_device" in text


def test_shards_of_a_small_network_are_reported(compiler, config):
    mesh = dataclasses.replace(config.mesh, parameter_shards=2)
    actual = make_plan(dataclasses.replace(config, mesh=mesh), parse_topology("v5e:2x2"))
    assert "config.mesh.parameter_shards=2 saves at most" in plan_text(actual)


def test_a_failed_compilation_reports_the_error_and_not_the_end_of_the_log(config, tmp_path):
    log = 'File "x.py", line 1\nValueError: shapes differ\n---\nFor simplicity, JAX has removed'
    (tmp_path / "log.txt").write_text(log)
    chips = parse_topology("v5e:2x2")
    request = Request(config, describe_data(config.data), chips, "phase_one", False)
    message = _worker_failure(request, tmp_path, 1)
    assert "phase_one for v5e:2x2" in message and message.endswith("ValueError: shapes differ")


@pytest.mark.parametrize(
    ("message", "gigabytes"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 20.50G of 15.75G hbm.", 20.5),
        ("the total memory required for HLO temporaries (27.46G) exceeds available HBM", 27.46),
        ("RESOURCE_EXHAUSTED: out of memory", None),
    ],
)
def test_needed_memory_is_read_from_the_error_of_the_compiler(message, gigabytes):
    assert needed_bytes(message) == (gigabytes and gigabytes * 2**30)


@pytest.mark.parametrize("needed", [99e9, None])
def test_a_program_that_does_not_fit_names_the_fields_to_change(needed, compiler, config):
    compiler.memory["phase_one"] = needed
    actual = make_plan(config, parse_topology("v5e:2x2"))
    assert not actual.fits and not actual.hours
    text = plan_text(actual)
    for field in ("batch_size", "accumulate_parts", "compute_dtype=bfloat16", "rematerialize"):
        assert f"--config.phase_one.{field}" in text
    assert plan_record(actual)["programs"][0]["advice"]


def test_evaluation_that_does_not_fit_names_its_batch(compiler, config):
    compiler.memory["evaluation"] = 99e9
    text = plan_text(make_plan(config, parse_topology("v5e:2x2")))
    assert "--config.evaluation.batch_size=8" in text and "--config.phase_one.batch" not in text


def test_batches_that_the_chips_do_not_divide_are_named_together(compiler, config):
    with pytest.raises(InputError) as caught:
        make_plan(config, parse_topology("v5e:4x8"))
    for part in ("config.phase_one.batch_size=16", "--config.evaluation.batch_size=32", "4096"):
        assert part in str(caught.value)
    assert not compiler.requests


def test_a_missing_compiler_is_named_with_its_command(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for topology, package in (("v5e:2x2", r"jax\[tpu\]"), ("h100:2", "jax-cuda12-plugin")):
        with pytest.raises(MissingPackageError, match=rf"pip install .*{package}=="):
            make_plan(config, parse_topology(topology))


def test_larger_batches_are_estimated_until_memory_ends(compiler, config):
    program = make_plan(config, parse_topology("v5e:2x2")).programs[0]
    rates = [choice.images_per_second for choice in program.choices]
    assert rates == sorted(rates)
    chip = parse_topology("v5e:2x2").chip
    best = best_batch(program.choices, chip)
    assert best.images % 128 == 0, "smaller batches are padded to 128"
    assert best.memory_bytes <= chip.memory_bytes


def test_a_sweep_compares_topologies_and_batches(compiler, config, tmp_path):
    topologies = [parse_topology(name) for name in ("v5e:2x2", "v5e:2x4", "h100:2")]
    rows = sweep(config, topologies, [8, 16], {"v5e": 1.5})
    assert [(row.topology, row.images_per_chip) for row in rows[:3]] == [
        ("v5e:2x2", 8),
        ("v5e:2x2", 16),
        ("v5e:2x4", 8),
    ]
    assert compiler.requests[0].config.phase_two.batch_size == 32
    assert rows[0].price.expected == pytest.approx(1.5 * 4 * rows[0].hours.expected)
    assert rows[-1].price is None
    text = sweep_text(rows)
    assert "v5e:2x4" in text and "price" in text
    path = write_sweep_figure(rows, tmp_path / "sweep.svg")
    assert path.read_text().lstrip().startswith("<?xml")


def test_a_sweep_lists_what_does_not_fit(compiler, config):
    compiler.memory["phase_two"] = 99e9
    (row,) = sweep(config, [parse_topology("v5e:2x2")], [8], {})
    assert not row.fits and row.hours is None
    assert "NO" in sweep_text([row])


def test_the_command_prints_and_writes_a_plan(compiler, source, tmp_path, capsys):
    options = PlanOptions(topologies=("v5e:2x2",), workdir=str(tmp_path))
    plan(tiny_run.tiny_config(source), options)
    assert "v5e:2x2: 4 x v5e" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan" / "v5e_2x2.json").read_text())["chips"] == 4
    options = PlanOptions(("v5e:2x2",), out=str(tmp_path / "other.json"))
    plan(tiny_run.tiny_config(source), options)
    assert (tmp_path / "other.json").exists()


def test_saved_executables_go_to_the_folder_of_the_run(compiler, source, tmp_path):
    options = PlanOptions(("v5e:2x2",), workdir=str(tmp_path), save=True)
    plan(tiny_run.tiny_config(source), options)
    paths = {request.program: request.save for request in compiler.requests}
    folder = tmp_path / "compiled"
    assert paths == {
        "phase_one": folder / "phase_one",
        "phase_two": folder / "phase_two",
        "evaluation": None,
    }
    assert all(request.full for request in compiler.requests)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topologies": ()}, "--topology"),
        ({"topologies": ("v5e:2x3",)}, "v5e:2x3.*v5e:2x2"),
        ({"topologies": ("v5e:2x2", "v5e:2x4"), "out": "x.json"}, "--out=x.json"),
        ({"save": True}, "--save needs --workdir"),
        ({"sweep": True, "images_per_chip": ("8", "0")}, "--images_per_chip.*'0'"),
        ({"sweep": True, "prices": ("v5e",)}, "--price.*'v5e'"),
    ],
)
def test_invalid_flags_are_rejected(options, message, source):
    flags = PlanOptions(**{"topologies": ("v5e:2x2",), **options})
    with pytest.raises(InputError, match=message):
        plan(tiny_run.tiny_config(source), flags)


def test_only_main_memory_counts():
    report = (
        "Memory Space: default (color=0)\nTotal bytes: 1000 (1000B)\n  x; y\n"
        "Memory Space: vmem (color=1)\nTotal bytes: 5000 (5.0KiB)\n"
    )
    assert assigned_bytes(report) == 1000
