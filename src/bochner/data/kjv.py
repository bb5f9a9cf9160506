"""The King James Bible, verse by verse, as the Debian package bible-kjv-text keeps it.

Its one file is 4.4 MB of text, `Ge1:1 In the beginning ...` a line, compressed for the program
`bible`: an index, then LZW windows of 64 KB one after the other. The text is in the public domain (the
United Kingdom's letters patent apart).
"""

from __future__ import annotations

import re

from bochner.data.debian import DebianPackage, debian_files
from bochner.data.lzw import expanded

FILE = "usr/lib/bible.data"
KJV_TEXT = DebianPackage(
    "bible-kjv-text",
    "bookworm",
    {FILE: "6c746c2acc8a34bfded980883ff1701a5d68934a1c853ebf88a07b978fe0ae0e"},
)
TEXT_START = 371  # bytes of the index, and of the head of the compressed text
TOKEN = re.compile(r"[\w'-]+|[^\w\s]")


def kjv_verses() -> dict[str, str]:
    """Reference -> text of all 31,102 verses, in canonical order: `"Ge1:1"` -> "In the beginning ...".

    Cost:       half a second; the first call may fetch 2.4 MB with apt-get into `cache_directory()`.
    Raises:     MissingDataError if the package is neither installed nor to be had, or is another text.
    """
    content = debian_files(KJV_TEXT)[FILE].read_bytes()
    return verses_in(expanded(content[TEXT_START:]).decode("ascii"))


def verses_in(text: str) -> dict[str, str]:
    r"""Reference -> verse, from lines of both with a title above them.

    Example:
        >>> verses_in("Textfile 930105.\nGe1:1 In the beginning\nGe1:2 And the earth\n")
        {'Ge1:1': 'In the beginning', 'Ge1:2': 'And the earth'}
    """
    pairs = (line.partition(" ") for line in text.splitlines()[1:])
    return {reference: verse for reference, _, verse in pairs}


def verse_tokens(verse: str) -> list[str]:
    """Lower-case words, with the apostrophes and hyphens inside them, and punctuation marks.

    Example:
        >>> verse_tokens("And Jacob said, Sell me this day thy father's birthright.")[-4:]
        ['thy', "father's", 'birthright', '.']
    """
    return TOKEN.findall(verse.lower())
