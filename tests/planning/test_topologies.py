"""Names of topologies, and the chips that they describe."""

import pytest

from imta_jax.errors import InputError
from imta_jax.planning.chips import GPU_TARGETS
from imta_jax.planning.topologies import gpu_grid, parse_topology, valid_topologies


@pytest.mark.parametrize(
    ("name", "chips", "shape"),
    [
        ("v5e:16x16", 256, (16, 16)),
        ("v4:2x2x1", 4, (2, 2, 1)),
        ("v5p:4x4x4", 64, (4, 4, 4)),
        ("v6e:1x1", 1, (1, 1)),
        ("h100:8", 8, (8,)),
        ("h200:64", 64, (64,)),
    ],
)
def test_a_name_gives_chips_and_shape(name, chips, shape):
    topology = parse_topology(name)
    assert (topology.chips, topology.shape) == (chips, shape)
    assert topology.chip.name == name.partition(":")[0]


def test_every_valid_name_is_parsed():
    assert all(parse_topology(name).name == name for name in valid_topologies())


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("v5e:16x15", "v5e:16x16"),
        ("v5e", "v5e:1x1"),
        ("v7e:2x2", "v5e:2x2"),
        ("h10:8", "h100:8"),
        ("v4:4x4", "v4:4x4x4"),
        ("h100:0", "h100:1"),
        ("", "v"),
    ],
)
def test_an_unknown_name_is_rejected_with_the_closest_valid_ones(name, closest):
    with pytest.raises(InputError, match=rf"topology={name!r}.*{closest}"):
        parse_topology(name)


def test_gpus_beyond_a_host_fill_hosts():
    assert gpu_grid(parse_topology("h100:2")) == "1x1x2"
    assert gpu_grid(parse_topology("h100:64")) == "1x8x8"
    with pytest.raises(InputError, match=r"h100:12.*multiple of 8"):
        parse_topology("h100:12")


def test_a_file_describes_another_gpu(tmp_path):
    text = GPU_TARGETS["h100"].read_text().replace("core_count: 132", "core_count: 66")
    path = tmp_path / "half.txtpb"
    path.write_text(text)
    actual, h100 = parse_topology(f"{path}:4"), parse_topology("h100:4")
    assert actual.target_config == text
    assert actual.chip.matrix_flops == pytest.approx(h100.chip.matrix_flops / 2)
    assert actual.chip.memory_bytes == h100.chip.memory_bytes


def test_a_file_that_describes_no_gpu_is_rejected(tmp_path):
    path = tmp_path / "empty.txtpb"
    path.write_text("platform_name: 'CUDA'")
    with pytest.raises(InputError, match="clock_rate_ghz"):
        parse_topology(f"{path}:4")


def test_h100_peak_is_the_published_one():
    chip = parse_topology("h100:1").chip
    assert chip.matrix_flops == pytest.approx(989e12, rel=0.02)
