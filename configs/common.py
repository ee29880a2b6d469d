"""The fields that every config has, with the paper's values, and the presets of the method.

A config file is `get_config(preset)`: the paper's method by default, `published` for what the
authors' PyTorch code does, `baseline` for the same network without any of the three techniques.
"""

import difflib

from ml_collections import ConfigDict, config_dict


def network(preset):
    """The `model` part: a named network, any field of which can be set besides."""
    model = ConfigDict()
    # Name of a network; `python -m imta_jax.models --help` lists them. "" for none: set all fields.
    model.preset = preset
    # "msdnet", "resnet", "densenet", "googlenet" or "hydranet"; each has some of the fields below.
    model.backbone = config_dict.placeholder(str)
    # First layers: "cifar" (3x3) or "imagenet" (7x7 stride 2, max-pool).
    model.stem = config_dict.placeholder(str)
    # MSDNet: number of classifiers, the last one included.
    model.num_exits = config_dict.placeholder(int)
    # MSDNet: layers before the first exit.
    model.base = config_dict.placeholder(int)
    # MSDNet: layers between exits ("even"), or their growth from exit to exit ("lin_grow").
    model.step = config_dict.placeholder(int)
    # MSDNet: "even" or "lin_grow".
    model.step_mode = config_dict.placeholder(str)
    # Channels of the stem (MSDNet: at the finest scale).
    model.channels = config_dict.placeholder(int)
    # Channels that a layer adds (MSDNet: at the finest scale).
    model.growth_rate = config_dict.placeholder(int)
    # MSDNet: multiplier of channels and growth, one per scale, the finest first.
    model.growth_factors = config_dict.placeholder(tuple)
    # MSDNet: width of the 1x1 convolutions over a branch's outputs, per scale that is read.
    model.bottleneck_factors = config_dict.placeholder(tuple)
    # MSDNet: scales are dropped every third of the depth (with 3 scales), "max", or late, "min".
    model.prune = config_dict.placeholder(str)
    # Share of channels that a transition keeps, 0 to 1; 0 for no transitions (MSDNet only).
    model.reduction = config_dict.placeholder(float)
    # Others: blocks per resolution, (3, 3, 3) for ResNet-20; DenseNet: layers per dense block.
    model.depths = config_dict.placeholder(tuple)
    # Whether blocks have 1x1 convolutions around (ResNet) or before (DenseNet) their 3x3 one.
    model.bottleneck = config_dict.placeholder(bool)
    # ResNet, DenseNet: blocks, from 1, after which an exit sits, besides the last; () for none.
    model.exits = config_dict.placeholder(tuple)
    # HydraNet: branches that are stored.
    model.branches = config_dict.placeholder(int)
    # HydraNet: branches that run for an image.
    model.active_branches = config_dict.placeholder(int)
    # HydraNet: weight of the gate's own loss in phase I, 0 or more; 0 for none.
    model.gate_weight = config_dict.placeholder(float)
    # HydraNet: the branch, from 0, for each class; () for runs of neighbouring classes.
    model.class_clusters = config_dict.placeholder(tuple)
    # Starting values: "he_normal" or "pytorch" (uniform).
    model.initialization = "he_normal"
    return model


def data(source, validation_examples):
    """The `data` part."""
    images = ConfigDict()
    # "fashion_mnist_small" (in the package), a TFDS name (cifar10, imagenet2012, ...), or a path:
    # of an .npz, of a folder of pictures (ROOT/SPLIT/CLASS/*.jpg), or of one that TFDS prepared.
    images.source = source
    # Where TFDS keeps its prepared datasets, a folder or gs://BUCKET/...; "" for its default.
    images.data_dir = ""
    # Where archives lie that TFDS cannot download (ImageNet's); "" for its default.
    images.manual_dir = ""
    # Whether TFDS may download what is not there.
    images.download = True
    # The source's split to train on.
    images.train_split = "train"
    # A split's name, "carve" to hold training images out, or "auto": a split if there is one.
    images.validation_split = "auto"
    # A split's name, "carve", or "auto": "test" or, failing that, a validation split.
    images.test_split = "auto"
    # Images held out of the training ones where no split is: they choose thresholds, checkpoints.
    images.validation_examples = validation_examples
    # The same to test with; 0 refuses sources without a split for it.
    images.test_examples = 0
    # Which images those are.
    images.validation_seed = 0
    # Share, 0 to 1, of a split's images that may be skipped because they do not decode.
    images.max_undecodable = 0.01
    # Where the sizes and places of encoded images are kept, found once; "" for nowhere.
    images.index_dir = "~/.cache/imta_jax/index"
    # "padded_crop": small images of one size; "random_area_crop": photographs, brought to one size.
    images.preprocessing = "padded_crop"
    # padded_crop: zero pixels on every side before a random crop of the original size; 0 for none.
    images.crop_padding = 4
    # random_area_crop: pixels per side that the network sees.
    images.image_size = 224
    # random_area_crop: pixels of the shorter side before the central crop that is judged.
    images.resize = 256
    # random_area_crop: least share of an image's area that is shown, above 0 and at most 1.
    images.min_area = 0.08
    # Whether half of the images are mirrored, at random.
    images.flip = True
    # Who makes the batches: "device" (images live there), "tf_data", "numpy", or "auto": the device
    # if they fit it, else NumPy for arrays and tf.data for images to decode.
    images.pipeline = "auto"
    # Share, 0 to 1, of a device's memory that the images may take under "auto".
    images.device_memory_share = 0.25
    # Steps the device does on images it holds between two words with the host; 0 for auto.
    images.steps_per_dispatch = 0
    # 10^9 bytes that tf.data's buffers may take on this host.
    images.memory_limit_gb = 4.0
    # Address of a tf.data service that decodes on other machines, "grpc://HOST:PORT"; "" for none.
    images.service = ""
    return images


def _optimization(total_epochs, batch_size, learning_rate_drops):
    phase = ConfigDict()
    # Passes over the training images; 0 leaves the phase out.
    phase.total_epochs = total_epochs
    # Images per step, over all devices.
    phase.batch_size = batch_size
    # Parts that a batch is split into, one after the other, where memory is short.
    phase.accumulate_parts = 1
    # Of the backbone's maps, "float32" or "bfloat16"; weights, statistics and heads are float32.
    # For accelerators: a processor takes a fifth more time and memory by bfloat16.
    phase.compute_dtype = "float32"
    # Learning rate at the start.
    phase.learning_rate = 0.1
    # Shares of the phase (0 to 1) after which it is multiplied by drop_factor.
    phase.learning_rate_drops = learning_rate_drops
    # 0.1 in the paper.
    phase.drop_factor = 0.1
    # Of the gradient, 0 to 1.
    phase.momentum = 0.9
    # Nesterov's form of it.
    phase.nesterov = True
    # Added to the gradient of every parameter, per unit of the parameter.
    phase.weight_decay = 1e-4
    return phase


def phase_one(total_epochs, batch_size, learning_rate_drops=(0.5, 0.75)):
    """The `phase_one` part: everything trains."""
    phase = _optimization(total_epochs, batch_size, learning_rate_drops)
    # How far gradient equilibrium reaches: "off", "coarsest" (map) or "all" (maps, Eq. 5 exact).
    phase.equilibrium = "all"
    # How the exits' losses become one: their "sum" (Eq. 1) or their "mean" (Sec. 3.1: too small).
    phase.exit_losses = "sum"
    # Whether the backward pass computes each stage's maps again instead of keeping them: about a
    # third more time, for large images where memory is short. For accelerators: on a processor
    # XLA takes the time and saves nothing.
    phase.rematerialize = False
    return phase


def phase_two(total_epochs, batch_size, learning_rate_drops=(0.5, 0.75)):
    """The `phase_two` part: the heads alone train."""
    phase = _optimization(total_epochs, batch_size, learning_rate_drops)
    # Which phase-I checkpoint it starts from: "last", or "best" by validation.
    phase.from_checkpoint = "last"
    # What an exit hands on to the next: "none", "identity" (logits added), "linear" (learned).
    # Identity sums the phase-I logits at its start: as accurate here, but over-confident.
    phase.transfer = "linear"
    # Whether the gradient along that path is discarded.
    phase.stop_gradient = True
    # What the new heads start from: "phase_one" (its last layers) or "fresh".
    phase.start = "phase_one"
    # Who teaches: "own_last_exit" or "phase_one_last_exit".
    phase.teacher = "own_last_exit"
    # Weight of the cross-entropy against the divergence from the teacher, 0 to 1. The paper gives
    # neither this nor the temperature: best validation accuracy, mean over exits, of the study
    # configs/studies/distillation.py:quickstart (Fashion-MNIST, 3 seeds). All of its 81 settings
    # lie within 0.17 points, less than the seeds' spread; little cross-entropy was mostly better.
    phase.alpha = 0.1
    # Of both softmaxes in the divergence, above 0.
    phase.temperature = 4.0
    # Whether the divergence is multiplied by the temperature squared.
    phase.temperature_squared = True
    # The divergence summed over classes ("batch") or averaged over them too ("elements").
    phase.reduction = "batch"
    # The last exit's loss: "mixed" (Eq. 7 like the others) or "cross_entropy".
    phase.last_exit = "mixed"
    # Batch normalisation of the frozen backbone: "frozen" or "moving" (batch statistics).
    phase.backbone_statistics = "frozen"
    return phase


def evaluation(batch_size):
    """The `evaluation` part: how the trained network is judged."""
    judged = ConfigDict()
    # Images per step of validation and test, over all devices.
    judged.batch_size = batch_size
    # Which checkpoint is judged: "last", or "best" by validation.
    judged.checkpoint = "last"
    # The sweep of budgets: shares of images leaving at exit k are proportional to quota ** k.
    judged.quotas = tuple(p / 20 for p in range(1, 41))
    # Budgets reported image by image, as fractions of the last exit's multiply-adds.
    judged.reported_budgets = (0.3, 0.5, 0.7)
    # Bins of the calibration error.
    judged.calibration_bins = 15
    # Images per side of the report's gallery.
    judged.gallery_images = 12
    return judged


def assemble(model, images, first, second, judged):
    """A whole config, locked: a misspelt override is an error."""
    config = ConfigDict()
    # Of everything random: starting values, order of the images, augmentation.
    config.seed = 0
    config.data = images
    config.model = model
    config.phase_one = first
    config.phase_two = second
    config.evaluation = judged
    config.mesh = ConfigDict()
    # Devices that share one copy of the parameters and the optimiser's state; 1 for a copy on each.
    config.mesh.parameter_shards = 1
    config.checkpoint = ConfigDict()
    # Steps between checkpoints within an epoch, besides those at its end; 0 for none.
    config.checkpoint.every_steps = 1000
    # What happens when the disk is full or read-only: "stop", or "continue" with a word in the log.
    config.checkpoint.on_write_error = "stop"
    config.log = ConfigDict()
    # How often, in steps, the host fetches the losses and looks whether they are finite.
    config.log.check_every_steps = 50
    # Seconds between lines of losses, accuracies and pace, at the next such look; 0 for none.
    config.log.line_every_seconds = 60.0
    # Steps A to B of each phase that a profiler's trace is taken of; (0, 0) for none.
    config.log.profile_steps = (0, 0)
    return config.lock()


def _published(config):
    """What the authors' PyTorch code does, where that differs from the paper's text."""
    config.model.initialization = "pytorch"
    config.phase_one.update(equilibrium="coarsest", nesterov=False)
    config.phase_two.update(
        nesterov=False,
        transfer="linear",
        stop_gradient=False,
        start="fresh",
        teacher="phase_one_last_exit",
        alpha=0.1,  # the paper's alpha is 1 - gamma; gamma 0.9 and temperature 3 are its defaults
        temperature=3.0,
        temperature_squared=True,
        reduction="elements",
        last_exit="cross_entropy",
        backbone_statistics="moving",
    )


def _baseline(config):
    """MSDNet as it was: no equilibrium, no collaboration, no distillation, no second phase."""
    config.phase_one.equilibrium = "off"
    config.phase_two.total_epochs = 0


METHODS = {"paper": lambda config: None, "published": _published, "baseline": _baseline}


def with_preset(config, preset, presets=None):
    """Applies a preset: a method, one of the file's own `presets`, or several joined by commas.

    Raises:
      ValueError: an unknown name; the valid ones are listed, the closest first.
    """
    known = METHODS | (presets or {})
    for name in filter(None, preset.split(",")):
        if name not in known:
            likeness = difflib.SequenceMatcher(None, name)
            order = sorted(known, key=lambda n: (-_ratio(likeness, n), n))
            raise ValueError(
                f"unknown preset {name!r}; valid, the closest first: {', '.join(order)} "
                "(several are joined by commas)"
            )
        known[name](config)
    return config


def _ratio(matcher, name):
    matcher.set_seq2(name)
    return matcher.ratio()
