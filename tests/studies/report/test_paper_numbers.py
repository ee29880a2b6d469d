"""The paper's numbers: tables, datasets and readings of figures."""

import numpy as np
import pytest

from imta_jax.studies.report import paper_numbers as paper


@pytest.mark.parametrize("printed", [52, 581, 137.3])
def test_table_one_has_the_printed_costs(printed):
    assert printed in [row.madds for row in paper.TABLE_ONE]


def test_printed_full_method_gains_at_every_exit():
    for table in paper.ABLATIONS:
        plain, full = table.top1[frozenset()], table.top1[frozenset(paper.TECHNIQUES)]
        assert len(table.top1) == 5 and all(np.array(full) > plain)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("cifar100", "cifar100"),
        ("CIFAR-100", "cifar100"),
        ("imagenet2012", "imagenet"),
        ("fashion_mnist_small", None),
        ("cifar10_small", None),
        (None, None),
    ],
)
def test_only_the_papers_datasets_are_known(name, known):
    assert paper.known_dataset(name) == known


def test_every_reading_has_a_source_and_rising_costs():
    for reading in paper.READINGS:
        costs = [cost for cost, _ in reading.points]
        assert reading.source and reading.uncertainty > 0 and costs == sorted(costs)
