"""Images for the tests of `imta_jax.data`, and their evaluation crops by Pillow."""

import numpy as np
from PIL import Image

from configs import common
from imta_jax.config import DataConfig


def make_image(height, width, seed=0, mode="RGB", cells=5):
    """A smooth image of a few colors per side, which all good filters resize almost equally."""
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    small = rng.integers(0, 256, (cells, cells, channels), np.uint8)
    bands = [Image.fromarray(small[..., c]) for c in range(channels)]
    return Image.merge(mode, [b.resize((width, height), Image.Resampling.BICUBIC) for b in bands])


def write(root, files):
    """Writes {"split/class/1.jpg": image or bytes} and returns `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **({} if path.suffix == ".png" else {"quality": 90}))
    return root


def config(source, **changes):
    """`config.data` for a source, without a stored index or downloads."""
    fields = common.data(str(source), validation_examples=4).to_dict()
    return DataConfig.from_mapping({**fields, "index_dir": "", "download": False, **changes})


def pillow_evaluation_crop(image, resize=256, size=224):
    """The evaluation crop as torchvision's Resize(256) and CenterCrop(224) make it."""
    width, height = image.size
    shorter = min(width, height)
    sides = [
        resize if side == shorter else int(resize * side / shorter) for side in (width, height)
    ]
    left, top = (round((side - size) / 2.0) for side in sides)
    resized = image.convert("RGB").resize(sides, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
