"""Export: writes, checks and loads folders that hold a trained network."""
