"""The table of compiled programs, without compilers."""

from benchmarks.tpu_programs import NETWORKS, config_of, kept_rows, row, summary

PROGRAM = {
    "name": "phase_one",
    "batch_size": 512,
    "images_per_chip": 128,
    "fits": True,
    "memory_bytes": 1e9,
    "padding": 1.1,
    "kernels": 900,
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


def test_every_network_has_a_config_for_each_batch():
    for network in NETWORKS:
        config = config_of(network, 1024)
        assert config.model.preset == network
        assert config.phase_one.batch_size == config.evaluation.batch_size == 1024


def test_rows_and_summary_have_the_headline_numbers():
    actual = row(PROGRAM)
    assert actual["step_ms"]["expected"] == 2.0 and actual["images_per_second"] == 256000
    header = {"network": "n", "topology": "v5e:2x2"}
    missing = {"program": "phase_one", "fits": False, "padding": None}
    values = summary([actual | header, missing | header])
    assert values == {
        "phase_one_compiles v5e:2x2": 0.5,
        "all_reduce_bytes_vs_parameters v5e:2x2": 1.03,
        "padding_waste v5e:2x2": 1.1,
    }


def test_a_program_that_does_not_fit_has_a_row():
    assert row({"name": "phase_one", "fits": False})["memory_bytes"] is None


def test_a_new_file_keeps_no_rows(tmp_path):
    assert kept_rows(tmp_path / "new.json") == []
