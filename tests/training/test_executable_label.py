"""Labels of cached executables, and launches that share them."""

import json
import subprocess

import tiny_run

from imta_jax.training import executable_label


def test_the_label_depends_on_the_sections_that_determine_the_step():
    def label(phase: str = "phase_one", **changes) -> str:
        return executable_label(tiny_run.run_config("images.npz", **changes), phase)

    assert label() == label(seed=5) == label(log__check_every_steps=7)
    others = [
        label("phase_two"),
        label(phase_one__batch_size=32),
        label(model__growth_rate=6),
        label(data__source="others.npz"),
        label(mesh__parameter_shards=2),
    ]
    assert len({label(), *others}) == 6


def test_launches_of_one_config_share_executables_and_results(tmp_path):
    source, cache = tiny_run.write_dataset(tmp_path / "images.npz"), tmp_path / "cache"
    rows, steps = [], []
    for run in ("first", "second"):
        command = tiny_run.launch_command(source, tmp_path / run, cache)
        subprocess.run(**command, check=True, capture_output=True)
        steps.append({path: path.stat().st_mtime_ns for path in (cache / "steps").glob("*.step")})
        for phase in ("phase_one", "phase_two"):
            lines = (tmp_path / run / phase / "metrics.jsonl").read_text().splitlines()
            rows.append([json.loads(line)["loss_per_exit"] for line in lines])
    assert len(steps[0]) == 2 and steps[0] == steps[1]
    assert rows[:2] == rows[2:]
