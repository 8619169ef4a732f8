"""Names of files, files that are there whole or not at all, and claims."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

# Bytes of a name that `filename` makes: with a suffix and what marks a
# temporary file, file systems take no more than 255.
_LONGEST = 150


class ShardError(ValueError):
    """A shard or data set that cannot be used; the message says what to do."""


def filename(name: str) -> str:
    """Turns a name from outside into the name of a file or folder.

    Whatever the name says, the result is one part of a path: it leads nowhere
    else, is no hidden file, and can be shown, written to JSON and used in an
    address. Names that differ keep differing.

    Args:
      name: any text, such as a key of a table or a path's own parts.

    Returns:
      The name itself, if it will do; else what of it will do, and a digest.
    """
    kept = re.sub(r"[^\w .,+=@()\[\]{}^&'!;$~-]", "_", name)
    kept = re.sub(r"^[. ]|[. ]$", "_", kept)
    if kept == name and kept and len(kept.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    kept = kept.encode()[:_LONGEST].decode(errors="ignore")
    return f"{kept}-{digest[:8]}"


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a folder that something read from outside names.

    Raises:
      ValueError: it is not below the folder, links followed.
    """
    path = folder / name
    try:
        fine = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop, a zero byte
        fine = False
    if not fine:
        raise ValueError(
            f"{folder} names {name!r}, which is not below it: it is not read"
        )
    return path


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a small file such that it is there whole or not at all.

    Raises:
      ShardError: when it cannot be written; names the file and the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.tmp-"
        )
        try:
            with os.fdopen(handle, "wb") as file:
                text = isinstance(content, str)
                file.write(content.encode() if text else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def read_json(path: pathlib.Path | epath.Path, kind: type = dict) -> Any:
    """What a JSON file holds.

    Args:
      path: the file.
      kind: type of what it should hold, `dict` or `list`.

    Raises:
      FileNotFoundError: when there is none.
      ValueError: naming the file, when it is damaged or cut short.
    """
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, kind):
            raise ValueError(f"a {type(found).__name__}, not a {kind.__name__}")
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and run again the "
            "command that wrote it"
        ) from error
    return found


def unwritable(path: pathlib.Path, error: object) -> ShardError:
    """The error for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return ShardError(
        f"{path}: cannot be written ({reason}); make room or choose another "
        "folder with --config.data. Finished shards are kept: run the same "
        "command again to go on"
    )


def sha256(path: pathlib.Path | epath.Path) -> str:
    """Digest of a file, read in pieces."""
    with path.open("rb") as file:
        stream: Any = file  # a bucket's says less of its type
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def claim(
    directory: pathlib.Path, filename: str, *, wait: bool = False
) -> Iterator[bool]:
    """Claims a file to be made, so that processes share work and repeat none.

    The claim is a lock that the system drops when its process ends, however
    it ends. On a file system without locks every claim is granted: work may
    be done twice then, with the same bytes.

    Args:
      directory: where the file is to be.
      filename: name of the file.
      wait: whether to wait for another process to give its claim up.

    Yields:
      Whether the claim was granted.

    Raises:
      ShardError: when the folder cannot be written.
    """
    path = directory / f".{filename}.lock"
    handle, locked = _lock(directory, path, wait)
    try:
        if locked is None:
            yield False
            return
        if locked:
            # What a killed process left, now that nobody else is at it.
            for stale in directory.glob(f".{filename}.*tmp-*"):
                stale.unlink(missing_ok=True)
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _lock(
    directory: pathlib.Path, path: pathlib.Path, wait: bool
) -> tuple[int, bool | None]:
    """Opens and locks a file: its handle; True, None (held), False (none)."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(directory, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return handle, None
        except OSError:
            return handle, False
        # The holder removes the file when it is done: a lock on a removed
        # file is a lock on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle, True
        os.close(handle)
