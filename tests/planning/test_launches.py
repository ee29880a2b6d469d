"""Launches of a GPU program, from a stored sequence."""

from imta_jax.planning.launches import Launches, launches_of


def test_graphs_and_single_operations_of_a_step_are_counted(hlo):
    assert launches_of(hlo("launches"), steps=50) == Launches(graphs=2, in_graphs=3, single=2)


def test_without_a_loop_over_steps_the_entry_is_counted(hlo):
    lines = hlo("launches").splitlines()
    steps = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert launches_of(steps, steps=1) == Launches(graphs=2, in_graphs=3, single=3)


def test_a_tpu_program_has_no_launches():
    assert launches_of("", steps=1) is None
