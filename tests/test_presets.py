"""The command that fetches, inspects and exports banks."""

import functools
import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from datasets import download, handcrafted, sysex
from datasets.engines import dexed
from launch import presets
from proxy import spaces
from tests.shared import shared

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPACE = spaces.get("dexed")


def _launch(*arguments, **environment):
    """Runs `python -m launch.presets`; no proxy, no cache of the user."""
    return subprocess.run(
        [sys.executable, "-m", "launch.presets", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _bank(seed=0):
    uniform = np.random.default_rng(seed).random((32, SPACE.num_used))
    presets = SPACE.from_uniform(uniform.astype(np.float32))
    names = [f"VOICE {i}" for i in range(32)]
    return handcrafted.to_syx(presets, names, SPACE)


class _Server(http.server.ThreadingHTTPServer):
    """What it serves, what it was asked for, and how it misbehaves."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.cut_at: int | None = None


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; takes ranges unless told not to."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.server.cut_at])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# Downloads -------------------------------------------------------------------


def test_downloads_are_kept_and_recorded(server, tmp_path):
    data = server.files["/bank"] = _bank()
    path = tmp_path / "deep" / "bank.syx"
    digest = hashlib.sha256(data).hexdigest()
    get = functools.partial(download.fetch, f"{server.url}/bank", path=path)
    assert get() == digest
    assert path.read_bytes() == data
    record = path.with_name("bank.syx.sha256").read_text()
    assert record == f"{digest}  bank.syx\n"
    # The second time nothing is asked of the server.
    assert get() == digest and len(server.requests) == 1
    # Nor when the file is known by its digest.
    assert get(digest=digest) == digest and len(server.requests) == 1


def test_downloads_go_on_where_they_stopped(server, tmp_path):
    data = server.files["/bank"] = _bank()
    path = tmp_path / "bank.syx"
    server.cut_at = 1000
    with pytest.raises(ConnectionError, match="put it at"):
        download.fetch(f"{server.url}/bank", path=path)
    assert not path.exists()
    partial = path.with_name("bank.syx.part")
    assert partial.read_bytes() == data[:1000]
    server.cut_at = None
    download.fetch(f"{server.url}/bank", path=path)
    assert server.requests[-1] == ("/bank", "bytes=1000-")
    assert path.read_bytes() == data and not partial.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_stale_partial_downloads_start_again(server, tmp_path, ranges):
    """Too long for the file, or a server that knows no ranges."""
    data = server.files["/bank"] = _bank()
    path = tmp_path / "bank.syx"
    path.with_name("bank.syx.part").write_bytes(bytes(10_000))
    server.ranges = ranges
    download.fetch(f"{server.url}/bank", path=path)
    assert path.read_bytes() == data


def test_the_next_url_is_tried_when_a_file_is_gone(server, tmp_path):
    server.files["/new"] = b"x" * 100
    urls = [f"{server.url}/{name}" for name in ("old", "new")]
    download.fetch(*urls, path=tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 100
    with pytest.raises(ConnectionError, match=r"gone2 .*Not Found"):
        download.fetch(
            f"{server.url}/gone1",
            f"{server.url}/gone2",
            path=tmp_path / "b",
        )
    # Any other failure ends the search: the file may well be there.
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1/"):
        download.fetch("http://127.0.0.1:1/a", urls[1], path=tmp_path / "c")


def test_other_contents_are_refused(server, tmp_path):
    server.files["/bank"] = _bank(0)
    path = tmp_path / "bank.syx"
    with pytest.raises(ValueError, match="expected 0000"):
        download.fetch(f"{server.url}/bank", path=path, digest="0" * 64)
    assert list(tmp_path.iterdir()) == []
    download.fetch(f"{server.url}/bank", path=path)
    # The record of the first download holds later ones to it.
    path.unlink()
    server.files["/bank"] = _bank(1)
    with pytest.raises(ValueError, match="published file changed"):
        download.fetch(f"{server.url}/bank", path=path)
    path.write_bytes(b"tampered")
    with pytest.raises(ValueError, match=r"delete bank\.syx\.sha256"):
        download.fetch(f"{server.url}/bank", path=path)


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_dir() == tmp_path / "synth-proxy-jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_dir() == tmp_path / ".cache" / "synth-proxy-jax"


# Commands --------------------------------------------------------------------


def test_fetch_says_what_it_would_get_and_where_to_put_it(tmp_path):
    """Offline: one error, with the URL and the place."""
    done = _launch(
        "fetch",
        f"--cache_dir={tmp_path}",
        # A proxy that nobody listens at stands for no network.
        https_proxy="http://127.0.0.1:1",
        no_proxy="",
    )
    assert done.returncode == 1
    assert "licence: GPL-3.0" in done.stdout
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: cannot download https://raw.github")
    assert line.endswith(f"put it at {tmp_path / 'builtin_pgm.zip'}")


def test_fetch_takes_a_file_that_is_already_there(tmp_path):
    file = tmp_path / "builtin_pgm.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cartridge.syx", _bank())
    done = _launch("fetch", f"--cache_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"sha256:  {digest} (recorded now" in done.stdout
    assert f"--config.presets={file}" in done.stdout
    done = _launch("fetch", f"--cache_dir={tmp_path}")
    assert "as recorded at the first download" in done.stdout


def test_inspect_reports_and_lists(tmp_path):
    file = tmp_path / "bank.syx"
    file.write_bytes(_bank())
    done = _launch("inspect", file, "--list=3")
    assert done.returncode == 0, done.stderr
    assert "voices found" in done.stdout and "VOICE 2" in done.stdout
    assert "VOICE 3" not in done.stdout and "not rendered" in done.stdout
    gated = _launch("inspect", file, "--gate", "--workers=2")
    assert "dropped: silent" in gated.stdout, gated.stderr


def test_export_writes_what_was_asked_for(tmp_path):
    file = tmp_path / "bank.syx"
    file.write_bytes(_bank())
    out = tmp_path / "one.syx"
    done = _launch("export", file, "--names=VOICE 7", f"--output={out}")
    assert done.returncode == 0, done.stderr
    voices, problems = sysex.parse(out.read_bytes())
    assert sysex.read_names(voices) == ["VOICE 7"] and not problems
    assert len(out.read_bytes()) == 163
    assert (voices <= dexed.largest()).all()
    done = _launch("export", file, f"--output={tmp_path / 'all.json'}")
    assert "32 presets written" in done.stdout, done.stderr
    bank = handcrafted.load(tmp_path / "all.json", SPACE)
    np.testing.assert_array_equal(
        bank.presets, handcrafted.load(file, SPACE).presets
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give fetch, inspect or export, not nothing"),
        (("list",), "not 'list'"),
        (("inspect",), "give at least one file or folder"),
        (("inspect", "/no/such/bank.syx"), "no bank at /no/such/bank.syx"),
        (("export", "BANK"), "--output=FILE.syx or FILE.json"),
        (("export", "BANK", "--names=X", "--output=x.syx"), "named 'X'"),
        (("export", "BANK", "--output=x.fxp"), "written as .syx or .json"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, arguments, message):
    file = tmp_path / "bank.syx"
    file.write_bytes(_bank())
    words = [str(file) if a == "BANK" else a for a in arguments]
    options = [word for word in words if word.startswith("--")]
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        flags.FLAGS(["presets", *options])
        presets._main(["presets", *(w for w in words if w not in options)])
    # What sys.exit is given goes to stderr, with exit code 1.
    line = str(stop.value)
    assert line.startswith("error: ") and message in line
    assert "\n" not in line


def test_a_real_bank_goes_out_and_comes_back(tmp_path):
    file = shared("presets/Dexed_01.syx")
    out = tmp_path / "out.syx"
    done = _launch("export", file, f"--output={out}")
    assert done.returncode == 0, done.stderr
    before = handcrafted.load(file, SPACE)
    after = handcrafted.load(out, SPACE)
    assert after.names == before.names
    # The DX7's integers nearest to the ends of the intervals.
    np.testing.assert_allclose(after.presets, before.presets, atol=0.0051)
