"""Inspection of PNG files: header, checksums of the chunks, and the compressed pixels."""

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
_INTERLACED = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
_NOT_INTERLACED = ((0, 0, 1, 1),)
_BYTES_AT_ONCE = 1 << 14  # they decompress to at most 16 MiB
_LAST_FILTER = 4


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


class _Pass(NamedTuple):
    """Position of the rows of a pass in the decompressed data, and bytes per row."""

    start: int
    end: int
    row_bytes: int

    def has_known_filters(self, data: bytes, position: int) -> bool:
        """Whether the rows that start in `data`, which is at `position`, have known filter types.

        The first byte of a row is its filter type.
        """
        first = self.start + max(0, -(-(position - self.start) // self.row_bytes)) * self.row_bytes
        types = data[first - position : max(0, self.end - position) : self.row_bytes]
        return max(types, default=0) <= _LAST_FILTER


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


def check_png_pixels(contents: bytes) -> None:
    """Checks that the compressed pixels are one valid zlib stream with exactly the rows of a PNG.

    Decoders ignore different errors, such as surplus rows or a wrong checksum.

    Args:
      contents: a file whose header is valid.

    Raises:
      RefusedImageError: the pixels are truncated or damaged.
    """
    chunks = list(_chunks(contents))
    compressed = b"".join(chunk.data for chunk in chunks if chunk.kind == b"IDAT")
    passes = _passes(chunks[0].data)
    size = passes[-1].end
    if not _window_covers_data(compressed, size):
        raise RefusedImageError(Refusal.DAMAGED)
    stream, position = zlib.decompressobj(), 0
    for start in range(0, len(compressed), _BYTES_AT_ONCE):
        try:
            rows = stream.decompress(compressed[start : start + _BYTES_AT_ONCE])
        except zlib.error as error:  # also a wrong checksum of the pixels
            raise RefusedImageError(Refusal.DAMAGED) from error
        known = all(pass_.has_known_filters(rows, position) for pass_ in passes)
        position += len(rows)
        if position > size or not known:
            raise RefusedImageError(Refusal.DAMAGED)
        if stream.eof:
            break
    if position < size or not stream.eof:
        raise RefusedImageError(Refusal.TRUNCATED)


def _passes(header: bytes) -> list[_Pass]:
    """The passes of the pixels, one unless they are interlaced."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits, passes, start = _CHANNELS[color] * depth, [], 0
    for top, left, rows, columns in _INTERLACED if interlaced else _NOT_INTERLACED:
        pass_width, pass_height = -(-(width - left) // columns), -(-(height - top) // rows)
        if pass_width > 0 and pass_height > 0:
            row_bytes = (pass_width * bits + 7) // 8 + 1
            passes.append(_Pass(start, start + row_bytes * pass_height, row_bytes))
            start = passes[-1].end
    return passes


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
