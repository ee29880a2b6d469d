"""Budget curves of studies and gains over the baseline."""

import numpy as np
import study_samples as samples
from study_rows import variant_of

from imta_jax.report.style import format_signed
from imta_jax.studies import report
from imta_jax.studies.report.curves import curve_at, curve_gains, variant_curves
from imta_jax.studies.report.parsing import parse_study
from imta_jax.studies.report.study_tables import gains_at


def test_a_budget_curve_passes_through_its_points_and_is_nan_outside():
    row = samples.synthetic_row("all", 0)
    costs = np.array([point["mean_macs"] for point in row["budget_curve"]])
    top1 = [point["top1"] for point in row["budget_curve"]]
    np.testing.assert_allclose(curve_at(row, costs), top1)
    assert np.isnan(curve_at(row, np.array([0.5 * costs[0], 2 * costs[-1]]))).all()


def test_gains_over_the_baseline_are_paired_at_equal_cost():
    study = parse_study(samples.ablation())
    costs, gains = curve_gains(study, variant_of(study, "GE"))
    own, plain = (variant_curves(study, variant_of(study, name)) for name in ("GE", "none"))
    np.testing.assert_allclose(costs, own[0])
    np.testing.assert_allclose(gains, own[1] - plain[1])
    assert not len(curve_gains(study, variant_of(study, "none"))[0])


def test_the_gain_at_a_cost_is_that_of_the_interpolated_curves():
    study = samples.budget()
    rows = {name: [r for r in study["rows"] if r["arm"] == name] for name in ("all_8", "plain_8")}
    there = [[curve_at(r, np.array([1e8]))[0] for r in rows[name]] for name in rows]
    record = parse_study(study)
    gains = gains_at(record, variant_of(record, "all_8"), 1e8)
    # The common grid of costs adds an interpolation error.
    np.testing.assert_allclose(gains, np.subtract(*there), atol=0.1)
    frame = report.budget_table(record).frame.set_index("variant")
    gain = format_signed(gains.mean(), 2)
    assert frame.loc["Ours, 8 exits", "gain at 100 M"].startswith(gain)
    assert frame.loc["Ours, 4 exits", "gain at 100 M"] == ""
