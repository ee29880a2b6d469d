"""Pictures for the tests of `imta_jax.data`, and what Pillow makes of them."""

import numpy as np
from PIL import Image

from configs import common


def picture(height, width, seed=0, mode="RGB", cells=5):
    """A smooth one, of a few colours a side: every sound filter resizes it to much the same."""
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    small = rng.integers(0, 256, (cells, cells, channels), np.uint8)
    bands = [Image.fromarray(small[..., c]) for c in range(channels)]
    return Image.merge(mode, [b.resize((width, height), Image.Resampling.BICUBIC) for b in bands])


def write(root, pictures):
    """Writes {"split/class/1.jpg": picture or bytes}, and returns `root`."""
    for name, content in pictures.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **({} if path.suffix == ".png" else {"quality": 90}))
    return root


def config(source, **changes):
    """`config.data` for a source, with no index kept."""
    fields = common.data(str(source), validation_examples=4)
    fields.update({"index_dir": "", "download": False, **changes})
    return fields


def judged_by_pillow(image, resize=256, size=224):
    """What evaluation shows of an image: torchvision's Resize(256) and CenterCrop(224)."""
    width, height = image.size
    shorter = min(width, height)
    sides = [
        resize if side == shorter else int(resize * side / shorter) for side in (width, height)
    ]
    left, top = (round((side - size) / 2.0) for side in sides)
    resized = image.convert("RGB").resize(sides, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
