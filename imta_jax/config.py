"""The settings of a run, as frozen and checked dataclasses.

A `ConfigDict` (see `configs/common.py`) is parsed once, by `RunConfig.from_mapping`. Code below
that point receives these dataclasses, never a mapping. Checks of single fields happen here, checks
that need a dataset, devices or several sections where those are known.
"""

import dataclasses
from typing import ClassVar, Literal

from imta_jax import options
from imta_jax.errors import InputError
from imta_jax.runtime.config_fields import Section, number

Checkpoint = Literal["last", "best"]
PHASES = ("phase_one", "phase_two")
MAX_SEED = 2**31 - 1  # Batches have the seed 2 * seed + 1, a number of 32 bits.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """`config.data`: the source, its splits, preprocessing and the input pipeline.

    Attributes:
      source: Name of a packaged or TFDS dataset, or path of an `.npz` file, of an image folder
        `ROOT/SPLIT/CLASS/*.jpg` or of a folder that TFDS prepared.
      validation_examples: Training images to hold out for validation where no split exists.
      data_dir: Folder or `gs://` path of prepared TFDS datasets; "" selects the TFDS default.
      manual_dir: Folder with archives that TFDS cannot download; "" selects the TFDS default.
      download: Whether TFDS may download and prepare missing datasets.
      train_split: Split of the source to train on.
      validation_split: Name of a split, "carve" to hold out training images, or "auto".
      test_split: Name of a split, "carve" to hold out training images, or "auto".
      test_examples: Training images to hold out for testing; 0 requires a test split.
      validation_seed: Seed of the choice of held-out images.
      max_undecodable: Fraction of a split's images that may be skipped because they do not decode.
      index_dir: Folder of the indexes of encoded images; "" disables storing them.
      preprocessing: "padded_crop" for small images of one size, "random_area_crop" for image files.
      crop_padding: padded_crop: pixels of zero padding on every side before the random crop.
      image_size: random_area_crop: pixels per side of the network's input.
      resize: random_area_crop: pixels of the shorter side before the central evaluation crop.
      min_area: random_area_crop: smallest fraction of the image's area in a training crop.
      flip: Whether training images are mirrored horizontally with probability 1/2.
      exif_orientation: Whether that of image files is ignored ("ignore") or applied ("apply").
      pipeline: Producer of the batches: "device", "tf_data", "numpy" or "auto".
      device_memory_share: Fraction of device memory that on-device images may use under "auto".
      steps_per_dispatch: Training steps per dispatch for on-device data; 0 chooses automatically.
      memory_limit_gb: Memory limit of tf.data's buffers on this host, in 10^9 bytes.
      service: Address of a tf.data service, "grpc://HOST:PORT"; "" decodes on this host.
    """

    section: ClassVar[str] = "config.data"

    source: str
    validation_examples: int = number(at_least=0)
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
    pipeline: Literal["auto", "device", "tf_data", "numpy"] = "auto"
    device_memory_share: float = number(0.25, at_least=0, at_most=1)
    steps_per_dispatch: int = number(0, at_least=0)
    memory_limit_gb: float = number(4.0, above=0)
    service: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source.strip():
            raise InputError(f"config.data.source must be a name or a path; found {self.source!r}")
        if self.service and "://" not in self.service:
            raise InputError(
                f'config.data.service must be like "grpc://HOST:5000"; found {self.service!r}'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """`config.model`: a named network, or the fields of a backbone; `imta_jax.models` checks them.

    A field that is None takes the preset's value. Each backbone rejects fields of other backbones.

    Attributes:
      preset: Name in `imta_jax.models.NETWORK_PRESETS`; "" uses the fields alone.
      backbone: "msdnet", "resnet", "densenet", "googlenet" or "hydranet".
      initialization: "he_normal" (paper) or "pytorch" (uniform, published code).
      stem: "cifar" (3x3 convolution) or "imagenet" (7x7 convolution with stride 2, max-pool).
      num_exits: MSDNet: number of exits.
      base: MSDNet: layers before the first exit.
      step: MSDNet: layers between exits ("even"), or their growth per exit ("lin_grow").
      step_mode: MSDNet: "even" or "lin_grow".
      channels: Channels of the stem (MSDNet: at the finest scale).
      growth_rate: Channels that a layer adds (MSDNet: at the finest scale).
      growth_factors: MSDNet: multiplier of channels and growth per scale, finest first.
      bottleneck_factors: MSDNet: bottleneck width over branch outputs, per scale that is read.
      prune: MSDNet: "max" drops a scale every ceil(L / S) layers, "min" as late as possible.
      reduction: MSDNet, DenseNet: fraction of channels that a transition keeps.
      depths: ResNet, DenseNet: blocks per resolution.
      bottleneck: ResNet, DenseNet: whether blocks have 1x1 convolutions.
      exits: ResNet, DenseNet: blocks, from 1, that an exit follows, in addition to the last block.
      branches: HydraNet: stored branches.
      active_branches: HydraNet: branches that run for an image.
      gate_weight: HydraNet: weight of the gate's loss in phase I.
      class_clusters: HydraNet: branch, from 0, of each class; () assigns runs of classes.
    """

    section: ClassVar[str] = "config.model"

    preset: str = ""
    backbone: str | None = None
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
    """The phase-II heads: what `imta_jax.models.with_collaborative_heads` builds.

    Attributes:
      transfer: What an exit passes to the next: "none", "identity" (its logits are added) or
        "linear" (a learned transform of its logits).
      stop_gradient: Whether the gradient along that path is stopped.
      start: Start of the linear layers: "phase_one" (phase I's layers) or "fresh".
      initialization: "he_normal" or "pytorch", for new parameters.
    """

    section: ClassVar[str] = "heads_config"

    transfer: options.Transfer = "identity"
    stop_gradient: bool = True
    start: Literal["phase_one", "fresh"] = "phase_one"
    initialization: Literal["he_normal", "pytorch"] = "he_normal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig(Section):
    """What both phases have: length, batches and stochastic gradient descent (paper Sec. 4).

    Attributes:
      total_epochs: Passes over the training images; 0 skips phase II.
      batch_size: Images per step, over all devices.
      accumulate_parts: Parts of a batch that are computed one after the other to save memory.
      compute_dtype: Type of the backbone's feature maps; parameters and heads stay float32.
      learning_rate: Initial learning rate.
      learning_rate_drops: Fractions of the phase after which it is multiplied by `drop_factor`.
      drop_factor: Multiplier of the learning rate at each drop.
      momentum: Momentum of stochastic gradient descent.
      nesterov: Whether the momentum is Nesterov's.
      weight_decay: L2 coefficient, added to the gradient of every parameter.
    """

    total_epochs: int = number(at_least=0)
    batch_size: int = number(at_least=1)
    accumulate_parts: int = number(1, at_least=1)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    learning_rate: float = number(0.1, above=0)
    learning_rate_drops: tuple[float, ...] = number((0.5, 0.75), at_least=0, at_most=1)
    drop_factor: float = number(0.1, above=0, at_most=1)
    momentum: float = number(0.9, at_least=0, below=1)
    nesterov: bool = True
    weight_decay: float = number(1e-4, at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseOneConfig(PhaseConfig):
    """`config.phase_one`: all parameters train. Other fields: see `PhaseConfig`.

    Attributes:
      equilibrium: Feature maps that gradient equilibrium rescales: "off", "coarsest" (published
        code) or "all" (Eq. 5 holds exactly).
      exit_losses: "sum" of the exits' losses (Eq. 1) or their "mean" (Sec. 3.1).
      rematerialize: Whether the backward pass recomputes each stage instead of storing its maps.
    """

    section: ClassVar[str] = "config.phase_one"

    total_epochs: int = number(at_least=1)
    equilibrium: options.EquilibriumMode = "all"
    exit_losses: options.ExitLosses = "sum"
    rematerialize: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseTwoConfig(PhaseConfig):
    """`config.phase_two`: only the heads train. Other fields: see `PhaseConfig`, `HeadsConfig`.

    Attributes:
      from_checkpoint: Phase-I checkpoint to start from: "last", or "best" on validation images.
      transfer, stop_gradient, start: See `HeadsConfig`.
      teacher: "own_last_exit" (Eq. 8) or "phase_one_last_exit" (published code).
      alpha: Weight of the cross-entropy; the divergence has 1 - alpha (Eq. 7).
      temperature: Temperature of both softmaxes in the divergence.
      temperature_squared: Whether the divergence is multiplied by the squared temperature.
      reduction: Divergence summed over classes ("batch") or averaged over them ("elements").
      last_exit: Loss of the last exit: "mixed" (Eq. 7) or "cross_entropy".
      backbone_statistics: Batch statistics of the backbone: "frozen" or "moving".
    """

    section: ClassVar[str] = "config.phase_two"

    from_checkpoint: Checkpoint = "last"
    transfer: options.Transfer = "linear"
    stop_gradient: bool = True
    start: Literal["phase_one", "fresh"] = "phase_one"
    teacher: options.Teacher = "own_last_exit"
    alpha: float = number(0.1, at_least=0, at_most=1)
    temperature: float = number(4.0, above=0)
    temperature_squared: bool = True
    reduction: options.Reduction = "batch"
    last_exit: options.LastExitLoss = "mixed"
    backbone_statistics: options.BackboneStatistics = "frozen"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """`config.evaluation`: batches, checkpoint, budgets and figures.

    Attributes:
      batch_size: Images per evaluation step, over all devices.
      checkpoint: Checkpoint to evaluate: "last", or "best" on validation images.
      quotas: Values q of the budget sweep; the fraction of images at exit k is proportional to q^k.
      reported_budgets: Budgets reported per image, as fractions of the last exit's multiply-adds.
      calibration_bins: Bins of the expected calibration error.
      gallery_images: Images per side of the report's gallery.
    """

    section: ClassVar[str] = "config.evaluation"

    batch_size: int = number(at_least=1)
    checkpoint: Checkpoint = "last"
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

    Attributes:
      parameter_shards: Devices that share one copy of parameters and optimizer state.
    """

    section: ClassVar[str] = "config.mesh"

    parameter_shards: int = number(1, at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """`config.checkpoint`: when checkpoints are saved, and what happens when saving fails.

    Attributes:
      every_steps: Steps between checkpoints within an epoch; 0 saves at the end of epochs only.
      on_write_error: "stop", or "continue" with a logged error.
    """

    section: ClassVar[str] = "config.checkpoint"

    every_steps: int = number(1000, at_least=0)
    on_write_error: Literal["stop", "continue"] = "stop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """`config.log`: what a run prints and records while it trains.

    Attributes:
      check_every_steps: Steps between checks on the host that the losses are finite.
      line_every_seconds: Seconds between log lines; 0 prints none.
      profile_steps: Steps (A, B) of each phase to trace with the profiler; (0, 0) traces none.
    """

    section: ClassVar[str] = "config.log"

    check_every_steps: int = number(50, at_least=1)
    line_every_seconds: float = number(60.0, at_least=0)
    profile_steps: tuple[int, int] = number((0, 0), at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        first, last = self.profile_steps
        if first > last:
            raise InputError(
                f"config.log.profile_steps must be (A, B) with A <= B; found {self.profile_steps}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """All settings of a run.

    Attributes:
      seed: Seed of initialization, order of the images and augmentation.
    """

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
            stop_gradient=self.phase_two.stop_gradient,
            start=self.phase_two.start,
            initialization=self.model.initialization,
        )
