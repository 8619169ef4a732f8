"""A second home for shards: another folder, or a bucket (gs://, s3://).

Building and training want local files, which can be locked and mapped into
memory. So shards are made in a local folder and copied to the mirror when
they are finished; those that are in the mirror already are copied from there
and not made again. Paths are `etils.epath`'s; a bucket needs the package of
its store, see the README.

As in a local folder, a shard's check file is copied before the shard itself,
so that a shard in the mirror is a finished one.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterable, Iterator

import tqdm
from etils import epath

from datasets import files, shards
from datasets.spec import DataSpec, differences

_PIECE = 1 << 24  # bytes


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a bucket and no folder."""
    return "://" in os.fspath(place)


def _root(place: str | os.PathLike[str], name: str) -> epath.Path:
    try:
        return epath.Path(place) / name
    except ImportError as error:
        raise _unreachable(place, error) from error


def _unreachable(
    place: str | os.PathLike[str], error: Exception
) -> files.ShardError:
    return files.ShardError(
        f"{os.fspath(place)}: cannot be reached ({type(error).__name__}: "
        f"{error}); s3:// needs s3fs, gs:// needs gcsfs, and both need the "
        "store's credentials"
    )


@contextlib.contextmanager
def _explained(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a store's errors into ours."""
    try:
        yield
    except files.ShardError:
        raise
    except Exception as error:  # every store has errors of its own
        raise _unreachable(place, error) from error


def _copy(source: epath.Path, target: epath.Path) -> str:
    """Copies a file in pieces; returns its sha256.

    A local file gets its name when it is whole; a bucket shows an object when
    it is whole.
    """
    digest = hashlib.sha256()
    local = not is_remote(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = None, os.fspath(target)
    if local:
        handle, name = tempfile.mkstemp(
            dir=os.fspath(target.parent), prefix=f".{target.name}.tmp-"
        )
        os.close(handle)
    try:
        with source.open("rb") as reader, epath.Path(name).open("wb") as writer:
            while piece := reader.read(_PIECE):
                digest.update(piece)
                writer.write(piece)
        if local:
            os.chmod(name, 0o644)
            os.replace(name, os.fspath(target))
    except BaseException:
        if local:
            pathlib.Path(name).unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def check(place: str | os.PathLike[str], name: str, spec: DataSpec) -> None:
    """Checks that a mirror holds this data set, or makes it.

    Args:
      place: the mirror.
      name: of the data set's folder.
      spec: what it should be.

    Raises:
      ShardError: when it holds one made from another spec, naming the
        difference, or cannot be reached.
    """
    with _explained(place):
        file = _root(place, name) / "metadata.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"spec": spec.to_dict()}))
            return
        found = json.loads(file.read_text())["spec"]
    if lines := differences(spec.to_dict(), found):
        raise files.ShardError(
            f"{os.fspath(place)}/{name}: was made under other settings "
            f"({'; '.join(lines)}); restore the setting, or choose another "
            "mirror"
        )


def there(
    place: str | os.PathLike[str], name: str, spec: DataSpec
) -> set[tuple[str, int]]:
    """(split, shard) of every shard in a mirror."""
    with _explained(place):
        root = _root(place, name)
        names = {p.name for p in root.iterdir()} if root.exists() else set()
    return {pair for pair in spec.shards if spec.filename(*pair) in names}


def fetch(
    place: str | os.PathLike[str],
    directory: pathlib.Path,
    spec: DataSpec,
    pairs: Iterable[tuple[str, int]],
    *,
    progress: bool = True,
) -> int:
    """Copies shards that a mirror has and a local folder lacks.

    Args:
      place: the mirror.
      directory: of the data set, local.
      spec: of the data set.
      pairs: which (split, shard) are wanted.
      progress: whether to show it on stderr.

    Returns:
      How many were copied.

    Raises:
      ShardError: when a shard does not match its checksum, the mirror holds
        other data or cannot be reached.
    """
    check(place, directory.name, spec)
    shards.open_directory(directory, spec)
    absent = set(shards.missing(directory, spec)) & set(pairs)
    wanted = sorted(absent & there(place, directory.name, spec))
    for split, shard in tqdm.tqdm(
        wanted,
        desc=f"from {os.fspath(place)}",
        unit=" shards",
        disable=not progress or not wanted,
    ):
        source = _root(place, directory.name) / spec.filename(split, shard)
        target = directory / source.name
        side = shards.check_path(target)
        with _explained(place):
            _copy(source.parent / side.name, epath.Path(side))
            # It gets its name only once it is known to be whole.
            held = target.with_name(f".{target.name}.fetched")
            digest = _copy(source, epath.Path(held))
        if digest != json.loads(side.read_text())["sha256"]:
            held.unlink()
            raise files.ShardError(
                f"{source}: does not match its checksum; delete it there to "
                "have it built anew"
            )
        os.replace(held, target)
    return len(wanted)


def store(
    place: str | os.PathLike[str],
    directory: pathlib.Path,
    spec: DataSpec,
) -> int:
    """Copies finished local shards that a mirror lacks.

    Args:
      place: the mirror.
      directory: of the data set, local.
      spec: of the data set.

    Returns:
      How many were copied.

    Raises:
      ShardError: when the mirror cannot be written.
    """
    finished = set(spec.shards) - set(shards.missing(directory, spec))
    new = sorted(finished - there(place, directory.name, spec))
    for pair in new:
        path = directory / spec.filename(*pair)
        with _explained(place):
            root = _root(place, directory.name)
            for file in (shards.check_path(path), path):
                _copy(epath.Path(file), root / file.name)
    return len(new)


@contextlib.contextmanager
def following(
    place: str | os.PathLike[str],
    directory: pathlib.Path,
    spec: DataSpec,
    *,
    seconds: float = 60.0,
) -> Iterator[None]:
    """Copies shards to a mirror while they are being finished.

    A machine that is taken away loses the shard it was at, not the others.

    Args:
      place: the mirror.
      directory: of the data set, local.
      spec: of the data set.
      seconds: how often to look.

    Raises:
      ShardError: on leaving, when the mirror cannot be written.
    """
    left = threading.Event()

    def work() -> None:
        while not left.wait(seconds):
            # What fails now is tried again, at last on leaving.
            with contextlib.suppress(files.ShardError):
                store(place, directory, spec)

    thread = threading.Thread(target=work, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        store(place, directory, spec)
