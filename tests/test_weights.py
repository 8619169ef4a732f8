import collections
import hashlib
import io
import pickle
import re
import struct
import zipfile
from typing import Any

import jax
import numpy as np
import pytest

from datasets.weights import pickles
from datasets.weights import published as weights
from proxy.audio import efficientat
from tests.published import efficientat_state
from tests.server import FileServer
from tests.shared import shared


class Storage:
    """Pickles as a reference to a PyTorch storage."""

    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class Global:
    """Pickles as a global of that name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Rebuilt:
    """Pickles as the call of a global."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


# The pickler in Python, whose methods can be replaced; stubs do not know it.
PythonPickler: Any = vars(pickle)["_Pickler"]


class Pickler(PythonPickler):
    """Writes what torch.save writes, without torch."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = Global("torch", obj.kind)
            return ("storage", kind, obj.key, "cpu", obj.count)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Rebuilt):
            self.save(obj.function)
            self.save(tuple(obj.arguments))
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


TENSOR = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage, offset, size, stride):
    hooks = collections.OrderedDict()
    return Rebuilt(TENSOR, storage, offset, size, stride, False, hooks)


def write(path, tree, storages, *, compress=zipfile.ZIP_STORED, order=None):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(tree)
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        if order:
            archive.writestr("archive/byteorder", order)
    return path


def write_state(path, state):
    """A state dict of NumPy arrays as torch.save would write it."""
    tree, storages = {}, {}
    for number, (name, array) in enumerate(state.items()):
        key = str(number)
        kind = "LongStorage" if array.dtype == np.int64 else "FloatStorage"
        strides = tuple(s // array.itemsize for s in array.strides)
        storage = Storage(kind, key, array.size)
        tree[name] = tensor(storage, 0, array.shape, strides)
        storages[key] = array.tobytes()
    return write(path, tree, storages, order="little")


def test_reader_agrees_with_what_was_written(tmp_path):
    data = np.arange(24, dtype=np.float32)
    storages = {"0": data.tobytes(), "1": struct.pack("<q", -7)}
    storage = Storage("FloatStorage", "0", 24)
    path = write(
        tmp_path / "a.pt",
        collections.OrderedDict(
            plain=tensor(storage, 0, (4, 6), (6, 1)),
            transposed=tensor(storage, 0, (6, 4), (1, 6)),
            part=tensor(storage, 5, (3,), (7,)),
            empty=tensor(storage, 0, (0, 3), (3, 1)),
            scalar=tensor(Storage("LongStorage", "1", 1), 0, (), ()),
        ),
        storages,
    )
    state = pickles.read(path)
    np.testing.assert_array_equal(state["plain"], data.reshape(4, 6))
    np.testing.assert_array_equal(state["transposed"], data.reshape(4, 6).T)
    np.testing.assert_array_equal(state["part"], [5, 12, 19])
    assert state["empty"].shape == (0, 3)
    assert state["scalar"].shape == () and state["scalar"] == -7
    state["plain"][0, 0] = 99  # A copy of its own, free to change.
    assert state["transposed"][0, 0] == 0


FLOATS = Storage("FloatStorage", "0", 4)


@pytest.mark.parametrize(
    "tree,named",
    [
        ({"a": Rebuilt(Global("os", "system"), "true")}, "os.system"),
        ({"a": Rebuilt(Global("builtins", "eval"), "1")}, "builtins.eval"),
        ({"a": Global("numpy", "load")}, "numpy.load"),
        ({"a": Global("torch", "load")}, "torch.load"),
        (
            {"a": tensor(Storage("BFloat16Storage", "0", 8), 0, (8,), (1,))},
            "torch.BFloat16Storage",
        ),
        ({"a": tensor(FLOATS, 0, (5,), (1,))}, "beyond its storage"),
        ({"a": tensor(FLOATS, 3, (2,), (1,))}, "beyond its storage"),
        ({"a": tensor(FLOATS, 0, (2,), (-1,))}, "stride"),
        ({"a": tensor(FLOATS, -1, (2,), (1,))}, "size"),
        ({"a": tensor(None, 0, (2,), (1,))}, "without a storage"),
        ({"a": tensor(Storage("FloatStorage", "0", 3), 0, (3,), (1,))}, "16"),
        ({"a": tensor(Storage("FloatStorage", "9", 3), 0, (3,), (1,))}, "9"),
        ({"a": 3}, "'a' is int"),
        ({"a": {"b": tensor(FLOATS, 0, (4,), (1,))}}, "'a' is dict"),
        ([1, 2], "no state dict"),
    ],
)
def test_reader_refuses_by_name(tmp_path, tree, named):
    path = write(tmp_path / "bad.pt", tree, {"0": bytes(16)})
    with pytest.raises(ValueError, match=r"bad\.pt") as caught:
        pickles.read(path)
    assert named in str(caught.value)


def test_reader_takes_no_more_memory_than_a_file_explains(tmp_path):
    """A kilobyte that claims gigabytes."""
    storages, large = {"0": bytes(4096)}, Storage("FloatStorage", "0", 1024)
    most = 2**62
    for tree, words in (
        ({"a": tensor(large, 0, (2**30,), (0,))}, "1,073,741,824 numbers"),
        ({"a": tensor(large, 0, (most, most), (0, 0))}, "numbers from a stor"),
        ({i: tensor(large, 0, (1024,), (1,)) for i in range(9999)}, "claim"),
    ):
        path = write(tmp_path / "bad.pt", tree, storages)
        if "claim" in words:
            # As small as a deflated pickle makes it.
            with zipfile.ZipFile(path) as archive:
                data = archive.read("archive/data.pkl")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data.pkl", data)
                info = zipfile.ZipInfo("archive/data/0")
                archive.writestr(info, storages["0"])
        with pytest.raises(ValueError, match=words):
            pickles.read(path)
    for data, words in (
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo claims 2,147,483,647"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "bytes"),
        (bytes(2**25), "33,554,432 bytes"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", data)
        with pytest.raises(ValueError, match=words):
            pickles.read(path)


def test_reader_refuses_odd_files(tmp_path):
    tree = {"a": tensor(FLOATS, 0, (4,), (1,))}
    storages = {"0": bytes(16)}
    packed = write(
        tmp_path / "packed.pt", tree, storages, compress=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ValueError, match="compressed"):
        pickles.read(packed)
    big = write(tmp_path / "big.pt", tree, storages, order="big")
    with pytest.raises(ValueError, match="byte order"):
        pickles.read(big)
    good = write(tmp_path / "good.pt", tree, storages)
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cut\.pt is not a state"):
        pickles.read(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"no data\.pkl"):
        pickles.read(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError):
        pickles.read(tmp_path / "absent.pt")


@pytest.fixture(scope="module")
def published():
    """The bytes of a small but complete published file (random mn01)."""
    rng = np.random.default_rng(3)
    variables = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        efficientat.shapes(0.1),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state = efficientat_state(variables, 0.1)
    state["features.0.1.num_batches_tracked"] = np.array(7)
    buffer = io.BytesIO()
    write_state(buffer, state)
    return variables, buffer.getvalue()


@pytest.fixture
def server(published):
    with FileServer() as server:
        server.files["/file.pt"] = published[1]
        yield server


def test_load_round_trip(server, published, tmp_path, monkeypatch):
    entry = weights.Published("mn01_as_mAP_298.pt")
    url = f"{server.url}/file.pt"
    monkeypatch.setattr(weights.Published, "url", url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        loaded = weights.load("mn01")
        jax.tree.map(np.testing.assert_array_equal, loaded, published[0])
    assert len(server.requests) == 1
    cached = tmp_path / "synth-proxy-jax" / "weights" / entry.file
    assert cached.is_file()
    digest = hashlib.sha256(published[1]).hexdigest()
    other = weights.load("mn01", path=cached, sha256=digest)
    jax.tree.map(np.testing.assert_array_equal, other, loaded)
    with pytest.raises(ValueError, match=f"{entry.file}.*width 0.2"):
        weights.load("mn02", path=cached)
    with pytest.raises(ValueError, match="pass sha256="):
        weights.load("mn04", path=cached)


def test_load_refuses(tmp_path):
    with pytest.raises(ValueError, match="mn01, mn02"):
        weights.load("mn03")
    with pytest.raises(FileNotFoundError, match="mn04_as_mAP_432"):
        weights.load("mn04", path=tmp_path / "absent.pt")
    assert set(weights.PUBLISHED) >= set(efficientat.WIDTHS)


def test_digest_tells_files_apart(server, published, tmp_path, monkeypatch):
    monkeypatch.setattr(weights.Published, "url", f"{server.url}/file.pt")
    expected = hashlib.sha256(published[1]).hexdigest()
    known = weights.PUBLISHED["mn04"].sha256
    assert weights.digest("mn01", tmp_path) == ""
    assert weights.digest("mn04", tmp_path) == known
    assert weights.digest("mn01", tmp_path, fetch=True) == expected
    assert weights.digest("mn01", tmp_path) == expected
    assert len(server.requests) == 1
    other = tmp_path / "other.pt"
    assert weights.digest("mn04", path=other) == ""
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weights.digest("mn04", path=other, fetch=True)
    other.write_bytes(b"x")
    assert (
        weights.digest("mn04", path=other) == hashlib.sha256(b"x").hexdigest()
    )
    with pytest.raises(ValueError, match="mn01, mn02"):
        weights.digest("mn03")


def test_checkpoint_reader(tmp_path):
    """Files that hold settings beside the tensors, in either place."""
    data = np.arange(4, dtype=np.float32)
    one = tensor(FLOATS, 0, (4,), (1,))
    storages = {"0": data.tobytes()}
    settings = Rebuilt(Global("argparse", "Namespace"))
    folder = Rebuilt(Global("pathlib", "PosixPath"), "/", "tmp")
    for number, tree in enumerate(
        (
            {"a": one},
            {"model": {"a": one}, "args": settings, "epoch": 3, "out": folder},
            {"epoch": 3, "state_dict": {"a": one}},
        )
    ):
        path = write(tmp_path / f"{number}.pth", tree, storages)
        state = pickles.read(path)
        assert list(state) == ["a"]
        np.testing.assert_array_equal(state["a"], data)
    for tree, words in (
        ({"model": {"a": settings}}, "'a' is argparse.Namespace"),
        ({"model": {"a": 3}}, "'a' is int"),
        ([1], "no state dict"),
        ({}, "no state dict"),
    ):
        path = write(tmp_path / "bad.pth", tree, storages)
        with pytest.raises(ValueError, match=words):
            pickles.read(path)


def test_published_places():
    urls = {name: entry.url for name, entry in weights.PUBLISHED.items()}
    assert urls["openl3_mel256_music"].endswith(
        "raw/models/openl3_audio_mel256_music-v0_4_0.h5.gz"
    )
    assert urls["passt_s"].endswith("v.0.0.9/passt-s-kd-ap.486.pt")
    assert re.search(
        "resolve/[0-9a-f]{40}/pytorch_model.bin$", urls["audiomae"]
    )
    files = [entry.file for entry in weights.PUBLISHED.values()]
    assert len(set(files)) == len(files)


def test_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        weights.load("mn04", cache_dir=tmp_path / "file" / "below")


def test_real_weights():
    file = shared("weights/mn04_as_mAP_432.pt")
    known = shared("golden/mn04_state_dict.txt").read_text().splitlines()
    state = pickles.read(file)
    rows = [line.split("\t") for line in known if not line.startswith("#")]
    assert [row[0] for row in rows] == list(state)
    for name, shape, dtype, total in rows:
        assert str(state[name].shape) == shape
        assert state[name].dtype == dtype
        np.testing.assert_allclose(
            state[name].sum(dtype=np.float64),
            float(total),
            rtol=1e-4,
            atol=1e-4,
        )
    variables = weights.load("mn04", path=file)
    back = efficientat_state(variables, 0.4)
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])
    assert len(back) == sum("tracked" not in name for name in state)
