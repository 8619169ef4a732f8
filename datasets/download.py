"""Downloads into a cache: resumable, verified, and clear when offline."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator

import tqdm

_CHUNK = 1 << 16


class _BrokenError(Exception):
    """A download failed; no OSError, which writing raises."""

    def __init__(self, reason: str, *, gone: bool = False):
        super().__init__(reason)
        self.gone = gone


def cache_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/synth-proxy-jax`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: relative paths are invalid and to be ignored.
    if not os.path.isabs(base):
        base = pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "synth-proxy-jax"


def checksum(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file beside `path` that holds its checksum on first use."""
    path = pathlib.Path(path)
    return path.with_name(path.name + ".sha256")


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
      *urls: Where the file is published; the next is tried only when the
        server says that the file is not there (404 or 410).
      path: Where it is to be; a file put there by hand is used as it is.
      sha256: Its checksum, in hexadecimal. None: its checksum on first use,
        recorded in `<path>.sha256`, to which later downloads are held, too.
      progress: Show a progress bar.

    Returns:
      The file's sha256, in hexadecimal.

    Raises:
      ValueError: When the checksum is wrong (no file that was there before is
        deleted or changed), or the folder cannot be made or written to.
      FileNotFoundError: When it cannot be downloaded; says where to get and
        to put it.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return _present(path, sha256)
    if not urls:
        raise ValueError(f"There is no {path}, and no URL to get it from.")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if path.is_file():  # Another process was faster.
            return _present(path, sha256)
        expected = sha256.lower() if sha256 else _recorded(path)
        part = path.with_name(path.name + ".part")
        url, resumed = _download(urls, part, path, progress)
        found = checksum(part)
        if resumed and expected and found != expected:
            # The beginning may stem from another file: once more, from zero.
            part.unlink()
            url, _ = _download(urls, part, path, progress)
            found = checksum(part)
        if expected and found != expected:
            rejected = path.with_name(path.name + ".rejected")
            part.replace(rejected)
            remedy = (
                "ask its publisher before you trust it"
                if sha256
                else f"delete {record_of(path)} only if you trust the new one"
            )
            raise ValueError(
                f"{url} has sha256 {found}, not {expected} as expected: the "
                "published file changed, or the download was damaged. It is "
                f"kept as {rejected} and not used: try again, and if it stays "
                f"so, {remedy}."
            )
        with _writing(path.parent):
            if not expected:
                _record(path, found)
            part.replace(path)
    return found


def verify(path: str | os.PathLike[str], sha256: str) -> str:
    """Holds a file against its checksum.

    Args:
      path: The file.
      sha256: Its checksum, in hexadecimal.

    Returns:
      Its checksum, in lower case.

    Raises:
      ValueError: When the checksum is another one; the file stays.
    """
    found = checksum(path)
    if found != sha256.lower():
        remedy = f"if this is the file you want, pass sha256={found!r}"
        raise _mismatch(path, found, sha256, remedy)
    return found


def _mismatch(
    path: str | os.PathLike[str], found: str, expected: str, remedy: str
) -> ValueError:
    return ValueError(
        f"{path} has sha256 {found}, not {expected} as expected. It was left "
        f"as it is: move it away to have it downloaded again, or, {remedy}."
    )


def _present(path: pathlib.Path, sha256: str | None) -> str:
    """Checks a file that is there; records its checksum on first use."""
    if sha256:
        return verify(path, sha256)
    found = checksum(path)
    expected = _recorded(path)
    if expected and found != expected:
        remedy = f"if you trust the file, delete {record_of(path)}"
        raise _mismatch(path, found, expected, remedy)
    if not expected:
        # Put there by hand. The folder may be read-only, which is fine.
        with contextlib.suppress(OSError):
            _record(path, found)
    return found


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
    draft = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        draft.write_text(f"{sha256}  {path.name}\n")
        draft.replace(record)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Says what to do when the folder cannot be written to, or is full."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"The cache folder {folder} cannot be made or written to "
            f"({error}): make room there, or choose a folder that you may "
            "write to; XDG_CACHE_HOME sets the default one."
        ) from error


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    lock = path.with_name(path.name + ".lock")
    with contextlib.ExitStack() as stack:
        with _writing(path.parent):
            file = stack.enter_context(open(lock, "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(
    urls: tuple[str, ...], part: pathlib.Path, path: pathlib.Path, bar: bool
) -> tuple[str, bool]:
    """Completes `part` from the first URL that has the file.

    Returns:
      That URL, and whether it went on from what was there.
    """
    for url in urls[:-1]:
        try:
            return url, _complete(url, part, bar)
        except _BrokenError as error:
            if not error.gone:
                raise _unavailable(url, path, error) from error
    try:
        return urls[-1], _complete(urls[-1], part, bar)
    except _BrokenError as error:
        raise _unavailable(urls[-1], path, error) from error


def _unavailable(
    url: str, path: pathlib.Path, reason: Exception
) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path.name} is not in the cache and cannot be downloaded "
        f"({reason}). With a connection, try again; without, get {url} on "
        f"another machine and put it at {path}"
    )


def _complete(url: str, part: pathlib.Path, progress: bool) -> bool:
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
            return _complete(url, part, progress)
        raise _BrokenError(
            f"HTTP {error.code} {error.reason}", gone=error.code in (404, 410)
        ) from error
    except urllib.error.URLError as error:
        raise _BrokenError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(repr(error)) from error
    with response:
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
        with (
            bar,
            _writing(part.parent),
            open(part, "ab" if resumed else "wb") as file,
        ):
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
            end = file.tell()
    if total is not None and end != total:
        raise _BrokenError(
            f"interrupted, {end} of {total} bytes arrived; the next try resumes"
        )
    return resumed


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(
            f"interrupted, {error!r}; the next try resumes"
        ) from error
