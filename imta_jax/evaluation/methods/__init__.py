"""Methods for choosing exit thresholds, and their comparison at equal cost."""
