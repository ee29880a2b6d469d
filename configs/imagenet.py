"""ImageNet as in the paper (Sec. 4.2): batch 256, 90 + 90 epochs, 50,000 validation images.

    python launch.py --config=configs/imagenet.py --workdir=runs/imagenet
    python launch.py --config=configs/imagenet.py:published --workdir=runs/imagenet-published

Networks (--config.model.preset): imagenet_step_4, _6, _7 have exit i at layer t*i+3, as in the
paper; with the suffix `_published` at layer t*i, as in the published code. Presets: `paper`
(default), `published` (with the published network), `baseline`.
"""

from configs import common

THIRDS = (1 / 3, 2 / 3)


def _published(config):
    common.METHODS["published"](config)
    config.model.preset += "_published"
    # The published ImageNet script sets gamma 0.1 and temperature 1.
    config.phase_two.update(alpha=0.9, temperature=1.0)


def _image_files():
    images = common.data("imagenet2012", validation_examples=50000)
    # The paper tests on ImageNet's validation images and holds out training images for validation.
    images.update(preprocessing="random_area_crop", test_split="validation")
    images.validation_split = "hold_out"
    return images


def get_config(preset="paper"):
    config = common.assemble(
        model=common.network("imagenet_step_4"),
        data=_image_files(),
        phase_one=common.phase_one(total_epochs=90, batch_size=256, learning_rate_drops=THIRDS),
        phase_two=common.phase_two(total_epochs=90, batch_size=256, learning_rate_drops=THIRDS),
        evaluation=common.evaluation(batch_size=256),
    )
    return common.with_preset(config, preset, {"published": _published})
