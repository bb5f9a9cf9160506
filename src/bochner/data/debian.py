"""Files of a Debian package: those installed, else fetched with `apt-get download` (no root needed).

    /                                     where `apt-get install` puts them
    $BOCHNER_CACHE/debian/<package>/      where they are unpacked, each checked, after a download
    $BOCHNER_CACHE/<package>_*.deb        a package that somebody fetched by hand, for want of apt

The files themselves are hashed, not the package: one text is in several versions of a package.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bochner.data import MissingDataError, cache_directory, check_sha256, replacing
from bochner.data.fetching import CommandFailed, run_in

ROOT = Path("/")
ARCHIVE = b"!<arch>\n"
HEADER = 60  # bytes before each member of an ar archive


@dataclass(frozen=True)
class DebianPackage:
    """A package, the release of Debian that has the wanted version, and the wanted files.

    `sha256`: path of an installed file, relative to the root -> its digest.

    Example:
        >>> hosts = DebianPackage("hosts", "bookworm", {"etc/hosts": "00" * 32})
        >>> hosts.by_hand
        "download 'hosts' from https://packages.debian.org/bookworm/hosts"
    """

    name: str
    release: str
    sha256: Mapping[str, str]

    @property
    def by_hand(self) -> str:
        """What to do where apt cannot."""
        return f"download {self.name!r} from https://packages.debian.org/{self.release}/{self.name}"


def debian_files(package: DebianPackage) -> dict[str, Path]:
    """Where each wanted file of the package is, verified; fetched first if it is nowhere.

    Cost:       the first call may fetch the package with `apt-get download` into a temporary folder;
                only the wanted files stay, in `cache_directory()`.
    Raises:     MissingDataError if the files are not installed, not in the cache, and apt does not
                deliver them; or if they are not the published ones. The message says what to do.
    """
    unpacked = cache_directory() / "debian" / package.name
    for root in (ROOT, unpacked):
        if _complete(root, package):
            return {path: root / path for path in package.sha256}
    with _archive(package) as archive:
        contents = files_of(archive, package)
        for path, content in contents.items():
            with replacing(unpacked / path) as temporary:
                temporary.write_bytes(content)
                check_sha256(temporary, package.sha256[path], fix=_remedy(package))
    return {path: unpacked / path for path in package.sha256}


def _complete(root: Path, package: DebianPackage) -> bool:
    """Whether all files are under `root` and the published ones."""
    try:
        for path, digest in package.sha256.items():
            check_sha256(root / path, digest, fix="")
    except (MissingDataError, OSError):
        return False
    return True


def _remedy(package: DebianPackage) -> str:
    return (
        f"install it (apt-get install {package.name}), or {package.by_hand} and put the .deb into"
        f" {cache_directory()}."
    )


@contextmanager
def _archive(package: DebianPackage) -> Iterator[Path]:
    """The newest .deb that lies in the cache, else one that apt-get downloads for the while."""
    by_hand = sorted(
        cache_directory().glob(f"{package.name}_*.deb"), key=lambda f: f.stat().st_mtime
    )
    if by_hand:
        yield by_hand[-1]
        return
    apt = shutil.which("apt-get")
    if apt is None:
        raise MissingDataError(
            f"the Debian package {package.name} is not installed, and apt-get, which fetches it, is"
            f" not on PATH; {_remedy(package)}"
        )
    with tempfile.TemporaryDirectory(prefix="bochner-") as directory:
        try:
            run_in(directory, [apt, "download", package.name])
        except CommandFailed as failed:
            raise MissingDataError(
                f"apt-get could not download {package.name} ({failed}); run apt-get update, or"
                f" {_remedy(package)}"
            ) from failed
        found = sorted(Path(directory).glob("*.deb"))
        if not found:
            raise MissingDataError(f"apt-get left no package {package.name}; {_remedy(package)}")
        yield found[0]


def files_of(archive: Path, package: DebianPackage) -> dict[str, bytes]:
    """The wanted files inside a .deb, read one by one: no name inside it reaches a file system.

    Raises:     MissingDataError if it is no .deb, lacks a file, or is compressed as Python cannot read.
    """
    members = dict(_members(archive.read_bytes(), f"{archive}; {_remedy(package)}"))
    data = [name for name in members if name.startswith("data.tar")]
    if len(data) != 1:
        raise MissingDataError(
            f"expected one member data.tar.* in {archive}, found {data}; {_remedy(package)}"
        )
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(members[data[0]])) as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                if path in package.sha256 and (file := tar.extractfile(member)) is not None:
                    found[path] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise MissingDataError(
            f"cannot read {data[0]} of {archive} ({error}); {_remedy(package)}"
        ) from error
    if missing := sorted(set(package.sha256) - set(found)):
        raise MissingDataError(f"{archive} lacks {missing}; {_remedy(package)}")
    return found


def _members(content: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of an ar archive, the outer shell of a .deb.

    A header has the name in bytes 0-15 and the size, in decimal digits, in bytes 48-57; members start
    at even bytes.
    """
    if not content.startswith(ARCHIVE):
        raise MissingDataError(f"no Debian package: {where}")
    start = len(ARCHIVE)
    while start + HEADER <= len(content):
        header = content[start : start + HEADER]
        digits = header[48:58].strip()
        size = int(digits) if digits.isdigit() else -1
        if size < 0 or start + HEADER + size > len(content):
            raise MissingDataError(f"damaged Debian package: {where}")
        start += HEADER
        yield header[:16].decode("latin-1").rstrip(" /"), content[start : start + size]
        start += size + size % 2
