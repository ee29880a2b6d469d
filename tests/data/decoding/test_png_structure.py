"""PNG files with chunks in a wrong order, repeated or missing: all decoders reject them alike."""

import zlib

import pytest
from encoded_samples import (
    SIGNATURE,
    encoded,
    insert_png_chunk,
    interlaced_png,
    png_chunk,
    raw_png,
)
from sample_images import make_image

from imta_jax.data.decoding.pillow_decoder import decode_image
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.data.pipeline.inspection import REFUSAL, inspect_bytes
from imta_jax.data.tensorflow_import import import_tensorflow

PNG = encoded(make_image(20, 30), "PNG")
PALETTE = raw_png(8, 3, palette=True)
WITHOUT_PALETTE = raw_png(8, 3, palette=False)
HEADER, DATA = PNG[16:29], PNG.index(b"IDAT") - 4
LENGTH = int.from_bytes(PNG[DATA : DATA + 4], "big")
PIXELS = PNG[DATA + 8 : DATA + 8 + LENGTH]


def with_header_byte(position, value):
    changed = HEADER[:position] + bytes([value]) + HEADER[position + 1 :]
    return SIGNATURE + png_chunk(b"IHDR", changed) + PNG[33:]


def with_pixels_in(*chunks):
    return PNG[:33] + b"".join(chunks) + PNG[-12:]


HALVES = [png_chunk(b"IDAT", PIXELS[:90]), png_chunk(b"IDAT", PIXELS[90:])]


def with_wrong_checksum(data):
    return data[:-1] + bytes([data[-1] ^ 1])


REFUSED = {
    "wrong checksum of the pixels": with_pixels_in(png_chunk(b"IDAT", with_wrong_checksum(PIXELS))),
    "two headers": insert_png_chunk(PNG, b"IHDR", HEADER),
    "text before the header": SIGNATURE + png_chunk(b"tEXt", b"a\0b") + PNG[8:],
    "16-bit palette": raw_png(16, 3),
    "3 bits per pixel": with_header_byte(8, 3),
    "color type 5": with_header_byte(9, 5),
    "compression method 1": with_header_byte(10, 1),
    "filter method 1": with_header_byte(11, 1),
    "interlace method 2": with_header_byte(12, 2),
    "no palette": WITHOUT_PALETTE,
    "palette after the pixels": WITHOUT_PALETTE[:-12] + png_chunk(b"PLTE", bytes(768)) + PNG[-12:],
    "two palettes": insert_png_chunk(PALETTE, b"PLTE", bytes(768)),
    "palette of 11 bytes": insert_png_chunk(WITHOUT_PALETTE, b"PLTE", bytes(11)),
    "palette of 301 colors": insert_png_chunk(WITHOUT_PALETTE, b"PLTE", bytes(903)),
    "palette of no colors": insert_png_chunk(WITHOUT_PALETTE, b"PLTE", b""),
    "text between the pixels": with_pixels_in(HALVES[0], png_chunk(b"tEXt", b"a\0b"), HALVES[1]),
    "chunk name with a digit": insert_png_chunk(PNG, b"a1Cd", b""),
    "no pixels": with_pixels_in(),
}
ACCEPTED = {
    "pixels in two chunks": with_pixels_in(*HALVES),
    "an empty chunk of pixels": with_pixels_in(png_chunk(b"IDAT", b""), *HALVES),
    "palette of an RGB image": insert_png_chunk(PNG, b"PLTE", bytes(12)),
    "bytes after the end": PNG + PNG,
    "bytes after the pixels": with_pixels_in(png_chunk(b"IDAT", PIXELS + b"more")),
}


ROWS = zlib.decompress(PIXELS)
SURPLUS = zlib.compress(ROWS + bytes(91))
SMALL_WINDOW = bytes([0x18, 0x19]) + PIXELS[2:]
# Decoders accept some of these, and differ in which.
REFUSED_WITHOUT_DECODING = {
    "surplus row": (Refusal.DAMAGED, SURPLUS),
    "surplus byte": (Refusal.DAMAGED, zlib.compress(ROWS + b"a")),
    "surplus row without the last byte of the checksum": (Refusal.DAMAGED, SURPLUS[:-1]),
    "surplus row with a wrong checksum": (Refusal.DAMAGED, with_wrong_checksum(SURPLUS)),
    "wrong checksum in a chunk of its own": (Refusal.DAMAGED, PIXELS[:-4], bytes(4)),
    "wrong last byte in a chunk of its own": (
        Refusal.DAMAGED,
        PIXELS[:-1],
        with_wrong_checksum(PIXELS)[-1:],
    ),
    "no checksum": (Refusal.TRUNCATED, PIXELS[:-4], b""),
    "half a checksum": (Refusal.TRUNCATED, PIXELS[:-4], PIXELS[-4:-2]),
    "small window": (Refusal.DAMAGED, SMALL_WINDOW),
    "small window after an empty chunk": (Refusal.DAMAGED, b"", SMALL_WINDOW),
    "small window in two chunks": (Refusal.DAMAGED, SMALL_WINDOW[:1], SMALL_WINDOW[1:]),
    "unknown filter in the last row": (
        Refusal.DAMAGED,
        zlib.compress(ROWS[:-91] + b"\5" + ROWS[-90:]),
    ),
    "one row too few": (Refusal.TRUNCATED, zlib.compress(ROWS[:-91])),
    "no data": (Refusal.TRUNCATED, b""),
}


@pytest.mark.parametrize("name", REFUSED_WITHOUT_DECODING)
def test_pixels_that_decoders_treat_differently_are_rejected_by_all(name):
    expected, *parts = REFUSED_WITHOUT_DECODING[name]
    contents = with_pixels_in(*[png_chunk(b"IDAT", part) for part in parts])
    with pytest.raises(RefusedImageError) as error:
        decode_image(contents)
    assert error.value.refusal == inspect_bytes(contents)[REFUSAL] == expected


@pytest.mark.parametrize("interlaced", [False, True])
def test_every_filter_type_is_checked_and_no_other_byte(interlaced):
    contents = interlaced_png(17, 5) if interlaced else raw_png(8, 0, size=(17, 5))
    length = int.from_bytes(contents[33:37], "big")
    rows = zlib.decompress(contents[41 : 41 + length])
    rejected = []
    for position in range(len(rows)):
        changed = zlib.compress(rows[:position] + b"\5" + rows[position + 1 :])
        changed = contents[:33] + png_chunk(b"IDAT", changed) + contents[-12:]
        if inspect_bytes(changed)[REFUSAL] != Refusal.NONE:
            rejected.append(position)
    row_bytes = (
        [6] * 17
        if not interlaced
        else [2] * 3 + [2] * 3 + [3] * 2 + [2] * 5 + [4] * 4 + [3] * 9 + [6] * 8
    )
    assert rejected == [sum(row_bytes[:i]) for i in range(len(row_bytes))]


@pytest.mark.parametrize("name", REFUSED)
def test_file_is_rejected_for_the_same_reason_by_all(name):
    tf, contents = import_tensorflow(), REFUSED[name]
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_png(contents, channels=3)
    with pytest.raises(RefusedImageError) as error:
        decode_image(contents)
    expected = Refusal.TRUNCATED if name == "no pixels" else Refusal.DAMAGED
    assert error.value.refusal == inspect_bytes(contents)[REFUSAL] == expected


@pytest.mark.parametrize("name", ACCEPTED)
def test_file_is_accepted_with_the_pixels_of_tensorflow(name):
    contents = ACCEPTED[name]
    expected = import_tensorflow().io.decode_png(contents, channels=3).numpy()
    assert (decode_image(contents) == expected).all()
    assert inspect_bytes(contents)[REFUSAL] == Refusal.NONE
