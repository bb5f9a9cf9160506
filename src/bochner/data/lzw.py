"""Lempel-Ziv-Welch as the Unix tool `compress` writes it; Python's library has no reader.

Codes have 9 bits at first and one more each time the table of 2^bits strings is full, up to 16. They
are written eight at a time, `bits` bytes. The table grows by one a code, so that the width changes
between two groups of eight; where the table is emptied, the rest of the group is filling.

Reference:  Welch, A Technique for High-Performance Data Compression, 1984.
"""

from __future__ import annotations

from collections.abc import Iterator

FIRST_BITS, MOST_BITS = 9, 16
CLEAR, FIRST_FREE = 256, 257  # the code that empties the table; the first that a string gets


def expanded(compressed: bytes) -> bytes:
    r"""What `compress` was given; without the three bytes at the head of a .Z file.

    Raises:     ValueError if a code appears before its string does: the data are damaged.
    Cost:       a second for 4 MB.

    Example:
        >>> expanded(bytes.fromhex("61c4041c2806"))
        b'abababab'
    """
    table = [bytes([byte]) for byte in range(256)] + [b""]
    out: list[bytes] = []
    previous = b""
    codes = _Codes(compressed)
    while (code := codes.next(len(table))) is not None:
        if code == CLEAR:
            del table[FIRST_FREE:]
            codes.restart()
            previous = b""
            continue
        if code > len(table) or (code == len(table) and not previous):
            raise ValueError(f"code {code} has no string among {len(table)}: damaged LZW data.")
        # The one string that a code may name before it is in the table begins and ends alike.
        string = table[code] if code < len(table) else previous + previous[:1]
        if previous and len(table) < 1 << MOST_BITS:
            table.append(previous + string[:1])
        out.append(string)
        previous = string
    return b"".join(out)


class _Codes:
    """The codes of a stream, in groups of eight of one width."""

    def __init__(self, compressed: bytes) -> None:
        self.compressed, self.start = compressed, 0
        self.bits = FIRST_BITS
        self.group: Iterator[int] = iter(())

    def restart(self) -> None:
        """Drop the rest of the group, and go back to the first width."""
        self.bits, self.group = FIRST_BITS, iter(())

    def next(self, strings: int) -> int | None:
        """The next code, or None at the end, where the table already has so many strings."""
        if strings >= 1 << self.bits and self.bits < MOST_BITS:
            self.bits += 1
        code = next(self.group, None)
        if code is None:
            chunk = self.compressed[self.start : self.start + self.bits]
            self.start += len(chunk)
            self.group = _split(chunk, self.bits)
            code = next(self.group, None)
        return code


def _split(chunk: bytes, bits: int) -> Iterator[int]:
    """The codes in a group, lowest bits first; a last group may be short."""
    value, mask = int.from_bytes(chunk, "little"), (1 << bits) - 1
    return iter([value >> shift & mask for shift in range(0, 8 * len(chunk) - bits + 1, bits)])
