"""The table of the paper's schedules, without compilers."""

import pytest

from benchmarks.compiled_programs import paper_config
from benchmarks.paper_schedules import NETWORKS, TOPOLOGIES
from imta_jax.planning.plan import check_batches
from imta_jax.planning.topologies import parse_topology


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_chips_divide_the_batches_of_every_network(network, topology):
    check_batches(paper_config(network), parse_topology(topology))
