"""The fields of every config with the paper's values, and the method presets.

A config file defines `get_config(preset)`. The preset `paper` (default) is the paper's method,
`published` is what the authors' PyTorch code does, and `baseline` is the same network without the
three techniques. The comments are the field reference of the documentation.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart \
        --config.phase_one.total_epochs=3
"""

import difflib

from ml_collections import ConfigDict, config_dict


def network(preset):
    """The `model` part: a network preset. A field that is set overrides the preset."""
    model = ConfigDict()
    # Network preset (`python -m imta_jax.models --help` lists them); "" for none: set all fields.
    model.preset = preset
    # "msdnet", "resnet", "densenet", "googlenet" or "hydranet"; each uses some of the fields below.
    # Or your own: a registered name, or "package.module:name", which uses `options` instead.
    model.backbone = config_dict.placeholder(str)
    # Options of your own backbone, with any names.
    model.options = ConfigDict()
    # Phase-I heads: "independent" (a linear layer per exit), "boosted" (each exit corrects the
    # previous one's logits), or your own.
    model.heads = "independent"
    # Options of the phase-I heads; "boosted" has the weight of the previous logits, 0.5.
    model.heads_options = ConfigDict()
    # First layers: "cifar" (3x3 convolution) or "imagenet" (7x7 with stride 2, max-pool).
    model.stem = config_dict.placeholder(str)
    # MSDNet: number of exits, including the last classifier.
    model.num_exits = config_dict.placeholder(int)
    # MSDNet: layers before the first exit.
    model.base = config_dict.placeholder(int)
    # MSDNet: layers between exits ("even"), or their growth per exit ("lin_grow").
    model.step = config_dict.placeholder(int)
    # MSDNet: spacing of the exits, "even" or "lin_grow".
    model.step_mode = config_dict.placeholder(str)
    # Channels of the stem (MSDNet: at the finest scale).
    model.channels = config_dict.placeholder(int)
    # Channels that a layer adds (MSDNet: at the finest scale).
    model.growth_rate = config_dict.placeholder(int)
    # MSDNet: multipliers of channels and growth, one per scale, finest first.
    model.growth_factors = config_dict.placeholder(tuple)
    # MSDNet: width of 1x1 convolutions as a multiple of branch outputs, one per input scale.
    model.bottleneck_factors = config_dict.placeholder(tuple)
    # MSDNet: "max" drops a scale every ceil(layers / scales) layers, "min" as late as possible.
    model.prune = config_dict.placeholder(str)
    # MSDNet, DenseNet: fraction of channels kept by a transition, 0 to 1; MSDNet: 0 for none.
    model.reduction = config_dict.placeholder(float)
    # ResNet: blocks per resolution, (3, 3, 3) for ResNet-20. DenseNet: layers per dense block.
    model.depths = config_dict.placeholder(tuple)
    # ResNet, DenseNet: whether blocks have 1x1 bottleneck convolutions.
    model.bottleneck = config_dict.placeholder(bool)
    # ResNet, DenseNet: indices from 1 of blocks followed by an exit, without the last; () for none.
    model.exits = config_dict.placeholder(tuple)
    # HydraNet: number of branches.
    model.branches = config_dict.placeholder(int)
    # HydraNet: number of branches computed per image.
    model.active_branches = config_dict.placeholder(int)
    # HydraNet: weight of the gate's loss in phase I, 0 or more.
    model.gate_weight = config_dict.placeholder(float)
    # HydraNet: branch index (from 0) of each class; () assigns consecutive classes to a branch.
    model.class_clusters = config_dict.placeholder(tuple)
    # Weight initialization: "he_normal" or "pytorch" (uniform).
    model.initialization = "he_normal"
    return model


def data(source, validation_examples):
    """The `data` part."""
    images = ConfigDict()
    # "fashion_mnist_small" (included), a TFDS name (cifar10, imagenet2012, ...), or the path of an
    # .npz file, of an image folder (ROOT/SPLIT/CLASS/*.jpg) or of a dataset that TFDS prepared.
    # Or your own: a registered name, or "package.module:name".
    images.source = source
    # Options of your own source, with any names.
    images.source_options = ConfigDict()
    # Folder or gs:// path of prepared TFDS datasets; "" for TFDS's default.
    images.data_dir = ""
    # Folder of archives that TFDS cannot download (ImageNet); "" for TFDS's default.
    images.manual_dir = ""
    # Whether TFDS may download and prepare missing datasets.
    images.download = True
    # Split of the source to train on.
    images.train_split = "train"
    # Validation split: a name, "hold_out" (training images), or "auto" (a split if any).
    images.validation_split = "auto"
    # Test split: a name, "hold_out" (training images), or "auto" ("test", else validation).
    images.test_split = "auto"
    # Training images held out for validation if there is no split; they choose thresholds.
    images.validation_examples = validation_examples
    # Training images held out for testing if there is no split; 0 requires a test split.
    images.test_examples = 0
    # Seed that selects the held-out images.
    images.validation_seed = 0
    # Fraction (0 to 1) of a split's images that may be left out because they do not decode.
    images.max_undecodable = 0.01
    # Folder that caches the index of encoded images; "" disables the cache.
    images.index_dir = "~/.cache/imta_jax/index"
    # "padded_crop" for small images of one size; "random_area_crop" resizes image files.
    images.preprocessing = "padded_crop"
    # padded_crop: pixels of zero padding per side before the random crop; 0 for no crop.
    images.crop_padding = 4
    # random_area_crop: pixels per side of the network's input.
    images.image_size = 224
    # random_area_crop: pixels of the shorter side before the central crop for evaluation.
    images.resize = 256
    # random_area_crop: smallest fraction of the image area in a training crop, above 0, at most 1.
    images.min_area = 0.08
    # Whether training images are flipped horizontally with probability 1/2.
    images.flip = True
    # EXIF orientation of image files: "ignore" (stored pixels) or "apply" (rotate and mirror them).
    images.exif_orientation = "ignore"
    # Input pipeline: "device" (images in device memory), "numpy" (arrays), "tf_data" or "pillow"
    # (image files), or "auto": the device if the images fit, else NumPy for arrays, and for image
    # files tf.data if TensorFlow is installed and Pillow otherwise. A run that resumes keeps its
    # decoder.
    images.pipeline = "auto"
    # Fraction (0 to 1) of device memory that "auto" may use for images.
    images.device_memory_share = 0.25
    # Training steps per dispatch for on-device data. 0 chooses automatically.
    images.steps_per_dispatch = 0
    # Memory limit of the buffers of "tf_data" and "pillow" on this host, in GB (10^9 bytes).
    images.memory_limit_gb = 4.0
    # Address of a tf.data service, "grpc://HOST:PORT"; "" decodes on this host.
    images.service = ""
    return images


def _optimization(total_epochs, batch_size, learning_rate_drops):
    phase = ConfigDict()
    # Epochs; 0 skips phase II.
    phase.total_epochs = total_epochs
    # Images per step, over all devices.
    phase.batch_size = batch_size
    # Gradient accumulation: number of parts of a batch that are computed in turn; 1 for none.
    phase.accumulate_parts = 1
    # Type of the feature maps, "float32" or "bfloat16" (accelerators only; slower on a CPU).
    # Parameters, statistics and heads are float32.
    phase.compute_dtype = "float32"
    # Label smoothing epsilon, 0 to below 1: the cross-entropy is against
    # (1 - epsilon) * label + epsilon / classes. A distillation term is not smoothed.
    phase.label_smoothing = 0.0
    # RandAugment: random operations per image, applied in turn; 0 for none.
    phase.randaugment_operations = 0
    # RandAugment: strength of the operations, 0 to 30.
    phase.randaugment_magnitude = 9.0
    # Probability (0 to 1) that a random rectangle of an image is replaced by noise.
    phase.random_erasing = 0.0
    # Mixup: images are mixed with weights from Beta(alpha, alpha); 0 for none. With cutmix too,
    # each image uses one of the two with probability 1/2.
    phase.mixup_alpha = 0.0
    # CutMix: a rectangle comes from another image, area from Beta(alpha, alpha); 0 for none.
    phase.cutmix_alpha = 0.0
    # Learning rate at the start of the schedule, after the warm-up.
    phase.learning_rate = 0.1
    # Learning-rate schedule: "steps" (the paper's), "cosine", "linear", or your own.
    phase.schedule = "steps"
    # Options of the schedule: "cosine" has alpha (last learning rate, as a fraction of the first)
    # and exponent, "linear" has end_value; all end at 0 by default.
    phase.schedule_options = ConfigDict()
    # steps: fractions (0 to 1) of the schedule after which the learning rate is multiplied by
    # drop_factor.
    phase.learning_rate_drops = learning_rate_drops
    # steps: multiplier of the learning rate at each drop, above 0, at most 1.
    phase.drop_factor = 0.1
    # Epochs, or a fraction of one, in which the learning rate rises linearly from 0. The schedule
    # spans the epochs after them. 0 for none.
    phase.warmup_epochs = 0.0
    # Optimizer: "sgd" (the paper's), "adamw", "lamb", a factory of Optax ("optax:lion"), or your
    # own.
    phase.optimizer = "sgd"
    # Options of the optimizer; "adamw" and "lamb" have b1, b2 and eps.
    phase.optimizer_options = ConfigDict()
    # sgd: momentum, 0 to 1.
    phase.momentum = 0.9
    # sgd: whether the momentum is Nesterov's.
    phase.nesterov = True
    # Coefficient of weight decay, applied to every trained parameter: L2 in "sgd", decoupled in
    # the others. Must be 0 for an optimizer that has none.
    phase.weight_decay = 1e-4
    # Global norm of the gradient above which it is scaled down to this norm; 0 for none.
    phase.gradient_clip_norm = 0.0
    # Decay, below 1, of the exponential moving average of parameters and batch statistics, which is
    # then validated, evaluated, exported and used by phase II; 0 for none.
    phase.ema_decay = 0.0
    # Epochs without a better validation accuracy (mean over exits) after which the phase ends; 0
    # for never. Set evaluation.checkpoint="best" to use the best epoch afterwards.
    phase.early_stopping_epochs = 0
    # Pairs (regular expression, multiplier of the learning rate). Of a parameter the first pair
    # counts whose expression is found in its name, as in checkpoints: (("^backbone", 0.1),).
    phase.learning_rate_multipliers = ()
    # Regular expressions of parameters that are not trained, found anywhere in their names, as in
    # checkpoints: ("^backbone.first", "norm"). Batch statistics whose names match are frozen too.
    phase.freeze = ()
    return phase


def phase_one(total_epochs, batch_size, learning_rate_drops=(0.5, 0.75)):
    """The `phase_one` part: all parameters are trained."""
    phase = _optimization(total_epochs, batch_size, learning_rate_drops)
    # Loss of logits and labels: "cross_entropy", or your own.
    phase.objective = "cross_entropy"
    # Options of the loss.
    phase.objective_options = ConfigDict()
    # Gradient equilibrium: "off", "coarsest" (coarsest map only) or "all" (all maps, Eq. 5 exact).
    phase.equilibrium = "all"
    # Total loss: "sum" (Eq. 1) or "mean" of the exits' losses (Sec. 3.1: too small gradients).
    phase.exit_losses = "sum"
    # Detached feature halves (DFS): maps of which later exits do not train the last channels:
    # "off", "coarsest" (authors' code) or "all". Gradients are scaled first if equilibrium is on.
    phase.detach = "off"
    # Fraction of the channels that later exits do not train, between 0 and 1.
    phase.detach_fraction = 0.5
    # Whether an exit trains these channels only (DFS paper) or all channels (authors' code).
    phase.detach_exit = False
    # Mixed regime: epochs, counted in total_epochs, in which the last exit's loss alone is trained
    # before all exits are trained jointly, each with its own learning-rate schedule; 0 for none.
    phase.last_exit_epochs = 0
    # Weights of the images at each exit: "uniform" (1), or "learned" (L2W-DEN; three times the
    # operations per step).
    phase.sample_weights = "uniform"
    # Whether the backward pass recomputes the maps of each stage: less memory, about a third more
    # time. Accelerators only: it saves no memory on a CPU.
    phase.rematerialize = False
    # Initial parameters and batch statistics: a phase's folder of checkpoints (RUN/phase_one), an
    # .npz or a .safetensors file, whose arrays are found by name; "" for random ones.
    phase.init_from = ""
    # Pairs (regular expression, replacement) that are applied in order to the names in init_from:
    # (("^", "backbone."),) adds a prefix.
    phase.init_from_map = ()
    return phase


def phase_two(total_epochs, batch_size, learning_rate_drops=(0.5, 0.75)):
    """The `phase_two` part: only the heads are trained."""
    phase = _optimization(total_epochs, batch_size, learning_rate_drops)
    # Phase-I checkpoint to start from: "last" or "best" (validation accuracy).
    phase.from_checkpoint = "last"
    # Transfer from an exit to the next: "none", "identity" (adds logits; overconfident at first) or
    # "linear" (learned). Also "boosted", to continue with such phase-I heads, or heads of your own.
    phase.transfer = "linear"
    # Options of these heads.
    phase.transfer_options = ConfigDict()
    # Whether the gradient along the transfer is stopped.
    phase.stop_gradient = True
    # Initial heads: "phase_one" (its last layers) or "fresh".
    phase.start = "phase_one"
    # Loss: "one_for_all" (distillation, Eq. 7), or your own.
    phase.objective = "one_for_all"
    # Options of the loss.
    phase.objective_options = ConfigDict()
    # Teacher of the distillation: "own_last_exit" or "phase_one_last_exit".
    phase.teacher = "own_last_exit"
    # Weight of the cross-entropy, 0 to 1; the divergence from the teacher has 1 - alpha. The paper
    # gives neither alpha nor the temperature; both are the best of configs/studies/distillation.py
    # on validation images of CIFAR-100.
    phase.alpha = 0.3
    # Temperature of both softmaxes in the divergence, above 0.
    phase.temperature = 4.0
    # Whether the divergence is multiplied by the squared temperature. Eq. 8 has no such factor.
    phase.temperature_squared = False
    # Divergence: "batch" (sum over classes, mean over images) or "elements" (mean over both).
    phase.reduction = "batch"
    # Loss of the last exit: "mixed" (Eq. 7) or "cross_entropy".
    phase.last_exit = "mixed"
    # BatchNorm of the backbone: "frozen" (running statistics) or "moving" (batch statistics).
    phase.backbone_statistics = "frozen"
    return phase


def evaluation(batch_size):
    """The `evaluation` part: how the trained network is evaluated."""
    settings = ConfigDict()
    # Images per evaluation step, over all devices.
    settings.batch_size = batch_size
    # Checkpoint to evaluate: "last" or "best" (validation accuracy).
    settings.checkpoint = "last"
    # Score that thresholds apply to: "confidence" (highest softmax probability), "entropy" (1 minus
    # the normalized entropy), "margin" (between the two highest probabilities), "patience" (exits
    # in a row that agree), or your own.
    settings.exit_rule = "confidence"
    # Options of the exit rule.
    settings.exit_rule_options = ConfigDict()
    # Values q of the budget sweep, above 0: exit k takes a fraction of images proportional to q**k.
    settings.quotas = tuple(p / 20 for p in range(1, 41))
    # Budgets reported per image, as fractions (0 to 1) of the last exit's multiply-adds.
    settings.reported_budgets = (0.3, 0.5, 0.7)
    # Bins of the expected calibration error.
    settings.calibration_bins = 15
    # Images per side of the report's gallery.
    settings.gallery_images = 12
    return settings


def assemble(model, data, phase_one, phase_two, evaluation):
    """Combines the parts into a locked config: an override of an unknown field is an error."""
    config = ConfigDict()
    # Seed of initialization, order of the images and augmentation, 0 or more.
    config.seed = 0
    config.data = data
    config.model = model
    config.phase_one = phase_one
    config.phase_two = phase_two
    config.evaluation = evaluation
    config.mesh = ConfigDict()
    # Devices that share one copy of parameters and optimizer state; 1 for a copy on each device.
    config.mesh.parameter_shards = 1
    config.checkpoint = ConfigDict()
    # Steps between checkpoints within an epoch; 0 saves at the end of epochs only.
    config.checkpoint.every_steps = 1000
    # When a checkpoint cannot be written: "stop", or "continue" with an error in the log.
    config.checkpoint.on_write_error = "stop"
    config.log = ConfigDict()
    # Steps between checks on the host that the losses are finite, 1 or more.
    config.log.check_every_steps = 50
    # Seconds between log lines of losses, accuracies and throughput; 0 for none.
    config.log.line_every_seconds = 60.0
    # Steps (A, B) of each phase to trace with the profiler; (0, 0) for none.
    config.log.profile_steps = (0, 0)
    # Where metrics go in addition to metrics.jsonl: "tensorboard", "wandb", "mlflow", your own
    # registered names, or "package.module:name"; () for none.
    config.log.writers = ("tensorboard",)
    # Options of the writers by their names, such as writer_options.wandb.project.
    config.log.writer_options = ConfigDict()
    config.lock()
    # Options of components have any names.
    for options in (
        data.source_options,
        model.options,
        model.heads_options,
        phase_one.objective_options,
        phase_two.objective_options,
        *(phase.optimizer_options for phase in (phase_one, phase_two)),
        *(phase.schedule_options for phase in (phase_one, phase_two)),
        phase_two.transfer_options,
        evaluation.exit_rule_options,
        config.log.writer_options,
    ):
        options.unlock()
    return config


def _published(config):
    """The authors' PyTorch code, where it differs from the paper's text."""
    config.model.initialization = "pytorch"
    config.phase_one.update(equilibrium="coarsest", nesterov=False)
    config.phase_two.update(
        nesterov=False,
        transfer="linear",
        stop_gradient=False,
        start="fresh",
        teacher="phase_one_last_exit",
        alpha=0.1,  # 1 - gamma; the published defaults are gamma 0.9 and temperature 3
        temperature=3.0,
        temperature_squared=True,
        reduction="elements",
        last_exit="cross_entropy",
        backbone_statistics="moving",
    )


def _baseline(config):
    """Plain MSDNet: no equilibrium, no collaboration, no distillation, no phase II."""
    config.phase_one.equilibrium = "off"
    config.phase_two.total_epochs = 0


METHODS = {"paper": lambda config: None, "published": _published, "baseline": _baseline}


def with_preset(config, preset, presets=None):
    """Applies a preset: a method, one of the file's `presets`, or several joined by commas.

    Raises:
      ValueError: an unknown name; the message lists the valid ones, closest first.
    """
    known = METHODS | (presets or {})
    for name in filter(None, preset.split(",")):
        if name not in known:
            matcher = difflib.SequenceMatcher(None, name)
            order = sorted(known, key=lambda n: (-_ratio(matcher, n), n))
            raise ValueError(
                f"unknown preset {name!r}; valid, the closest first: {', '.join(order)} "
                "(several are joined by commas)"
            )
        known[name](config)
    return config


def _ratio(matcher, name):
    matcher.set_seq2(name)
    return matcher.ratio()
