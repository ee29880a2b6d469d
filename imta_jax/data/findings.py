"""Findings of loading a dataset: rejected files, duplicates, unusual names.

Findings are logged while a dataset is loaded, and `--mode=data` reports them.
"""

import itertools
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

_log = logging.getLogger(__name__)
_MAX_EXAMPLES = 5
# Grapheme joiner, variation selectors, Hangul fillers and the empty Braille pattern.
_INVISIBLE_LETTERS = frozenset(map(chr, [0x34F, *range(0xFE00, 0xFE10), 0x115F, 0x1160, 0x2800]))
# Cyrillic and Greek letters, and the Latin letters that fonts draw alike.
_LATIN_TWINS = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u04cf"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u03b1\u03bd\u03bf\u03c1",
    "aeopcyxijshdlABEKMHOPCTYXIJSABEZHIKMNOPTYXavop",
)


@dataclass(frozen=True)
class SplitFindings:
    """Findings in one split of a source.

    Attributes:
      left_out: number of images that were left out, by reason.
      left_out_files: the first of them, with reasons.
      orientations: number of images by EXIF orientation, without those of orientation 1.
    """

    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_files: tuple[str, ...] = ()
    orientations: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Duplicates:
    """Images with equal bytes.

    Attributes:
      across_splits: number of images of the first split that the second contains, too, by a pair of
        splits such as ("test", "train").
      in_two_classes: number of images that another class contains, too.
      examples: the first pairs, as text.
    """

    across_splits: Mapping[tuple[str, str], int] = field(default_factory=dict)
    in_two_classes: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class MisplacedImages:
    """Images that are not read because of where they are.

    Attributes:
      folder: a folder, or a pattern of folders.
      count: number of images.
      remedy: the flag that reads them, or where to move them.
    """

    folder: str
    count: int
    remedy: str


@dataclass(frozen=True)
class IgnoredNames:
    """Files and folders in class folders that are ignored because of their suffix.

    Attributes:
      folder: the folder of the class folders.
      counts: number of names by suffix, such as ".webp", "folder" or "no extension".
    """

    folder: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class DataFindings:
    """Findings in a dataset; `splits` by role, held-out images count as "train"."""

    splits: Mapping[str, SplitFindings] = field(default_factory=dict)
    duplicates: Duplicates = Duplicates()
    similar_classes: tuple[tuple[str, ...], ...] = ()
    misplaced: tuple[MisplacedImages, ...] = ()
    ignored: tuple[IgnoredNames, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The findings as values that JSON can store."""
        return {
            "left_out": {
                name: {"reasons": dict(split.left_out), "files": list(split.left_out_files)}
                for name, split in self.splits.items()
            },
            "orientations": {
                name: {str(value): count for value, count in split.orientations.items()}
                for name, split in self.splits.items()
            },
            "duplicates": {
                "across_splits": [
                    [*pair, count] for pair, count in self.duplicates.across_splits.items()
                ],
                "in_two_classes": self.duplicates.in_two_classes,
                "examples": list(self.duplicates.examples),
            },
            "similar_classes": [list(names) for names in self.similar_classes],
            "misplaced": [[m.folder, m.count, m.remedy] for m in self.misplaced],
            "ignored": [[names.folder, dict(names.counts)] for names in self.ignored],
        }


def similar_classes(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of class names that look alike.

    They are equal after Unicode normalization and without letter case, invisible characters and
    spaces at their ends, also if Cyrillic and Greek letters are replaced by similar Latin ones.
    """
    groups: dict[str, list[int]] = {}  # positions; a group with several appearances is repeated
    for position, name in enumerate(names):
        looks = {_appearance(name), _appearance(name.translate(_LATIN_TWINS))}
        known = {id(groups[look]): groups[look] for look in looks if look in groups}
        group = sorted([*itertools.chain(*known.values()), position])
        of_known = [look for look, other in groups.items() if known and id(other) in known]
        groups |= dict.fromkeys([*of_known, *looks], group)
    unique = sorted(set(map(tuple, groups.values())))
    return tuple(tuple(names[i] for i in group) for group in unique if len(group) > 1)


def _appearance(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    visible = [
        letter
        for letter in folded
        if letter.isspace()
        or (unicodedata.category(letter) not in ("Cc", "Cf") and letter not in _INVISIBLE_LETTERS)
    ]
    return " ".join("".join(visible).split())


def find_duplicates(
    digests: Mapping[str, Int64[np.ndarray, " N"]],
    labels: Mapping[str, Int32[np.ndarray, " N"]],
    name_of: Callable[[str, int], str],
) -> Duplicates:
    """Finds images with equal digests in two splits or in two classes.

    Args:
      digests: hashes of the images by split.
      labels: classes of the images by split.
      name_of: maps a split and a position in it to the name of the image, for examples.
    """
    splits = list(digests)
    split = np.repeat(np.arange(len(splits)), [len(digests[name]) for name in splits])
    position = np.concatenate([np.arange(len(digests[name])) for name in splits])
    label = np.concatenate([labels[name] for name in splits])
    all_digests = np.concatenate([digests[name] for name in splits])
    _, group, sizes = np.unique(all_digests, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(sizes[group] > 1)
    repeated = repeated[np.argsort(group[repeated], kind="stable")]
    first_of_group = np.flatnonzero(np.diff(group[repeated], prepend=-1))
    between_splits: Counter[tuple[str, str]] = Counter()
    in_two_classes, pairs = 0, []
    for indices in np.split(repeated, first_of_group[1:]) if len(repeated) else []:
        present = Counter(split[indices].tolist())
        for later, earlier in itertools.product(present, present):
            if later > earlier:
                between_splits[splits[later], splits[earlier]] += present[later]
        in_two_classes += len(indices) if len(set(label[indices].tolist())) > 1 else 0
        differs = (split[indices] != split[indices[0]]) | (label[indices] != label[indices[0]])
        # The first image of each split.
        pairs += [(indices[0], i) for i in {split[i]: i for i in indices[differs][::-1]}.values()]
    examples = tuple(
        " = ".join(name_of(splits[split[i]], int(position[i])) for i in pair)
        for pair in _different_first(pairs, split)[:_MAX_EXAMPLES]
    )
    return Duplicates(dict(between_splits), in_two_classes, examples)


def _different_first(
    pairs: list[tuple[int, int]], split: Int64[np.ndarray, " N"]
) -> list[tuple[int, int]]:
    """Pairs of images with one pair of each two splits before the others."""
    seen: Counter[tuple[int, int]] = Counter()
    ranks = []
    for first, second in pairs:
        kind = int(split[first]), int(split[second])
        ranks.append(seen[kind])
        seen[kind] += 1
    return [pairs[i] for i in np.argsort(ranks, kind="stable")]


def pixel_digests(images: UInt8[np.ndarray, "N ..."]) -> Int64[np.ndarray, " N"]:
    """Hashes of the pixels of each image.

    They are equal within one process only: `hash` of bytes is SipHash with a random key, which
    takes a third of the time of BLAKE2.
    """
    return np.fromiter((hash(image.tobytes()) for image in images), np.int64, len(images))


def warn_of_findings(dataset: str, findings: DataFindings) -> None:
    """Logs duplicates and class names that look alike. Sources log their own findings."""
    duplicates = findings.duplicates
    for (first, second), count in duplicates.across_splits.items():
        _log.warning("%s: %d %s images are also %s images", dataset, count, first, second)
    if duplicates.in_two_classes:
        count = duplicates.in_two_classes
        _log.warning("%s: %d images are in more than one class", dataset, count)
    if duplicates.examples:
        _log.warning("%s: equal images: %s", dataset, "; ".join(duplicates.examples))
    for names in findings.similar_classes:
        _log.warning("%s: class names that look alike: %s", dataset, ", ".join(map(repr, names)))
