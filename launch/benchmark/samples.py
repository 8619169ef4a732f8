"""Small files of every kind that is read, whole, to be damaged."""

import functools
import io
import json
import pathlib
import pickle
import shutil
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from configs import quickstart
from datasets import engines, files, loader, shards
from datasets.presets import sysex, writing
from datasets.spec import DataSpec
from launch.runs import checkpoints, metrics
from proxy import encoders, spaces
from proxy.published import encoders as published

RATE = 16_000
SUFFIXES = (".wav", ".aiff", ".flac", ".mp3", ".ogg")
ENCODER, SYNTH = "hn_oh", "talnm"


def _archive(content: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@functools.cache
def banks() -> dict[str, bytes]:
    """Banks of Dexed's presets in every format, by file name."""
    space = spaces.get("dexed")
    uniform = np.random.default_rng(0).random((32, space.num_used))
    presets = space.from_uniform(uniform.astype(np.float32))
    names = [f"VOICE {i}" for i in range(32)]
    bank = writing.to_syx(presets, names, space)
    voice = writing.to_syx(presets[:1], names[:1], space)
    text = writing.to_json(presets[:2], names[:2], space).encode()
    columns = [parameter.name for parameter in space.parameters]
    table = {
        "parameter_names": columns,
        "presets": {"x": [0.5] * len(columns), "y": [0.25] * len(columns)},
    }
    packed, stored = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED
    inner = _archive({"one.syx": voice, "two.json": text}, packed)
    return {
        "bank.syx": bank,
        "voice.syx": voice + voice,
        "raw.bin": sysex.pack(sysex.parse(bank)[0]).tobytes(),
        "list.json": text,
        "table.json": json.dumps(table).encode(),
        "deep.zip": _archive({"a/bank.syx": bank, "b.zip": inner}, packed),
        "stored.zip": _archive({"v.syx": voice}, stored),
    }


@functools.cache
def sound(suffix: str) -> bytes:
    """A quarter of a second of a tone, encoded as files of that suffix are."""
    import pedalboard.io

    time = np.arange(RATE // 4) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    buffer = io.BytesIO()
    buffer.name = f"a{suffix}"
    with pedalboard.io.AudioFile(buffer, "w", RATE, 1) as file:
        file.write(wave[None])
    return buffer.getvalue()


SPEC = DataSpec(
    name="tiny",
    synth="dexed",
    synth_version="1",
    space="abc",
    parameters=5,
    audio_model="mel128",
    audio_weights="",
    embedding=3,
    settings=engines.RenderSettings(duration=0.2, sample_rate=8000),
    seed=1,
    splits=(("train", 7), ("test", 2)),
    shard_size=4,
    embed_batch=2,
    keep_audio=True,
    source="handcrafted",
    presets="def",
)


def columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of `dataset` that training reads."""
    names = shards.column_names(SPEC)
    return dict(loader.open_columns(path, SPEC, "train", names))


def dataset(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes a data set and decodes its columns; returns these."""
    shards.open_directory(path, SPEC)
    for split, shard in shards.missing(path, SPEC):
        name = SPEC.filename(split, shard)
        with (
            files.claim(path, name),
            shards.Writer(path, SPEC, split, shard) as writer,
        ):
            for row in SPEC.shard_rows(split, shard):
                draw = np.random.default_rng([row, len(split)])
                noise = draw.normal(0, 0.1, SPEC.samples)
                audio, scale = shards.quantise(noise)
                record = {
                    "index": row,
                    "preset": draw.random(SPEC.parameters, np.float32),
                    "embedding": draw.random(SPEC.embedding, np.float32),
                    "name": f"Flöte {row}",
                    "audio": audio,
                    "audio_scale": scale,
                }
                writer.write(record)
            writer.finish()
    shards.write_metadata(path, SPEC)
    return {name: np.array(found) for name, found in columns(path).items()}


def state(step: int) -> dict[str, Any]:
    """What `run` has in its checkpoint of a step."""
    return {"x": jnp.full(7, step), "y": {"z": jnp.arange(step)[:4] * 1.5}}


def run(path: pathlib.Path) -> None:
    """Writes a run with checkpoints at the steps 8 (the best) and 12."""
    config = quickstart.get_config()
    config.run = str(path)
    checkpoints.prepare(config)
    with checkpoints.manager(path) as saved:
        for step in (8, 12):
            checkpoints.save(saved, step, state(step), {"mrr": 1 / step})
    with metrics.Writer(path) as writer:
        for step in range(1, 13):
            writer.write(step, loss=1 / step)
    shutil.rmtree(path / "tensorboard")


def _tensor(key: str, array: np.ndarray) -> bytes:
    """Pickle of a PyTorch tensor, its numbers in the archive's file `key`."""
    steps = tuple(step // array.itemsize for step in array.strides)
    storage = _plain("storage") + b"ctorch\nFloatStorage\n" + _plain(key)
    storage += _plain("cpu") + _plain(array.size)
    layout = _plain(0) + _plain(array.shape) + _plain(steps) + _plain(False)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + (storage + b"tQ" + layout)
        + b"ccollections\nOrderedDict\n)RtR"
    )


def _plain(value: Any) -> bytes:
    # Without the mark of the version and the end.
    return pickle.dumps(value, 2)[2:-1]


def weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes a checkpoint as Lightning does; returns its tensors."""
    space = spaces.get(SYNTH)
    encoder = encoders.build(ENCODER, space, 192, hidden=12, blocks=2)
    start = jnp.zeros((2, space.width))
    variables = encoder.init(jax.random.key(3), start, train=False)
    flat = {
        place: np.ascontiguousarray(np.asarray(array, np.float32).T)
        for place, array in traverse_util.flatten_dict(variables).items()
    }
    tensors = {
        tensor.name: flat[tensor.path]
        for tensor in published.tensors(ENCODER, 2)
        if tensor.path in flat
    }
    content, text = {}, b"\x80\x02}(" + _plain("state_dict") + b"}("
    for number, (name, array) in enumerate(tensors.items()):
        content[f"archive/data/{number}"] = array.tobytes()
        text += _plain(f"preset_encoder.{name}") + _tensor(str(number), array)
    content["archive/data.pkl"] = text + b"uu."
    content["archive/byteorder"] = b"little"
    path.write_bytes(_archive(content, zipfile.ZIP_STORED))
    return tensors


def hdf5(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """Writes weights as Keras does, one compressed; returns them."""
    import h5py

    layers = {
        name: {
            "kernel:0": np.ones((3, 5), np.float32),
            "bias:0": np.arange(2000, dtype=np.float32).reshape(40, 50),
        }
        for name in ("conv", "dense")
    }
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, found in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in found]
            for weight, array in found.items():
                packed = {"chunks": (20, 25), "compression": "gzip"}
                options = packed if len(array) > 20 else {}
                group.create_dataset(weight, data=array, **options)
    return layers
