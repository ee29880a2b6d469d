"""Inspection of JPEG files: frame header, markers, and scans.

The pixels of a JPEG depend on its frame, its tables, its scans and two application segments (JFIF
and Adobe). All other segments are metadata.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from imta_jax.data.decoding.exif import orientation_of
from imta_jax.data.decoding.refusal import MAX_PIXELS, MAX_SCANS, Refusal, RefusedImageError

SIGNATURE = b"\xff\xd8\xff"
_MAX_SIDE = 65_500  # the limit of libjpeg
_SOI, _EOI, _SOS, _DRI, _DAC = b"\xff\xd8", 0xD9, 0xDA, 0xDD, 0xCC
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, _DAC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_KNOWN = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE}
_APP0, _APP1, _APP14, _LAST_APP, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# Bytes that do not end the data of a scan after 0xFF: stuffed zeros, fill bytes and restarts.
_WITHIN_SCAN = np.isin(np.arange(256), [0x00, 0xFF, *range(0xD0, 0xD8)])
_COEFFICIENTS = 64
_HEIGHT_OFFSET = 5  # in the segment of a frame: after marker, length and bits per value


class JpegHeader(NamedTuple):
    """The header of a JPEG.

    Attributes:
      height, width: size in pixels.
      orientation: EXIF orientation, 1 to 8; 1 if there is none.
      extended_height: a height with one more row of units (MCUs), for `jpeg_without_metadata`; 0
        unless one sequential scan holds all of 1 or 3 components.
    """

    height: int
    width: int
    orientation: int
    extended_height: int


class Segment(NamedTuple):
    """A marker and its data. `end` includes the compressed data of a scan."""

    marker: int
    start: int
    data: bytes
    data_end: int
    end: int


@dataclass
class _Frame:
    """The components of a frame, and which of their coefficients the scans have sent."""

    progressive: bool
    height: int
    width: int
    sampling: dict[int, tuple[int, int]]  # horizontal and vertical factors by component
    missing_bits: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.missing_bits = {name: [1] * _COEFFICIENTS for name in self.sampling}

    def is_complete(self) -> bool:
        return not any(map(any, self.missing_bits.values()))

    @property
    def extended_height(self) -> int:
        """Height with one more row of units of a scan of all components; 0 if it is too large."""
        rows = max(vertical for _, vertical in self.sampling.values())
        unit_height = 8 * rows if len(self.sampling) > 1 else 8
        extended = (math.ceil(self.height / unit_height) + 1) * unit_height
        return extended if extended <= _MAX_SIDE else 0

    def num_units(self, components: list[int]) -> int:
        """Number of units (MCUs) in a scan of some components."""
        columns, rows = (max(factors) for factors in zip(*self.sampling.values(), strict=True))
        if len(components) > 1:
            return math.ceil(self.width / (8 * columns)) * math.ceil(self.height / (8 * rows))
        horizontal, vertical = self.sampling[components[0]]
        width = math.ceil(self.width * horizontal / columns)
        height = math.ceil(self.height * vertical / rows)
        return math.ceil(width / 8) * math.ceil(height / 8)


def read_jpeg_header(contents: bytes) -> JpegHeader:
    """Reads all markers of a JPEG and checks that its scans are complete as far as they show.

    Args:
      contents: the file, which starts with `SIGNATURE`.

    Raises:
      RefusedImageError: the file is truncated, damaged, too large, or of a kind that decoders treat
        differently.
    """
    frame, orientation, scans, restart_interval, has_adobe = None, 1, 0, 0, False
    for segment in jpeg_segments(contents):
        marker, data = segment.marker, segment.data
        if marker in _FRAMES or marker == _DAC:
            frame = _read_frame(marker, data, frame)
        elif marker == _APP1 and data.startswith(b"Exif\0\0") and orientation == 1:
            orientation = orientation_of(data[6:])
        elif marker == _APP14 and not scans:  # decoders choose the colors before the first scan
            has_adobe |= _is_adobe(data)
        elif marker == _DRI and len(data) == 2:
            (restart_interval,) = struct.unpack(">H", data)
        elif marker == _SOS:
            if frame is None:
                raise RefusedImageError(Refusal.DAMAGED)
            compressed = contents[segment.data_end : segment.end]
            _check_scan(frame, data, compressed, restart_interval)
            scans += 1
            if scans > MAX_SCANS:
                raise RefusedImageError(Refusal.JPEG_SCANS)
    if frame is None or not frame.is_complete():
        raise RefusedImageError(Refusal.TRUNCATED)
    if len(frame.sampling) == 4 and not has_adobe:
        raise RefusedImageError(Refusal.JPEG_COMPONENTS)
    has_one_scan = scans == 1 and not frame.progressive and len(frame.sampling) in (1, 3)
    extended_height = frame.extended_height if has_one_scan else 0
    return JpegHeader(frame.height, frame.width, orientation, extended_height)


def jpeg_without_metadata(
    contents: bytes, *, appended_to_scans: bytes = b"", height: int = 0
) -> bytes:
    """The same JPEG with only the segments that its pixels depend on.

    Args:
      contents: a file that `read_jpeg_header` accepts.
      appended_to_scans: bytes to insert after the compressed data of every scan.
      height: the height in the header, if it is to be another one.
    """
    parts = [_SOI]
    for segment in jpeg_segments(contents):
        if _is_metadata(segment):
            continue
        start = segment.start
        part = b"\xff" + bytes([segment.marker]) + contents[start + 2 : segment.end]
        if segment.marker == _SOS and appended_to_scans:
            part = part.rstrip(b"\xff") + appended_to_scans
        elif segment.marker in _FRAMES and height:
            part = part[:_HEIGHT_OFFSET] + struct.pack(">H", height) + part[_HEIGHT_OFFSET + 2 :]
        parts.append(part)
    return b"".join([*parts, b"\xff\xd9"])


def jpeg_segments(contents: bytes) -> Iterator[Segment]:
    """Yields the segments between start and end marker, in order.

    Raises:
      RefusedImageError: there is no end marker, or a marker that decoders do not know.
    """
    position, scan_ends = 2, None
    while match := _MARKER.search(contents, position):
        start, marker = match.end() - 2, match[1][0]
        if marker == _EOI:
            return
        position = match.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker not in _KNOWN:
            raise RefusedImageError(Refusal.DAMAGED)
        length = int.from_bytes(contents[position : position + 2], "big")
        data_end = end = position + length
        if length < 2 or end > len(contents):
            break
        if marker == _SOS:
            scan_ends = _scan_ends(contents) if scan_ends is None else scan_ends
            after = np.searchsorted(scan_ends, data_end)
            if after == len(scan_ends):
                break
            end = int(scan_ends[after])
        yield Segment(marker, start, contents[position + 2 : data_end], data_end, end)
        position = end
    raise RefusedImageError(Refusal.TRUNCATED)


def _scan_ends(contents: bytes) -> Int[np.ndarray, " M"]:
    """Positions at which the data of a scan would end: those of all other markers."""
    values = np.frombuffer(contents, np.uint8)
    first = np.flatnonzero(values[:-1] == 0xFF)
    return first[~_WITHIN_SCAN[values[first + 1]]]


def _read_frame(marker: int, data: bytes, previous: _Frame | None) -> _Frame:
    if marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE) or not data or data[0] != 8:
        raise RefusedImageError(Refusal.JPEG_CODING)
    if previous is not None or len(data) < 6 or len(data) != 6 + 3 * data[5]:
        raise RefusedImageError(Refusal.DAMAGED)
    height, width, count = struct.unpack_from(">HHB", data, 1)
    if not height or not width:
        raise RefusedImageError(Refusal.DAMAGED)
    if height * width > MAX_PIXELS or max(height, width) > _MAX_SIDE:
        raise RefusedImageError(Refusal.TOO_LARGE)
    if count not in (1, 3, 4):
        raise RefusedImageError(Refusal.JPEG_COMPONENTS)
    factors = {data[i]: divmod(data[i + 1], 16) for i in range(6, len(data), 3)}
    if len(factors) != count or not all(1 <= f <= 4 for pair in factors.values() for f in pair):
        raise RefusedImageError(Refusal.DAMAGED)
    return _Frame(marker == _PROGRESSIVE, height, width, factors)


def _check_scan(frame: _Frame, header: bytes, compressed: bytes, restart_interval: int) -> None:
    """Notes what a scan sends, and checks its restart markers."""
    count = header[0] if header else 0
    if not 1 <= count <= 4 or len(header) != 4 + 2 * count:
        raise RefusedImageError(Refusal.DAMAGED)
    components = [header[1 + 2 * i] for i in range(count)]
    if not set(components) <= set(frame.sampling):
        raise RefusedImageError(Refusal.DAMAGED)
    first, last, bits = header[-3], min(header[-2], _COEFFICIENTS - 1), header[-1] & 15
    if not frame.progressive:
        first, last, bits = 0, _COEFFICIENTS - 1, 0
    for name in components:
        frame.missing_bits[name][first : last + 1] = [bits] * (last + 1 - first)
    if restart_interval:
        expected = -(-frame.num_units(components) // restart_interval) - 1
        values = np.frombuffer(compressed, np.uint8)
        after = values[np.flatnonzero(values[:-1] == 0xFF) + 1]
        restarts = after[(after & 0xF8) == 0xD0][:expected] & 7
        if not np.array_equal(restarts, np.arange(expected) % 8):
            raise RefusedImageError(Refusal.TRUNCATED)


def _is_metadata(segment: Segment) -> bool:
    if segment.marker == _APP0:
        return not (segment.data.startswith(b"JFIF\0") and len(segment.data) >= 14)
    if segment.marker == _APP14:
        return not _is_adobe(segment.data)
    return _APP0 <= segment.marker <= _LAST_APP or segment.marker == _COMMENT


def _is_adobe(data: bytes) -> bool:
    return data.startswith(b"Adobe") and len(data) >= 12
