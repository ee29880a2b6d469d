"""The files that XLA dumps while it compiles: the program with buffers, and its memory."""

import re
from pathlib import Path

from imta_jax.planning.chips import Chip

_FINAL_TEXT = {
    "tpu": "*after_optimizations_after_buffer_assignment.txt",
    "cuda": "*gpu_after_optimizations.txt",
}
_MEMORY_REPORT = "*memory-usage-report.txt"
_LAUNCHES = "*thunk_sequence_after_thunk_passes.txt"


class Dump:
    """The files that XLA dumps to a folder.

    Args:
      folder: the folder; it need not exist yet.
      chip: the kind of chip that XLA compiles for.
    """

    def __init__(self, folder: Path, chip: Chip):
        self._folder, self._pattern, self._last_size = folder, _FINAL_TEXT[chip.platform], 0

    def is_complete(self) -> bool:
        """Whether the text ends with a brace and the report does not grow any more."""
        text, report = self._newest(self._pattern), self._newest(_MEMORY_REPORT)
        if text is None or report is None or not _ends_with_brace(text):
            return False
        size, before = report.stat().st_size, self._last_size
        self._last_size = size
        return 0 < size == before

    def read(self) -> tuple[str, str]:
        """The program's text and the report on its memory."""
        text, report = self._newest(self._pattern), self._newest(_MEMORY_REPORT)
        assert text and report, "is_complete"
        return text.read_text(), report.read_text()

    def launches(self) -> str:
        """The sequence of operations that the host launches; "" if there is none."""
        path = self._newest(_LAUNCHES)
        return path.read_text() if path else ""

    def _newest(self, pattern: str) -> Path | None:
        # A program may be preceded by small ones, such as constants.
        return max(self._folder.glob(pattern), default=None)


def _ends_with_brace(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 16, 0))
        return file.read().rstrip().endswith(b"}")


def assigned_bytes(report: str) -> int:
    """Bytes in the device's main memory, from XLA's report on memory usage."""
    spaces = re.findall(r"^Memory Space: (\w+) .*\n\s*Total bytes: (\d+)", report, re.M)
    return sum(int(size) for name, size in spaces if name == "default")
