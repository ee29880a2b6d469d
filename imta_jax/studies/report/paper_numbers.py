"""Results printed in "Improved Techniques for Training Adaptive Deep Networks" (ICCV 2019).

Tables 1-3 are printed numbers. The curves of Figures 2, 3 and 5 are not printed as numbers. The
values here were read by eye from figures of the same comparison by other authors. Each reading
names its figure and its uncertainty. Where two figures disagree, both are kept.

Accuracies are top-1 in percent. Costs are the paper's "MADDs", which correspond to
`evaluation.exit_costs(...).published_ops`. They exceed multiply-adds by a few percent.
"""

from dataclasses import dataclass

TITLE = "Improved Techniques for Training Adaptive Deep Networks (ICCV 2019)"
SCHEDULES = {
    "cifar10": "300 + 180 epochs, batch 64",
    "cifar100": "300 + 180 epochs, batch 64",
    "imagenet": "90 + 90 epochs, batch 256",
}
DATASET_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
TECHNIQUES = ("GE", "ISC", "OFA")

MSDNET, OURS, HYDRA = "MSDNet", "Ours", "Hydra-Res"


@dataclass(frozen=True)
class TableOneRow:
    """One classifier of Table 1, CIFAR-100.

    Attributes:
      model: "MSDNet", "Ours" or "Hydra-Res".
      number: exit, from 1; for Hydra-Res the number of branches.
      params: parameters in millions.
      madds: printed cost in millions.
      top1: top-1 in percent.
    """

    model: str
    number: int
    params: float
    madds: float
    top1: float

    @property
    def name(self) -> str:
        """The printed name, for example "MSDNet-Exit3" or "Hydra-Res-d9"."""
        return f"{self.model}-{'d' if self.model == HYDRA else 'Exit'}{self.number}"


_HYDRA_RES = (  # The paper quotes these from the HydraNet paper.
    (1, 1.28, 52, 65.81),
    (2, 2.86, 118, 71.24),
    (3, 4.43, 184, 72.30),
    (4, 6.01, 251, 73.35),
    (5, 7.59, 317, 73.84),
    (6, 9.17, 383, 74.29),
    (7, 10.74, 449, 74.71),
    (9, 13.90, 581, 75.26),
)
_EXITS = ((0.3, 6.86), (0.65, 14.35), (1.11, 27.29), (1.73, 48.45), (2.38, 76.43))
_EXITS += ((3.05, 108.9), (4.0, 137.3))
_TOP1 = {
    MSDNET: (64.1, 67.46, 70.34, 72.38, 73.06, 73.81, 73.89),
    OURS: (64.00, 68.41, 71.86, 73.50, 74.46, 75.39, 75.96),
}
TABLE_ONE = tuple(TableOneRow(HYDRA, *row) for row in _HYDRA_RES) + tuple(
    TableOneRow(model, number, *cost, top1)
    for model, accuracies in _TOP1.items()
    for number, (cost, top1) in enumerate(zip(_EXITS, accuracies, strict=True), start=1)
)


@dataclass(frozen=True)
class AblationTable:
    """Table 2 or 3: top-1 at five exits with and without each technique.

    Attributes:
      number: number of the table.
      dataset: "cifar100" or "imagenet".
      top1: top-1 in percent at exits 1 to 5, by the techniques used.
      remark: a caveat for comparisons, or "".
    """

    number: int
    dataset: str
    top1: dict[frozenset[str], tuple[float, ...]]
    remark: str = ""


ABLATIONS = (
    AblationTable(
        2,
        "cifar100",
        {
            frozenset(): (60.09, 63.73, 67.89, 70.48, 71.81),
            frozenset({"GE"}): (60.35, 64.38, 68.72, 70.65, 71.94),
            frozenset({"ISC"}): (60.19, 64.72, 68.07, 70.94, 73.28),
            frozenset({"OFA"}): (60.39, 64.20, 68.10, 70.65, 71.85),
            frozenset(TECHNIQUES): (60.78, 65.54, 69.98, 72.27, 73.45),
        },
        "Exit 1 of the paper's Table 2 (60.09) is 4 points below exit 1 of its Table 1 (64.1), "
        "although both are the same classifier at the same depth. One network cannot match both.",
    ),
    AblationTable(
        3,
        "imagenet",
        {
            frozenset(): (56.64, 65.14, 68.42, 69.77, 71.34),
            frozenset({"GE"}): (57.08, 65.29, 69.08, 70.55, 72.14),
            frozenset({"ISC"}): (57.03, 66.20, 69.73, 71.15, 71.65),
            frozenset({"OFA"}): (57.15, 65.77, 68.87, 70.23, 71.39),
            frozenset(TECHNIQUES): (57.28, 66.22, 70.24, 71.71, 72.43),
        },
        "The paper does not state which step (4, 6 or 7) its Table 3 uses.",
    ),
)


@dataclass(frozen=True)
class Reading:
    """Points read by eye from a published figure.

    Attributes:
      dataset: "cifar10", "cifar100" or "imagenet".
      series: name of the method.
      points: pairs (mean cost per image in millions, top-1 in percent), by rising cost.
      source: Figure and its authors.
      uncertainty: possible error of the accuracies, in points.
      adaptive: whether it is a budget curve; otherwise each point is a separate network.
    """

    dataset: str
    series: str
    points: tuple[tuple[float, float], ...]
    source: str
    uncertainty: float = 0.2
    adaptive: bool = False


RANET = "RANet authors' dynamic_results.png"
BOOSTNET = "BoostNet authors' cifar100_dynamic_msdnet.png"
BOOSTNET_IMAGENET = "BoostNet authors' ImageNet figure"
DYNAMIC_PERCEIVER = "Dynamic Perceiver authors' fig7_main_results.png, panel c"
UNNAMED = "a published figure, source not recorded"

READINGS = (
    Reading(
        "cifar10",
        MSDNET,
        ((20, 92.4), (30, 93.45), (40, 93.74), (70, 93.76)),
        RANET,
        adaptive=True,
    ),
    Reading("cifar10", "ResNet", ((41, 91.8), (69, 92.8), (97, 92.95)), RANET),
    Reading("cifar10", "WideResNet-40", ((82, 93.15),), RANET),
    Reading(
        "cifar100",
        MSDNET,
        ((20, 69.0), (25, 70.9), (35, 72.9), (45, 73.9), (60, 74.8), (85, 74.85)),
        RANET,
        adaptive=True,
    ),
    Reading(
        "cifar100",
        MSDNET,
        ((20, 70.0), (25, 72.2), (35, 73.8), (45, 74.4), (60, 74.95), (85, 74.7)),
        BOOSTNET,
        adaptive=True,
    ),
    Reading("cifar100", "ResNet", ((26.6, 65.8), (55, 68.5), (83, 69.9)), RANET),
    Reading(
        "cifar100",
        "DenseNet",
        ((20, 61.3), (31.5, 65.8), (44.5, 68.7), (58, 70.5), (73, 71.75), (89.5, 72.85)),
        RANET,
    ),
    Reading(
        "cifar100",
        "DenseNet*",
        ((13, 63.2), (24, 68.7), (37, 70.6), (53, 72.4), (72, 72.9)),
        RANET,
    ),
    Reading("cifar100", "WideResNet-40", ((84, 69.1),), RANET),
    Reading(
        "imagenet",
        MSDNET,
        ((750, 69.2), (1000, 71.3), (1500, 73.5), (2000, 74.1), (2500, 74.3)),
        RANET,
        0.5,
        adaptive=True,
    ),
    Reading(
        "imagenet",
        MSDNET,
        ((500, 64.2), (750, 70.2), (1000, 72.0), (1500, 74.1), (2000, 75.2), (2500, 75.4)),
        BOOSTNET_IMAGENET,
        adaptive=True,
    ),
    Reading(
        "imagenet",
        MSDNET,
        ((1000, 71.7), (1250, 72.95), (1500, 73.7), (2000, 74.4), (2500, 74.65)),
        DYNAMIC_PERCEIVER,
        0.1,
        adaptive=True,
    ),
    Reading(
        "imagenet",
        OURS,
        ((1000, 71.9), (1250, 73.4), (1500, 74.3), (2000, 74.9)),
        DYNAMIC_PERCEIVER,
        0.1,
        adaptive=True,
    ),
    Reading(
        "imagenet", "ResNet", ((1820, 69.5), (2740, 71.4), (3660, 73.2), (4100, 74.9)), UNNAMED
    ),
    Reading("imagenet", "DenseNet", ((1640, 71.0), (2530, 73.15), (2850, 74.55)), UNNAMED),
    Reading("imagenet", "GoogLeNet", ((1570, 68.7),), UNNAMED),
)

BUDGET_FIGURES = {"cifar10": 2, "cifar100": 3, "imagenet": 5}
BUDGET_CLAIMS = {
    "cifar10": "Sec. 4.1: more than 0.5 points over MSDNet at 1e8 operations.",
    "cifar100": "Sec. 4.1: more than 0.5 points over MSDNet at 1e8 operations, the accuracy of "
    "DenseNet with half and of ResNet with a third of their operations.",
    "imagenet": "Sec. 4.2: about 0.5 points over MSDNet and more than 6% over ResNet and DenseNet "
    "at a budget printed as 1e8 operations (the smallest exit costs 3e8, so probably 1e9).",
}


def paper_ablation(dataset: str) -> AblationTable:
    """The table to compare an ablation with: Table 3 for ImageNet, Table 2 otherwise."""
    return ABLATIONS[1] if dataset == "imagenet" else ABLATIONS[0]


def readings_of(dataset: str) -> list[Reading]:
    """The readings of a dataset; none for datasets that the paper does not use."""
    return [reading for reading in READINGS if reading.dataset == dataset]


def known_dataset(name: str | None) -> str | None:
    """Key of the paper's dataset with this name ("imagenet2012" is "imagenet"), or None.

    A reduced version ("cifar10_small") counts as another dataset: accuracies are not comparable.
    """
    normalized = (
        (name or "").lower().replace("-", "").replace("_", "").replace("ilsvrc", "imagenet")
    )
    normalized = normalized.removesuffix("2012")
    return normalized if normalized in DATASET_NAMES else None


def dataset_title(name: str | None) -> str:
    """A dataset's usual spelling, for example "CIFAR-100"; other names are unchanged."""
    known = known_dataset(name)
    return DATASET_NAMES[known] if known else (name or "an unknown dataset")
