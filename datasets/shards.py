"""Shards of a data set: ArrayRecord files in the layout of TFDS.

A data set is a folder:

* `<name>-<split>.array_record-00003-of-00128`, the shards;
* beside each shard, `<shard>.check.json`: its sha256, size, record count and
  the `DataSpec` it was made from. It is written before the shard gets its
  name, so a file under a shard's name is always a finished one;
* `metadata.json`: the `DataSpec` of the data set, written first;
* `features.json` and `dataset_info.json`, written once every shard is there;
  from then on `tfds.builder_from_directory(folder).as_data_source(split)`
  reads the data set, without TensorFlow.

A record has these features:

* `index`: int64, the row's number in its split;
* `preset`: float32 `[parameters]`, see `proxy.space`;
* `embedding`: float32 `[embedding]`, of the audio before quantisation;
* `name`: UTF-8, hand-crafted presets only;
* `audio`: int16 `[samples]` and `audio_scale`: float32, with `keep_audio`
  only. The sound is `audio * audio_scale`: the scale is 1 / 32767, or, for a
  sound that exceeds full scale, its peak / 32767, so that nothing is clipped.

Checks are needed: an ArrayRecord reader takes a truncated file for an empty
one, and reads some flipped bytes without complaint.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib
import json
import os
import pathlib
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Int16, Int64, Shaped

from datasets import engines
from proxy.space import check_sampling

FORMAT = 1
_REMEDY = (
    "delete this file and run `python -m launch.precompute` again: only this "
    "shard is built anew"
)
# One record per chunk gives random access. The compression is written out,
# so that a change of ArrayRecord's default does not change our bytes.
_WRITER_OPTIONS = "group_size:1,zstd:3"


class ShardError(ValueError):
    """A shard or data set that cannot be used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Everything that the content of a data set depends on.

    Attributes:
      name: of the data set, in its file names: lower case, digits, `_`.
      synth: name of the synthesizer.
      synth_version: version of the engine that renders it.
      space: digest of its `ParameterSpace`, see `space_digest`.
      parameters: size of a preset.
      audio_model: name of the audio model.
      audio_weights: which published weights it uses, "" for none.
      embedding: size of its embedding.
      settings: how presets are rendered.
      seed: of the synthetic presets, in [0, 2^63).
      splits: (name, number of rows) of every split.
      shard_size: rows of a shard; the last one of a split may have fewer.
      embed_batch: rows embedded at once. It belongs to the content, because
        the last bits of a matrix product depend on its shape.
      keep_audio: whether the sound is kept beside the embedding.
      source: "synthetic" (sampled) or "handcrafted" (given).
      presets: digest of the given presets, "" for sampled ones.
      format: version of this layout.
      weights_sha256: of the audio model's weights; "" for a model without
        weights, and for data sets made before this was recorded.
      at_default: how presets are sampled, see `ParameterSpace.from_uniform`;
      at_end: and this. Both are 0 in the paper and for given presets.
    """

    name: str
    synth: str
    synth_version: str
    space: str
    parameters: int
    audio_model: str
    audio_weights: str
    embedding: int
    settings: engines.RenderSettings
    seed: int
    splits: tuple[tuple[str, int], ...]
    shard_size: int
    embed_batch: int
    keep_audio: bool = False
    source: Literal["synthetic", "handcrafted"] = "synthetic"
    presets: str = ""
    format: int = FORMAT
    weights_sha256: str = ""
    at_default: float = 0.0
    at_end: float = 0.0

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: naming the field and what it may be.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"data set name {self.name!r}: use lower-case letters, "
                "digits and underscores, a letter first"
            )
        if not self.splits:
            raise ValueError(f"data set {self.name}: it has no split")
        for split, rows in self.splits:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", split):
                raise ValueError(
                    f"split name {split!r}: use lower-case letters, digits "
                    "and underscores, a letter first"
                )
            if rows < 1:
                raise ValueError(f"split {split!r} has {rows} rows, need >= 1")
        for field in ("shard_size", "embed_batch"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)}, need >= 1"
                )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, need 0 <= seed < 2^63")
        check_sampling(**self.sampling)

    @property
    def sampling(self) -> dict[str, float]:
        """Arguments of `ParameterSpace.from_uniform`."""
        return {"at_default": self.at_default, "at_end": self.at_end}

    @property
    def samples(self) -> int:
        """Length of a sound, in samples."""
        return self.settings.samples

    def rows(self, split: str) -> int:
        """Number of rows of a split.

        Raises:
          ValueError: when there is no such split; lists those there are.
        """
        sizes = dict(self.splits)
        if split not in sizes:
            raise ValueError(
                f"data set {self.name} has no split {split!r}, only "
                + ", ".join(sizes)
            )
        return sizes[split]

    def num_shards(self, split: str) -> int:
        """Number of shards of a split."""
        return -(-self.rows(split) // self.shard_size)

    def shard_rows(self, split: str, shard: int) -> range:
        """Row numbers, in their split, of a shard's records."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.rows(split)))

    def filename(self, split: str, shard: int) -> str:
        """File name of a shard."""
        return (
            f"{self.name}-{split}.array_record-{shard:05d}-of-"
            f"{self.num_shards(split):05d}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        spec = dataclasses.asdict(self)
        spec["splits"] = dict(self.splits)
        # As data sets were written before there were these fields.
        for field in ("weights_sha256", "at_default", "at_end"):
            if not spec[field]:
                del spec[field]
        return spec

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "DataSpec":
        """The spec that `to_dict` described.

        Raises:
          ShardError: when it is not one, e.g. of a later format.
        """
        try:
            if spec["format"] != FORMAT:
                raise ValueError(f"format {spec['format']}, not {FORMAT}")
            fields = dict(spec)
            fields["settings"] = engines.RenderSettings.from_dict(
                spec["settings"]
            )
            fields["splits"] = tuple(spec["splits"].items())
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(
                f"the data set's metadata cannot be read ({error}); it was "
                "made by another version of this project"
            ) from error

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that two different specs do not share."""
        text = json.dumps(self.to_dict())
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def space_digest(space: Any) -> str:
    """Digest of a `ParameterSpace`: changes when any parameter does."""
    return hashlib.sha256(repr(space).encode()).hexdigest()[:12]


def presets_digest(
    presets: Float[np.ndarray, "rows parameters"], names: Sequence[str]
) -> str:
    """Digest of given presets and their names, order included."""
    digest = hashlib.sha256(np.ascontiguousarray(presets, "<f4").tobytes())
    digest.update("\0".join(names).encode())
    return digest.hexdigest()[:12]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves = {}
    for key, value in tree.items():
        leaves.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return leaves


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
    """Lists `field: wanted A, found B` for every field that differs.

    Args:
      wanted: a spec as `DataSpec.to_dict` gives it.
      found: the same, as read from a file.

    Returns:
      One line per difference, in the order of `wanted`; [] when equal.
    """
    a, b = _flatten(wanted), _flatten(found)
    missing = "nothing"
    return [
        f"{key}: wanted {a.get(key, missing)}, found {b.get(key, missing)}"
        for key in dict.fromkeys([*a, *b])
        if a.get(key, missing) != b.get(key, missing)
    ]


# Files -----------------------------------------------------------------------


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a small text file such that it is there whole or not at all.

    Raises:
      ShardError: when it cannot be written; names the file and the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.tmp-"
        )
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: pathlib.Path, error: object) -> ShardError:
    """The error for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return ShardError(
        f"{path}: cannot be written ({reason}); make room or choose another "
        "folder with --config.data. Finished shards are kept: run the same "
        "command again to go on"
    )


def check_path(shard: pathlib.Path) -> pathlib.Path:
    """The check file beside a shard."""
    return shard.with_name(shard.name + ".check.json")


def sha256(path: pathlib.Path) -> str:
    """Digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def claim(
    directory: pathlib.Path, filename: str, *, wait: bool = False
) -> Iterator[bool]:
    """Claims a shard, so that processes share the work and not repeat it.

    The claim is a lock that the system drops when its process ends, however
    it ends. On a file system without locks every claim is granted: work may
    be done twice then, with the same bytes.

    Args:
      directory: of the data set.
      filename: of the shard.
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


def _array_record() -> Any:
    """The ArrayRecord library, when it is needed and not before."""
    name = "array_record.python.array_record_module"
    return importlib.import_module(name)


def _protos() -> Any:
    """TFDS's own copy of `tf.train.Example`, which needs no TensorFlow."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2


# Records ---------------------------------------------------------------------


def feature_shapes(
    spec: DataSpec,
) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, NumPy type) of every feature of a data set's records."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "index": ((), np.int64),
        "preset": ((spec.parameters,), np.float32),
        "embedding": ((spec.embedding,), np.float32),
    }
    if spec.source == "handcrafted":
        shapes["name"] = ((), np.str_)
    if spec.keep_audio:
        shapes["audio"] = ((spec.samples,), np.int16)
        shapes["audio_scale"] = ((), np.float32)
    return shapes


def quantise(
    audio: Float[np.ndarray, " samples"],
) -> tuple[Int16[np.ndarray, " samples"], float]:
    """Audio to 16 bits, without clipping.

    Args:
      audio: floating point, full scale 1.

    Returns:
      int16 values and the scale that turns them back: the sound is
      `values * scale` to half a step.
    """
    scale = np.float32(max(1.0, float(np.max(np.abs(audio)))) / 32767)
    values = np.clip(np.rint(audio / scale), -32767, 32767)
    return values.astype(np.int16), float(scale)


def encode(record: Mapping[str, Any]) -> bytes:
    """One record as bytes, the same bytes every time.

    Args:
      record: a value for every feature; see the module's docstring.

    Returns:
      A serialised `tf.train.Example`, its features in alphabetical order.
    """
    example = _protos().Example()
    feature = example.features.feature
    for key, value in record.items():
        if key in ("name", "audio"):
            data = (
                value.encode()
                if isinstance(value, str)
                else value.astype("<i2").tobytes()
            )
            feature[key].bytes_list.value.append(data)
        elif key == "index":
            feature[key].int64_list.value.append(int(value))
        else:
            feature[key].float_list.value.extend(np.atleast_1d(value))
    return example.SerializeToString(deterministic=True)


def decode(
    spec: DataSpec, records: Sequence[bytes]
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Records to columns.

    Args:
      spec: of the data set.
      records: serialised ones.

    Returns:
      One array per feature, rows first; names as an array of `str` objects.

    Raises:
      KeyError: when a record lacks a feature.
    """
    example = _protos().Example
    shapes = feature_shapes(spec)
    columns = {
        key: np.empty((len(records), *shape), object if key == "name" else kind)
        for key, (shape, kind) in shapes.items()
    }
    for row, record in enumerate(records):
        feature = example.FromString(record).features.feature
        for key, column in columns.items():
            if key not in feature:
                raise KeyError(key)
            value = feature[key]
            if key == "name":
                column[row] = value.bytes_list.value[0].decode()
            elif key == "audio":
                column[row] = np.frombuffer(value.bytes_list.value[0], "<i2")
            elif key == "index":
                column[row] = value.int64_list.value[0]
            else:
                data = value.float_list.value
                column[row] = data if column.ndim > 1 else data[0]
    return columns


class Writer:
    """Writes one shard under a temporary name, then gives it its own.

    Use it as a context manager under a `claim`; leaving it without `finish`
    removes what was written.
    """

    def __init__(
        self, directory: pathlib.Path, spec: DataSpec, split: str, shard: int
    ) -> None:
        """Opens the temporary file.

        Raises:
          ShardError: when the folder cannot be written.
        """
        self.spec, self.split, self.shard = spec, split, shard
        self.path = directory / spec.filename(split, shard)
        tag = f"{socket.gethostname()}-{os.getpid()}"
        self._temporary = directory / f".{self.path.name}.tmp-{tag}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # ArrayRecord's writer is silent about a file it cannot open.
            self._temporary.touch()
        except OSError as error:
            raise unwritable(directory, error) from error
        self._writer = _array_record().ArrayRecordWriter(
            str(self._temporary), _WRITER_OPTIONS
        )
        self.count = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer.is_open():
            with contextlib.suppress(RuntimeError):
                self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record.

        Raises:
          ShardError: when the disk is full.
        """
        try:
            self._writer.write(encode(record))
        except (OSError, RuntimeError, ValueError) as error:
            raise unwritable(self.path, error) from error
        self.count += 1

    def finish(self, **notes: Any) -> None:
        """Makes the shard durable, writes its check file, names it.

        Args:
          **notes: further entries of the check file; they must follow from
            the shard's content.

        Raises:
          ShardError: when the disk is full, or records are missing.
        """
        expected = len(self.spec.shard_rows(self.split, self.shard))
        try:
            self._writer.close()
            _sync(self._temporary)
            reader = _array_record().ArrayRecordReader(
                str(self._temporary), "readahead_buffer_size:0"
            )
            found = reader.num_records()
            reader.close()
        except (OSError, RuntimeError) as error:
            raise unwritable(self.path, error) from error
        if not found == self.count == expected:
            raise ShardError(
                f"{self.path}: {found} of {self.count} records written, "
                f"{expected} wanted"
            )
        check = {
            "sha256": sha256(self._temporary),
            "bytes": self._temporary.stat().st_size,
            "records": found,
            **notes,
            "spec": self.spec.to_dict(),
        }
        write_atomically(check_path(self.path), json.dumps(check) + "\n")
        try:
            os.replace(self._temporary, self.path)
            _sync(self.path.parent)
        except OSError as error:
            raise unwritable(self.path, error) from error


# Checks ----------------------------------------------------------------------


def read_check(
    path: pathlib.Path, spec: DataSpec, split: str, shard: int
) -> dict[str, Any]:
    """Checks a shard without reading it: its size, and how it was made.

    Args:
      path: of the shard.
      spec: the data set it should belong to.
      split: the split it should belong to.
      shard: its number there.

    Returns:
      The check file's content.

    Raises:
      FileNotFoundError: when the shard does not exist.
      ShardError: naming the file, what is wrong and the remedy.
    """
    size = path.stat().st_size
    try:
        check = json.loads(check_path(path).read_text())
        expected, found = check["bytes"], check["spec"]
        records = check["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path}: its check file {check_path(path).name} is missing or "
            f"damaged; {_REMEDY}"
        ) from error
    if lines := differences(spec.to_dict(), found):
        raise ShardError(
            f"{path}: belongs to another data set ({'; '.join(lines)}); "
            f"{_REMEDY}"
        )
    if size != expected:
        raise ShardError(
            f"{path}: has {size} bytes where its check file says {expected}, "
            f"it was cut short or overwritten; {_REMEDY}"
        )
    if records != len(spec.shard_rows(split, shard)):
        raise ShardError(
            f"{path}: its check file says {records} records, a shard of this "
            f"data set has {len(spec.shard_rows(split, shard))}; {_REMEDY}"
        )
    return check


def verify(
    directory: pathlib.Path,
    spec: DataSpec,
    split: str,
    *,
    again: bool = False,
) -> int:
    """Checks every shard of a split against its check file.

    A shard that passed is remembered by size and modification time, and not
    read again until one of them changes.

    Args:
      directory: of the data set.
      spec: what it should be.
      split: which split.
      again: reads every shard, remembered or not.

    Returns:
      How many shards were read.

    Raises:
      ShardError: naming the first file that is missing or wrong.
    """
    memory = directory / ".cache" / f"verified-{split}.json"
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):
        remembered = {}
    verified, read = {}, 0
    for shard in range(spec.num_shards(split)):
        path = directory / spec.filename(split, shard)
        try:
            check = read_check(path, spec, split, shard)
        except FileNotFoundError:
            raise ShardError(
                f"{path}: is missing; run `python -m launch.precompute` to "
                "build what is missing"
            ) from None
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, check["sha256"]]
        if again or remembered.get(path.name) != state:
            read += 1
            if sha256(path) != check["sha256"]:
                raise ShardError(
                    f"{path}: its content does not match its check file "
                    f"(sha256); {_REMEDY}"
                )
        verified[path.name] = state
    if verified != remembered:
        # A read-only data set is fine: then it is checked every time.
        with contextlib.suppress(ShardError):
            write_atomically(memory, json.dumps(verified))
    return read


def read(
    directory: pathlib.Path, spec: DataSpec, split: str, shard: int
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Reads a whole shard into columns; `verify` it first.

    Args:
      directory: of the data set.
      spec: of the data set.
      split: which split.
      shard: which of its shards.

    Returns:
      One array per feature, rows first.

    Raises:
      ShardError: when its records are not those of this shard.
    """
    path = directory / spec.filename(split, shard)
    reader = _array_record().ArrayRecordReader(str(path))
    try:
        columns = decode(spec, reader.read_all())
    except (KeyError, ValueError, RuntimeError) as error:
        raise ShardError(
            f"{path}: its records cannot be read ({error}); {_REMEDY}"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            reader.close()
    index: Int64[np.ndarray, " rows"] = columns["index"]
    if not np.array_equal(index, spec.shard_rows(split, shard)):
        raise ShardError(
            f"{path}: its records are not rows "
            f"{spec.shard_rows(split, shard)}; {_REMEDY}"
        )
    return columns


# Metadata --------------------------------------------------------------------


def read_spec(directory: pathlib.Path) -> dict[str, Any]:
    """The spec that a data set was made from.

    Raises:
      ShardError: when the folder holds no data set.
    """
    path = directory / "metadata.json"
    try:
        return json.loads(path.read_text())["spec"]
    except (OSError, ValueError, KeyError) as error:
        raise ShardError(
            f"{directory}: holds no data set of ours (no readable "
            "metadata.json); run `python -m launch.precompute`"
        ) from error


def check_directory(directory: pathlib.Path, spec: DataSpec) -> None:
    """Checks that a folder holds this data set, complete or not.

    Raises:
      ShardError: when it holds none, or one made from another spec; names
        the difference.
    """
    if lines := differences(spec.to_dict(), read_spec(directory)):
        raise ShardError(
            f"{directory}: was made under other settings "
            f"({'; '.join(lines)}); restore the setting, or choose another "
            "folder with --config.data"
        )


def open_directory(directory: pathlib.Path, spec: DataSpec) -> None:
    """Claims a folder for a data set, or checks that it already holds it.

    Args:
      directory: of the data set, made when missing.
      spec: what it should be.

    Raises:
      ShardError: when the folder holds data made from another spec, naming
        the difference, or cannot be written.
    """
    path = directory / "metadata.json"
    if path.exists():
        check_directory(directory, spec)
        return
    text = json.dumps({"spec": spec.to_dict()})
    write_atomically(path, text)


def adopt_weights(directory: pathlib.Path, spec: DataSpec) -> DataSpec:
    """A spec with the weights that a folder was made with, if one is unsure.

    Weights need not be at hand to use a complete data set, and old data sets
    do not say which ones they were made with. Two that are known and differ
    are left as they are, for `open_directory` to find.

    Args:
      directory: of the data set.
      spec: what it should be; `weights_sha256` is "" when not known.

    Returns:
      The spec, with `weights_sha256` as the folder has it unless both are
      known.
    """
    if not (directory / "metadata.json").exists():
        return spec
    found = str(read_spec(directory).get("weights_sha256", ""))
    if found and spec.weights_sha256:
        return spec
    return dataclasses.replace(spec, weights_sha256=found)


def missing(directory: pathlib.Path, spec: DataSpec) -> list[tuple[str, int]]:
    """(split, shard) of every shard not there yet."""
    there = set(os.listdir(directory)) if directory.exists() else set()
    return [
        (split, shard)
        for split, _ in spec.splits
        for shard in range(spec.num_shards(split))
        if spec.filename(split, shard) not in there
    ]


def write_metadata(directory: pathlib.Path, spec: DataSpec) -> bool:
    """Writes the files TFDS needs, once every shard is there.

    Args:
      directory: of the data set.
      spec: of the data set.

    Returns:
      Whether the data set is complete.

    Raises:
      ShardError: when a file cannot be written.
    """
    if missing(directory, spec):
        return False
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core import naming

    def tensor(key: str, shape: tuple[int, ...], kind: type) -> Any:
        encoding = "bytes" if key == "audio" else "none"
        return tfds.features.Tensor(shape=shape, dtype=kind, encoding=encoding)

    features = tfds.features.FeaturesDict(
        {
            key: tensor(key, shape, kind)
            for key, (shape, kind) in feature_shapes(spec).items()
        }
    )
    # TFDS writes in place, and wants to see file names: it gets a folder of
    # empty ones, and the results are moved over whole.
    with tempfile.TemporaryDirectory() as scratch:
        infos = []
        for split, _ in spec.splits:
            shards = range(spec.num_shards(split))
            paths = [directory / spec.filename(split, s) for s in shards]
            pathlib.Path(scratch, paths[0].name).touch()
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[
                        len(spec.shard_rows(split, s)) for s in shards
                    ],
                    num_bytes=sum(p.stat().st_size for p in paths),
                    filename_template=naming.ShardedFileTemplate(
                        data_dir=epath.Path(directory),
                        dataset_name=spec.name,
                        split=split,
                        filetype_suffix="array_record",
                    ),
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=scratch,
            features=features,
            split_infos=infos,
            check_data=False,
            description=(
                f"{spec.source} presets of {spec.synth} with {spec.audio_model}"
                " embeddings"
            ),
            metadata=tfds.core.MetadataDict(spec=spec.to_dict()),
        )
        for name in ("features.json", "dataset_info.json"):
            text = pathlib.Path(scratch, name).read_text()
            target = directory / name
            if not target.exists() or target.read_text() != text:
                write_atomically(target, text)
    return True


def column_names(spec: DataSpec) -> tuple[str, ...]:
    """Features that can be opened as columns, all but names."""
    return tuple(key for key in feature_shapes(spec) if key != "name")


def dequantise(
    audio: Int[np.ndarray, "*batch samples"],
    scale: Float[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch samples"]:
    """Stored audio back to floating point, float32, full scale 1."""
    return audio.astype(np.float32) * np.asarray(scale, np.float32)[..., None]
