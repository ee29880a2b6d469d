"""`python -m imta_jax.studies`, and checks of study.json."""

import json
import subprocess
import sys

import pytest
import study_samples as samples

from imta_jax.studies.__main__ import main
from imta_jax.studies.report.parsing import parse_study


def test_the_command_does_not_import_jax(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(samples.ablation()))
    program = (
        "import sys; from imta_jax.studies.__main__ import main; "
        f"code = main([{str(tmp_path / 'study.json')!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "sys.exit(code or 'jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "study.json"),
        ("{", "JSON"),
        ("[1, 2]", "[1, 2]"),
        ('{"exits": 3}', "study, preset, environment, arms, seeds, rows"),
    ],
)
def test_a_file_that_is_not_a_study_is_rejected(tmp_path, capsys, content, message):
    path = tmp_path / "study.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "nobody"}, "variant 'nobody'"),
        ({"status": "perhaps"}, "seed 0: status .*'perhaps'"),
        ({"exits": []}, "seed 0: .*exits"),
    ],
)
def test_an_invalid_row_is_named(change, message):
    study = samples.ablation()
    study["rows"][0] |= change
    with pytest.raises(ValueError, match=f"here.*{message}"):
        parse_study(study, "here")
