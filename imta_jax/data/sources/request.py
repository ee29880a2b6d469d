"""The request to a source, and the choice of its splits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from imta_jax.config import HOLD_OUT, DataConfig
from imta_jax.data.pipeline.decoder import choose_decoder
from imta_jax.errors import InputError, closest_first

# Usual names of validation and test splits; the first that exists is used.
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_TEST_NAMES = ("test", *_VALIDATION_NAMES)


@dataclass(frozen=True)
class SourceRequest:
    """The fields of `config.data` that say what to read, and whether images stay encoded.

    Attributes:
      source: a name or a path.
      source_options: options of a custom source.
      encoded: whether images stay encoded until a batch needs them.
      data_dir: folder or bucket path of prepared TFDS datasets; "" is the TFDS default.
      manual_dir: folder of archives that TFDS cannot download; "" is the TFDS default.
      download: whether TFDS may download and prepare what `data_dir` lacks.
      train_split, validation_split, test_split: see `choose_splits`.
      test_examples: number of images that will be held out for testing if there is no test split.
      index_dir: folder of stored indexes of encoded images; "" stores nothing.
      max_undecodable: fraction of a split's images that may be left out because they do not decode.
      exif_orientation: whether the EXIF orientation of images is "ignore"d or "apply"ed.
      memory_limit_gb: memory for the images that are decoded at a time, in 10^9 bytes.
      pipeline: `config.data.pipeline`, which may name a decoder.
    """

    source: str
    source_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    encoded: bool = False
    data_dir: str = ""
    manual_dir: str = ""
    download: bool = False
    train_split: str = "train"
    validation_split: str = "auto"
    test_split: str = "auto"
    test_examples: int = 0
    index_dir: str = ""
    max_undecodable: float = 0.01
    exif_orientation: str = "ignore"
    memory_limit_gb: float = 4.0
    pipeline: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.max_undecodable <= 1:
            raise InputError(
                f"config.data.max_undecodable is {self.max_undecodable}, expected 0 to 1"
            )

    @property
    def decoder(self) -> str:
        """The decoder of image files; see `decoder.choose_decoder`."""
        return choose_decoder(self.pipeline)

    @classmethod
    def from_config(cls, config: DataConfig, *, encoded: bool) -> "SourceRequest":
        """Takes the fields of the same names from `config.data`."""
        names = [field.name for field in fields(cls) if field.name != "encoded"]
        return cls(**{name: getattr(config, name) for name in names}, encoded=encoded)


def could_be_chosen(request: SourceRequest, name: str) -> bool:
    """Whether `choose_splits` may choose a split of this name."""
    optional = (request.validation_split, _VALIDATION_NAMES), (request.test_split, _TEST_NAMES)
    return name == request.train_split or any(
        name == value or (value == "auto" and name in usual) for value, usual in optional
    )


def choose_splits(
    request: SourceRequest, available: Iterable[str], source_name: str
) -> dict[str, str]:
    """Chooses the splits of a source for training, validation and testing.

    "auto" takes a split with a usual name that has no other role. If there is none, training images
    are held out for validation, and also for testing if `test_examples` is positive. "hold_out"
    always holds out training images.

    Args:
      request: its three split fields are the name of a split, "auto" or "hold_out".
      available: names of the source's splits.
      source_name: the source, for messages.

    Returns:
      Split names by role: "train" and, unless they are to be held out, "validation" and "test".

    Raises:
      ValueError: a split that does not exist or has two roles, or no images to test with.
    """
    names = list(available)
    chosen = {"train": _existing(request.train_split, names, "train", source_name)}
    test = _choose(request.test_split, names, "test", source_name, _TEST_NAMES, chosen)
    if test is None and request.test_examples <= 0:
        raise InputError(
            f"{source_name} has no test split, only: {', '.join(names)}; set"
            " config.data.test_split to one of them, or config.data.test_examples to a number of"
            " training images to hold out"
        )
    chosen |= {"test": test} if test else {}
    validation = _choose(
        request.validation_split, names, "validation", source_name, _VALIDATION_NAMES, chosen
    )
    return chosen | ({"validation": validation} if validation else {})


def _choose(
    value: str,
    names: list[str],
    role: str,
    source_name: str,
    usual: tuple[str, ...],
    taken: dict[str, str],
) -> str | None:
    """The split for a role; None to hold out training images."""
    if value == HOLD_OUT:
        return None
    if value == "auto":
        free = [name for name in usual if name in names and name not in taken.values()]
        return free[0] if free else None
    name = _existing(value, names, role, source_name)
    for other_role, split in taken.items():
        if split == name:
            raise InputError(
                f"config.data.{role}_split and config.data.{other_role}_split are both {name!r};"
                " expected different splits, so that no image has two roles"
            )
    return name


def _existing(name: str, names: list[str], role: str, source_name: str) -> str:
    if name not in names:
        valid = names if role == "train" else [*names, "auto", HOLD_OUT]
        raise InputError(
            f"config.data.{role}_split is {name!r}, but {source_name} has no such split; valid, the"
            f" closest first: {', '.join(closest_first(name, valid))}"
        )
    return name
