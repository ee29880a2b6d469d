"""Transparent huge pages for the memory of XLA on CPU."""

import os
import sys

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Restarts this process once, with glibc set to request transparent huge pages from Linux.

    XLA on CPU allocates the memory of a step as one block and frees it after the step. The kernel
    then maps and clears it again in every step, in pages of 4 KB. For `cifar_5_exits` these are
    90,000 pages and a quarter of the CPU time; with huge pages less than a tenth (see
    `docs/results/cpu.md`). glibc reads the variable when a process starts.

    Does nothing on other systems, or if the variable is set.
    """
    if sys.platform != "linux" or VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = SETTING
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
