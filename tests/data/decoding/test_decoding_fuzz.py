"""Random image files: the same pixels in training, evaluation and inference, or the same error.

Decoded pixels are equal, and resized pixels differ by at most one level of 255.

Formats, modes, options, markers, truncations, changed bytes and names are drawn from a seed. Set
IMTA_JAX_FUZZ_FILES to a larger number than the default, or IMTA_JAX_FUZZ_SEED, to test more.
"""

import itertools
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoded_samples import (
    encoded,
    insert_png_chunk,
    interlaced_png,
    png_chunk,
    raw_png,
    without_adobe_marker,
)
from PIL import Image
from sample_images import config, make_image, write

from imta_jax.data import evaluation_images, load_dataset
from imta_jax.data.decoding.pillow_decoder import decode_image
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.host_pipeline import HostPipeline, resized_batches
from imta_jax.data.sources import SourceRequest, load_source
from imta_jax.inference.image_files import read_image

FILES = int(os.environ.get("IMTA_JAX_FUZZ_FILES", "300"))
SEED = int(os.environ.get("IMTA_JAX_FUZZ_SEED", "0"))
CROP = 16
FIELDS = {"preprocessing": "random_area_crop", "image_size": CROP, "resize": 19}
END = b"\xff\xd9"
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
OTHER_FORMATS = ("BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA")


def draw_image(rng):
    height, width = rng.choice([(16, 16), (17, 40), (33, 49), (61, 33), (90, 120), (200, 90)])
    image = make_image(height, width, seed=rng.randrange(1000), cells=rng.choice([2, 8]))
    draw = np.random.default_rng(rng.randrange(1000))
    noise = draw.normal(0, rng.choice([0, 12]), (height, width, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def draw_jpeg(rng):
    image, options = draw_image(rng).convert(rng.choice(["RGB", "RGB", "L", "CMYK"])), {}
    if rng.random() < 0.4:
        options["progressive"] = True
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = rng.randrange(1, 9)
    if image.mode == "RGB":
        options["subsampling"] = rng.choice(["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
        options["keep_rgb"] = rng.random() < 0.2 and options["subsampling"] == "4:4:4"
    if rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(10)
        options["exif"] = exif
    contents = encoded(image, "JPEG", quality=rng.choice([20, 75, 97]), **options)
    if image.mode == "CMYK" and rng.random() < 0.3:
        contents = without_adobe_marker(contents)
    return contents


def draw_png(rng):
    if rng.random() < 0.2:
        return interlaced_png(rng.randrange(16, 50), rng.randrange(16, 50))
    if rng.random() < 0.5:
        color = rng.choice(list(PNG_DEPTHS))
        size = rng.randrange(16, 60), rng.randrange(16, 60)
        return raw_png(rng.choice(PNG_DEPTHS[color]), color, size=size, palette=color == 3)
    mode = rng.choice(["RGB", "RGBA", "L", "LA", "P", "1"])
    return encoded(draw_image(rng).convert("RGB").convert(mode), "PNG")


def draw_sound(rng):
    kind = rng.random()
    if kind < 0.55:
        return draw_jpeg(rng)
    if kind < 0.9:
        return draw_png(rng)
    return encoded(draw_image(rng).convert("RGB"), rng.choice(OTHER_FORMATS))


def cut(rng, contents):
    return contents[: rng.randrange(len(contents))]


def cut_with_end_marker(rng, contents):
    return cut(rng, contents) + END


def cut_near_end(rng, contents):
    """Removes the last bytes of the data of a JPEG, some of which only the last unit needs."""
    end = contents.rfind(END)
    return contents[: max(0, end - rng.randrange(1, 30))] + END


def repeat_last_scan(rng, contents):
    start = contents.rfind(b"\xff\xda")
    scan = contents[start:-2] if start > 0 else b""
    return contents[:-2] + scan * rng.choice([1, 10, 120]) + contents[-2:]


def change_header(rng, contents):
    position, changed = rng.randrange(min(len(contents), 700)), bytearray(contents)
    changed[position] = rng.randrange(256)
    return bytes(changed)


def change_anywhere(rng, contents):
    changed = bytearray(contents)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def remove_bytes(rng, contents):
    start = rng.randrange(len(contents))
    return contents[:start] + contents[start + rng.randrange(1, 40) :]


def append(rng, contents):
    return contents + rng.randbytes(rng.randrange(1, 99))


def insert_metadata(rng, contents):
    data = rng.randbytes(rng.randrange(60))
    if contents.startswith(b"\x89"):
        return insert_png_chunk(contents, rng.choice([b"tEXt", b"zTXt", b"iCCP", b"gAMA"]), data)
    marker = bytes([rng.choice([0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])])
    start = rng.choice([b"", b"JFIF\0", b"Exif\0\0", b"Adobe", b"ICC_PROFILE\0"])
    length = (len(start + data) + 2).to_bytes(2, "big")
    return contents[:2] + b"\xff" + marker + length + start + data + contents[2:]


def png_parts(contents):
    """The chunks of a PNG, with their checksums."""
    parts, position = [], 8
    while position + 12 <= len(contents):
        end = position + 12 + int.from_bytes(contents[position : position + 4], "big")
        parts.append(contents[position:end])
        position = end
    return contents[:8], parts


def jpeg_parts(contents):
    """The segments of a JPEG; scans and all that follows them in one."""
    parts, position = [], 2
    while contents[position : position + 1] == b"\xff" and contents[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(contents[position + 2 : position + 4], "big")
        parts.append(contents[position:end])
        position = end
    return contents[:2], [*parts, contents[position:]]


def rearrange(rng, contents):
    """Repeats, removes or moves a chunk or segment."""
    is_png = contents.startswith(b"\x89PNG")
    if not is_png and not contents.startswith(b"\xff\xd8"):
        return contents
    start, parts = (png_parts if is_png else jpeg_parts)(contents)
    part = parts.pop(rng.randrange(len(parts)))
    for _ in range(rng.choice([0, 1, 1, 2])):
        parts.insert(rng.randrange(len(parts) + 1), part)
    return start + b"".join(parts)


def change_chunk(rng, contents):
    """Changes a byte of a PNG's chunk and corrects its checksum."""
    if not contents.startswith(b"\x89PNG"):
        return contents
    start, parts = png_parts(contents)
    i = rng.randrange(len(parts))
    if kind_and_data := bytearray(parts[i][4:-4]):
        kind_and_data[rng.randrange(len(kind_and_data))] = rng.randrange(256)
    parts[i] = png_chunk(bytes(kind_and_data[:4]), bytes(kind_and_data[4:]))
    return start + b"".join(parts)


def change_compressed_pixels(rng, contents):
    """Changes the end or the window of a PNG's zlib stream, and divides it into other chunks."""
    if not contents.startswith(b"\x89PNG"):
        return contents
    start, parts = png_parts(contents)
    kinds = [part[4:8] for part in parts]
    data = b"".join(part[8:-4] for part in parts if part[4:8] == b"IDAT")
    change = rng.randrange(5)
    if change == 0:
        data = data[: len(data) - rng.randrange(1, 9)]
    elif change == 1:
        data = data[:-1] + bytes([rng.randrange(256)])
    elif change == 2:
        surplus = zlib.compress(zlib.decompress(data) + bytes(rng.choice([1, 60, 400])))
        data = surplus[: len(surplus) - rng.randrange(3)]
    elif change == 3:
        first = rng.choice([0x08, 0x18, 0x28, 0x58])
        data = bytes([first, 31 - (first << 8) % 31]) + data[2:]
    places = sorted(rng.choice([0, 1, len(data) - 4, rng.randrange(len(data))]) for _ in range(2))
    bounds = [0, *(max(0, place) for place in places), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(bounds)]
    first, last = kinds.index(b"IDAT"), len(kinds) - kinds[::-1].index(b"IDAT")
    chunks = [png_chunk(b"IDAT", piece) for piece in pieces]
    return start + b"".join([*parts[:first], *chunks, *parts[last:]])


CHANGES = (
    cut,
    cut_with_end_marker,
    cut_near_end,
    repeat_last_scan,
    change_header,
    change_anywhere,
    remove_bytes,
    append,
    insert_metadata,
    rearrange,
    change_chunk,
    change_compressed_pixels,
)
UNCHANGED = 0.4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder whose test split has random files."""
    rng = random.Random(SEED)
    made = {f"train/a/{i}.jpg": make_image(40, 50, i) for i in range(6)}
    for i in range(FILES):
        contents = draw_sound(rng)
        if rng.random() > UNCHANGED:
            contents = rng.choice(CHANGES)(rng, contents)
        ending = rng.choice(["jpg", "jpeg", "png", "JPG", "PnG"])
        made[f"test/a/{rng.choice(['', ' ', 'ü', '%d', '日'])}{i:05}.{ending}"] = contents
    return write(tmp_path_factory.mktemp("fuzz"), made)


@pytest.fixture(scope="module")
def indexed(files):
    """The refusal of each test file in the index of training."""
    fields = config(files, **FIELDS, max_undecodable=1.0)
    with pytest.MonkeyPatch.context() as patch:
        actual = []
        from imta_jax.data.sources import folder

        keep = folder.source_split
        patch.setattr(
            folder, "source_split", lambda *args: (actual.append(args[0]), keep(*args))[1]
        )
        load_source(SourceRequest.from_config(fields, encoded=True))
    test = actual[1]
    return {test.images.name(i): Refusal(code) for i, code in enumerate(test.refusal.tolist())}


def refusal_by_pillow(path, channels=3):
    try:
        decode_image(Path(path).read_bytes(), channels=channels)
    except RefusedImageError as error:
        return error.refusal
    return Refusal.NONE


def test_random_files_are_rejected_for_the_same_reason(indexed):
    actual = {path: refusal_by_pillow(path) for path in indexed}
    different = {
        path: (indexed[path].name, actual[path].name)
        for path in indexed
        if indexed[path] != actual[path]
    }
    assert not different
    assert actual == {path: refusal_by_pillow(path, channels=1) for path in indexed}
    assert min(sum(map(bool, actual.values())), sum(not one for one in actual.values())) > FILES / 5


def test_random_files_have_the_same_pixels_in_training_evaluation_and_inference(files):
    dataset = load_dataset(config(files, **FIELDS, max_undecodable=1.0))
    split = dataset.splits["test"]
    count = len(split)
    seen = evaluation_images(split, dataset.preprocessing, np.arange(count))
    rng = np.random.default_rng(SEED)
    stored = [decode_image(Path(split.images.name(i)).read_bytes()) for i in range(count)]
    top_left = [rng.integers(0, np.array(image.shape[:2]) - CROP + 1) for image in stored]
    window = np.array([[*corner, CROP, CROP] for corner in top_left], np.float32)
    indices = BatchIndices(np.arange(count), window, np.zeros(count, bool))
    batches = resized_batches(split.images, indices, 1, HostPipeline(), size=CROP, exact=False)
    for i, (trained, _) in enumerate(batches):
        name, (top, left) = split.images.name(i), top_left[i]
        expected = stored[i][top : top + CROP, left : left + CROP]
        np.testing.assert_array_equal(trained[0], expected, err_msg=name)
        decoded = read_image(name, dataset.evaluation_transform).pixels
        # Sums of float32 may be rounded differently.
        assert np.abs(decoded.astype(int) - seen[i]).max() <= 1, name
