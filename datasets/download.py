"""Downloads into a cache: resumable, verified, and clear when offline."""

import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request

import tqdm

_CHUNK = 2**16


def cache_dir() -> pathlib.Path:
    """The project's cache: $XDG_CACHE_HOME, or ~/.cache, /synth-proxy-jax."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "synth-proxy-jax"


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    *urls: str,
    path: str | os.PathLike[str],
    digest: str | None = None,
    progress: bool = False,
) -> str:
    """Downloads a file unless it is there, and checks its SHA-256.

    A download that was cut off goes on where it stopped, when the server can.
    The file appears under its name only when it is complete and verified.
    Without a known digest, the first download's is kept in `path` + ".sha256"
    and later files have to match it.

    Args:
      *urls: where the file is published; the next is tried only when the
        server says that the file is not there.
      path: where it goes; a file put there by hand is used as it is.
      digest: its SHA-256 in hexadecimal, when it is known.
      progress: show a progress bar.

    Returns:
      The SHA-256 of the file.

    Raises:
      ConnectionError: the server cannot be reached, or breaks off; says
        where to put a file that was downloaded elsewhere.
      ValueError: the file is not the one that was expected.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_name(f"{path.name}.sha256")
    if digest is None and record.exists():
        digest = record.read_text().split()[0]
    if path.exists():
        found = sha256(path)
        if digest is not None and found != digest:
            raise ValueError(
                f"{path} has sha256 {found}, expected {digest}: delete it to "
                f"download it again, or delete {record.name} beside it if "
                "you trust the new file"
            )
    else:
        partial = path.with_name(f"{path.name}.part")
        url = _first(urls, path, partial, progress)
        found = sha256(partial)
        if digest is not None and found != digest:
            partial.unlink()
            raise ValueError(
                f"{url} has sha256 {found}, expected {digest}: the published "
                f"file changed, or the download was damaged. To use a file "
                f"of your own, put it at {path}"
            )
        partial.rename(path)
    if not record.exists():
        record.write_text(f"{found}  {path.name}\n")
    return found


def _first(
    urls: tuple[str, ...],
    path: pathlib.Path,
    partial: pathlib.Path,
    progress: bool,
) -> str:
    """Downloads from the first URL that has the file; returns that URL."""
    for url in urls:
        try:
            _resume(url, partial, progress)
        except (OSError, http.client.HTTPException) as error:
            gone = isinstance(error, urllib.error.HTTPError) and (
                error.code in (404, 410)
            )
            if gone and url != urls[-1]:
                continue
            reason = getattr(error, "reason", None) or error
            raise ConnectionError(
                f"cannot download {url} ({reason}). Try again when online, "
                f"or download it by other means and put it at {path}"
            ) from error
        else:
            return url
    raise ValueError(f"no URL to download {path} from")


def _resume(url: str, partial: pathlib.Path, progress: bool) -> None:
    """Downloads to `partial`, going on from what it already holds.

    Raises:
      OSError: the download failed or ended early.
    """
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # The rest is empty or the file changed: from the beginning.
        partial.unlink()
        _resume(url, partial, progress)
        return
    with response:
        # A server that ignores the range sends everything again.
        goes_on = response.status == 206
        start = start if goes_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm.tqdm(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=partial.stem,
            disable=not progress,
        )
        with open(partial, "ab" if goes_on else "wb") as file, bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{size} of {total} bytes arrived")
