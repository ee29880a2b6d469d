"""Encoded images of unusual kinds, made in a few lines."""

import io
import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def encoded(image, kind, **options):
    """The image as a file of some format."""
    contents = io.BytesIO()
    image.save(contents, kind, **options)
    return contents.getvalue()


def without_adobe_marker(jpeg):
    start = jpeg.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", jpeg, start + 2)
    return jpeg[:start] + jpeg[start + 2 + length :]


def jpeg_of_size(jpeg, height, width):
    """The same JPEG with another size in its header."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def insert_png_chunk(png, kind, data):
    """The PNG with a chunk after its header."""
    return png[:33] + png_chunk(kind, data) + png[33:]


def raw_png(depth, color, *, size=(20, 13), rows=None, palette=False, checksum=True, filter_type=0):
    """A PNG of random pixels, of any bit depth and color type."""
    height, width = size
    rng = np.random.default_rng(0)
    row_bytes = (width * _CHANNELS[color] * depth + 7) // 8
    pixels = rng.integers(0, 256, (height if rows is None else rows, row_bytes), np.uint8)
    data = zlib.compress(b"".join(bytes([filter_type]) + row.tobytes() for row in pixels))
    chunks = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))]
    if palette:
        chunks.append(png_chunk(b"PLTE", rng.bytes(3 * 2**depth)))
    chunks.append(png_chunk(b"IDAT", data if checksum else data[:-4]))
    return SIGNATURE + b"".join([*chunks, png_chunk(b"IEND", b"")])


def interlaced_png(height, width):
    """A grayscale PNG with seven passes of random pixels."""
    rng, rows = np.random.default_rng(0), []
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        count, length = len(range(top, height, down)), len(range(left, width, right))
        rows += [b"\0" + rng.bytes(length) for _ in range(count if length else 0)]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return SIGNATURE + b"".join(
        [
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", zlib.compress(b"".join(rows))),
            png_chunk(b"IEND", b""),
        ]
    )
