"""The King James Bible with Strong's numbers: for each word, which Hebrew or Greek word it renders.

The text is Debian's package sword-text-kjv (public domain; the United Kingdom's letters patent apart):
a SWORD module of type zText, three files for each testament. *.bzs says where each book's compressed
block lies in *.bzz, *.bzv in which block, from where, and how long each entry is. An entry is the
introduction of a testament or of a book, the head of a chapter, or a verse, as OSIS XML:

    In the <w lemma="strong:H7225">beginning</w> <w lemma="strong:H0430">God</w> ...

Reference:  Strong, The Exhaustive Concordance of the Bible, 1890. H: Hebrew or Aramaic, G: Greek.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

from bochner.data.debian import DebianPackage, debian_files

FOLDER = "usr/share/sword/modules/texts/ztext/engKJV2006eb"
KJV_STRONGS = DebianPackage(
    "sword-text-kjv",
    "bookworm",
    {
        f"{FOLDER}/ot.bzs": "0d518856e8c6ceae0ca58bef944ba9a2809b5d4489cf81900853ad4af227510b",
        f"{FOLDER}/ot.bzv": "b4fae54cb0b979b7f3f78fe6eaa94bad1f1d408eccb4a40410402b794b5c2f0f",
        f"{FOLDER}/ot.bzz": "69f7e4e9b42ecef2e212ea957a388fccbeed1e3e333a38cf52e1b4064c6ce373",
        f"{FOLDER}/nt.bzs": "e7f9bc653743217cdcdf95890a708f997a03af056161d84bb540efef79e4e638",
        f"{FOLDER}/nt.bzv": "9d1daab8fb6ef43b53642cdd3276c1fa95ecfde08901bbb349be6378d1e1b972",
        f"{FOLDER}/nt.bzz": "135b6e70af49372f3a82c5d9cc3c00278f38dbb2c12af74ea8d4b54c18d0cd56",
    },
)
INTRODUCTIONS = 2  # of the module and of the testament, before the first book
BLOCK = struct.Struct("<III")  # start, size, size when expanded
ENTRY = struct.Struct("<IIH")  # block, start, size
# A verse may hold the end of its book, with an eID in place of the sID.
BOOK = re.compile(r'<div canonical="true" osisID="\w+" sID="[^"]*" type="book"/>')
CHAPTER = re.compile(r'<chapter n="\d+" osisID="(\w+\.\d+)" sID=')
LABELLED = re.compile(r'<w lemma="strong:([HG]\d+)">(.*?)</w>', re.DOTALL)
MARKUP = re.compile(r"<[^>]*>")

LabelledWords = tuple[tuple[str, str], ...]


def kjv_strongs() -> dict[str, LabelledWords]:
    """Verse -> its labelled words, in the order of the text: `"Gen.1.1"` -> (("beginning", "H7225"), ...).

    All 31,102 verses in canonical order, 349,308 labelled words, 14,057 labels (5,616 of them at least
    5 times). A word is a string as printed, capitals kept; 9,328 are of several words ("priest's
    office", with a typographic apostrophe). Words without a number ("the", "of", words the
    translators added) are left out, as are notes; 3 verses keep none.

    Cost:       half a second; the first call may fetch 3 MB with apt-get into `cache_directory()`.
    Raises:     MissingDataError if the package is neither installed nor to be had, or is another text.
    """
    paths = debian_files(KJV_STRONGS)
    verses: dict[str, LabelledWords] = {}
    for testament in ("ot", "nt"):
        files = (paths[f"{FOLDER}/{testament}.{kind}"] for kind in ("bzs", "bzv", "bzz"))
        for reference, text in verses_of(entries(*files)).items():
            verses[reference] = labelled_words(text)
    return verses


def entries(blocks: Path, index: Path, text: Path) -> list[str]:
    """All entries of a testament, from its three files.

    Raises:     ValueError if a block does not have the size that the index states.
    """
    compressed = text.read_bytes()
    plain: list[bytes] = []
    for start, size, expected in BLOCK.iter_unpack(blocks.read_bytes()):
        block = zlib.decompress(compressed[start : start + size])
        if len(block) != expected:
            raise ValueError(
                f"{text}: block {len(plain)} has {len(block)} bytes, {blocks.name} states {expected};"
                " reinstall the package."
            )
        plain.append(block)
    return [
        plain[block][start : start + size].decode("utf-8") if size else ""
        for block, start, size in ENTRY.iter_unpack(index.read_bytes())
    ]


def verses_of(texts: list[str]) -> dict[str, str]:
    """Reference -> OSIS text of each verse: a book's introduction and a chapter's head start anew.

    Example:
        >>> book = '<div canonical="true" osisID="Jude" sID="a" type="book"/>'
        >>> head = '<chapter n="1" osisID="Jude.1" sID="b"/>'
        >>> verses_of(["", "", book, head, "Jude, the servant", "Mercy"])
        {'Jude.1.1': 'Jude, the servant', 'Jude.1.2': 'Mercy'}
    """
    verses: dict[str, str] = {}
    chapter, number = "", 0
    for text in texts[INTRODUCTIONS:]:
        if head := CHAPTER.search(text):
            chapter, number = head[1], 0
        elif not BOOK.search(text):
            number += 1
            verses[f"{chapter}.{number}"] = text
    return verses


def labelled_words(text: str) -> LabelledWords:
    """(word, Strong's number) of every word of an OSIS text that has one.

    Example:
        >>> labelled_words('the <w lemma="strong:H0430">God</w> of <w lemma="strong:H0776">earth</w>.')
        (('God', 'H0430'), ('earth', 'H0776'))
    """
    return tuple((MARKUP.sub("", word), label) for label, word in LABELLED.findall(text))
