"""A study: every arm and seed has a row, done things stay done, and failures stay apart."""

import importlib
import json

import numpy as np
import pytest
import tiny_run

from configs.studies import shared
from imta_jax.cli.run import run
from imta_jax.data import dataset_info, load_dataset
from imta_jax.evaluation import anytime_accuracy
from imta_jax.evaluation.run import split_predictions
from imta_jax.studies import run_study, study_arms
from imta_jax.studies import runner as study_runner
from imta_jax.studies.record import row_path, summarize
from imta_jax.studies.report.record import load_study
from imta_jax.training import load_classifier

STUDIES = ("ablation", "budget", "distillation", "equilibrium", "exits")
# Divides logits by so little that the divergence is not a number.
DIVERGES = {"phase_two.temperature": 1e-38}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    with tiny_run.compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "data.npz")


def tiny_study(source, *more, **changes):
    """Four arms, three of which share a network; `more` are further (name, fields)."""
    base = tiny_run.tiny_config(source, phase_one__total_epochs=1, phase_two__total_epochs=1)
    base.evaluation.quotas = (0.5, 1.0, 2.0)
    config = shared.study("ablation", "tiny", base, baseline="none")
    shared.add_technique_arm(config, "none", (), "none", phase_two=False)
    shared.add_technique_arm(config, "isc", ("ISC",))
    shared.add_technique_arm(config, "ofa", ("OFA",))
    shared.add_technique_arm(config, "ge", ("GE",), phase_two=False)
    for name, fields in more:
        shared.add_technique_arm(config, name, ("OFA",), changes=fields)
    config.seeds = (0,)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def studied(source, tmp_path_factory):
    """A finished study's folder and record."""
    folder = tmp_path_factory.mktemp("studied")
    return folder, run_study(tiny_study(source, gradient_variance_images=0), folder)


def test_every_arm_has_a_row_with_what_the_figures_need(studied):
    record = studied[1]
    assert [row["arm"] for row in record["rows"]] == ["none", "isc", "ofa", "ge"]
    assert list(record["arms"]) == ["none", "isc", "ofa", "ge"]
    for row in record["rows"]:
        assert row["status"] == "done" and len(row["exits"]) == 2
        assert [len(ranks) for ranks in row["confidence_ranks"]] == [24, 24]
        assert sorted(row["confidence_ranks"][0]) == list(range(24))
        assert -1 <= row["rank_correlation"] <= 1
        assert len(row["validation_curve"]["phase_one"]) == 1
    second = {row["arm"]: len(row["validation_curve"]["phase_two"]) for row in record["rows"]}
    assert second == {"none": 0, "isc": 1, "ofa": 1, "ge": 0}


def test_a_row_is_what_the_trained_network_says(studied, source):
    folder, record = studied
    config = tiny_study(source).base.to_dict()
    dataset = load_dataset(config["data"])
    without = next(n for n in folder.glob("networks/*/seed_0") if not [*n.glob("phase_two-*")])
    classifier, _ = load_classifier(without / "phase_one")
    test = split_predictions(config, dataset, classifier, "test")
    row = next(row for row in record["rows"] if row["arm"] == "ge")
    assert [e["top1"] for e in row["exits"]] == pytest.approx(anytime_accuracy(test))


def test_arms_of_one_phase_one_share_its_network(studied):
    folder, _ = studied
    networks = sorted(folder.glob("networks/*/seed_0"))
    second = [len(list(network.glob("phase_two-*"))) for network in networks]
    assert len(networks) == 2 and sorted(second) == [0, 1]


def test_costs_of_every_arm_are_known_and_count_its_heads(studied):
    arms = studied[1]["arms"]
    last = {name: arm["costs"][-1]["macs"] for name, arm in arms.items()}
    assert last["none"] == last["ge"] == last["ofa"] < last["isc"]
    measured = {row["arm"]: row["exits"][-1]["macs"] for row in studied[1]["rows"]}
    assert measured == last


def test_the_record_is_one_that_the_report_reads(studied):
    folder, record = studied
    assert load_study(folder / "ablation" / "study.json")
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    assert json.loads((folder / "ablation" / "study.json").read_text()) == record


def test_what_is_done_is_not_done_again(studied, source, monkeypatch):
    folder, record = studied
    monkeypatch.setattr(study_runner.SharedNetwork, "train_phase_one", None)
    assert run_study(tiny_study(source), folder)["rows"] == record["rows"]


def test_an_arm_that_is_added_is_all_that_is_trained(studied, source, monkeypatch):
    folder, record = studied
    trained = []
    original = study_runner._Study._run_network

    def remembered(self, network):
        trained.extend(arm.name for arm in network.arms)
        original(self, network)

    monkeypatch.setattr(study_runner._Study, "_run_network", remembered)
    longer = tiny_study(source, ("ofa_half", {"phase_two.alpha": 0.5}))
    found = run_study(longer, folder)
    assert trained == ["ofa_half"]
    assert found["rows"][: len(record["rows"])] == record["rows"]
    # As if it had been stopped before the row was written: the trained second phase is found.
    row_path(folder / "ablation", "ofa_half", 0).unlink()
    again = run_study(longer, folder)
    assert again["rows"] == found["rows"]


def test_choosing_less_later_takes_nothing_away(studied, source):
    folder, _ = studied
    before = json.loads((folder / "ablation" / "study.json").read_text())
    fewer = run_study(tiny_study(source, chosen=("isc",), seeds=()), folder)
    by_arm = {row["arm"]: row for row in fewer["rows"]}
    assert by_arm == {row["arm"]: row for row in before["rows"] if row["arm"] in by_arm}
    assert {"none", "isc", "ofa", "ge"} <= by_arm.keys() and fewer["seeds"] == [0]
    assert fewer["dataset"] == before["dataset"]
    assert all(fewer["arms"][name]["costs"] for name in by_arm)


@pytest.mark.parametrize("seeds", [(0, 0), (-1,), (0.5,)])
def test_seeds_that_are_none_are_refused(source, tmp_path, seeds):
    with pytest.raises(ValueError, match=r"config.seeds must be different integers.*found"):
        run_study(tiny_study(source, seeds=seeds), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_baseline_set_later_is_what_arms_are_compared_with(source):
    config = tiny_study(source)
    config.baseline = "ge"
    assert {arm.against for arm in study_arms(config.to_dict())} == {"ge"}


def test_a_baseline_that_is_no_arm_is_refused(source, tmp_path):
    config = tiny_study(source)
    config.baseline = "zzz"
    with pytest.raises(ValueError, match=r"arm in config.baseline 'zzz'.*none"):
        run_study(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_arm_that_changes_is_refused(studied, source):
    folder, _ = studied
    other = tiny_study(source)
    other.base.phase_one.learning_rate = 0.3
    with pytest.raises(ValueError, match=r"other arms.*\n.*phase_one.learning_rate"):
        run_study(other, folder)
    measured = tiny_study(source, gradient_variance_images=16)
    with pytest.raises(ValueError, match=r"other arms.*\n.*gradient_variance_images"):
        run_study(measured, folder)


def test_an_arm_that_diverges_fails_alone(source, tmp_path):
    config = tiny_study(source, ("diverges", DIVERGES))
    config.chosen = ("none", "ofa", "diverges")
    rows = {row["arm"]: row for row in run_study(config, tmp_path)["rows"]}
    assert rows["diverges"]["status"] == "failed" and "not finite" in rows["diverges"]["error"]
    assert rows["ofa"]["status"] == rows["none"]["status"] == "done"
    # Failed is done too, until its row is deleted.
    assert row_path(tmp_path / "ablation", "diverges", 0).exists()


def test_without_seeds_the_costs_alone_are_recorded(source, tmp_path):
    record = run_study(tiny_study(source, seeds=()), tmp_path)
    assert record["rows"] == [] and not (tmp_path / "networks").exists()
    assert all(arm["costs"] for arm in record["arms"].values())


def test_costs_of_a_dataset_that_tfds_describes_need_no_images(tmp_path):
    config = importlib.import_module("configs.studies.exits").get_config("cifar100")
    config.seeds, config.chosen = (), ("none",)
    record = run_study(config, tmp_path)
    assert record["dataset"] == {"name": "cifar100"}
    published = [exit_["published_ops"] for exit_ in record["arms"]["none"]["costs"]]
    assert [round(ops / 1e6, 2) for ops in published] == [
        6.86, 14.35, 27.29, 48.45, 76.43, 108.85, 137.28
    ]  # fmt: skip
    photographs = importlib.import_module("configs.studies.ablation").get_config("imagenet")
    assert dataset_info(photographs.base.data.to_dict()) == ("imagenet2012", 1000, (224, 224, 3))


def test_a_summary_is_means_and_paired_differences():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(50, 90, (2, 3, 2))  # arms, seeds, exits
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "status": "done",
            "exits": [
                {"exit": e + 1, "top1": accuracy[a, s, e], "validation_top1": 1.0} for e in (0, 1)
            ],
        }
        for a, arm in enumerate(("none", "all"))
        for s, seed in enumerate((0, 1, 2))
    ]
    rows.append({"arm": "all", "seed": 3, "status": "failed", "error": "diverged"})
    found = summarize(rows, {"none": "none", "all": "none"})
    assert [(entry["arm"], entry["exit"]) for entry in found] == [
        ("none", 1), ("none", 2), ("all", 1), ("all", 2)
    ]  # fmt: skip
    assert found[0]["difference_mean"] is None
    assert found[3]["top1_mean"] == pytest.approx(accuracy[1, :, 1].mean())
    assert found[3]["top1_std"] == pytest.approx(accuracy[1, :, 1].std(ddof=1))
    paired = accuracy[1, :, 1] - accuracy[0, :, 1]
    assert found[3]["difference_mean"] == pytest.approx(paired.mean())
    assert found[3]["difference_std"] == pytest.approx(paired.std(ddof=1))


# ----- configs


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("preset", ["quickstart", "cifar10,short", "cifar100", "imagenet"])
def test_every_study_has_arms_that_differ(name, preset):
    config = importlib.import_module(f"configs.studies.{name}").get_config(preset).to_dict()
    assert config["baseline"] in config["chosen"]
    flat = [json.dumps(config["arms"][arm]["changes"], sort_keys=True) for arm in config["chosen"]]
    assert len(set(flat)) == len(flat) >= 2


@pytest.mark.parametrize("name", ["ablation", "distillation", "equilibrium", "budget"])
def test_every_arm_of_the_quickstarts_studies_passes_the_checks(name):
    config = importlib.import_module(f"configs.studies.{name}").get_config("quickstart")
    assert study_arms(config.to_dict())


def test_every_config_file_of_a_study_is_listed_here():
    files = {path.stem for path in (tiny_run.ROOT / "configs" / "studies").glob("*.py")}
    assert files == {*STUDIES, "shared"}


def test_a_study_that_does_not_fit_is_refused_with_what_would(source, tmp_path):
    config = tiny_study(source)
    with pytest.raises(ValueError, match="add --mode=study"):
        run(config, tmp_path)
    with pytest.raises(ValueError, match="leave --mode away"):
        run_study(config.base, tmp_path)
    with pytest.raises(ValueError, match=r"unknown arm in config.chosen 'non'.*none"):
        run_study(tiny_study(source, chosen=("non",)), tmp_path)
    wrong = tiny_study(source, ("bad", {"phase_two.alpha": 2.0}))
    with pytest.raises(ValueError, match="arm bad: alpha must lie"):
        run_study(wrong, tmp_path)
    missing = tiny_study(source, ("bad", {"phase_two.alfa": 0.2}))
    with pytest.raises(ValueError, match=r"phase_two.alfa.*alpha"):
        run_study(missing, tmp_path)
    with pytest.raises(ValueError, match="unknown preset 'mnist'"):
        shared.base("mnist")
    assert not list(tmp_path.iterdir())
