"""The King James Bible: LZW, lines, tokens, and the published text itself."""

import pytest

from bochner.data import MissingDataError
from bochner.data.kjv import kjv_verses, verse_tokens, verses_in
from bochner.data.lzw import CLEAR, FIRST_BITS, FIRST_FREE, MOST_BITS, expanded


def compressed(content, *, window):
    """`compress`, with an emptied table every `window` bytes; for inputs of at least a byte."""
    groups, group, bits = b"", [], FIRST_BITS

    def flush(codes=8):
        nonlocal groups, group
        if group:
            value = sum(code << bits * i for i, code in enumerate(group))
            groups += value.to_bytes(-(-bits * codes // 8), "little")
        group = []

    def emit(code):
        group.append(code)
        if len(group) == 8:
            flush()

    for start in range(0, len(content), window):
        if start:
            emit(CLEAR)
            flush()
        bits = FIRST_BITS
        table = {bytes([byte]): byte for byte in range(256)}
        free, string = FIRST_FREE, b""
        for byte in content[start : start + window]:
            longer = string + bytes([byte])
            if longer in table:
                string = longer
                continue
            emit(table[string])
            if free >= 1 << bits and bits < MOST_BITS:
                flush()
                bits += 1
            if free < 1 << MOST_BITS:
                table[longer] = free
                free += 1
            string = bytes([byte])
        emit(table[string])
    flush(len(group))  # the last group is cut short
    return groups


def test_expanded():
    assert expanded(b"") == b""
    assert expanded(bytes.fromhex("61c4041c2806")) == b"abababab"


def letters(size, alphabet):
    state, out = 1, bytearray()
    for _ in range(size):
        state = state * 16_807 % (2**31 - 1)
        out.append(state % alphabet)
    return bytes(out)


@pytest.mark.parametrize(
    ("size", "alphabet", "window"),
    [(1, 7, 9), (3_000, 7, 10_000), (3_000, 7, 700), (140_000, 251, 140_000)],
    ids=["one byte", "widths 9 to 11", "emptied tables", "a full table"],
)
def test_a_round_trip(size, alphabet, window):
    content = letters(size, alphabet)
    assert expanded(compressed(content, window=window)) == content


def test_damaged_codes():
    with pytest.raises(ValueError, match="code 300 has no string among 257"):
        expanded((300).to_bytes(2, "little"))


def test_lines():
    text = "Holy Bible\nGe1:1 In the\nGe1:2 And the earth\n"
    assert verses_in(text) == {"Ge1:1": "In the", "Ge1:2": "And the earth"}


@pytest.mark.parametrize(
    ("verse", "tokens"),
    [
        ("Aaron's sons; (Beth-el!)", ["aaron's", "sons", ";", "(", "beth-el", "!", ")"]),
        ("The LORD is", ["the", "lord", "is"]),
        ("", []),
    ],
)
def test_tokens(verse, tokens):
    assert verse_tokens(verse) == tokens


@pytest.fixture(scope="module")
def verses():
    """Skips, aloud, only where the package is neither installed nor to be had."""
    try:
        return kjv_verses()
    except MissingDataError as error:
        pytest.skip(str(error))


def test_the_published_text(verses):
    assert len(verses) == 31_102
    assert verses["Ge1:1"] == "In the beginning God created the heaven and the earth."
    assert verses["John11:35"] == "Jesus wept."
    assert list(verses)[-1] == "Rev22:21"
    lengths = [len(verse_tokens(verse)) for verse in verses.values()]
    assert min(lengths) == 3
    assert sum(length <= 60 for length in lengths) == 30_507
