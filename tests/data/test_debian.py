"""Debian packages: where files are looked for, verification, apt, archives that are none."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from bochner.data import MissingDataError, cache_directory, debian
from bochner.data.debian import ARCHIVE, DebianPackage, debian_files, files_of

CONTENTS = {"usr/lib/psalms": b"The LORD is my shepherd", "usr/share/odd": b"odd"}
PACKAGE = DebianPackage(
    "psalter", "bookworm", {p: hashlib.sha256(c).hexdigest() for p, c in CONTENTS.items()}
)


def ar(members):
    """An ar archive: names of up to 16 characters, decimal sizes, members at even bytes."""
    out = ARCHIVE
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def deb(contents, *, tar="data.tar.xz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for path, content in {**contents, "../../escaped": b"x"}.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", tar: buffer.getvalue()})


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """No package installed, an empty cache, and no apt-get; returns the root of the file system."""
    monkeypatch.setenv("BOCHNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(debian, "ROOT", tmp_path / "root")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return tmp_path / "root"


def fake_apt(monkeypatch, behaviour):
    """apt-get that runs `behaviour(directory)` where it would download."""

    def run(command, *, cwd, **kwargs):
        assert command == ["/bin/apt-get", "download", "psalter"]
        behaviour(Path(cwd))

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)


def deliver(content):
    return lambda directory: (directory / "psalter_1.0-1_all.deb").write_bytes(content)


def fail(directory):
    raise subprocess.CalledProcessError(100, "apt-get", stderr="noise\nE: Unable to locate package")


def hang(directory):
    raise subprocess.TimeoutExpired("apt-get", 300)


def read(files):
    return {path: file.read_bytes() for path, file in files.items()}


def test_installed_files_are_used_where_they_lie(nothing):
    for path, content in CONTENTS.items():
        (nothing / path).parent.mkdir(parents=True, exist_ok=True)
        (nothing / path).write_bytes(content)
    assert debian_files(PACKAGE) == {path: nothing / path for path in CONTENTS}
    (nothing / "usr/share/odd").write_bytes(b"another version")
    with pytest.raises(MissingDataError, match="apt-get install psalter"):
        debian_files(PACKAGE)


def test_downloaded_once_and_only_the_wanted_files_stay(monkeypatch, nothing):
    fake_apt(monkeypatch, deliver(deb({**CONTENTS, "usr/share/doc/readme": b"unwanted"})))
    assert read(debian_files(PACKAGE)) == CONTENTS
    fake_apt(monkeypatch, fail)
    files = debian_files(PACKAGE)
    assert read(files) == CONTENTS
    kept = {file for file in cache_directory().parent.rglob("*") if file.is_file()}
    assert kept == set(files.values()), "nothing else, and nothing outside the cache"
    files["usr/lib/psalms"].write_bytes(b"damaged")
    fake_apt(monkeypatch, deliver(deb(CONTENTS)))
    assert read(debian_files(PACKAGE)) == CONTENTS


def test_a_package_fetched_by_hand(nothing):
    cache_directory().mkdir(parents=True)
    (cache_directory() / "psalter_2_all.deb").write_bytes(deb(CONTENTS))
    assert read(debian_files(PACKAGE)) == CONTENTS


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (fail, "Unable to locate package"),
        (hang, "timed out after 300 seconds"),
        (lambda directory: None, "left no package psalter"),
        (
            deliver(deb({**CONTENTS, "usr/share/odd": b"even"})),
            "odd.* has SHA-256.*another version",
        ),
        (deliver(deb({"usr/share/odd": b"odd"})), r"lacks \['usr/lib/psalms'\]"),
        (deliver(b"<html>"), "no Debian package"),
        (deliver(deb(CONTENTS)[:-20]), "damaged Debian package"),
        (deliver(ar({"debian-binary": b"2.0\n"})), r"one member data.tar.\* .*found \[\]"),
        (deliver(ar({"data.tar.zst": b"(\xb5/\xfd"})), "cannot read data.tar.zst"),
    ],
)
def test_apt_that_does_not_deliver(monkeypatch, nothing, behaviour, message):
    fake_apt(monkeypatch, behaviour)
    remedy = "apt-get install psalter.*packages.debian.org/bookworm/psalter.*put the .deb into"
    with pytest.raises(MissingDataError, match=rf"(?s){message}.*{remedy}"):
        debian_files(PACKAGE)
    assert not list(cache_directory().rglob("odd")), "nothing unverified may reach the cache"


def test_without_apt(nothing):
    with pytest.raises(MissingDataError, match=r"apt-get, which fetches it.*packages.debian.org"):
        debian_files(PACKAGE)


def test_members_of_odd_length(tmp_path):
    path = tmp_path / "psalter.deb"
    path.write_bytes(deb(CONTENTS))
    assert files_of(path, PACKAGE) == CONTENTS
