"""Loading models of transformers from directories on this machine, quietly and offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bochner.data import MissingDataError


@contextmanager
def transformers_for(name: str) -> Iterator[None]:
    """Inside the with-block transformers shows no progress bars; without it, say what `name` needs.

    Raises:     MissingDataError if the package transformers is missing.
    """
    try:
        import transformers  # noqa: F401
        from transformers.utils import logging
    except ImportError as error:
        raise MissingDataError(
            f'{name} needs the package transformers: pip install "transformers>=5" ({error})'
        ) from error
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for a file that loads in a fraction of a second
    try:
        yield
    finally:
        if bar:
            logging.enable_progress_bar()
