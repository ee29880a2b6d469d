"""The tables of compiled programs, without compilers."""

from benchmarks import gpu_programs, tpu_programs
from benchmarks.compiled_programs import NETWORKS, has_row, kept_rows, paper_config, summary
from imta_jax.planning.topologies import parse_topology

PROGRAM = {
    "name": "phase_one",
    "batch_size": 512,
    "images_per_chip": 128,
    "fits": True,
    "memory_bytes": 1e9,
    "padding": 1.1,
    "kernels": 900,
    "transposes": 40,
    "launches": {"graphs": 70, "in_graphs": 400, "single": 200},
    "collectives": {"all-reduce": 3},
    "collective_bytes": {"all-reduce": 103},
    "gradient_bytes": 100,
    "messages_in_a_row": 3,
    "estimate": {
        "step": {"low": 1e-3, "expected": 2e-3, "high": 3e-3},
        "messages": {"low": 0, "expected": 1e-4, "high": 0},
        "matrix_floor": 1e-4,
        "memory_floor": 1e-4,
    },
    "images_per_second": {"expected": 256000.4},
}
HEADER = {"network": "n", "topology": "t"}
DOES_NOT_FIT = {"name": "phase_one", "fits": False}


def test_every_network_has_a_config():
    for network in NETWORKS:
        assert paper_config(network).model.preset == network


def test_rows_of_tpus_and_their_summary_have_the_headline_numbers():
    actual = tpu_programs.row(PROGRAM)
    assert actual["step_ms"]["expected"] == 2.0 and actual["images_per_second"] == 256000
    rows = [tpu_programs.row(program) | HEADER for program in (PROGRAM, DOES_NOT_FIT)]
    assert summary(rows, tpu_programs.TARGETS) == {
        "phase_one_compiles t": 0.5,
        "all_reduce_bytes_vs_parameters t": 1.03,
        "padding_waste t": 1.1,
    }


def test_rows_of_gpus_have_kernels_transposes_and_launches():
    actual = gpu_programs.row(PROGRAM)
    assert (actual["kernels"], actual["transposes"]) == (900, 40)
    assert actual["launches"]["graphs"] == 70 and actual["sent_bytes"] == 103
    values = summary([actual | HEADER], gpu_programs.TARGETS)
    assert values == {"phase_one_compiles t": 1, "all_reduce_bytes_vs_parameters t": 1.03}


def test_code_is_generated_for_one_gpu_only():
    names = ["h100:1", "h200:8"]
    assert [gpu_programs.generates_code(parse_topology(name)) for name in names] == [True, False]


def test_a_program_that_does_not_fit_has_a_row():
    assert tpu_programs.row(DOES_NOT_FIT)["memory_bytes"] is None
    assert gpu_programs.row(DOES_NOT_FIT)["launches"] is None


def test_a_new_file_keeps_no_rows(tmp_path):
    assert kept_rows(tmp_path / "new.json") == []


def test_a_row_is_found_by_network_and_topology():
    assert has_row([HEADER], "n", "t") and not has_row([HEADER], "n", "u")
