"""The library that decodes image files: TensorFlow, or Pillow where TensorFlow is not installed.

Both give the same pixels, except in the last column of training crops of JPEGs with 4:2:2 chroma
subsampling. TensorFlow decompresses only a part of a JPEG, and reads records and buckets. A run
records its decoder and keeps it when it resumes.
"""

from imta_jax.data.tensorflow_import import has_tensorflow, import_tensorflow

TF_DATA, PILLOW = "tf_data", "pillow"
DECODERS = (TF_DATA, PILLOW)


def choose_decoder(pipeline: str) -> str:
    """The decoder of `config.data.pipeline`; by default TensorFlow if it is installed.

    Args:
      pipeline: the field; the values "tf_data" and "pillow" name a decoder.

    Raises:
      MissingPackageError: "tf_data", and TensorFlow is not installed.
    """
    if pipeline == TF_DATA:
        import_tensorflow()
        return TF_DATA
    if pipeline == PILLOW or not has_tensorflow():
        return PILLOW
    return TF_DATA
