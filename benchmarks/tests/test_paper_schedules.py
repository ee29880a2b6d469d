"""The table of the paper's schedules, without compilers."""

import pytest

from benchmarks.paper_schedules import NETWORKS, TOPOLOGIES
from benchmarks.tpu_programs import FAMILIES
from imta_jax.config import RunConfig
from imta_jax.planning.plan import check_batches
from imta_jax.planning.topologies import parse_topology


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_chips_divide_the_batches_of_every_network(network, topology):
    config = FAMILIES[network.partition("_")[0]].get_config()
    config.model.preset = network
    check_batches(RunConfig.from_mapping(config), parse_topology(topology))
