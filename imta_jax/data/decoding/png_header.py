"""Inspection of PNG files: header, checksums of the chunks, and completeness."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from imta_jax.data.decoding.exif import orientation_of
from imta_jax.data.decoding.refusal import MAX_PIXELS, Refusal, RefusedImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_SIDE = 1_000_000  # the limit of libpng
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3  # color type
_MAX_PALETTE_BYTES = 3 * 256
# First row and column of the passes of an interlaced image (Adam7), and their distances.
_PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
_ONE_PASS = ((0, 0, 1, 1),)
_DECOMPRESSED_AT_ONCE = 1 << 20
_ZLIB_HEADER_BYTES, _CHECKSUM_BYTES = 2, 4


class PngHeader(NamedTuple):
    """Size of a PNG and its EXIF orientation (1 to 8, 1 if it has none)."""

    height: int
    width: int
    orientation: int


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    data: bytes

    @property
    def critical(self) -> bool:
        return _is_critical(self.kind)


def read_png_header(contents: bytes) -> PngHeader:
    """Reads the header of a PNG and checks all chunks that its pixels depend on.

    Args:
      contents: the file, which starts with `SIGNATURE`.

    Raises:
      RefusedImageError: the file is truncated, damaged or too large.
    """
    chunks = list(_chunks(contents))
    if chunks[0].kind != b"IHDR":
        raise RefusedImageError(Refusal.DAMAGED)
    height, width, color = _checked_header(chunks[0].data)
    _check_critical_chunks([chunk.kind for chunk in chunks], color)
    compressed = next(chunk.data for chunk in chunks if chunk.kind == b"IDAT")
    if not _window_covers_data(compressed, _decompressed_bytes(contents)):
        raise RefusedImageError(Refusal.DAMAGED)
    orientation = 1
    for chunk in chunks:
        if chunk.kind == b"PLTE" and not _is_palette(chunk.data):
            raise RefusedImageError(Refusal.DAMAGED)
        if chunk.kind == b"eXIf":
            orientation = orientation_of(chunk.data)
    return PngHeader(height, width, orientation)


def _check_critical_chunks(kinds: list[bytes], color: int) -> None:
    """Raises unless the critical chunks are known, and in an order that all decoders accept."""
    critical = [kind for kind in kinds if _is_critical(kind)]
    if not set(critical) <= _CRITICAL or max(map(critical.count, (b"IHDR", b"PLTE"))) > 1:
        raise RefusedImageError(Refusal.DAMAGED)
    if b"IDAT" not in kinds:
        raise RefusedImageError(Refusal.TRUNCATED)
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    consecutive = kinds[first : first + count] == [b"IDAT"] * count
    if not consecutive or (color == _PALETTE and b"PLTE" not in kinds[:first]):
        raise RefusedImageError(Refusal.DAMAGED)


def _window_covers_data(compressed: bytes, size: int) -> bool:
    """Whether the zlib header declares a window as large as the data, or the largest.

    Encoders do so. Decoders differ in what they do with a reference beyond a smaller window.
    """
    window_bits = (compressed[0] >> 4) + 8 if compressed else zlib.MAX_WBITS
    return window_bits >= zlib.MAX_WBITS or 1 << window_bits >= size


def png_without_metadata(contents: bytes) -> bytes:
    """The same PNG with only the chunks that its pixels depend on; also without animation."""
    critical = [chunk for chunk in _chunks(contents) if chunk.critical]
    return SIGNATURE + b"".join(
        contents[chunk.start : chunk.start + len(chunk.data) + 12] for chunk in critical
    )


def png_data_is_complete(contents: bytes) -> bool:
    """Whether the compressed pixels are complete and end where they should.

    Decoders differ in what they do if a few rows or only the checksum is missing.
    """
    data = b"".join(chunk.data for chunk in _chunks(contents) if chunk.kind == b"IDAT")
    # Without the zlib header, so that the checksum is verified here: decoders ignore what follows
    # the pixels, also a wrong checksum.
    data, stream = data[_ZLIB_HEADER_BYTES:], zlib.decompressobj(-zlib.MAX_WBITS)
    missing, checksum = _decompressed_bytes(contents), zlib.adler32(b"")
    try:
        while not stream.eof and missing >= 0:
            found = stream.decompress(data, min(missing + 1, _DECOMPRESSED_AT_ONCE))
            missing, checksum = missing - len(found), zlib.adler32(found, checksum)
            data = stream.unconsumed_tail
            if not found and not data:
                break
    except zlib.error:
        return False
    follows = stream.unused_data[:_CHECKSUM_BYTES]
    return missing < 0 or (missing == 0 and follows == checksum.to_bytes(_CHECKSUM_BYTES, "big"))


def _decompressed_bytes(contents: bytes) -> int:
    """The size of the filtered pixels, also if they are interlaced."""
    width, height, depth, color, _, _, interlaced = struct.unpack_from(
        ">IIBBBBB", contents, len(SIGNATURE) + 8
    )
    bits = _CHANNELS[color] * depth
    total = 0
    for top, left, rows, columns in _PASSES if interlaced else _ONE_PASS:
        pass_width, pass_height = -(-(width - left) // columns), -(-(height - top) // rows)
        if pass_width > 0 and pass_height > 0:
            total += ((pass_width * bits + 7) // 8 + 1) * pass_height
    return total


def _chunks(contents: bytes) -> Iterator[_Chunk]:
    """Yields the chunks up to the last; raises if a critical one is damaged or the last missing."""
    position = len(SIGNATURE)
    while position + 12 <= len(contents):
        length, kind = struct.unpack_from(">I4s", contents, position)
        end = position + 8 + length
        if end + 4 > len(contents):
            break
        if not kind.isalpha():  # ASCII letters only, for bytes
            raise RefusedImageError(Refusal.DAMAGED)
        chunk = _Chunk(kind, position, contents[position + 8 : end])
        if chunk.critical:
            (expected,) = struct.unpack_from(">I", contents, end)
            if zlib.crc32(chunk.data, zlib.crc32(kind)) != expected:
                raise RefusedImageError(Refusal.DAMAGED)
        yield chunk
        if kind == b"IEND":
            return
        position = end + 4
    raise RefusedImageError(Refusal.TRUNCATED)


def _checked_header(header: bytes) -> tuple[int, int, int]:
    """Height, width and color type."""
    if len(header) != 13:
        raise RefusedImageError(Refusal.DAMAGED)
    width, height, depth, color, compression, filters, interlace = struct.unpack(">IIBBBBB", header)
    if not height or not width or depth not in _DEPTHS.get(color, ()):
        raise RefusedImageError(Refusal.DAMAGED)
    if compression or filters or interlace > 1:
        raise RefusedImageError(Refusal.DAMAGED)
    if height * width > MAX_PIXELS or max(height, width) > _MAX_SIDE:
        raise RefusedImageError(Refusal.TOO_LARGE)
    return height, width, color


def _is_palette(data: bytes) -> bool:
    return 0 < len(data) <= _MAX_PALETTE_BYTES and len(data) % 3 == 0


def _is_critical(kind: bytes) -> bool:
    return not kind[0] & 32  # an upper-case letter
