"""The King James Bible with Strong's numbers: the module's files, its XML, and the published text."""

import struct
import zlib

import pytest

from bochner.data import MissingDataError
from bochner.data.strongs import entries, kjv_strongs, labelled_words, verses_of

BOOK = '<div canonical="true" osisID="Jude" sID="a" type="book"/> <title>Jude</title>'
END_OF_BOOK = '<div canonical="true" eID="a" osisID="Jude" type="book"/>'
CHAPTER = '<div sID="gen1" type="x-p"/> <chapter n="1" osisID="Jude.1" sID="Jude.1"/>'


def write(folder, blocks, index):
    """The three files of a testament: blocks of text, and (block, start, size) of each entry."""
    packed = [zlib.compress(block) for block in blocks]
    starts = [sum(map(len, packed[:i])) for i in range(len(packed))]
    paths = [folder / f"nt.{kind}" for kind in ("bzs", "bzv", "bzz")]
    sizes = zip(starts, map(len, packed), map(len, blocks), strict=True)
    paths[0].write_bytes(b"".join(struct.pack("<III", *size) for size in sizes))
    paths[1].write_bytes(b"".join(struct.pack("<IIH", *entry) for entry in index))
    paths[2].write_bytes(b"".join(packed))
    return paths


def test_entries(tmp_path):
    blocks = ["In the beginning…".encode(), b"The end"]
    files = write(tmp_path, blocks, [(0, 0, 0), (0, 7, 12), (1, 0, 3), (9, 9, 0)])
    assert entries(*files) == ["", "beginning…", "The", ""]
    files[0].write_bytes(struct.pack("<III", 0, files[2].stat().st_size, 3))
    with pytest.raises(ValueError, match=r"block 0 has 19 bytes, nt.bzs states 3"):
        entries(*files)


def test_verses_between_heads():
    texts = ["", "importer", BOOK, CHAPTER, "one", f"two {END_OF_BOOK}", BOOK, CHAPTER, "three"]
    assert verses_of(texts[:6]) == {"Jude.1.1": "one", "Jude.1.2": f"two {END_OF_BOOK}"}
    renamed = [text.replace("Jude", "Rev") for text in texts[6:]]
    assert list(verses_of(texts[:6] + renamed)) == ["Jude.1.1", "Jude.1.2", "Rev.1.1"]


def test_labelled_words():
    text = (
        '¶ For <w lemma="strong:G2316">God</w> so <transChange type="added">was</transChange> the'
        ' <w lemma="strong:H3068"><divineName>Lord</divineName></w>, the'
        ' <w lemma="strong:H3547">priest’s office</w>.<note placement="foot">Heb. so</note>'
    )
    pairs = (("God", "G2316"), ("Lord", "H3068"), ("priest’s office", "H3547"))
    assert labelled_words(text) == pairs
    assert labelled_words("no number") == ()


def test_the_published_text():
    """Skips, aloud, only where the package is neither installed nor to be had."""
    try:
        verses = kjv_strongs()
    except MissingDataError as error:
        pytest.skip(str(error))
    assert len(verses) == 31_102
    assert sum(map(len, verses.values())) == 349_308
    assert len({label for words in verses.values() for _, label in words}) == 14_057
    assert verses["Gen.1.1"][:2] == (("beginning", "H7225"), ("God", "H0430"))
    assert verses["John.11.35"] == (("Jesus", "G2424"), ("wept", "G1145"))
    assert list(verses)[-1] == "Rev.22.21"
    assert [name for name, words in verses.items() if not words] == [
        "Mark.9.43",
        "Luke.6.41",
        "Luke.17.36",
    ]
