"""The fields of every config with the paper's values, and the method presets.

A config file defines `get_config(preset)`. The preset `paper` (default) is the paper's method,
`published` is what the authors' PyTorch code does, and `baseline` is the same network without the
three techniques. The comments are the field reference of the documentation.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart \
        --config.phase_one.total_epochs=3
"""

import difflib

from ml_collections import ConfigDict, config_dict

from configs.phases import phase_one as phase_one
from configs.phases import phase_two as phase_two


def network(preset):
    """The `model` part: a network preset. A field that is set overrides the preset."""
    model = ConfigDict()
    # Network preset (`python -m imta_jax.models --help` lists them); "" to set all fields.
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
    # MSDNet, DenseNet: fraction of channels kept by a transition, 0 to 1; MSDNet: 0 disables them.
    model.reduction = config_dict.placeholder(float)
    # ResNet: blocks per resolution, (3, 3, 3) for ResNet-20. DenseNet: layers per dense block.
    model.depths = config_dict.placeholder(tuple)
    # ResNet, DenseNet: whether blocks have 1x1 bottleneck convolutions.
    model.bottleneck = config_dict.placeholder(bool)
    # ResNet, DenseNet: indices, from 1, of the blocks that an exit follows. The last block always
    # has one and is not listed.
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
    # Validation split: a name, "hold_out" (training images), or "auto" (the source's, if any).
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


def evaluation(batch_size):
    """The `evaluation` part: how the trained network is evaluated."""
    settings = ConfigDict()
    # Images per evaluation step, over all devices.
    settings.batch_size = batch_size
    # Checkpoint to evaluate: "last" or "best" (validation accuracy).
    settings.checkpoint = "last"
    # Precision of products and convolutions, also in validation: "default" (TPU: one bfloat16 pass;
    # GPU: TF32), "high" (TPU: three passes) or "highest" (float32).
    settings.matmul_precision = "default"
    # Score that thresholds apply to: "confidence" (highest softmax probability), "entropy" (1 minus
    # the normalized entropy), "margin" (between the two highest probabilities), "patience" (exits
    # in a row that agree), "learned_gate" (a logistic regression per exit, fitted on validation
    # images; its option `price` is the cost of the full network in nats, 1.0), or your own.
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
    """Combines the parts into a locked config: an override of an unknown field raises an error."""
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
    # Seconds between log lines of losses, accuracies and throughput; 0 disables them.
    config.log.line_every_seconds = 60.0
    # Steps (A, B) of each phase to trace with the profiler; (0, 0) disables the profiler.
    config.log.profile_steps = (0, 0)
    # Where metrics go in addition to metrics.jsonl: "tensorboard", "wandb", "mlflow", your own
    # registered names, or "package.module:name"; () for no writer.
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
