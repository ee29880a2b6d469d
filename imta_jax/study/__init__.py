"""Studies: arms x seeds trained and judged by one command, for the paper's tables and figures."""

from imta_jax.study.arms import Arm, is_study, study_arms
from imta_jax.study.runner import run_study

__all__ = ["Arm", "is_study", "run_study", "study_arms"]
