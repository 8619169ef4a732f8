import collections
import io
import pathlib
import pickle
import re
import struct
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets.weights import pickles
from launch.runs import build, checkpoints
from proxy import encoders, objective, spaces
from proxy.encoders import inputs
from proxy.published import encoders as published
from tests import commands
from tests.published import encoder_state
from tests.shared import shared

convert = commands.load("launch.convert")["convert"]


class Global:
    """Pickles as a global of that name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Made:
    """Pickles as the call of a global, then the setting of a state."""

    def __init__(self, function: Global, *arguments, state=None) -> None:
        self.function, self.arguments = function, arguments
        self.state = state


class Storage:
    """Pickles as a reference to a storage of the archive."""

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count


class Pickler(pickle._Pickler):  # type: ignore
    """Writes what PyTorch writes, without it."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = Global("torch", obj.kind)
            return ("storage", kind, obj.key, "cpu", obj.count)
        return None

    def save(self: Any, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Made):
            self.save(obj.function)
            self.save(tuple(obj.arguments))
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            pickle._Pickler.save(self, obj, save_persistent_id)  # type: ignore


class Writer:
    """Collects tensors and writes a checkpoint around them."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []

    def tensor(self, array: np.ndarray, kind: str | None = None) -> Made:
        kinds = {"f4": "FloatStorage", "f8": "DoubleStorage"}
        kinds["i8"] = "LongStorage"
        kind = kind or kinds[array.dtype.str[1:]]
        key = str(len(self.storages))
        self.storages.append(array.tobytes())
        strides = [s // array.itemsize for s in array.strides]
        return Made(
            Global("torch._utils", "_rebuild_tensor_v2"),
            Storage(kind, key, array.size),
            0,
            tuple(array.shape),
            tuple(strides),
            False,
            Made(Global("collections", "OrderedDict")),
        )

    def write(self, path: pathlib.Path, content: dict) -> pathlib.Path:
        file = io.BytesIO()
        Pickler(file, protocol=2).dump(content)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", file.getvalue())
            archive.writestr("archive/byteorder", "little")
            for key, data in enumerate(self.storages):
                archive.writestr(f"archive/data/{key}", data)
            archive.writestr("archive/version", "3\n")
        return path


def lightning_file(path, state, extra=None) -> pathlib.Path:
    """A checkpoint as Lightning lays it out, with all it has beside."""
    writer = Writer()
    moments = {
        0: {"exp_avg": writer.tensor(np.zeros((2, 3), np.float32))},
        1: {"exp_avg": writer.tensor(np.zeros(4, "<u2"), "BFloat16Storage")},
    }
    weights = collections.OrderedDict(
        (f"preset_encoder.{key}", writer.tensor(np.ascontiguousarray(value)))
        for key, value in state.items()
    )
    for key, value in (extra or {}).items():
        weights[f"preset_encoder.{key}"] = value
    partial = Global("functools", "partial")
    return writer.write(
        path,
        {
            "epoch": 29,
            "global_step": 600_000,
            "pytorch-lightning_version": "2.0.1",
            "state_dict": weights,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {
                "ModelCheckpoint": {
                    "best_model_path": Made(Global("pathlib", "PosixPath")),
                }
            },
            "optimizer_states": [{"state": moments, "param_groups": []}],
            "lr_schedulers": [
                Made(
                    Global("torch.optim.lr_scheduler", "SequentialLR"),
                    state={"last_epoch": 3},
                )
            ],
            "hyper_parameters": Made(
                Global("pytorch_lightning.utilities", "AttributeDict"),
                state={
                    "optimizer": Made(partial, Global("torch.optim", "AdamW")),
                    # Would create a file, were it ever called.
                    "trap": Made(
                        Global("pathlib", "Path.touch"), str(path) + ".trap"
                    ),
                    "system": Made(
                        Global("os", "system"), f"touch {path}.trap"
                    ),
                },
            ),
        },
    )


def small(name: str) -> dict:
    if name == "tfm":
        return {"hidden": 16, "blocks": 2}
    return {"hidden": 12, "blocks": 2}


def published_state(name: str, synth: str, dimension: int) -> dict:
    """A state dict with every tensor the published code keeps."""
    space = spaces.get(synth)
    encoder = encoders.build(name, space, dimension, **small(name))
    variables = encoder.init(
        jax.random.key(3), jnp.zeros((2, space.width)), train=False
    )
    state = encoder_state(name, variables)
    offsets = space.category_offsets - len(space.noncategorical)
    offsets = offsets.astype(np.int64)
    if name == "tfm":
        pe = inputs.sinusoids(5000, 16).astype(np.float32)
        state["tokenizer.pos_encoding.pe"] = pe[None]
        state["tokenizer.cat_offsets"] = offsets
    else:
        state["embedding_layer.cat_offsets"] = offsets
        key = "blocks.0.fc.1.num_batches_tracked"
        state[key] = np.array(17, np.int64)
    return state


@pytest.mark.parametrize("name", ["hn_oh", "tfm"])
def test_converted_run_predicts_the_same(
    tmp_path: pathlib.Path, name: str
) -> None:
    space = spaces.get("talnm")
    state = published_state(name, "talnm", 192)
    path = lightning_file(tmp_path / "epoch=29.ckpt", state)
    run = str(tmp_path / "run")
    config = convert(path, "talnm", name, run=run)
    assert not pathlib.Path(f"{path}.trap").exists()
    for size, value in small(name).items():
        assert config.sizes[size] == value
    again, manager = checkpoints.load(run)
    assert again.to_json() == config.to_json()
    restored = checkpoints.restore(manager, build.empty_state(again))
    sizes, variables = published.from_published(name, space, state)
    relaxed = space.to_relaxed(space.sample(jax.random.key(0), (3,)))
    expected = encoders.build(name, space, **sizes).apply(variables, relaxed)
    found = objective.predict(build.encoder(again), restored, relaxed)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).max() > 0
    with pytest.raises(ValueError, match="exists"):
        convert(path, "talnm", name, run=run)


@pytest.mark.parametrize("name", ["mlp_oh", "hn_pt", "hn_ptgru"])
@pytest.mark.parametrize("synth", ["dexed", "diva", "talnm"])
def test_golden_tensors_behind_a_prefix(
    tmp_path: pathlib.Path, synth: str, name: str
) -> None:
    prefix = f"{synth}/{name}/after/"
    with np.load(shared("golden/encoders.npz")) as golden:
        state = {
            key.removeprefix(prefix): golden[key]
            for key in golden.files
            if key.startswith(prefix)
        }
    path = lightning_file(tmp_path / "x.ckpt", state)
    read = pickles.read_lightning(path)
    assert read.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(read[key], state[key])
    published.from_published(name, spaces.get(synth), read)


def test_object_in_the_state_dict_is_refused(tmp_path: pathlib.Path) -> None:
    state = published_state("hn_oh", "talnm", 192)
    path = tmp_path / "x.ckpt"
    trap = Made(Global("os", "system"), f"touch {path}.trap")
    lightning_file(path, state, {"head.scale": trap})
    with pytest.raises(
        ValueError, match=r"preset_encoder\.head\.scale.*os\.system"
    ):
        pickles.read_lightning(path)
    assert not pathlib.Path(f"{path}.trap").exists()


def test_files_that_are_no_checkpoints(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.ckpt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        convert(path, "talnm", "hn_oh")
    path.write_bytes(struct.pack("<100d", *range(100)))
    with pytest.raises(ValueError, match=r"x\.ckpt"):
        convert(path, "talnm", "hn_oh")
    Writer().write(path, {"epoch": 3})
    with pytest.raises(ValueError, match="'epoch' is int"):
        pickles.read_lightning(path)
    writer = Writer()
    tensor = writer.tensor(np.zeros(3))
    writer.write(path, {"state_dict": {"a.b": tensor, "c.b": tensor}})
    with pytest.raises(ValueError, match="start with a, c"):
        pickles.read_lightning(path)


@pytest.mark.parametrize("name", ["mlp_oh", "hn_pt", "hn_ptgru", "tfm"])
def test_damaged_tensors_are_named(tmp_path: pathlib.Path, name: str) -> None:
    space, run = spaces.get("talnm"), str(tmp_path / "run")
    if name == "tfm":
        state = published_state(name, "talnm", 192)
    else:
        with np.load(shared("golden/encoders.npz")) as golden:
            prefix = f"talnm/{name}/after/"
            state = {
                key.removeprefix(prefix): golden[key]
                for key in golden.files
                if key.startswith(prefix)
            }
    published.from_published(name, space, state)
    kept = [key for key in state if not key.endswith("batches_tracked")]
    for key in {*kept[::4], *kept[-2:]}:
        value = state[key]
        damaged = [np.float32(3), value[:0]]
        if value.dtype.kind == "f":
            worse = value.copy()
            worse.flat[worse.size // 2] = np.nan
            damaged.append(worse)
        for other in damaged:
            with pytest.raises(ValueError, match=re.escape(key)):
                published.from_published(
                    name, space, {**state, key: np.asarray(other)}
                )
    key = next(key for key, v in state.items() if v.dtype.kind == "f")
    state[key] = np.full_like(state[key], np.inf)
    path = lightning_file(tmp_path / "x.ckpt", state)
    with pytest.raises(ValueError, match=r"x\.ckpt: .*not finite"):
        convert(path, "talnm", name, run=run)
    assert not pathlib.Path(run).exists()


def test_checkpoint_that_does_not_fit(tmp_path: pathlib.Path) -> None:
    run = str(tmp_path / "run")
    state = published_state("hn_oh", "talnm", 192)
    path = lightning_file(tmp_path / "x.ckpt", state)
    with pytest.raises(ValueError, match="another synthesizer"):
        convert(path, "dexed", "hn_oh", run=run)
    with pytest.raises(ValueError, match="not of this encoder"):
        convert(path, "talnm", "mlp_oh", run=run)
    wide = published_state("hn_oh", "talnm", 1072)
    path = lightning_file(tmp_path / "y.ckpt", wide)
    with pytest.raises(ValueError, match=r"1072 numbers.*mn20_mel"):
        convert(path, "talnm", "hn_oh", run=run)
    positions = {"tokenizer.pos_encoding.pe": np.ones((1, 9, 16), np.float32)}
    state = {**published_state("tfm", "talnm", 192), **positions}
    path = lightning_file(tmp_path / "z.ckpt", state)
    with pytest.raises(ValueError, match=r"pos_encoding\.pe: not the sine"):
        convert(path, "talnm", "tfm", run=run)
    assert not pathlib.Path(run).exists()
