"""Downloads into a cache: resumable, verified, and clear when offline."""

import contextlib
import fcntl
import http.client
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator

import tqdm

from datasets import files

_CHUNK = 1 << 16


class _BrokenError(Exception):
    """A download failed; no OSError, which writing raises.

    Attributes:
      gone: whether the server says that the file is not there.
    """

    def __init__(self, url: str, reason: str, *, gone: bool = False):
        super().__init__(reason)
        self.url = url
        self.gone = gone


def cache_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/synth-proxy-jax`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: relative paths are invalid and to be ignored.
    if not os.path.isabs(base):
        base = pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "synth-proxy-jax"


def record_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file beside `path` that holds its checksum on first use."""
    return _beside(pathlib.Path(path), ".sha256")


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)


def fetch(
    *urls: str,
    path: str | os.PathLike[str],
    sha256: str | None = None,
    progress: bool = False,
) -> str:
    """Makes sure that a published file is there and is the right one.

    Downloads it unless it exists. What an interrupted download left is
    resumed, or thrown away when the server cannot resume or the whole turns
    out wrong. The file appears under its name only when it is complete and
    verified. Processes that want the same file wait for each other.

    Args:
      *urls: where the file is published; the next is tried only when the
        server says that the file is not there (404 or 410).
      path: where it is to be; a file put there by hand is used as it is.
      sha256: its checksum, in hexadecimal. None: its checksum on first use,
        recorded in `<path>.sha256`, to which later downloads are held, too.
      progress: whether to show a progress bar.

    Returns:
      The file's sha256, in hexadecimal.

    Raises:
      ValueError: when the checksum is wrong (no file that was there before is
        deleted or changed), or the folder cannot be made or written to.
      FileNotFoundError: when it cannot be downloaded; says where to get and
        to put it.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return verify(path, sha256)
    if not urls:
        raise ValueError(f"There is no {path}, and no URL to get it from.")
    try:
        with _locked(path):
            if path.is_file():  # Another process was faster.
                return verify(path, sha256)
            return _fetch(urls, path, sha256, progress)
    except _BrokenError as error:
        raise FileNotFoundError(
            f"{path.name} is not in the cache and cannot be downloaded "
            f"({error}). With a connection, try again; without, get "
            f"{error.url} on another machine and put it at {path}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"The cache folder {path.parent} cannot be made or written to "
            f"({error}): make room there, or choose a folder that you may "
            "write to; XDG_CACHE_HOME sets the default one."
        ) from error


def _fetch(
    urls: tuple[str, ...], path: pathlib.Path, sha256: str | None, bar: bool
) -> str:
    expected = sha256.lower() if sha256 else _recorded(path)
    part = _beside(path, ".part")
    url, resumed = _complete(urls, part, bar)
    digest = files.sha256(part)
    if resumed and expected and digest != expected:
        # The beginning may stem from another file: once more, from zero.
        part.unlink()
        url, _ = _complete(urls, part, bar)
        digest = files.sha256(part)
    if expected and digest != expected:
        rejected = part.replace(_beside(path, ".rejected"))
        remedy = (
            "ask its publisher before you trust it"
            if sha256
            else f"delete {record_of(path)} only if you trust the new one"
        )
        raise ValueError(
            f"{url} has sha256 {digest}, not {expected} as expected: the "
            "published file changed, or the download was damaged. It is kept "
            f"as {rejected} and not used: try again, and if it stays so, "
            f"{remedy}."
        )
    if not expected:
        _record(path, digest)
    part.replace(path)
    return digest


def verify(path: str | os.PathLike[str], sha256: str | None = None) -> str:
    """Holds a file against its checksum.

    Args:
      path: the file.
      sha256: its checksum, in hexadecimal. None: the one that was recorded,
        or is from now on.

    Returns:
      Its checksum, in lower case.

    Raises:
      ValueError: when the checksum is another one; the file stays.
    """
    path = pathlib.Path(path)
    digest = files.sha256(path)
    expected = sha256.lower() if sha256 else _recorded(path)
    if not expected:
        # Put there by hand. The folder may be read-only, which is fine.
        with contextlib.suppress(OSError):
            _record(path, digest)
    elif digest != expected:
        remedy = (
            f"if this is the file you want, pass sha256={digest!r}"
            if sha256
            else f"if you trust the file, delete {record_of(path)}"
        )
        raise ValueError(
            f"{path} has sha256 {digest}, not {expected} as expected. It was "
            "left as it is: move it away to have it downloaded again, or, "
            f"{remedy}."
        )
    return digest


def _recorded(path: pathlib.Path) -> str | None:
    record = record_of(path)
    if not record.is_file():
        return None
    words = record.read_text().split()
    if not words:
        raise ValueError(
            f"{record} is to hold the sha256 of {path.name} and is empty: "
            "delete it."
        )
    return words[0].lower()


def _record(path: pathlib.Path, sha256: str) -> None:
    """Writes the record in one step."""
    record = record_of(path)
    draft = _beside(record, f".{os.getpid()}")
    try:
        draft.write_text(f"{sha256}  {path.name}\n")
        draft.replace(record)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_beside(path, ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _complete(
    urls: tuple[str, ...], part: pathlib.Path, bar: bool
) -> tuple[str, bool]:
    """Completes `part` from the first URL that has the file.

    Returns:
      That URL, and whether it went on from what was there.
    """
    for url in urls[:-1]:
        try:
            return url, _resume(url, part, bar)
        except _BrokenError as error:
            if not error.gone:
                raise
    return urls[-1], _resume(urls[-1], part, bar)


def _resume(url: str, part: pathlib.Path, progress: bool) -> bool:
    """Completes `part`; returns whether it began with what was there."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "Python"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # Nothing is left to ask for, or the file is shorter than ours.
            part.unlink()
            return _resume(url, part, progress)
        reason = f"HTTP {error.code} {error.reason}"
        raise _BrokenError(url, reason, gone=error.code in (404, 410)) from None
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", repr(error)))
        raise _BrokenError(url, reason) from error
    # A server that ignores the range sends everything again.
    resumed = have > 0 and response.status == 206
    start = have if resumed else 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    bar = tqdm.tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=part.stem,
        disable=not progress,
    )
    with response, bar, open(part, "ab" if resumed else "wb") as file:
        while chunk := _read(url, response):
            file.write(chunk)
            bar.update(len(chunk))
        end = file.tell()
    if total is not None and end != total:
        raise _BrokenError(
            url,
            f"interrupted, {end} of {total} bytes arrived; the next try "
            "resumes",
        )
    return resumed


def _read(url: str, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        reason = f"interrupted, {error!r}; the next try resumes"
        raise _BrokenError(url, reason) from error
