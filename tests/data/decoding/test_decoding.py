"""The decoding policy: accepted files, and equal pixels from TensorFlow and Pillow."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from encoded_samples import (
    encoded,
    insert_png_chunk,
    interlaced_png,
    jpeg_of_size,
    png_chunk,
    raw_png,
    without_adobe_marker,
)
from PIL import Image, ImageOps
from sample_images import make_image

from imta_jax.data.decoding.exif import apply_orientation, displayed_sizes, stored_windows
from imta_jax.data.decoding.header import read_header
from imta_jax.data.decoding.pillow_decoder import decode_image
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.data.pipeline.inspection import ORIENTATION, REFUSAL, Inspector, inspect_bytes
from imta_jax.data.tensorflow_import import import_tensorflow

PHOTO = make_image(70, 90, cells=9)
JPEG, PNG = encoded(PHOTO, "JPEG"), encoded(PHOTO, "PNG")
PROGRESSIVE = encoded(PHOTO, "JPEG", progressive=True)
RESTARTS = encoded(PHOTO, "JPEG", restart_marker_blocks=2)
END = b"\xff\xd9"
CMYK = encoded(PHOTO.convert("CMYK"), "JPEG")
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"

REFUSED = {
    "empty": (b"", Refusal.EMPTY),
    "text": (b"not an image", Refusal.OTHER_FORMAT),
    "palette BMP": (encoded(PHOTO.quantize(32), "BMP"), Refusal.OTHER_FORMAT),
    **{
        name: (encoded(PHOTO, name), Refusal.OTHER_FORMAT)
        for name in ("BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
    },
    "animated GIF": (
        encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
        Refusal.OTHER_FORMAT,
    ),
    "CMYK without Adobe marker": (without_adobe_marker(CMYK), Refusal.JPEG_COMPONENTS),
    "CMYK with an Adobe marker after its scan": (
        without_adobe_marker(CMYK)[:-2] + ADOBE + END,
        Refusal.JPEG_COMPONENTS,
    ),
    "arithmetic coding": (JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1), Refusal.JPEG_CODING),
    "lossless": (JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1), Refusal.JPEG_CODING),
    "16,000 x 16,000 JPEG": (jpeg_of_size(JPEG, 16_000, 16_000), Refusal.TOO_LARGE),
    "wide JPEG": (jpeg_of_size(JPEG, 2, 65_501), Refusal.TOO_LARGE),
    "JPEG of height 0": (jpeg_of_size(JPEG, 0, 90), Refusal.DAMAGED),
    "40,000 x 40,000 PNG": (raw_png(8, 2, size=(40_000, 40_000), rows=1), Refusal.TOO_LARGE),
    "half a JPEG": (JPEG[: len(JPEG) // 2], Refusal.TRUNCATED),
    "half a JPEG with end marker": (JPEG[: len(JPEG) // 2] + END, Refusal.TRUNCATED),
    "half a grayscale JPEG with end marker": (
        encoded(PHOTO.convert("L"), "JPEG")[:-600] + END,
        Refusal.TRUNCATED,
    ),
    "half a CMYK JPEG with end marker": (CMYK[: len(CMYK) * 2 // 3] + END, Refusal.TRUNCATED),
    "progressive JPEG that lacks scans": (
        PROGRESSIVE[: len(PROGRESSIVE) // 2] + END,
        Refusal.TRUNCATED,
    ),
    "progressive JPEG whose last scan is short": (PROGRESSIVE[:-200] + END, Refusal.TRUNCATED),
    "JPEG that lacks restart markers": (RESTARTS[: len(RESTARTS) // 2] + END, Refusal.TRUNCATED),
    "JPEG without end marker": (JPEG[:-2] + b"\0" * 50, Refusal.TRUNCATED),
    "half a PNG": (PNG[: len(PNG) // 2], Refusal.TRUNCATED),
    "PNG without end chunk": (PNG[:-12], Refusal.TRUNCATED),
    "PNG with a wrong checksum": (PNG[:-14] + b"\0\0" + PNG[-12:], Refusal.DAMAGED),
    "PNG with an unknown critical chunk": (insert_png_chunk(PNG, b"ABCD", b"1"), Refusal.DAMAGED),
    "PNG that lacks rows": (raw_png(8, 2, rows=19), Refusal.TRUNCATED),
    "PNG with additional rows": (raw_png(8, 2, rows=25), Refusal.DAMAGED),
    "PNG with an unknown filter": (raw_png(8, 2, filter_type=9), Refusal.DAMAGED),
    "PNG without its pixels' checksum": (raw_png(8, 2, checksum=False), Refusal.TRUNCATED),
}

ACCEPTED = {
    **{f"{mode} JPEG": encoded(PHOTO.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    "progressive JPEG": PROGRESSIVE,
    "progressive CMYK JPEG": encoded(PHOTO.convert("CMYK"), "JPEG", progressive=True),
    "JPEG with restart markers": RESTARTS,
    "JPEG with two images": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO]),
    "JPEG and trailing bytes": JPEG + b"\0" * 99,
    "gray JPEG": encoded(Image.new("RGB", (90, 70), (128, 128, 128)), "JPEG"),
    "4:1:1 JPEG": encoded(PHOTO, "JPEG", subsampling="4:1:1"),
    **{
        f"PNG of color type {color}, {depth} bits": raw_png(depth, color, palette=color == 3)
        for color, depths in {
            0: (1, 2, 4, 8, 16),
            2: (8, 16),
            3: (1, 2, 4, 8),
            4: (8, 16),
            6: (8, 16),
        }.items()
        for depth in depths
    },
    "interlaced PNG": interlaced_png(33, 21),
    "animated PNG": encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(90)]),
    "PNG with 2 MB of text": insert_png_chunk(PNG, b"zTXt", b"a\0\0" + zlib.compress(b"a" * 2**21)),
    "PNG with a damaged comment": insert_png_chunk(PNG, b"tEXt", b"a\0b")[:-1] + b"\x82",
    "PNG with transparent palette": encoded(
        PHOTO.quantize(32), "PNG", transparency=bytes(range(32))
    ),
    "JPEG with an odd profile": JPEG[:2] + b"\xff\xe2\0\x10ICC_PROFILE\0\1" + JPEG[2:],
}


def in_graph(contents, memory_limit_gb=4.0):
    """The inspection of several files in TensorFlow's graph."""
    tf, inspector = import_tensorflow(), Inspector(memory_limit_gb)
    rows = tf.data.Dataset.from_tensor_slices(contents).map(
        lambda contents: tf.stack(inspector.columns_in_graph(contents))
    )
    return np.array(list(rows.as_numpy_iterator()))


def indexed(contents, memory_limit_gb=4.0):
    """The inspection of several files for the index, and the files that it postponed."""
    table, postponed = in_graph(contents, memory_limit_gb), []
    Inspector(memory_limit_gb).decode_postponed(table, lambda i: postponed.append(i) or contents[i])
    return table, sorted(postponed)


@pytest.mark.parametrize("name", REFUSED)
def test_file_is_rejected_for_the_same_reason_by_all_decoders(name):
    contents, expected = REFUSED[name]
    with pytest.raises(RefusedImageError) as error:
        decode_image(contents)
    assert error.value.refusal == expected and str(error.value) == expected.reason
    assert indexed([contents])[0][0, REFUSAL] == inspect_bytes(contents)[REFUSAL] == expected


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_file_has_the_same_pixels_everywhere(name):
    tf, contents = import_tensorflow(), ACCEPTED[name]
    decode = tf.io.decode_jpeg if contents.startswith(b"\xff") else tf.io.decode_png
    options = {"dct_method": "INTEGER_ACCURATE"} if contents.startswith(b"\xff") else {}
    expected = decode(contents, channels=3, **options).numpy()
    np.testing.assert_array_equal(decode_image(contents), expected)
    header = read_header(contents)
    assert (header.height, header.width) == expected.shape[:2]
    assert in_graph([contents])[0, REFUSAL] == inspect_bytes(contents)[REFUSAL] == Refusal.NONE
    assert decode_image(contents, channels=1).shape == (*expected.shape[:2], 1)


def test_large_images_are_decoded_a_few_at_a_time():
    files = [JPEG, PROGRESSIVE, REFUSED["progressive JPEG whose last scan is short"][0], PNG]
    table, postponed = indexed(files, memory_limit_gb=1e-9)
    assert postponed == [1, 2]
    assert table[:, REFUSAL].tolist() == [0, 0, Refusal.TRUNCATED, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_and_applied_as_in_pillow(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encoded(PHOTO, kind, exif=exif)
    assert read_header(contents).orientation == orientation
    assert in_graph([contents])[0, ORIENTATION] == orientation
    with Image.open(io.BytesIO(contents)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        stored = np.asarray(image)
    np.testing.assert_array_equal(decode_image(contents, apply_exif=True), expected)
    np.testing.assert_array_equal(decode_image(contents), stored)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_of_displayed_images_are_found_in_stored_pixels(orientation):
    stored = np.arange(20 * 30).reshape(20, 30, 1)
    displayed = apply_orientation(stored, orientation)
    sizes = displayed_sizes(np.array([[20, 30]]), np.array([orientation]))
    assert displayed.shape[:2] == tuple(sizes[0])
    window = np.array([[3, 5, 7, 11]], np.float32)
    (actual,) = stored_windows(window, sizes, np.array([orientation])).astype(int)
    top, left, height, width = actual
    part = apply_orientation(stored[top : top + height, left : left + width], orientation)
    np.testing.assert_array_equal(part, displayed[3:10, 5:16])


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"II*\0\xff\xff\0\0", b"II*\0\x08\0\0\0\xff\xff", b"XX*\0" + b"\0" * 20]
)
def test_damaged_exif_data_have_no_orientation(exif):
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
    assert read_header(JPEG[:2] + segment + JPEG[2:]).orientation == 1
    assert read_header(PNG[:33] + png_chunk(b"eXIf", exif) + PNG[33:]).orientation == 1


def test_policy_needs_neither_tensorflow_nor_jax():
    blocked = ["tensorflow", "jax", "flax", "ml_collections"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from imta_jax.data.decoding import header, pillow_decoder"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
