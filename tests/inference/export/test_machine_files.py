"""Stage times and compiled programs in an export: used on the same machine, ignored otherwise."""

import json
import logging
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from imta_jax.inference import load_exported
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export import golden, machine_files, prepare
from imta_jax.inference.export.machine_files import COMPILED, PROFILES, PROGRAMS

OPTIONS = {"max_batch_size": 4, "batch_sizes": (4,), "num_workers": 1}
BUDGET = 0.9


@pytest.fixture(scope="module")
def prepared(exported_folder, tmp_path_factory):
    """An export with stage times and programs. Tests must not change it."""
    folder = tmp_path_factory.mktemp("prepared") / "export"
    shutil.copytree(exported_folder, folder)
    prepare.add_machine_files(folder, [BUDGET], options=[OPTIONS])
    export_folder.write_checksums(folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of the export."""
    return shutil.copytree(prepared, tmp_path / "export")


@pytest.fixture
def cache(tmp_path):
    """An empty compilation cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def change_json(path, **changes):
    """Changes entries of the description of the machine, and the checksums."""
    content = json.loads(path.read_text())
    content["machine"] |= changes
    path.write_text(json.dumps(content))
    export_folder.write_checksums(path.parent)


def load(folder, **options):
    return load_exported(folder, check_golden=False, **options)


def entries(cache):
    return {path.name for path in cache.glob("*-cache")}


def test_compiled_programs_are_used_and_give_the_same_predictions(
    prepared, exported_folder, images, cache, caplog
):
    with caplog.at_level(logging.INFO):
        exported = load_exported(prepared, trust_compiled=True)
    assert "compiled programs are used" in caplog.text
    adaptive = exported.adaptive(BUDGET, **OPTIONS)
    assert adaptive.profile.device != "assumed"
    adaptive.warm_up()
    installed = entries(cache)
    actual = adaptive.predict(images)
    assert entries(cache) == installed != set()  # nothing was compiled
    expected = load(exported_folder).adaptive(BUDGET, **OPTIONS).predict(images)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_array_equal(actual.exit, expected.exit)


def test_compiled_programs_are_not_used_without_trust(prepared, cache, caplog):
    with caplog.at_level(logging.INFO):
        load(prepared)
    assert "trust_compiled" in caplog.text and not entries(cache)


@pytest.mark.parametrize("name", ["device_kind", "jax", "jaxlib", "cpu", "cpu_features"])
def test_files_of_another_machine_are_ignored(folder, cache, caplog, name):
    for path in (folder / PROFILES, folder / COMPILED):
        change_json(path, **{name: "another"})
    exported = load(folder, trust_compiled=True)
    assert not exported.network.profiles and not entries(cache)
    assert caplog.text.count(f"{name} is 'another'") == 2


@pytest.mark.parametrize("name", [PROFILES, COMPILED, PROGRAMS])
def test_damaged_files_are_ignored(folder, cache, caplog, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    exported = load(folder, trust_compiled=True)
    assert name in caplog.text and "checksum" in caplog.text
    assert bool(exported.network.profiles) == (name != PROFILES)
    assert bool(entries(cache)) == (name == PROFILES)


def test_times_that_are_not_times_are_ignored(folder, caplog):
    content = json.loads((folder / PROFILES).read_text())
    content["profiles"][0]["stage_ms"][0][0] = -1.0
    (folder / PROFILES).write_text(json.dumps(content))
    export_folder.write_checksums(folder)
    assert not load(folder).network.profiles
    assert "stage_ms" in caplog.text


def test_archive_with_another_entry_is_not_extracted(folder, cache, tmp_path, caplog):
    with zipfile.ZipFile(folder / PROGRAMS, "a") as archive:
        archive.writestr("../outside-cache", b"")
    export_folder.write_checksums(folder)
    load(folder, trust_compiled=True)
    assert "outside-cache" in caplog.text
    assert not entries(cache) and not (tmp_path / "outside-cache").exists()


def test_no_pickle_is_loaded(folder, cache, monkeypatch):
    def fails(*_, **__):
        raise AssertionError("pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, fails)
    load(folder, trust_compiled=True)
    assert entries(cache)


def test_programs_of_another_network_are_not_found(folder, phase_one, export, images, cache):
    other = export(phase_one, folder.with_name("other"))
    for name in (COMPILED, PROGRAMS):
        shutil.copy(folder / name, other / name)
    export_folder.write_checksums(other)
    actual = load(other, trust_compiled=True).adaptive(BUDGET, **OPTIONS).predict(images[:4])
    expected = load_exported(other).adaptive(BUDGET, **OPTIONS).predict(images[:4])
    np.testing.assert_array_equal(actual.labels, expected.labels)


@pytest.mark.parametrize(
    "arguments", [{"platforms": ("tpu",)}, {"platforms": ("cpu",), "format": "onnx"}]
)
def test_files_of_this_machine_need_an_export_for_it(classifier, export, tmp_path, arguments):
    with pytest.raises(ValueError, match=r"platforms is tpu|format is onnx"):
        export(classifier, tmp_path / "export", profile=True, **arguments)
    assert not (tmp_path / "export").exists()


def test_golden_images_are_checked_once_per_folder_and_machine(folder, monkeypatch):
    checked = []
    monkeypatch.setattr(golden, "check_golden", lambda *arguments: checked.append(arguments))
    for _ in range(2):
        load_exported(folder)
    assert len(checked) == 1
    monkeypatch.setattr(golden, "machine_identity", lambda: {"jax": "another"})
    load_exported(folder)
    assert len(checked) == 2


def test_profile_is_interpolated_between_measured_sizes(prepared):
    profile = load(prepared).network.profiles[0]
    assert profile.sizes == (4,) and profile.at_sizes((1, 4)) is None
    wide = machine_files.StageProfile.from_dict(
        profile.to_dict()
        | {
            "sizes": [1, 4],
            "stage_ms": np.tile([1.0, 4.0], (3, 1)).tolist(),
            "network_ms": [3.0, 9.0],
            "hand_over_ms": np.tile([0.1, 0.4], (2, 1)).tolist(),
        }
    )
    actual = wide.at_sizes((1, 2, 4))
    assert actual.sizes == (1, 2, 4)
    np.testing.assert_allclose(actual.stage_ms[0], [1.0, 2.0, 4.0])
    np.testing.assert_allclose(actual.network_ms, [3.0, 5.0, 9.0])
    np.testing.assert_allclose(actual.compaction_ms[0], [0.1, 0.2, 0.4])
