"""Patience: the rule and invalid input."""

import numpy as np
import pytest

from imta_jax.evaluation.methods.patience import patience_exits


@pytest.mark.parametrize("patience", [1, 2, 3, 4])
def test_exit_is_the_first_after_enough_equal_predictions(patience):
    classes = np.random.default_rng(0).integers(0, 2, (4, 200))
    expected = [
        next(
            (i for i in range(3) if i + 1 >= patience and len({*c[i + 1 - patience : i + 1]}) == 1),
            3,
        )
        for c in classes.T.tolist()
    ]
    np.testing.assert_array_equal(patience_exits(classes, patience), expected)


@pytest.mark.parametrize("patience", [0, 5])
def test_patience_outside_the_number_of_exits_raises(patience):
    with pytest.raises(ValueError, match=rf"patience={patience}.*1 to 4"):
        patience_exits(np.zeros((4, 3), int), patience)


@pytest.mark.parametrize("predictions", [np.zeros((4, 3)), np.zeros(4, int)])
def test_predictions_of_another_type_or_shape_raise(predictions):
    with pytest.raises(ValueError, match=rf"predictions.*{predictions.dtype}.*\(4,"):
        patience_exits(predictions, 1)
