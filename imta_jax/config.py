"""The settings of a run, as frozen and checked dataclasses.

A `ConfigDict` is parsed once, by `RunConfig.from_mapping`. Code below that point receives these
dataclasses, never a mapping. Single fields are checked here. Checks that need a dataset, devices or
several sections are made where those are known.

The comments in `configs/common.py` and `configs/phases.py` describe every field.
docs/reference/config.md shows them as tables, with the types and ranges declared here.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from imta_jax import options
from imta_jax.errors import InputError
from imta_jax.runtime.config_fields import Section, check_expression, component, number
from imta_jax.runtime.registry import EXIT_RULES, HEADS, OBJECTIVES, OPTIMIZERS, SCHEDULES

Checkpoint = Literal["last", "best"]
PHASES = ("phase_one", "phase_two")
# The value of `validation_split` and `test_split` that holds out training images, and its name in
# the config.json of earlier runs.
HOLD_OUT, EARLIER_HOLD_OUT = "hold_out", "carve"
MAX_SEED = 2**31 - 1  # Batches have the seed 2 * seed + 1, a number of 32 bits.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """`config.data`: the source, its splits, preprocessing and the input pipeline.

    Fields: `data` in `configs/common.py`, docs/reference/config.md#data.
    """

    section: ClassVar[str] = "config.data"

    source: str
    validation_examples: int = number(at_least=0)
    source_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    data_dir: str = ""
    manual_dir: str = ""
    download: bool = True
    train_split: str = "train"
    validation_split: str = "auto"
    test_split: str = "auto"
    test_examples: int = number(0, at_least=0)
    validation_seed: int = number(0, at_least=0, at_most=MAX_SEED)
    max_undecodable: float = number(0.01, at_least=0, at_most=1)
    index_dir: str = "~/.cache/imta_jax/index"
    preprocessing: Literal["padded_crop", "random_area_crop"] = "padded_crop"
    crop_padding: int = number(4, at_least=0)
    image_size: int = number(224, at_least=1)
    resize: int = number(256, at_least=1)
    min_area: float = number(0.08, above=0, at_most=1)
    flip: bool = True
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    pipeline: Literal["auto", "device", "tf_data", "pillow", "numpy"] = "auto"
    device_memory_share: float = number(0.25, at_least=0, at_most=1)
    steps_per_dispatch: int = number(0, at_least=0)
    memory_limit_gb: float = number(4.0, above=0)
    service: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validation_split", "test_split"):
            if getattr(self, name) == EARLIER_HOLD_OUT:
                object.__setattr__(self, name, HOLD_OUT)
        if not self.source.strip():
            raise InputError(f"config.data.source must be a name or a path; found {self.source!r}")
        if self.service and "://" not in self.service:
            raise InputError(
                f'config.data.service must be like "grpc://HOST:5000"; found {self.service!r}'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """`config.model`: a network preset, or the fields of a backbone, which the backbone checks.

    A field that is None takes the preset's value. Each backbone rejects fields of other backbones.
    Fields: `network` in `configs/common.py`, docs/reference/config.md#model.
    """

    section: ClassVar[str] = "config.model"

    preset: str = ""
    backbone: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    heads: str = component("independent", HEADS)
    heads_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    initialization: Literal["he_normal", "pytorch"] = "he_normal"
    stem: str | None = None
    num_exits: int | None = None
    base: int | None = None
    step: int | None = None
    step_mode: str | None = None
    channels: int | None = None
    growth_rate: int | None = None
    growth_factors: tuple[int, ...] | None = None
    bottleneck_factors: tuple[int, ...] | None = None
    prune: str | None = None
    reduction: float | None = None
    depths: tuple[int, ...] | None = None
    bottleneck: bool | None = None
    exits: tuple[int, ...] | None = None
    branches: int | None = None
    active_branches: int | None = None
    gate_weight: float | None = None
    class_clusters: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig(Section):
    """Heads of phase II, the argument of `imta_jax.models.with_collaborative_heads`.

    Fields: as in `phase_two` in `configs/phases.py`, where `options` is `transfer_options`, and in
    `network` for `initialization`.
    """

    section: ClassVar[str] = "heads_config"

    # A run sets `transfer` explicitly, by default to "linear". Callers of the public function get
    # "identity", which adds no parameters.
    transfer: str = component("identity", HEADS)
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    stop_gradient: bool = True
    start: Literal["phase_one", "fresh"] = "phase_one"
    initialization: Literal["he_normal", "pytorch"] = "he_normal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig(Section):
    """Settings of both phases: length, batches, optimizer and learning rate (paper Sec. 4).

    Fields: `_phase` in `configs/phases.py`, docs/reference/config.md#phase_one.
    """

    total_epochs: int = number(at_least=0)
    batch_size: int = number(at_least=1)
    accumulate_parts: int = number(1, at_least=1)
    batch_statistics: options.BatchStatistics = "global"
    statistics_group_size: int = number(0, at_least=0)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: options.MatmulPrecision = "default"
    label_smoothing: float = number(0.0, at_least=0, below=1)
    randaugment_operations: int = number(0, at_least=0)
    randaugment_magnitude: float = number(9.0, at_least=0, at_most=30)
    random_erasing: float = number(0.0, at_least=0, at_most=1)
    mixup_alpha: float = number(0.0, at_least=0)
    cutmix_alpha: float = number(0.0, at_least=0)
    learning_rate: float = number(0.1, above=0)
    learning_rate_drops: tuple[float, ...] = number((0.5, 0.75), at_least=0, at_most=1)
    drop_factor: float = number(0.1, above=0, at_most=1)
    momentum: float = number(0.9, at_least=0, below=1)
    nesterov: bool = True
    weight_decay: float = number(1e-4, at_least=0)
    optimizer: str = component("sgd", OPTIMIZERS)
    optimizer_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    schedule: str = component("steps", SCHEDULES)
    schedule_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    warmup_epochs: float = number(0.0, at_least=0)
    gradient_clip_norm: float = number(0.0, at_least=0)
    ema_decay: float = number(0.0, at_least=0, below=1)
    early_stopping_epochs: int = number(0, at_least=0)
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_epochs and self.warmup_epochs >= self.total_epochs:
            raise InputError(
                f"{self.section}.warmup_epochs must be below {self.section}.total_epochs, "
                f"{self.total_epochs}; found {self.warmup_epochs:g}"
            )
        field = f"{self.section}.learning_rate_multipliers"
        for expression, multiplier in self.learning_rate_multipliers:
            check_expression(expression, field)
            if not multiplier > 0:
                raise InputError(
                    f"{field} of {expression!r} must be above 0; found {multiplier:g}: use "
                    f"{self.section}.freeze for parameters that are not trained"
                )
        for expression in self.freeze:
            check_expression(expression, f"{self.section}.freeze")

    @property
    def mixes_labels(self) -> bool:
        """Whether labels are probabilities of classes, after mixup or cutmix."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseOneConfig(PhaseConfig):
    """`config.phase_one`: all parameters are trained.

    Fields: `phase_one` in `configs/phases.py`, docs/reference/config.md#phase_one.
    """

    section: ClassVar[str] = "config.phase_one"

    total_epochs: int = number(at_least=1)
    objective: str = component("cross_entropy", OBJECTIVES)
    objective_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    equilibrium: options.EquilibriumMode = "all"
    exit_losses: options.ExitLosses = "sum"
    detach: options.DetachedMaps = "off"
    detach_fraction: float = number(0.5, above=0, below=1)
    detach_exit: bool = False
    last_exit_epochs: int = number(0, at_least=0)
    sample_weights: options.SampleWeights = "uniform"
    rematerialize: bool = False
    rematerialize_layers: bool = False
    init_from: str = ""
    init_from_map: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_exit_epochs >= self.total_epochs:
            raise InputError(
                "config.phase_one.last_exit_epochs must be below config.phase_one.total_epochs, "
                f"{self.total_epochs}; found {self.last_exit_epochs}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseTwoConfig(PhaseConfig):
    """`config.phase_two`: only the heads are trained.

    Fields: `phase_two` in `configs/phases.py`, docs/reference/config.md#phase_two.
    """

    section: ClassVar[str] = "config.phase_two"

    from_checkpoint: Checkpoint = "last"
    transfer: str = component("linear", HEADS)
    transfer_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    stop_gradient: bool = True
    start: Literal["phase_one", "fresh"] = "phase_one"
    objective: str = component("one_for_all", OBJECTIVES)
    objective_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    teacher: options.Teacher = "own_last_exit"
    alpha: float = number(0.3, at_least=0, at_most=1)
    temperature: float = number(4.0, above=0)
    temperature_squared: bool = False
    reduction: options.Reduction = "batch"
    last_exit: options.LastExitLoss = "mixed"
    backbone_statistics: options.BackboneStatistics = "frozen"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """`config.evaluation`: checkpoint, batches, budgets and figures of the evaluation.

    Fields: `evaluation` in `configs/common.py`, docs/reference/config.md#evaluation.
    """

    section: ClassVar[str] = "config.evaluation"

    batch_size: int = number(at_least=1)
    checkpoint: Checkpoint = "last"
    matmul_precision: options.MatmulPrecision = "default"
    exit_rule: str = component("confidence", EXIT_RULES)
    exit_rule_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    quotas: tuple[float, ...] = number(tuple(p / 20 for p in range(1, 41)), above=0)
    reported_budgets: tuple[float, ...] = number((0.3, 0.5, 0.7), above=0, at_most=1)
    calibration_bins: int = number(15, at_least=1)
    gallery_images: int = number(12, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.quotas:
            raise InputError("config.evaluation.quotas must not be empty; found ()")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """`config.mesh`: how arrays are sharded over devices.

    Fields: `assemble` in `configs/common.py`, docs/reference/config.md#mesh.
    """

    section: ClassVar[str] = "config.mesh"

    parameter_shards: int = number(1, at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """`config.checkpoint`: when checkpoints are saved, and what happens when saving fails.

    Fields: `assemble` in `configs/common.py`, docs/reference/config.md#checkpoint.
    """

    section: ClassVar[str] = "config.checkpoint"

    every_steps: int = number(1000, at_least=0)
    on_write_error: Literal["stop", "continue"] = "stop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """`config.log`: what a run prints and records while it trains.

    Fields: `assemble` in `configs/common.py`, docs/reference/config.md#log.
    """

    section: ClassVar[str] = "config.log"

    check_every_steps: int = number(50, at_least=1)
    line_every_seconds: float = number(60.0, at_least=0)
    profile_steps: tuple[int, int] = number((0, 0), at_least=0)
    writers: tuple[str, ...] = ("tensorboard",)
    writer_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        first, last = self.profile_steps
        if first > last:
            raise InputError(
                f"config.log.profile_steps must be (A, B) with A <= B; found {self.profile_steps}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """All settings of a run: `seed` and one dataclass per section of the config."""

    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    data: DataConfig
    model: ModelConfig
    phase_one: PhaseOneConfig
    phase_two: PhaseTwoConfig
    evaluation: EvaluationConfig
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def heads(self) -> HeadsConfig:
        """The phase-II heads, from `phase_two` and `model.initialization`."""
        return HeadsConfig(
            transfer=self.phase_two.transfer,
            options=self.phase_two.transfer_options,
            stop_gradient=self.phase_two.stop_gradient,
            start=self.phase_two.start,
            initialization=self.model.initialization,
        )
