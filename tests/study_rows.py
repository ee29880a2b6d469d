"""Values read from the synthetic studies of `study_samples` and from their figures."""

import numpy as np


def variant_of(study, name):
    return next(variant for variant in study.variants if variant.name == name)


def accuracies(study, name, key="top1"):
    """[seeds, exits], read directly from the rows of `study.json`."""
    rows = [r for r in study["rows"] if r["arm"] == name and r["status"] == "done"]
    return np.array([[exit_[key] for exit_ in row["exits"]] for row in rows])


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]
