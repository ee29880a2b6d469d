"""Memory in large pages for what a processor computes with."""

import os
import sys

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def start_with_huge_pages() -> None:
    """Starts this process anew, once, such that glibc asks Linux for transparent huge pages.

    XLA's processor backend takes the memory of a step from malloc as one block and hands it back
    afterwards; the system then finds and clears it in pages of 4 KB, every step anew. For a step of
    `cifar_5_exits` these are 90,000 pages and a quarter of the processors' time, in huge pages less
    than a tenth (`benchmarks/PROFILE.md`). The variable is read when a process starts.

    Does nothing on other systems, or where the variable is set already.
    """
    if sys.platform != "linux" or VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = SETTING
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
