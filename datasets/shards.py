"""Shards of a data set: ArrayRecord files in the layout of TFDS.

A data set is a folder:

* `<name>-<split>.array_record-00003-of-00128`, the shards;
* beside each shard, `<shard>.check.json`: its name, sha256, size, record count
  and the `DataSpec` it was made from. It is written before the shard gets its
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
import hashlib
import importlib
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int16, Int64, Shaped

from datasets import files
from datasets.spec import DataSpec, differences

_REMEDY = (
    "delete this file and run `python -m launch.precompute` again: only this "
    "shard is built anew"
)
# One record per chunk gives random access. The compression is written out,
# so that a change of ArrayRecord's default does not change our bytes.
_WRITER_OPTIONS = "group_size:1,zstd:3"


def check_path(shard: pathlib.Path) -> pathlib.Path:
    """The check file beside a shard."""
    return shard.with_name(shard.name + ".check.json")


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
    """Serialised records to columns.

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
            raise files.unwritable(directory, error) from error
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
            raise files.unwritable(self.path, error) from error
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
            files.sync(self._temporary)
            reader = _array_record().ArrayRecordReader(
                str(self._temporary), "readahead_buffer_size:0"
            )
            found = reader.num_records()
            reader.close()
        except (OSError, RuntimeError) as error:
            raise files.unwritable(self.path, error) from error
        if not found == self.count == expected:
            raise files.ShardError(
                f"{self.path}: {found} of {self.count} records written, "
                f"{expected} wanted"
            )
        check = {
            "file": self.path.name,
            "sha256": files.sha256(self._temporary),
            "bytes": self._temporary.stat().st_size,
            "records": found,
            **notes,
            "spec": self.spec.to_dict(),
        }
        files.write_atomically(check_path(self.path), json.dumps(check) + "\n")
        try:
            os.replace(self._temporary, self.path)
            files.sync(self.path.parent)
        except OSError as error:
            raise files.unwritable(self.path, error) from error


# Checks ----------------------------------------------------------------------


def read_check(
    directory: pathlib.Path, spec: DataSpec, split: str, shard: int
) -> dict[str, Any]:
    """Checks a shard without reading it: its size, and how it was made.

    Returns:
      The check file's content.

    Raises:
      FileNotFoundError: when the shard does not exist.
      ShardError: naming the file, what is wrong and the remedy.
    """
    path = directory / spec.filename(split, shard)
    size = path.stat().st_size
    try:
        check = json.loads(check_path(path).read_text())
        expected, found = check["bytes"], check["spec"]
        records, _ = check["records"], check["sha256"]
        # Earlier versions of this project left the name out.
        name = check.get("file", path.name)
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        raise files.ShardError(
            f"{path}: its check file {check_path(path).name} is missing or "
            f"damaged; {_REMEDY}"
        ) from error
    if lines := differences(spec.to_dict(), found):
        raise files.ShardError(
            f"{path}: belongs to another data set ({'; '.join(lines)}); "
            f"{_REMEDY}"
        )
    if name != path.name:
        raise files.ShardError(
            f"{path}: is {name} under another name; {_REMEDY}"
        )
    if size != expected:
        raise files.ShardError(
            f"{path}: has {size} bytes where its check file says {expected}, "
            f"it was cut short or overwritten; {_REMEDY}"
        )
    if records != len(spec.shard_rows(split, shard)):
        raise files.ShardError(
            f"{path}: its check file says {records} records, a shard of this "
            f"data set has {len(spec.shard_rows(split, shard))}; {_REMEDY}"
        )
    return check


def digest(directory: pathlib.Path, spec: DataSpec, split: str) -> str:
    """sha256 of those of a split's shards, as their check files say.

    Raises:
      ShardError: as `read_check`.
      FileNotFoundError: when a shard is missing.
    """
    together = hashlib.sha256()
    for shard in range(spec.num_shards(split)):
        check = read_check(directory, spec, split, shard)
        together.update(str(check["sha256"]).encode())
    return together.hexdigest()


def verify(
    directory: pathlib.Path,
    spec: DataSpec,
    split: str,
    *,
    again: bool = False,
) -> int:
    """Checks every shard of a split against its check file.

    A shard that passed is remembered by size and modification time, and not
    read again until one of them changes, or when `again` is set.

    Returns:
      How many shards were read.

    Raises:
      ShardError: naming the first file that is missing or wrong.
    """
    memory = directory / ".cache" / f"verified-{split}.json"
    try:
        remembered = dict(json.loads(memory.read_text()))
    except (OSError, TypeError, ValueError):
        remembered = {}
    verified, count = {}, 0
    for shard in range(spec.num_shards(split)):
        path = directory / spec.filename(split, shard)
        try:
            check = read_check(directory, spec, split, shard)
        except FileNotFoundError:
            raise files.ShardError(
                f"{path}: is missing; run `python -m launch.precompute` to "
                "build what is missing"
            ) from None
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, check["sha256"]]
        if again or remembered.get(path.name) != state:
            count += 1
            if files.sha256(path) != check["sha256"]:
                raise files.ShardError(
                    f"{path}: its content does not match its check file "
                    f"(sha256); {_REMEDY}"
                )
        if again and "file" not in check:
            read(directory, spec, split, shard)
        verified[path.name] = state
    if verified != remembered:
        # A read-only data set is fine: then it is checked every time.
        with contextlib.suppress(files.ShardError):
            files.write_atomically(memory, json.dumps(verified))
    return count


def read(
    directory: pathlib.Path, spec: DataSpec, split: str, shard: int
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Reads a whole shard into columns; `verify` it first.

    Returns:
      One array per feature, rows first.

    Raises:
      ShardError: when its records are not those of this shard, or one holds
        a number that is not finite; names the row.
    """
    path = directory / spec.filename(split, shard)
    reader = _array_record().ArrayRecordReader(str(path))
    try:
        columns = decode(spec, reader.read_all())
    except Exception as error:
        # Whatever damaged records provoke, the file is to blame.
        raise files.ShardError(
            f"{path}: its records cannot be read ({error}); {_REMEDY}"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            reader.close()
    index: Int64[np.ndarray, " rows"] = columns["index"]
    if not np.array_equal(index, spec.shard_rows(split, shard)):
        raise files.ShardError(
            f"{path}: its records are not rows "
            f"{spec.shard_rows(split, shard)}; {_REMEDY}"
        )
    for feature, column in columns.items():
        if column.dtype != np.float32:
            continue
        fine = np.isfinite(column).reshape(len(column), -1).all(1)
        if not fine.all():
            raise files.ShardError(
                f"{path}: row {index[np.argmin(fine)]} of {split} has a "
                f"{feature} that is not finite; {_REMEDY}"
            )
    return columns


# Metadata --------------------------------------------------------------------


def read_spec(directory: pathlib.Path) -> dict[str, Any]:
    """The plain values of the spec that a data set was made from.

    Raises:
      ShardError: when the folder holds no data set.
    """
    path = directory / "metadata.json"
    try:
        return dict(json.loads(path.read_text())["spec"])
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise files.ShardError(
            f"{directory}: holds no data set of ours (no readable "
            "metadata.json); run `python -m launch.precompute`"
        ) from error


def load_spec(directory: pathlib.Path) -> DataSpec:
    """The spec that a data set was made from.

    Raises:
      ShardError: when the folder holds no data set, or one of another version
        of this project.
    """
    found = read_spec(directory)
    try:
        return DataSpec.from_dict(found)
    except files.ShardError as error:
        raise files.ShardError(f"{directory}: {error}") from error


def check_directory(directory: pathlib.Path, spec: DataSpec) -> None:
    """Checks that a folder holds this data set, complete or not.

    Raises:
      ShardError: when it holds none, or one made from another spec; names
        the difference.
    """
    if lines := differences(spec.to_dict(), read_spec(directory)):
        raise files.ShardError(
            f"{directory}: was made under other settings "
            f"({'; '.join(lines)}); restore the setting, or choose another "
            "folder with --config.data"
        )


def open_directory(directory: pathlib.Path, spec: DataSpec) -> None:
    """Claims a folder for a data set, or checks that it already holds it.

    Raises:
      ShardError: when the folder holds data made from another spec, naming
        the difference, or cannot be written.
    """
    path = directory / "metadata.json"
    if not path.exists():
        # What a killed process left goes; another process may be first.
        with files.claim(directory, path.name, wait=True):
            if not path.exists():
                text = json.dumps({"spec": spec.to_dict()})
                files.write_atomically(path, text)
    check_directory(directory, spec)


def adopt(directory: pathlib.Path, spec: DataSpec) -> DataSpec:
    """Fills in what a spec leaves open from the data set in a folder.

    A complete data set can be used without its engine and without the audio
    model's weights, so nobody has to know their versions.

    Args:
      directory: folder of the data set; may be empty.
      spec: what it should be; an empty `synth_version` or `weights_sha256`
        means "whatever is there".

    Returns:
      The spec.
    """
    if not (directory / "metadata.json").exists():
        return spec
    found = read_spec(directory)
    known = {
        name: str(found.get(name, ""))
        for name in ("synth_version", "weights_sha256")
        if not getattr(spec, name)
    }
    return dataclasses.replace(spec, **known)


def is_complete(directory: pathlib.Path, spec: DataSpec) -> bool:
    """Whether a folder holds this data set with every shard."""
    try:
        check_directory(directory, spec)
    except files.ShardError:
        return False
    return not missing(directory, spec)


def missing(directory: pathlib.Path, spec: DataSpec) -> list[tuple[str, int]]:
    """(split, shard) of every shard not there yet."""
    there = set(os.listdir(directory)) if directory.exists() else set()
    return [pair for pair in spec.shards if spec.filename(*pair) not in there]


def write_metadata(directory: pathlib.Path, spec: DataSpec) -> bool:
    """Writes the files TFDS needs, once every shard is there.

    Returns:
      Whether the data set is complete.

    Raises:
      ShardError: when a file cannot be written.
    """
    if missing(directory, spec):
        return False
    for name, text in _metadata(directory, spec).items():
        target = directory / name
        if not target.exists() or target.read_bytes() != text.encode():
            files.write_atomically(target, text)
    return True


def check_metadata(directory: pathlib.Path, spec: DataSpec) -> None:
    """Checks the files TFDS needs against the shards, which are all there.

    Raises:
      ShardError: naming the file that is missing or says something else.
    """
    for name, text in _metadata(directory, spec).items():
        path = directory / name
        try:
            same = json.loads(path.read_text()) == json.loads(text)
        except (OSError, ValueError):
            same = False
        if not same:
            raise files.ShardError(
                f"{path}: is missing or does not describe these shards; run "
                "`python -m launch.precompute` again to write it anew"
            )


def _metadata(directory: pathlib.Path, spec: DataSpec) -> dict[str, str]:
    """Names and content of the files TFDS needs."""
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
    # empty ones.
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
        return {
            name: pathlib.Path(scratch, name).read_text()
            for name in ("features.json", "dataset_info.json")
        }


def column_names(spec: DataSpec) -> tuple[str, ...]:
    """Features that can be opened as columns, all but names."""
    return tuple(key for key in feature_shapes(spec) if key != "name")


def dequantise(
    audio: Int[np.ndarray, "*batch samples"],
    scale: Float[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch samples"]:
    """Stored audio back to floating point, float32, full scale 1."""
    return audio.astype(np.float32) * np.asarray(scale, np.float32)[..., None]
