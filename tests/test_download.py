import functools
import hashlib
import multiprocessing
import pathlib

import numpy as np
import pytest

from datasets import download
from tests.server import FileServer

DATA = np.random.default_rng(0).bytes(100_000)
OTHER = np.random.default_rng(1).bytes(100_000)


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FileServer() as server:
        server.files["/file"] = DATA
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.bin"


@pytest.fixture
def fetch(server, path):
    return functools.partial(download.fetch, f"{server.url}/file", path=path)


def beside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)


@pytest.mark.parametrize("known", [True, False])
def test_downloads_once(server, tmp_path, known):
    path = tmp_path / "new" / "folder" / "file.bin"
    sha256 = digest(DATA).upper() if known else None
    for _ in range(2):
        found = download.fetch(f"{server.url}/file", path=path, sha256=sha256)
        assert found == digest(DATA) and path.read_bytes() == DATA
    assert server.requests == [("/file", None)]
    assert not beside(path, ".part").exists()
    assert not beside(path, ".rejected").exists()
    if not known:
        record = f"{digest(DATA)}  file.bin\n"
        assert beside(path, ".sha256").read_text() == record
        # Nor is anything asked when the file is known by its checksum.
        download.fetch(f"{server.url}/file", path=path, sha256=digest(DATA))
        assert len(server.requests) == 1


@pytest.mark.parametrize("known", [True, False])
def test_interrupted_download_resumes(server, fetch, path, known):
    sha256 = digest(DATA) if known else None
    server.cut_at = 1000
    with pytest.raises(
        FileNotFoundError, match=r"the next try resumes.*put it"
    ):
        fetch(sha256=sha256)
    assert not path.exists()
    assert beside(path, ".part").read_bytes() == DATA[:1000]
    server.cut_at = None
    assert fetch(sha256=sha256) == digest(DATA)
    assert path.read_bytes() == DATA and not beside(path, ".part").exists()
    assert server.requests == [("/file", None), ("/file", "bytes=1000-")]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 10**6])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("how", ["known", "recorded"])
def test_wrong_remains_restart_cleanly(server, fetch, path, left, ranges, how):
    if how == "recorded":
        fetch()
        path.unlink()
    server.ranges = ranges
    beside(path, ".part").write_bytes(left)
    fetch(sha256=digest(DATA) if how == "known" else None)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("ranges", [True, False])
def test_remains_that_are_too_long_restart_unasked(server, fetch, path, ranges):
    """Even when no checksum is known: the server's answer tells."""
    server.ranges = ranges
    beside(path, ".part").write_bytes(bytes(10**6))
    assert fetch() == digest(DATA) and path.read_bytes() == DATA


def test_wrong_checksum_of_a_download(fetch, path):
    with pytest.raises(ValueError, match=r"not 0000.*kept as .*rejected"):
        fetch(sha256="0" * 64)
    assert not path.exists() and not beside(path, ".part").exists()
    assert not beside(path, ".sha256").exists()
    assert beside(path, ".rejected").read_bytes() == DATA
    assert fetch() == digest(DATA)


def test_the_record_holds_later_downloads(server, fetch, path):
    fetch()
    path.unlink()
    server.files["/file"] = OTHER
    with pytest.raises(ValueError, match="published file changed") as caught:
        fetch()
    assert f"delete {beside(path, '.sha256')}" in str(caught.value)
    assert not path.exists()
    assert beside(path, ".rejected").read_bytes() == OTHER
    beside(path, ".sha256").unlink()
    assert fetch() == digest(OTHER)


def test_wrong_checksum_of_a_file_that_was_there(server, fetch, path):
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="left as it is: move it away"):
        fetch(sha256=digest(DATA))
    assert path.read_bytes() == b"mine"
    assert not server.requests


@pytest.mark.parametrize("by_hand", [False, True])
def test_unknown_checksum_is_recorded_on_first_use(fetch, path, by_hand):
    if by_hand:
        path.write_bytes(DATA)
    assert fetch() == digest(DATA)
    record = beside(path, ".sha256")
    assert digest(DATA) in record.read_text()
    fetch()
    path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=digest(DATA)) as caught:
        fetch()
    assert f"delete {record}" in str(caught.value)
    assert path.read_bytes() == b"changed"
    record.write_text("")
    with pytest.raises(ValueError, match="is empty: delete it"):
        fetch()


def test_offline_says_where_from_and_where_to(server, fetch, path):
    for server.status in (404, 500):
        with pytest.raises(FileNotFoundError, match=f"HTTP {server.status}"):
            fetch()
    gone = "http://127.0.0.1:9/file"  # The discard port: nobody listens.
    with pytest.raises(FileNotFoundError) as caught:
        download.fetch(gone, path=path)
    assert gone in str(caught.value)
    assert str(caught.value).endswith(f"put it at {path}")
    with pytest.raises(ValueError, match="no URL"):
        download.fetch(path=path)


def test_the_next_url_is_tried_when_a_file_is_gone(server, tmp_path):
    old, new = f"{server.url}/old", f"{server.url}/file"
    download.fetch(old, new, path=tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    with pytest.raises(FileNotFoundError, match=r"404 Not Found.* get .*gone2"):
        download.fetch(
            f"{server.url}/gone1", f"{server.url}/gone2", path=tmp_path / "b"
        )
    # Any other failure ends the search: the file may well be there.
    with pytest.raises(FileNotFoundError, match=r"127\.0\.0\.1:1/"):
        download.fetch("http://127.0.0.1:1/a", new, path=tmp_path / "c")
    server.status = 410
    server.files["/old"] = b""
    with pytest.raises(FileNotFoundError, match="410"):
        download.fetch(old, new, path=tmp_path / "d")
    assert [name for name, _ in server.requests[-2:]] == ["/old", "/file"]
    server.status = 503
    with pytest.raises(FileNotFoundError, match=r"503.*/old"):
        download.fetch(old, new, path=tmp_path / "e")


def _fetch(url, path, sha256, together):
    together.wait()
    assert download.fetch(url, path=path, sha256=sha256) == digest(DATA)


@pytest.mark.parametrize("sha256", [digest(DATA), None])
def test_several_processes_may_want_the_same_file(server, path, sha256):
    # Not forked: JAX's threads would not survive it.
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    arguments = (f"{server.url}/file", path, sha256, together)
    processes = [context.Process(target=_fetch, args=arguments) for _ in "123"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.requests == [("/file", None)]
    assert path.read_bytes() == DATA


def test_progress_is_shown_when_asked_for(fetch, path, capsys):
    fetch(progress=True)
    assert "file.bin: 100%" in capsys.readouterr().err
    path.unlink()
    fetch()
    assert capsys.readouterr().err == ""


def test_folders_that_cannot_be_written_to(fetch, path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made.*XDG_CACHE_HOME"):
        fetch(path=tmp_path / "file" / "below" / "file.bin")
    # A folder in its place: not even the superuser can write the lock.
    beside(path, ".lock").mkdir()
    with pytest.raises(ValueError, match=r"written to .*XDG_CACHE_HOME"):
        fetch()
    # A file that is there needs neither lock nor record.
    beside(path, ".sha256").mkdir()
    path.write_bytes(DATA)
    assert fetch() == digest(DATA)
    assert len(list(tmp_path.iterdir())) == 4


def test_full_disk(fetch, path):
    beside(path, ".part").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"No space left.*make room"):
        fetch()
    assert not path.exists()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "synth-proxy-jax"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert download.cache_folder() == expected
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert download.cache_folder() == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert download.cache_folder() == tmp_path / "x" / "synth-proxy-jax"
