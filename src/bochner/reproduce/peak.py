"""The peak memory of this process: what an experiment that measures memory reads."""

from __future__ import annotations

import sys
from pathlib import Path

LINUX_STATUS, LINUX_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """The largest resident size that this process has had.

    Not getrusage's on Linux, which counts what the parent had when it forked.

    Example:
        >>> peak_bytes() >= 1_000_000
        True
    """
    if LINUX_STATUS.exists():
        return _linux_kilobytes("VmHWM") * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def resident_bytes() -> int:
    """What is resident now.

    Raises:     ImportError for want of psutil where there is no /proc.
    """
    if LINUX_STATUS.exists():
        return _linux_kilobytes("VmRSS") * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)


def forget_peak() -> None:
    """Start the peak anew from what is resident now, where the system can."""
    if LINUX_RESET.exists():
        LINUX_RESET.write_text("5")  # man proc_pid_clear_refs


def _linux_kilobytes(field: str) -> int:
    lines = LINUX_STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
