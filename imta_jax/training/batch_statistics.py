"""The groups of images that share the statistics of BatchNorm in training.

With "global" statistics, every BatchNorm waits for sums over all devices. With groups within
devices, a step sends gradients and running statistics only, which nothing in the network waits for.
"""

from imta_jax.config import PhaseConfig, PhaseOneConfig
from imta_jax.errors import InputError
from imta_jax.runtime.lane_padding import padding_hint


def batch_parts(settings: PhaseConfig) -> int:
    """Equal parts into which a step divides a batch. Learned sample weights need two halves."""
    learned = isinstance(settings, PhaseOneConfig) and settings.sample_weights == "learned"
    return 2 if learned else settings.accumulate_parts


def batch_padding_hint(settings: PhaseConfig, devices: int) -> str | None:
    """A message if a TPU pads the batches of a phase by more than a fifth; None otherwise."""
    field, parts = f"{settings.section}.batch_size", batch_parts(settings)
    return padding_hint(field, settings.batch_size, devices, parts)


def statistics_groups(settings: PhaseConfig, devices: int) -> int:
    """Number of groups of each part of a batch.

    Args:
      settings: `batch_statistics`, `statistics_group_size`, `batch_size` and `batch_parts` of a
        phase, as `check_statistics_groups` accepts them.
      devices: number of devices.
    """
    if settings.batch_statistics == "global":
        return 1
    if settings.batch_statistics == "per_device":
        return devices
    return settings.batch_size // batch_parts(settings) // settings.statistics_group_size


def check_statistics_groups(settings: PhaseConfig, devices: int) -> None:
    """Checks that groups fit the batches of a phase and the devices.

    Args:
      settings: config section of a phase that passed `check_group_size`, with batches that the
        devices divide (`check_batch_size`).
      devices: number of devices.

    Raises:
      InputError: names the field and what it must divide.
    """
    images = settings.batch_size // batch_parts(settings)
    own, size, section = images // devices, settings.statistics_group_size, settings.section
    if settings.batch_statistics == "per_device" and own < 2:
        raise InputError(
            f'{section}.batch_statistics="per_device" needs at least 2 images per device; found'
            f" {own}: use a larger {section}.batch_size"
        )
    if settings.batch_statistics == "group" and (images % size or (own % size and size % own)):
        raise InputError(
            f"{section}.statistics_group_size must divide the {images} images of a batch (or of a"
            f" part of it), and divide or be divided by the {own} images of a device; found {size}:"
            f" for example {own}"
        )


def check_group_size(settings: PhaseConfig) -> None:
    """Checks that `statistics_group_size` is given with, and only with, the statistics "group".

    Raises:
      InputError: it is not.
    """
    size, kind = settings.statistics_group_size, settings.batch_statistics
    expected = "2 or more" if kind == "group" else "0"
    if (size < 2) if kind == "group" else size:
        raise InputError(
            f"{settings.section}.statistics_group_size must be {expected} with"
            f" {settings.section}.batch_statistics={kind!r}; found {size}"
        )
