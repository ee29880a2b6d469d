"""What a source is asked for, and which of its splits play which part."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from imta_jax.errors import closest_first

# Names that splits to validate with, and to test with, go by; the usual ones first.
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_TEST_NAMES = ("test", *_VALIDATION_NAMES)


@dataclass(frozen=True)
class SourceRequest:
    """Fields of `config.data` that say what to read, by their names there, and one that follows.

    Attributes:
      source: a name or a path.
      encoded: whether images are to stay compressed until a batch asks for them.
      data_dir: folder or bucket path of TFDS's prepared datasets; "" is TFDS's default.
      manual_dir: folder of archives that TFDS cannot download; "" is TFDS's default.
      download: whether TFDS may fetch and prepare what is not in `data_dir`.
      train_split, validation_split, test_split: see `choose_splits`.
      test_examples: how many training images will be held out to test with, if there is no split.
      index_dir: where indexes of encoded images are kept; "" for nowhere.
      max_undecodable: share, 0 to 1, of a split's images that may be skipped as undecodable.
    """

    source: str
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

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError(
                "config.data.source is empty, expected a dataset's name, the path of a folder, or"
                " a path ending in .npz"
            )
        if not 0 <= self.max_undecodable <= 1:
            raise ValueError(
                f"config.data.max_undecodable is {self.max_undecodable}, expected a share, 0 to 1"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, encoded: bool) -> "SourceRequest":
        """Takes the fields of `config.data` that are there."""
        names = [field.name for field in fields(cls) if field.name in config]
        return cls(**{name: config[name] for name in names}, encoded=encoded)


def choose_splits(request: SourceRequest, available: Iterable[str], where: str) -> dict[str, str]:
    """Which of a source's splits to train, validate and test with.

    "auto" takes the split with a usual name that plays no other part. Validation falls back on
    training images that are held out ("carve" asks for that), and so does the test where
    `test_examples` says how many.

    Args:
      request: its three split fields, each a split's name, "auto" or "carve".
      available: names of the source's splits.
      where: the source, for messages.

    Returns:
      "train" and, unless they are to be held out of it, "validation" and "test": names of splits.

    Raises:
      ValueError: a split that is not there, one in two parts, or nothing to test with.
    """
    found = list(available)
    chosen = {"train": _named(request.train_split, found, "train", where)}
    test = _pick(request.test_split, found, "test", where, _TEST_NAMES, chosen)
    if test is None and request.test_examples <= 0:
        raise ValueError(
            f"{where} has no split to test with, only: {', '.join(found)}; name one by"
            " config.data.test_split, or say by config.data.test_examples how many training images"
            " to hold out for it"
        )
    chosen |= {"test": test} if test else {}
    validation = _pick(
        request.validation_split, found, "validation", where, _VALIDATION_NAMES, chosen
    )
    return chosen | ({"validation": validation} if validation else {})


def _pick(
    wish: str,
    found: list[str],
    part: str,
    where: str,
    usual: tuple[str, ...],
    taken: dict[str, str],
) -> str | None:
    if wish == "carve":
        return None
    if wish == "auto":
        free = [name for name in usual if name in found and name not in taken.values()]
        return free[0] if free else None
    name = _named(wish, found, part, where)
    for other, of in taken.items():
        if of == name:
            raise ValueError(
                f"config.data.{part}_split and config.data.{other}_split are both {name!r}; a split"
                " plays one part, so that no image is both learned from and judged on"
            )
    return name


def _named(name: str, found: list[str], part: str, where: str) -> str:
    if name not in found:
        raise ValueError(
            f"{where} has no split {name!r} (config.data.{part}_split), only, the closest first:"
            f" {', '.join(closest_first(name, found))}"
        )
    return name
