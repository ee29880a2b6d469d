"""Adaptive inference: each image leaves at the first exit that is confident enough.

`AdaptiveClassifier` classifies batches; `stream.AdaptiveStream` classifies images as they arrive.
Both use the same engine.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, Int64

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
from imta_jax.inference.arguments import (
    check_operating_point,
    resolve_batch_sizes,
    resolve_num_workers,
    workers_for,
)
from imta_jax.inference.engine.background import BackgroundWarmUp
from imta_jax.inference.engine.batch import BatchRun
from imta_jax.inference.engine.engine import Engine
from imta_jax.inference.engine.planning import Plan, PlanTable, reach_fractions
from imta_jax.inference.engine.profile import StageProfile, estimated_profile
from imta_jax.inference.engine.profiling import cached_profile, load_or_measure_profile
from imta_jax.inference.engine.programs import COMPILER_OPTIONS, Programs
from imta_jax.inference.engine.staged import StagedNetwork, with_exit_rule
from imta_jax.runtime.parallel_compilation import cache_every_program
from imta_jax.types import PerChannel

if TYPE_CHECKING:
    from imta_jax.models import MultiExitClassifier
    from imta_jax.techniques.exit_rules import ExitRule


class AdaptivePredictions(NamedTuple):
    """Predictions of adaptive inference, per image.

    Attributes:
      labels: predicted class.
      exit: index from 0 of the exit that predicted it.
      confidence: highest softmax probability at that exit.
      macs: multiply-adds up to that exit.
    """

    labels: Int32[np.ndarray, " N"]
    exit: Int32[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]
    macs: Int64[np.ndarray, " N"]


class AdaptiveClassifier:
    """Runs a multi-exit network with early exit on one device.

    Programs are compiled at first use. `warm_up` compiles all of them and measures the time of each
    stage, so that exits at which stopping saves no time are skipped. A profile that was measured on
    this device before is loaded automatically.

    Args:
      network: a trained classifier, phase I or II (its weights are copied), or a `StagedNetwork`.
        `mean`, `std`, `dtype` and `transform` apply to a trained classifier only.
      thresholds: [E]. An image leaves at the first exit whose score, by default its confidence
        (highest softmax probability), is at least the threshold. The last exit accepts all images.
      mean: per channel, of pixels scaled to 0..1. With `mean` and `std`, `predict` takes uint8
        images.
      std: standard deviation per channel.
      max_batch_size: larger batches are split.
      batch_sizes: batch sizes to compile programs for. By default, powers of two, 12 and
        24 up to `max_batch_size / num_workers`; a profile then leaves out those that save little.
      num_workers: number of threads that run programs. Each computes a part of the batch. By
        default 2 on a CPU with several cores, which one program does not keep busy, else 1.
      exit_fractions: [E], fraction of the images that are expected to leave at each exit
        (`results.json` has them). They decide at which exits stopping saves time.
      dtype: dtype of the backbone's computation, "float32" or "bfloat16".
      profile_dir: folder of measured profiles; default ~/.cache/imta_jax/profiles.
      transform: how evaluation makes the network's input from an image
        (`Dataset.evaluation_transform`). It has `mean` and `std`, and `predict` pads images of the
        size before padding as training did.
      exit_rule: rule that scores images: a name ("confidence", "entropy", "margin", "patience"), a
        dotted path, a function, or a `techniques.ExitRule`. The default is the rule of a
        `StagedNetwork`, otherwise the confidence.

    Raises:
      ValueError: thresholds or fractions that do not fit the network, a size out of range, an
        unknown `dtype`, or a transform to another image shape.
    """

    def __init__(
        self,
        network: "MultiExitClassifier | StagedNetwork",
        thresholds: Sequence[float] | np.ndarray,
        *,
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        max_batch_size: int = 256,
        batch_sizes: Sequence[int] | None = None,
        num_workers: int | None = None,
        exit_fractions: Sequence[float] | np.ndarray | None = None,
        dtype: Any = "float32",
        profile_dir: str | Path | None = None,
        transform: EvaluationTransform | None = None,
        exit_rule: "str | Callable[..., Any] | ExitRule | None" = None,
    ):
        self._operating_point = check_operating_point(thresholds, exit_fractions, network.num_exits)
        self.num_workers = resolve_num_workers(num_workers, max_batch_size)
        self._capacity = -(-max_batch_size // self.num_workers)  # images of one worker
        self._sizes = resolve_batch_sizes(self._capacity, batch_sizes)
        if not isinstance(network, StagedNetwork):
            # Imported here because an exported network runs without Flax and the model code.
            from imta_jax.inference.engine.classifier_stages import staged_classifier

            network = staged_classifier(
                network, mean=mean, std=std, dtype=dtype, transform=transform
            )
        if exit_rule is not None:
            network = with_exit_rule(network, exit_rule)
        self.network, self.max_batch_size = network, max_batch_size
        self.macs = network.macs
        self.programs = Programs(network)
        self._profile_dir = profile_dir
        self._executor = ThreadPoolExecutor(self.num_workers, "imta_jax worker")
        self._all_logits = jax.jit(network.logits, compiler_options=COMPILER_OPTIONS)
        estimated = estimated_profile(network, self._sizes)
        self.profile, self._profile_alone = (
            cached_profile(self.programs, self._sizes, count, profile_dir) or estimated
            for count in (self.num_workers, 1)
        )
        self._background: BackgroundWarmUp | None = None
        self._make_plans()

    @classmethod
    def from_run(
        cls, workdir: str | Path, budget: float = 0.5, **options: Any
    ) -> "AdaptiveClassifier":
        """Loads the network that a finished run evaluated, with thresholds for a budget.

        Args:
          workdir: folder of a run that was trained and evaluated.
          budget: mean multiply-adds per image, as a fraction of the full network's. The most
            accurate thresholds that do not exceed it on validation images are used.
          **options: further arguments of `AdaptiveClassifier`.

        Raises:
          FileNotFoundError: the run is not finished.
          ValueError: no thresholds fit the budget, or the results are of another network.
        """
        from imta_jax.inference.finished_run import load_finished_run

        run = load_finished_run(workdir)
        point = run.point_for(budget)
        defaults = {
            "transform": run.transform,
            "exit_fractions": point.validation_exit_fractions,
            "exit_rule": run.exit_rule,
        }
        return cls(run.classifier, point.thresholds, **defaults | options)

    @classmethod
    def from_export(
        cls,
        folder: str | Path,
        budget: float = 0.5,
        *,
        check_golden: bool = True,
        trust_compiled: bool = False,
        **options: Any,
    ) -> "AdaptiveClassifier":
        """Loads an exported network, with thresholds for a budget.

        Args:
          folder: written by `export_run` or `export_classifier`.
          budget: mean multiply-adds per image, as a fraction of the full network's. The most
            accurate thresholds that do not exceed it on validation images are used.
          check_golden: see `load_exported`.
          trust_compiled: see `load_exported`.
          **options: further arguments of `AdaptiveClassifier`.

        Raises:
          FileNotFoundError: the folder does not exist.
          ValueError: the folder is not a valid export, or no thresholds fit the budget.
        """
        from imta_jax.inference.export.loader import load_exported

        exported = load_exported(folder, check_golden=check_golden, trust_compiled=trust_compiled)
        return exported.adaptive(budget, **options)

    def with_thresholds(
        self,
        thresholds: Sequence[float] | np.ndarray,
        *,
        exit_fractions: Sequence[float] | np.ndarray | None = None,
    ) -> "AdaptiveClassifier":
        """Returns a classifier with other thresholds, for another budget.

        Weights, compiled programs and the profile are shared. Programs that only the new classifier
        needs are compiled at first use, or by `warm_up`.
        """
        classifier = copy.copy(self)
        classifier._background = None
        classifier._operating_point = check_operating_point(
            thresholds, exit_fractions, self.network.num_exits
        )
        classifier._make_plans()
        return classifier

    def measure(self, *, is_stopped: Callable[[], bool] = lambda: False) -> StageProfile:
        """Measures the time of each stage on this device, or loads an earlier measurement.

        Args:
          is_stopped: called often; `MeasurementStoppedError` is raised when it returns True.

        Returns:
          The profile, which is used from now on.
        """
        self.profile, self._profile_alone = (
            load_or_measure_profile(
                self.programs, self._sizes, num_workers, self._profile_dir, is_stopped=is_stopped
            )
            for num_workers in (self.num_workers, 1)
        )
        self._make_plans()
        return self.profile

    def warm_up(self, *, wait: bool = True) -> StageProfile:
        """Calls `measure` and compiles every program that `predict` can need.

        If the network takes uint8 images, the programs for normalized floats are not compiled here.

        Args:
          wait: if False, this happens in the background. Until it ends, `predict` runs the full
            network, as soon as that is compiled: its predictions are those of early exit.

        Returns:
          The profile that is used now; estimated if it is not yet measured.
        """
        if wait:
            self._warm_up()
        elif self._background is None or not self._background.is_alive():
            self._background = BackgroundWarmUp(
                self.engine, self._sizes, self._capacity, self._warm_up
            )
            self._background.start()
        return self.profile

    def _warm_up(self) -> None:
        self.measure()
        for table in (self._table, self._table_alone):
            sizes = table.planned_sizes()
            self.engine.compile(
                (segment, n) for segment, batch in sizes.items() for n in batch.used
            )
            for before, after in itertools.product(sizes, repeat=2):
                if before.last + 1 == after.first:
                    self.engine.compile_compaction(after.first, sizes[before], sizes[after])

    def predict(self, images: np.ndarray | jax.Array) -> AdaptivePredictions:
        """Classifies images, each at the first exit that is confident enough.

        Args:
          images: [N, H, W, C], normalized floats, or uint8 if the network has `mean` and `std`.
            Images of the size before padding are padded as in training if the network has a
            `transform`.

        Raises:
          ValueError: wrong shape or dtype, or a pixel that is not finite.
        """
        images = self.network.validate_images(images)
        limit = self.max_batch_size
        empty = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
        batches = [self._predict_batch(images[i : i + limit]) for i in range(0, len(images), limit)]
        labels, exits, confidence = map(np.concatenate, zip(empty, *batches, strict=True))
        return AdaptivePredictions(labels, exits, confidence, self.macs[exits])

    def logits(self, images: np.ndarray | jax.Array) -> Float32[np.ndarray, "E N K"]:
        """Computes the logits of all exits, in the dtype in which `predict` computes.

        Use them to choose thresholds, or to check `predict`.
        """
        images, limit = self.network.validate_images(images), self.max_batch_size
        starts = range(0, max(len(images), 1), limit)
        with cache_every_program():
            batches = [
                self._all_logits(self.network.weights, images[i : i + limit]) for i in starts
            ]
        return np.concatenate([np.asarray(batch) for batch in batches], axis=1)

    @property
    def plans(self) -> dict[int, Plan]:
        """The plan of one of `num_workers` workers, by batch size."""
        return self._table.plans

    def plan_for(self, count: int) -> Plan:
        """Returns the plan by which one of `num_workers` workers computes `count` images."""
        return self._table.plan_for(count)

    @property
    def profiles(self) -> tuple[StageProfile, StageProfile]:
        """The profiles in use: of `num_workers` workers, and of one."""
        return self.profile, self._profile_alone

    def _make_plans(self) -> None:
        """Makes a plan for each batch size from the profiles and the exit fractions."""
        self.thresholds, exit_fractions = self._operating_point
        self.engine = Engine(self.programs, self.thresholds)
        reach = reach_fractions(exit_fractions, self.engine.active_exits)
        self._table, self._table_alone = (  # replaced at once: `predict` may run meanwhile
            PlanTable(profile, reach, self._capacity)
            for profile in (self.profile, self._profile_alone)
        )

    def _predict_batch(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Labels, exits and confidences of at most `max_batch_size` images."""
        num_workers = workers_for(len(images), self.num_workers, self._capacity)
        if num_workers == 1:
            return self._predict_on_worker(self._table_alone, images)
        shards = np.array_split(images, num_workers)
        futures = [
            self._executor.submit(self._predict_on_worker, self._table, shard) for shard in shards
        ]
        predictions = [future.result() for future in futures]
        return [np.concatenate(column) for column in zip(*predictions, strict=True)]

    def _predict_on_worker(self, table: PlanTable, images: np.ndarray) -> Sequence[np.ndarray]:
        if self._background is not None and self._background.is_alive():
            segments, batch_sizes = self._background.full_network()
            return BatchRun(self.engine, images).predict(segments, batch_sizes)
        # Larger batches have longer vectors, but maps that do not stay in a cache.
        runs, size = [], table.fastest_size
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            run = BatchRun(self.engine, chunk)
            runs.append(run.predict(table.plan_for(len(chunk)).segments, table.batch_sizes))
        return [np.concatenate(column) for column in zip(*runs, strict=True)]
