"""The command line: `main` is called by `launch.py` and by the console command `imta-jax`."""
