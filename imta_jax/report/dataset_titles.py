"""Names of datasets as in publications, for titles of pages and figures."""

# Datasets whose names differ from those in publications.
_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_small": "Fashion-MNIST subset",
    "imagenet2012": "ImageNet",
    "mnist": "MNIST",
}


def dataset_title(name: str) -> str:
    """The name of a dataset for titles."""
    return _TITLES.get(name, name)
