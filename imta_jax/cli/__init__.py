"""What `launch.py` calls: the steps of a run and the modes that only inspect it."""
