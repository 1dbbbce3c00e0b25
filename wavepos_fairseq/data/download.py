"""Files by HTTP: resumed where a connection broke, checked before they are used, bounded in size."""

import contextlib
import hashlib
import http.client
import re
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, Union

from .. import __version__
from .corpus import DataError, say

USER_AGENT = f"wavepos-fairseq/{__version__}"  # one mirror answers 403 to urllib's own
TIMEOUT_SECONDS = 30
ATTEMPTS_PER_MIRROR = 5
MAX_BYTES = 4 << 30  # of a download, and of the text in one; WikiText-103 has 0.5 GiB of text


class DownloadError(DataError):
    """No URL gave the file. reasons: one for each URL; instead: what the user can do without a network."""

    def __init__(self, what: str, instead: str, reasons: Sequence[str]) -> None:
        super().__init__("\n  ".join([f"{what} could not be downloaded; {instead}:", *reasons]))
        self.reasons = reasons


def fetch_file(
    file: Path, urls: Sequence[str], check: Callable[[Path], object], instead: str, by_length: bool = False
) -> Path:
    """Download ``file`` from the first of ``urls`` whose bytes pass ``check``, which raises DataError for others.

    The rest of an interrupted download, in ``file`` with .part at the end, is fetched. instead: what the user can do
    without a network, for the message. by_length: the check has no checksum, so only the length shows that the file is
    whole; the server must give it.

    Raises DownloadError.
    """
    part = file.with_name(f"{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(DataError, FileNotFoundError):
        check(file)
        say(f"{file}: already downloaded")
        return file
    reasons = []
    for url in urls:
        try:
            download_verified(url, part, check, by_length)
            part.replace(file)
            return file
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url}: {' '.join(str(error).split())}")  # urllib's on redirects have lines
            say(f"failed: {error}")
    with contextlib.suppress(OSError):
        file.parent.rmdir()  # unless part of the file is in it
    raise DownloadError(file.stem, instead, reasons)


def download_verified(url: str, part: Path, check: Callable[[Path], object], by_length: bool) -> None:
    """Download until ``part`` passes the check, over dropped connections and wrong bytes of an earlier run."""
    for attempts_left in reversed(range(ATTEMPTS_PER_MIRROR)):
        had = file_size(part)
        try:
            download(url, part, by_length)
            check(part)
            return
        except (OSError, http.client.HTTPException, DataError) as error:
            if isinstance(error, DataError):
                part.unlink(missing_ok=True)
            # Another attempt can end otherwise only if this one added bytes, or threw away those found at its start.
            if not attempts_left or file_size(part) == had:
                raise
            say(f"{error}; trying again")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to another scheme than HTTP; urllib's own goes on to ftp."""

    def redirect_request(self, request: Any, response: Any, code: int, message: str, headers: Any, url: str) -> Any:
        if not is_url(url):
            raise urllib.error.URLError(f"redirection to {url} is not allowed")
        return super().redirect_request(request, response, code, message, headers, url)


_http = urllib.request.build_opener(_HttpRedirects)


def download(url: str, part: Path, by_length: bool) -> None:
    """Append to ``part`` what it lacks of ``url``; start over where the server cannot continue.

    Raises OSError where the file is shorter than the length that the server gives or, by_length, where it gives none.
    """
    size = file_size(part)
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    if size:
        request.add_header("Range", f"bytes={size}-")
    say(f"downloading {url}" + (f" from byte {size:,}" if size else ""))
    try:
        response = _http.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not size:
            raise
        response = error  # nothing after these bytes: the length or the checksum says whether they are the file
    with response:
        total = file_length(response)
        if total is None and by_length:
            raise OSError("the server does not tell the file's length, and there is no checksum")
        if total and total > MAX_BYTES:
            raise DataError(f"{total:,} bytes, more than {MAX_BYTES:,} bytes: not what it is said to be")
        if response.code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            raise DataError(f"the server gave another part than that from byte {size:,}")
        if response.code != 416:
            size = size if response.code == 206 else 0
            said = time.monotonic()
            with open(part, "ab" if size else "wb") as output:
                for chunk in iter(lambda: response.read1(1 << 16), b""):
                    size += len(chunk)
                    if size > MAX_BYTES:
                        raise DataError(f"more than {MAX_BYTES:,} bytes: not what it is said to be")
                    output.write(chunk)
                    if total and sys.stdout.isatty() and time.monotonic() - said > 5:
                        said = time.monotonic()
                        say(f"  {100 * size // total}% of {total:,} bytes")
    if total is not None and size > total:
        raise DataError(f"{size:,} bytes of an earlier run, of a file that has {total:,}")
    if total is not None and size < total:
        raise OSError(f"connection ended after {size:,} of {total:,} bytes")
    say(f"downloaded {size:,} bytes")


def file_length(response: Union[HTTPResponse, urllib.error.HTTPError]) -> Optional[int]:
    """Bytes of the whole file, of which a response may hold a part, by its headers; None where they do not say."""
    told = response.headers["Content-Range" if response.getcode() in (206, 416) else "Content-Length"]
    found = re.search(r"(?:^|/)(\d+)$", told or "")
    return int(found.group(1)) if found else None


def is_url(source: Union[str, Path]) -> bool:
    return str(source).startswith(("http://", "https://"))


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def file_digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with open(path, "rb") as content:
        for chunk in iter(lambda: content.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
