"""The `phase_one` and `phase_two` parts of a config: every field with its default."""

from ml_collections import ConfigDict


def _phase(total_epochs, batch_size, learning_rate_drops):
    """Fields of both phases."""
    phase = ConfigDict()
    # Epochs; 0 skips phase II.
    phase.total_epochs = total_epochs
    # Images per step, over all devices.
    phase.batch_size = batch_size
    # Gradient accumulation: parts of a batch that are computed in sequence; 1 disables it.
    phase.accumulate_parts = 1
    # Images that share the statistics of BatchNorm in training: "global" (the batch), "per_device"
    # (a device's images; results depend on the number of devices) or "group". The last two need no
    # communication within the network. With accumulate_parts, each part is a batch.
    phase.batch_statistics = "global"
    # group: images per group, 2 or more; divides the batch, and divides, or is divided by, a
    # device's images. Results do not depend on the number of devices.
    phase.statistics_group_size = 0
    # Type of the feature maps, "float32" or "bfloat16" (accelerators only; slower on a CPU).
    # Parameters, statistics and heads are float32.
    phase.compute_dtype = "float32"
    # Precision of products and convolutions of float32 maps: "default" (TPU: one bfloat16 pass;
    # GPU: TF32), "high" (TPU: three passes) or "highest" (float32). A CPU computes in float32.
    phase.matmul_precision = "default"
    _augmentation(phase)
    _schedule(phase, learning_rate_drops)
    _optimizer(phase)
    return phase


def _augmentation(phase):
    """Label smoothing, and augmentation in the compiled step."""
    # Label smoothing epsilon, 0 to below 1: the cross-entropy is against
    # (1 - epsilon) * label + epsilon / classes. A distillation term is not smoothed.
    phase.label_smoothing = 0.0
    # RandAugment: random operations per image, applied in sequence; 0 disables it.
    phase.randaugment_operations = 0
    # RandAugment: strength of the operations, 0 to 30.
    phase.randaugment_magnitude = 9.0
    # Probability (0 to 1) that a random rectangle of an image is replaced by noise.
    phase.random_erasing = 0.0
    # Mixup: images are mixed with weights from Beta(alpha, alpha); 0 disables it. If cutmix is
    # on too, each image uses one of the two with probability 1/2.
    phase.mixup_alpha = 0.0
    # CutMix: a rectangle comes from another image, area from Beta(alpha, alpha); 0 disables it.
    phase.cutmix_alpha = 0.0


def _schedule(phase, learning_rate_drops):
    """The learning rate by step."""
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
    # spans the epochs after them. 0 disables the warm-up.
    phase.warmup_epochs = 0.0


def _optimizer(phase):
    """The optimizer, what it trains, and when training ends."""
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
    # Global norm of the gradient above which it is scaled down to this norm; 0 disables it.
    phase.gradient_clip_norm = 0.0
    # Decay, below 1, of the exponential moving average of parameters and batch statistics, which is
    # then validated, evaluated, exported and used by phase II; 0 disables it.
    phase.ema_decay = 0.0
    # Epochs without a better validation accuracy (mean over exits) after which the phase ends; 0
    # for never. Set evaluation.checkpoint="best" to use the best epoch afterwards.
    phase.early_stopping_epochs = 0
    # Pairs (regular expression, multiplier of the learning rate): (("^backbone", 0.1),). The first
    # pair applies whose expression is found in a parameter's name, as in checkpoints.
    phase.learning_rate_multipliers = ()
    # Regular expressions of parameters that are not trained, found anywhere in their names, as in
    # checkpoints: ("^backbone.first", "norm"). Batch statistics whose names match are frozen too.
    phase.freeze = ()


def phase_one(total_epochs, batch_size, learning_rate_drops=(0.5, 0.75)):
    """The `phase_one` part: all parameters are trained."""
    phase = _phase(total_epochs, batch_size, learning_rate_drops)
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
    # before all exits are trained jointly, each with its own learning-rate schedule; 0 disables it.
    phase.last_exit_epochs = 0
    # Weights of the images at each exit: "uniform" (1), or "learned" (L2W-DEN; three times the
    # operations per step).
    phase.sample_weights = "uniform"
    # Whether the backward pass recomputes the maps of each stage: less memory, about a third more
    # time. Accelerators only: it saves no memory on a CPU.
    phase.rematerialize = False
    # The same for each layer of an MSDNet; the inputs of layers are stored. It saves more where a
    # stage has many layers on large maps, as in the ImageNet networks. It has precedence.
    phase.rematerialize_layers = False
    # Initial parameters and batch statistics: a phase's folder of checkpoints (RUN/phase_one), an
    # .npz or a .safetensors file, whose arrays are found by name, that of Flax or of PyTorch; ""
    # for random ones.
    phase.init_from = ""
    # Pairs (regular expression, replacement) that are applied in order to the names in init_from:
    # (("^", "backbone."),) adds a prefix.
    phase.init_from_map = ()
    return phase


def phase_two(total_epochs, batch_size, learning_rate_drops=(0.5, 0.75)):
    """The `phase_two` part: only the heads are trained."""
    phase = _phase(total_epochs, batch_size, learning_rate_drops)
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
