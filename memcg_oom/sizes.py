"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

# PAGE_COUNTER_MAX in bytes, or what rounding leaves of it, is how v1 writes "no limit"; no real limit comes near it.
UNLIMITED = 2**62

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str) -> int:
    """Bytes from "4096", "64M" or "1.5G"; the suffixes are powers of 1,024, with or without "B" or "iB" behind.

    Raises:
        ValueError: anything else, and what is not positive.
    """
    stripped = text.strip().upper()
    number = stripped.rstrip("IB").rstrip("KMGT")
    suffix = stripped[len(number) :].removesuffix("B").removesuffix("I")
    try:
        size = int(float(number) * 2 ** _SUFFIXES[suffix])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"not a size: {text!r}; write bytes, or a number with K, M, G or T behind it, such as 64M")
    return size


def format_size(size: float) -> str:
    """Such as "64.0 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
