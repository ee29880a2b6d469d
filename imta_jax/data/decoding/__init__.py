"""Which image files are accepted, decided in one place for training, evaluation and inference.

`header.py` inspects the bytes of a file and `pillow_decoder.py` decodes them without TensorFlow.
This folder imports neither TensorFlow nor JAX, because exported networks use it, too.
"""
