"""Prepared TFDS datasets of images with labels, written by a builder of the tests."""


def prepare(folder, class_name, examples, *, shape, version="1.0.0", shards=1, **options):
    """Writes a dataset whose name is the class name in snake case.

    Args:
      folder: the `data_dir`.
      class_name: name of the builder's class.
      examples: dictionaries with "image" and "label", by split. File objects are stored unchanged.
      shape: shape of the images, as declared.
      version: version of the dataset.
      shards: files per split.
      **options: `names` or `num_classes`; `encoding_format` and `file_format` if not the default.

    Returns:
      The folder of the version.
    """
    import tensorflow_datasets as tfds

    image_options = {k: options.pop(k) for k in ["encoding_format"] if k in options}
    builder_options = {k: options.pop(k) for k in ["file_format"] if k in options}
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, **image_options),
            "label": tfds.features.ClassLabel(**options),
        }
    )

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label")
        )

    members = {
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": lambda self, manager: {
            split: enumerate(split_examples) for split, split_examples in examples.items()
        },
        "_generate_examples": lambda self: None,
        "__module__": __name__,
    }
    with tfds.core.registered.skip_registration():
        kind = type(tfds.core.GeneratorBasedBuilder)(
            class_name, (tfds.core.GeneratorBasedBuilder,), members
        )
    builder = kind(data_dir=folder, **builder_options)
    config = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=config)
    return folder / builder.name / version
