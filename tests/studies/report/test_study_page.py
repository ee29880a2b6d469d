"""The folder that a study report is written to: page, figures and tables."""

import re

import pytest
import study_samples as samples
from run_samples import references

from imta_jax.studies import report
from imta_jax.studies.report.entries import collect_entries
from imta_jax.studies.report.page import report_markdown, with_code
from imta_jax.studies.report.parsing import parse_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    assert report.write_study_report(samples.all_studies(), folder) == folder / "index.html"
    return folder


@pytest.mark.parametrize("change", ["no rows", "all failed", "one row"])
@pytest.mark.parametrize("study", samples.all_studies(), ids=lambda study: study["study"])
def test_incomplete_studies_are_drawn(study, change):
    rows = {
        "no rows": [],
        "all failed": [samples.failed_row(name, 0) for name in study["arms"]],
        "one row": study["rows"][:1],
    }[change]
    dataset = study["dataset"] if change == "one row" else None
    entries = collect_entries([parse_study({**study, "rows": rows, "dataset": dataset})])
    markdown = report_markdown(entries)
    assert "not run" in markdown
    if change == "all failed":
        assert "loss not finite" in markdown


def test_missing_studies_show_the_command_to_run(tmp_path):
    page = report.write_study_report([], tmp_path).read_text()
    for study in ("exits", "ablation", "budget", "equilibrium", "distillation"):
        assert f"The study <code>{study}</code> has not been run" in page
        assert f"--config=configs/studies/{study}.py" in page
    for printed in ("75.96", "73.45", "72.43", "75.26"):
        assert f">{printed}" in page and printed in (tmp_path / "tables.md").read_text()


def test_the_page_is_self_contained(folder):
    page = (folder / "index.html").read_text()
    parsed = references(page)
    assert len(list((folder / "figures").glob("*.png"))) == 7
    assert len(parsed.addresses) == 2 * 7  # light and dark
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", page)


def test_the_page_has_every_table_and_figure_of_the_paper(folder):
    page = (folder / "index.html").read_text()
    headings = " ".join(re.findall("<h2>(.*?)</h2>", page))
    names = [f"Table {n}" for n in (1, 2, 3)] + [f"Figure {n}" for n in range(2, 8)]
    assert all(name in headings for name in names)


def test_studies_of_one_name_have_separate_figures_and_tables(tmp_path):
    studies = [samples.ablation(), samples.ablation(dataset="cifar100"), samples.ablation()]
    studies[1]["preset"] = "cifar100"
    report.write_study_report(studies, tmp_path)
    names = {path.name for path in (tmp_path / "figures").glob("figure_4*")}
    assert names == {
        "figure_4_ablation_quickstart.png",
        "figure_4_ablation_quickstart_2.png",
        "figure_4_ablation_cifar100.png",
    }
    assert (tmp_path / "tables.md").read_text().count("## Table 2") == 3


def test_earlier_figures_are_removed(tmp_path):
    report.write_study_report([samples.ablation()], tmp_path)
    report.write_study_report([], tmp_path)
    assert not list((tmp_path / "figures").iterdir())


def test_text_of_a_study_is_escaped():
    assert str(with_code("<b> `x < y`")) == "&lt;b&gt; <code>x &lt; y</code>"
