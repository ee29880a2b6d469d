"""Studies: one row per variant and seed, finished rows, failures and configs."""

import hashlib
import importlib
import json

import numpy as np
import pytest
import tiny_run

from configs.studies import shared
from imta_jax.cli.run import run
from imta_jax.data import dataset_info, load_dataset
from imta_jax.evaluation import anytime_accuracy
from imta_jax.evaluation.collect import split_predictions
from imta_jax.studies import StudyConfig, run_study, study_variants
from imta_jax.studies import runner as study_runner
from imta_jax.studies.report.parsing import load_study
from imta_jax.studies.study_file import row_path, summarize
from imta_jax.training import load_classifier, process_checks

STUDIES = ("ablation", "budget", "distillation", "equilibrium", "exits", "recipes")
# A temperature so small that the divergence is not finite.
DIVERGES = {"phase_two.temperature": 1e-38}
pytestmark = pytest.mark.usefixtures("compilation_cache")


def tiny_study(source, *more, **changes):
    """Four variants, three of which share a phase-I network, and `more` as (name, fields)."""
    base = tiny_run.tiny_config(source, phase_one__total_epochs=1, phase_two__total_epochs=1)
    base.evaluation.quotas = (0.5, 1.0, 2.0)
    config = shared.study("ablation", "tiny", base, baseline="none")
    shared.add_technique_variant(config, "none", (), "none", phase_two=False)
    shared.add_technique_variant(config, "isc", ("ISC",))
    shared.add_technique_variant(config, "ofa", ("OFA",))
    shared.add_technique_variant(config, "ge", ("GE",), phase_two=False)
    for name, fields in more:
        shared.add_technique_variant(config, name, ("OFA",), changes=fields)
    config.seeds = (0,)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """Folder and record of a finished study."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_study(tiny_study(source, gradient_variance_images=0), folder)


def test_every_variant_has_a_row_with_the_data_of_all_figures(finished):
    record = finished[1]
    assert [row["arm"] for row in record["rows"]] == ["none", "isc", "ofa", "ge"]
    assert list(record["arms"]) == ["none", "isc", "ofa", "ge"]
    for row in record["rows"]:
        assert row["status"] == "done" and len(row["exits"]) == 2
        assert [len(ranks) for ranks in row["confidence_ranks"]] == [24, 24]
        assert sorted(row["confidence_ranks"][0]) == list(range(24))
        assert -1 <= row["rank_correlation"] <= 1
        assert len(row["validation_curve"]["phase_one"]) == 1
    epochs = {row["arm"]: len(row["validation_curve"]["phase_two"]) for row in record["rows"]}
    assert epochs == {"none": 0, "isc": 1, "ofa": 1, "ge": 0}


def test_row_accuracy_equals_that_of_the_saved_network(finished, source):
    folder, record = finished
    config = StudyConfig.from_mapping(tiny_study(source)).base
    dataset = load_dataset(config.data)
    without = next(n for n in folder.glob("networks/*/seed_0") if not [*n.glob("phase_two-*")])
    classifier, _ = load_classifier(without / "phase_one")
    test = split_predictions(config, dataset, classifier, "test")
    row = next(row for row in record["rows"] if row["arm"] == "ge")
    assert [e["top1"] for e in row["exits"]] == pytest.approx(anytime_accuracy(test))


def test_variants_with_equal_phase_one_share_its_network(finished):
    folder, _ = finished
    networks = sorted(folder.glob("networks/*/seed_0"))
    second = [len(list(network.glob("phase_two-*"))) for network in networks]
    assert len(networks) == 2 and sorted(second) == [0, 1]


def test_costs_of_every_variant_include_its_heads(finished):
    arms = finished[1]["arms"]
    last = {name: arm["costs"][-1]["macs"] for name, arm in arms.items()}
    assert last["none"] == last["ge"] == last["ofa"] < last["isc"]
    in_rows = {row["arm"]: row["exits"][-1]["macs"] for row in finished[1]["rows"]}
    assert in_rows == last


def test_study_json_is_readable_by_the_report(finished):
    folder, record = finished
    assert load_study(folder / "ablation" / "study.json")
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    assert json.loads((folder / "ablation" / "study.json").read_text()) == record


def test_finished_runs_are_not_repeated(finished, source, monkeypatch):
    folder, record = finished
    monkeypatch.setattr(study_runner.PhaseOneGroup, "train_phase_one", None)
    assert run_study(tiny_study(source), folder)["rows"] == record["rows"]


def test_only_an_added_variant_is_trained(finished, source, monkeypatch):
    folder, record = finished
    trained = []
    original = study_runner._StudyRunner._run_group

    def record_group(self, group):
        trained.extend(variant.name for variant in group.variants)
        original(self, group)

    monkeypatch.setattr(study_runner._StudyRunner, "_run_group", record_group)
    longer = tiny_study(source, ("ofa_half", {"phase_two.alpha": 0.5}))
    result = run_study(longer, folder)
    assert trained == ["ofa_half"]
    assert result["rows"][: len(record["rows"])] == record["rows"]
    # Without the row, as after an interruption, the trained phase II is reused.
    row_path(folder / "ablation", "ofa_half", 0).unlink()
    again = run_study(longer, folder)
    assert again["rows"] == result["rows"]


def test_choosing_fewer_variants_keeps_earlier_results(finished, source):
    folder, _ = finished
    before = json.loads((folder / "ablation" / "study.json").read_text())
    fewer = run_study(tiny_study(source, chosen=("isc",), seeds=()), folder)
    by_name = {row["arm"]: row for row in fewer["rows"]}
    assert by_name == {row["arm"]: row for row in before["rows"] if row["arm"] in by_name}
    assert {"none", "isc", "ofa", "ge"} <= by_name.keys() and fewer["seeds"] == [0]
    assert fewer["dataset"] == before["dataset"]
    assert all(fewer["arms"][name]["costs"] for name in by_name)


@pytest.mark.parametrize("seeds", [(0, 0), (-1,), (0.5,)])
def test_invalid_seeds_are_rejected(source, tmp_path, seeds):
    with pytest.raises(ValueError, match=rf"config\.seeds .*{seeds[0]}"):
        run_study(tiny_study(source, seeds=seeds), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_variants_are_compared_with_the_baseline_of_the_config(source):
    config = tiny_study(source)
    config.baseline = "ge"
    assert {v.against for v in study_variants(StudyConfig.from_mapping(config))} == {"ge"}


def test_an_unknown_baseline_is_rejected(source, tmp_path):
    config = tiny_study(source)
    config.baseline = "zzz"
    with pytest.raises(ValueError, match=r"config\.baseline 'zzz'.*none"):
        run_study(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_changed_settings_of_a_finished_variant_are_rejected(finished, source):
    folder, _ = finished
    other = tiny_study(source)
    other.base.phase_one.learning_rate = 0.3
    with pytest.raises(ValueError, match=r"phase_one\.learning_rate.*0\.3"):
        run_study(other, folder)
    measured = tiny_study(source, gradient_variance_images=16)
    with pytest.raises(ValueError, match=r"gradient_variance_images.*16"):
        run_study(measured, folder)


def test_only_the_diverging_variant_fails(source, tmp_path):
    config = tiny_study(source, ("diverges", DIVERGES))
    config.chosen = ("none", "ofa", "diverges")
    rows = {row["arm"]: row for row in run_study(config, tmp_path)["rows"]}
    assert rows["diverges"]["status"] == "failed" and "not finite" in rows["diverges"]["error"]
    assert rows["ofa"]["status"] == rows["none"]["status"] == "done"
    # A failed run also has a row. It is repeated only after the row is deleted.
    assert row_path(tmp_path / "ablation", "diverges", 0).exists()


def test_a_study_without_seeds_records_costs_only(source, tmp_path):
    record = run_study(tiny_study(source, seeds=()), tmp_path)
    assert record["rows"] == [] and not (tmp_path / "networks").exists()
    assert all(arm["costs"] for arm in record["arms"].values())


def test_costs_on_a_tfds_dataset_do_not_need_images(tmp_path):
    config = importlib.import_module("configs.studies.exits").get_config("cifar100")
    config.seeds, config.chosen = (), ("none",)
    record = run_study(config, tmp_path)
    assert record["dataset"] == {"name": "cifar100"}
    published = [exit_["published_ops"] for exit_ in record["arms"]["none"]["costs"]]
    assert [round(ops / 1e6, 2) for ops in published] == [
        6.86, 14.35, 27.29, 48.45, 76.43, 108.85, 137.28
    ]  # fmt: skip
    imagenet = importlib.import_module("configs.studies.ablation").get_config("imagenet")
    info = dataset_info(imagenet.base.data.to_dict())
    assert (info.name, info.num_classes, info.image_shape) == ("imagenet2012", 1000, (224, 224, 3))


def test_summary_has_means_and_paired_differences():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(50, 90, (2, 3, 2))  # Variants, seeds, exits.
    rows = [
        {
            "arm": name,
            "seed": seed,
            "status": "done",
            "exits": [
                {"exit": e + 1, "top1": accuracy[v, s, e], "validation_top1": 1.0} for e in (0, 1)
            ],
        }
        for v, name in enumerate(("none", "all"))
        for s, seed in enumerate((0, 1, 2))
    ]
    rows.append({"arm": "all", "seed": 3, "status": "failed", "error": "diverged"})
    summary = summarize(rows, {"none": "none", "all": "none"})
    assert [(entry["arm"], entry["exit"]) for entry in summary] == [
        ("none", 1), ("none", 2), ("all", 1), ("all", 2)
    ]  # fmt: skip
    assert summary[0]["difference_mean"] is None
    assert summary[3]["top1_mean"] == pytest.approx(accuracy[1, :, 1].mean())
    assert summary[3]["top1_std"] == pytest.approx(accuracy[1, :, 1].std(ddof=1))
    paired = accuracy[1, :, 1] - accuracy[0, :, 1]
    assert summary[3]["difference_mean"] == pytest.approx(paired.mean())
    assert summary[3]["difference_std"] == pytest.approx(paired.std(ddof=1))


# Configs of studies.


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("preset", ["quickstart", "cifar10,short", "cifar100", "imagenet"])
def test_variants_of_every_study_differ(name, preset):
    config = importlib.import_module(f"configs.studies.{name}").get_config(preset).to_dict()
    assert config["baseline"] in config["chosen"]
    arms = [config["arms"][variant] for variant in config["chosen"]]
    changes = [json.dumps(arm["changes"], sort_keys=True) for arm in arms]
    assert len(set(changes)) == len(changes) >= 2


@pytest.mark.parametrize("name", ["ablation", "distillation", "equilibrium", "budget"])
def test_configs_of_all_quickstart_variants_are_valid(name):
    config = importlib.import_module(f"configs.studies.{name}").get_config("quickstart")
    assert study_variants(StudyConfig.from_mapping(config))


def test_folders_of_phase_one_networks_keep_their_names():
    """With other names, the networks of earlier studies would not be found."""
    config = importlib.import_module("configs.studies.ablation").get_config("quickstart")
    variants = study_variants(StudyConfig.from_mapping(config))
    digests = {v.name: hashlib.sha256(v.phase_one_key.encode()).hexdigest()[:8] for v in variants}
    assert (digests["none"], digests["ge"], digests["isc"]) == ("7d81f490", "f0a53612", "7d81f490")


def test_every_study_config_is_covered():
    files = {path.stem for path in (tiny_run.ROOT / "configs" / "studies").glob("*.py")}
    assert files == {*STUDIES, "shared", "sweep"}


def test_run_and_study_reject_the_config_of_the_other(source, tmp_path):
    config = tiny_study(source)
    with pytest.raises(ValueError, match="--mode=study"):
        run(config, tmp_path)
    with pytest.raises(ValueError, match=r"config\.arms"):
        run_study(config.base, tmp_path)
    assert not list(tmp_path.iterdir())


def test_invalid_fields_of_a_study_are_named(source):
    def parse(**changes):
        return StudyConfig.from_mapping(tiny_study(source).to_dict() | changes)

    with pytest.raises(ValueError, match=r"config\.chosen 'non'.*none"):
        parse(chosen=("non",))
    with pytest.raises(ValueError, match=r"config 'bases'.*base"):
        parse(bases=1)
    with pytest.raises(ValueError, match=r"config\.gradient_variance_images.*-1"):
        parse(gradient_variance_images=-1)
    arms = tiny_study(source).to_dict()["arms"]
    for field, value in (("techniques", ("GEE",)), ("against", "nobody")):
        changed = arms | {"isc": arms["isc"] | {field: value}}
        with pytest.raises(ValueError, match=rf"config\.arms\.isc\.{field} '(GEE|nobody)'"):
            parse(arms=changed)
    with pytest.raises(ValueError, match="preset 'mnist'"):
        shared.base("mnist")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("phase_two.alpha", 2.0, r"variant bad: .*alpha.*2\.0"),
        ("phase_two.alfa", 0.2, r"phase_two\.alfa.*variant bad.*alpha"),
    ],
)
def test_invalid_fields_of_a_variant_are_named(source, tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        run_study(tiny_study(source, ("bad", {field: value})), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config.seeds": [7]}, r"config\.seeds: \[7\] in process 0"),
        ({"config.arms.ge": {}}, r"config\.arms\.ge\.phase_one: None in process 0"),
        ({"--mode": "all"}, "--mode: 'all' in process 0, 'study' in process 1"),
    ],
)
def test_processes_with_another_study_are_named(source, tmp_path, monkeypatch, change, named):
    """As in process 1, where process 0 is simulated."""
    monkeypatch.setattr(process_checks, "from_first_process", lambda value: value | change)
    monkeypatch.setattr(process_checks.jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match=named):
        run_study(tiny_study(source), tmp_path / "study")
    assert not (tmp_path / "study").exists()
