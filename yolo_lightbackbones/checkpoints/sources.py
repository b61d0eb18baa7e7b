"""Downloads published weights: from a release to a checked file in the cache.

Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import hashlib
import re
import time
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from yolo_lightbackbones.card import Release
from yolo_lightbackbones.checkpoints import files
from yolo_lightbackbones.checkpoints.errors import CheckpointError
from yolo_lightbackbones.messages import flow, listed, printable, quoted
from yolo_lightbackbones.writing import write_text, written_whole

TIMEOUT = 30
"""Most seconds to wait for a server's answer, and for each part of it."""

SLOWEST = 1_000
"""Lowest average speed, in bytes per second."""

LARGEST = 1 << 30
"""Largest file, in bytes; the largest release of the built-in families has 100 MB."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that need no https."""

REDIRECTS = (("github.com", "release-assets.githubusercontent.com", "objects.githubusercontent.com"),)
"""Hosts that may redirect to each other: where GitHub keeps the files of releases, now and before 2025."""


class DownloadError(OSError):
    """Weights could not be fetched, or are not what they should be; the message says how to get them by hand."""


def assurance(release: Release) -> str:
    """A clause for messages: how the checksum of a download is checked."""
    if release.sha256:
        return f"its SHA-256 is compared with a published one, {release.sha256}"
    if release.repo_id:
        return "its SHA-256 is compared with the one that the Hugging Face hub states"
    return "nobody has published its SHA-256; the first download is trusted, later ones are compared with it"


def cache_folder() -> Path:
    """Where downloads are kept: torch's own cache, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(release: Release, *, progress: bool = True) -> Path:
    """Return the path of a published file, downloaded unless it is there already; the checksum is always checked.

    A file put into `cache_folder()` by hand under the release's file name counts as downloaded.

    Raises:
        DownloadError: if the file cannot be downloaded or its checksum is wrong; the message says what to do.
    """
    path = cache_folder() / release.filename
    if path.is_file():
        _check(path, release)
        return path
    if release.repo_id:
        return _from_hub(release)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            # Only one attempt: a mistyped proxy or a missing network should be reported at once.
            _download(release.url, partial, progress=progress)
            _check(partial, release, record=path)
    except (OSError, HTTPException, CheckpointError) as error:  # URLError and HTTPError are OSErrors
        raise DownloadError(_by_hand(release, error)) from error
    return path


class _WithinHosts(HTTPRedirectHandler):
    """Follows redirects to the host of the first request and to where that host keeps its files, nowhere else."""

    def redirect_request(  # noqa: PLR0917 - the signature is urllib's
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _check_address(newurl)
        first, host = urlsplit(req.full_url).hostname or "", urlsplit(newurl).hostname
        allowed = next((hosts for hosts in REDIRECTS if first in hosts), (first,))
        if host not in allowed:
            raise DownloadError(
                f"{printable(first)} redirects to {quoted(host)}, which is not one of {listed(allowed)}."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise DownloadError(f"The address {quoted(url)} is not https.")


def _download(url: str, place: Path, *, progress: bool) -> None:
    """Download an address into a file.

    Raises:
        OSError, HTTPException: if the answer is late, a redirect to another host, too large, or cut off.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn

    _check_address(url)
    request = Request(url, headers={"User-Agent": "yolo_lightbackbones"})
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn())
    bar = Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True), disable=not progress)
    with build_opener(_WithinHosts).open(request, timeout=TIMEOUT) as answer, place.open("wb") as file, bar:
        stated = answer.headers.get("Content-Length", "")
        length = int(stated) if re.fullmatch("[0-9]{1,18}", stated) else None
        task = bar.add_task(urlsplit(url).path.rpartition("/")[2], total=length)
        received, started = 0, time.monotonic()
        while block := answer.read1(1 << 16):
            received += len(block)
            if max(received, length or 0) > LARGEST:
                raise DownloadError(f"it has {length or received:,} bytes or more; at most {LARGEST:,} are taken.")
            if time.monotonic() - started > TIMEOUT + received / SLOWEST:
                raise DownloadError(f"the server sends fewer than {SLOWEST:,} bytes in a second.")
            file.write(block)
            bar.update(task, completed=received)
        if length is not None and received != length:
            raise DownloadError(f"it ends after {received:,} of {length:,} bytes.")


def _from_hub(release: Release) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DownloadError(
            f"{release.name} is on the Hugging Face hub, which needs the package huggingface_hub. Install it: "
            "pip install huggingface_hub"
        ) from error
    assert release.repo_id is not None
    name = release.url.rpartition("/")[2]
    try:
        path = Path(hf_hub_download(release.repo_id, name, etag_timeout=TIMEOUT))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        raise DownloadError(_by_hand(release, error)) from error
    # The hub's client stores large files under their SHA-256, which the server has sent.
    stored = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", stored) and _sha256(path) != stored:
        raise DownloadError(f"{path} is not what the hub says it is (SHA-256 {stored}). Delete it and try again.")
    return path


def _check(path: Path, release: Release, record: Path | None = None) -> None:
    """Compare the file with its checksum: the published one, or the one recorded when it first arrived.

    Args:
        path: the file.
        release: the release that it should be.
        record: the path where the file will be; None if it is there already.
    """
    note = _note(record or path)
    digest = _sha256(path)
    known = release.sha256 or (note.read_text().strip() if note.is_file() else None)
    if known is None:
        files.read_tensors(path)  # the checksum of half a file or an error page must not be recorded
        write_text(note, f"{digest}\n")
    elif digest != known:
        raise DownloadError(
            f"its SHA-256 is {digest}, it should be {known}."
            if record
            else f"{path} has the SHA-256 {digest}, it should be {known}: it was damaged or replaced. Delete it"
            f"{f' and {note.name}' if note.is_file() else ''}, then try again."
        )


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _by_hand(release: Release, error: Exception) -> str:
    if isinstance(error, URLError) and not isinstance(error, HTTPError):
        error = error.reason if isinstance(error.reason, Exception) else error  # without "<urlopen error ...>"
    reason = flow(str(error).strip().split("\n")[0], 300) or type(error).__name__
    return (
        f"{release.name} could not be downloaded: {reason.rstrip('.')}. Fetch {release.url} where there is a network "
        f"and put it here as {cache_folder() / release.filename}, or give the path of your copy."
    )
