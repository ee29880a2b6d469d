"""Baseline JPEGs whose data end early, and files with many scans: one verdict for all decoders."""

import io
import struct

import numpy as np
import pytest
from encoded_samples import encoded
from PIL import Image
from sample_images import make_image

from imta_jax.data.decoding.header import read_header
from imta_jax.data.decoding.pillow_decoder import decode_image, jpeg_is_quickly_complete
from imta_jax.data.decoding.refusal import MAX_SCANS, Refusal, RefusedImageError
from imta_jax.data.pipeline.inspection import REFUSAL, inspect_bytes

END = b"\xff\xd9"


def refusals(contents):
    """The refusals by the index, and by decoding to RGB and to luminance."""
    actual = [Refusal(int(inspect_bytes(contents)[REFUSAL]))]
    for channels in (3, 1):
        try:
            decode_image(contents, channels=channels)
            actual.append(Refusal.NONE)
        except RefusedImageError as error:
            actual.append(error.refusal)
    return actual


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "gray"])
@pytest.mark.parametrize("size", [(16, 16), (33, 33), (17, 49), (40, 60)])
def test_every_cut_that_changes_a_pixel_is_rejected_by_all(size, subsampling):
    image, options = make_image(*size, cells=3), {"subsampling": subsampling}
    if subsampling == "gray":
        image, options = image.convert("L"), {}
    contents = encoded(image, "JPEG", quality=75, **options)
    expected = decode_image(contents)
    assert jpeg_is_quickly_complete(contents, read_header(contents))
    for count in range(1, 60):
        actual = refusals(contents[: -2 - count] + END)
        assert actual in ([Refusal.TRUNCATED] * 3, [Refusal.NONE] * 3)
        if actual[0] == Refusal.NONE:
            cut = decode_image(contents[: -2 - count] + END)
            np.testing.assert_array_equal(cut, expected)


def test_last_pixel_of_level_128_does_not_change_the_verdict():
    rng, seen = np.random.default_rng(5), 0
    while seen < 1:
        levels = rng.integers(100, 156, (16, 16)).astype(np.uint8)
        contents = encoded(Image.fromarray(levels), "JPEG", quality=95)[:-4] + END
        with Image.open(io.BytesIO(contents)) as image:
            seen += np.asarray(image)[-1, -1] == 128
        assert len(set(refusals(contents))) == 1


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"keep_rgb": True}])
@pytest.mark.parametrize("level", [0, 127, 128, 255])
def test_complete_files_of_one_color_are_accepted(level, options):
    image = Image.new("RGB", (40, 33), (level, level, level))
    contents = encoded(image, "JPEG", subsampling="4:4:4", **options)
    assert refusals(contents) == [Refusal.NONE] * 3


def progressive(scans):
    """A gray progressive JPEG of 8 x 8 pixels; each scan has one end-of-band symbol."""

    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    one_code = bytes([1] + [0] * 15) + b"\0"
    head = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC2, b"\x08\0\x08\0\x08\x01\x01\x11\0")
    tables = segment(0xC4, b"\0" + one_code) + segment(0xC4, b"\x10" + one_code)
    first, others = b"\x01\x01\0\0\0\0", b"\x01\x01\0\x01\x3f\0"
    data = segment(0xDA, first) + b"\x7f" + (segment(0xDA, others) + b"\x7f") * (scans - 1)
    return b"\xff\xd8" + head + tables + data + END


def test_number_of_scans_is_limited():
    assert refusals(progressive(MAX_SCANS)) == [Refusal.NONE] * 3
    assert refusals(progressive(MAX_SCANS + 1)) == [Refusal.JPEG_SCANS] * 3
