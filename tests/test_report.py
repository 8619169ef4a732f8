"""The page: complete, and working in a browser, from disk."""

import functools
import html.parser
import importlib.util
import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from playwright import sync_api
from scipy.io import wavfile

from configs import dexed
from datasets.presets import reading, writing
from launch.evaluate import notes, proxy
from launch.report import page as report
from launch.runs import plots
from proxy import spaces
from tests import commands, matching

SPACE = spaces.get("dexed")
RATE = 16_000
NOTES = [
    "bass_electronic_000-036-100",
    "bass_electronic_000-062-100",
    "bass_electronic_001-062-127",
    "bass_acoustic_000-060-100",
    "brass_acoustic_000-060-100",
    "flute_acoustic_000-055-100",
    "guitar_electronic_000-060-100",
    "keyboard_electronic_000-060-100",
    "mallet_acoustic_000-060-100",
    "reed_acoustic_000-060-100",
    "string_acoustic_000-060-100",
]


def test_the_notes_of_the_table():
    picked = [i if i is None else NOTES[i] for i in notes.pick(NOTES)]
    assert len(picked) == len(notes.COLUMNS) == 10
    # Nearest to 60, the louder of two; another source where one is missing;
    # nothing where the family is.
    assert picked[0] == "bass_electronic_001-062-127"
    assert picked[1] == "bass_acoustic_000-060-100"
    assert picked[3] == "flute_acoustic_000-055-100"
    assert picked[9] is None
    assert notes.pick(["no note"]) == [None] * 10


def tone(path, pitch):
    time = np.arange(RATE // 2) / RATE
    wave = 8000 * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * time)
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, RATE, wave.astype(np.int16))


def matching_run(folder, schedule, seed, *, stand_in=False):
    run = folder / f"{schedule}_{seed}"
    run.mkdir(parents=True)
    config = {
        **dexed.get_config("match_small").to_dict(),
        "name": run.name,
        "schedule": schedule,
        "data": str(folder.parent / "data"),
    }
    (run / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    content = {
        "run": str(run),
        "schedule": schedule,
        "decoding": "hard",
        "seed": seed,
        "stand_in": stand_in,
        "sets": {},
    }
    inside = run / "matching"
    for where, names in (
        ("in-domain", [f"VOICE <{i}>" for i in range(12)]),
        ("out-of-domain", NOTES),
    ):
        slug = where.replace("-", "_")
        files = {
            name: {
                str(i): f"{slug}/{name}/{i:03}.wav" for i in range(len(names))
            }
            for name in ("target", "estimator", "mean_preset")
        }
        for i, path in enumerate(p for f in files.values() for p in f.values()):
            tone(inside / path, 200 + 20 * i)
        presets = np.asarray(
            SPACE.sample(jax.random.key(seed), (len(names),)), np.float32
        )
        file = inside / slug / "estimator.json"
        file.write_text(writing.to_json(presets, names, SPACE))
        methods = {
            method: {
                "distances": {
                    name: rng.random(len(names)).tolist()
                    for name in ("a_mean", "stft", "mstft", "mel", "mfcc")
                },
                "audio": files[method.replace(" ", "_")],
                "presets": f"{slug}/estimator.json",
            }
            for method in ("estimator", "mean preset")
        }
        content["sets"][where] = {
            "names": names,
            "audio": files["target"],
            "methods": methods,
        }
    (inside / "evaluation.json").write_text(json.dumps(content))
    return run


def proxy_run(folder, picture):
    run = folder / "proxy"
    run.mkdir()
    config = {
        **dexed.get_config("hn_oh").to_dict(),
        "name": "a_proxy",
        "audio_model": "mel128",
        "num_train": 512,
        "epochs": 3,
        "data": str(folder.parent / "data"),
    }
    (run / "config.json").write_text(json.dumps(config))
    metric = {"mean": 0.125, "std": 0.002}
    model = {
        "subset": 64,
        "repeats": 3,
        "metrics": {name: metric for _, name, _ in proxy._COLUMNS},
    }
    results = {"synthetic": {"mean embedding": model, "hn_oh": model}}
    content = {"results": results, "bank": ""}
    (run / "evaluation.json").write_text(json.dumps(content))
    for name in (
        "training",
        "ranks_synthetic",
        "embeddings_synthetic",
        "embeddings_hand_crafted",
    ):
        shutil.copyfile(picture, run / f"{name}.png")
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(40, 8)).astype(np.float32)
    np.savez(
        run / "embeddings_synthetic.npz", audio=audio, predicted=audio + 0.1
    )
    return run


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs"
    for schedule, seed in (("switch", 0), ("ploss", 1), ("ploss", 0)):
        matching_run(runs, schedule, seed, stand_in=True)
    import matplotlib.pyplot as plt

    figure, _ = plt.subplots(figsize=(1, 1))
    figure.savefig(folder / "plot.png")
    plt.close(figure)
    proxy_run(runs, folder / "plot.png")
    ranking = runs / "ranking"
    ranking.mkdir()
    (ranking / "ranking.json").write_text("{}")
    shutil.copyfile(folder / "plot.png", ranking / "heat_map.png")
    matching.note_noise(folder / "data")
    out = folder / "site"
    # A page that is there is replaced.
    report.build([runs / "proxy"], out, "An older page")
    (runs / "proxy" / "embeddings_hand_crafted.png").unlink()
    report.build(report.find_runs([str(runs)]), out, "A title")
    return out


class References(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                self.found.append(value)


def test_every_reference_is_there_and_nothing_is_elsewhere(site):
    parser = References()
    text = (site / "index.html").read_text()
    parser.feed(text)
    local = {r for r in parser.found if not r.startswith(("#", "data:"))}
    for reference in local:
        assert "://" not in reference and not reference.startswith("/")
        assert (site / reference).stat().st_size > 0, reference
    for anchor in (r for r in parser.found if r.startswith("#")):
        assert f'id="{anchor[1:]}"' in text
    shown = {site / r for r in local} | {site / "index.html"}
    kept = {p for p in site.rglob("*") if p.is_file()}
    assert kept - {site / ".nojekyll", site / ".report.json"} == shown
    # A downloaded preset is the one that was predicted.
    files = sorted((site / "sounds/dexed/dexed_ploss").glob("*.json"))
    assert len(files) == 10
    bank = reading.load([str(files[3])], SPACE)
    wanted = SPACE.sample(jax.random.key(0), (12,))[3]
    np.testing.assert_allclose(bank.presets[0], wanted, atol=1e-6)
    voice = files[3].with_suffix(".syx")
    assert len(voice.read_bytes()) == 163


def test_distances_stand_beside_the_noise_floor(site):
    floor = "oise floor of Noisy 1.0 (VST3, reset), the same preset rendered "
    floor += "again: stft 0.25"
    page = (site / "index.html").read_text()
    # Of the three estimators once, and of the proxy.
    assert page.count(f"N{floor}") == 1 and page.count(f"n{floor}") == 1
    tables = commands.load("launch.reproduce")["tables"]
    text = tables([str(site.parent / "runs" / "proxy")], site)
    assert f"\n\nn{floor}" in text


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        message = "a browser is missing: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--autoplay-policy=no-user-gesture-required",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(site, chromium):
    """Opens the page from disk; gathers what the browser complains of."""
    complaints = []

    def failed(request):
        # Sounds that are half loaded when a page is closed are let go.
        if "ERR_ABORTED" not in (request.failure or ""):
            complaints.append(f"{request.url}: {request.failure}")

    def open_page(**options):
        page = chromium.new_page(**options)
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("requestfailed", failed)
        requests = []
        page.on("request", lambda r: requests.append(r.url))
        page.goto(f"file://{site}/index.html")
        page.wait_for_load_state("networkidle")
        assert all(url.startswith(("file://", "data:")) for url in requests)
        return page

    yield open_page
    assert complaints == []


def test_tables_and_players_in_the_browser(opened):
    page = opened(viewport={"width": 1280, "height": 900})
    assert page.title() == "A title"
    inside, outside = page.locator("table.players").all()
    for table, rows in (
        (inside, ["Target", "PLoss", "Switch"]),
        (outside, ["Target", "Dexed PLoss", "Dexed Switch"]),
    ):
        assert table.locator("tbody th").all_inner_texts() == rows
        assert table.locator("thead th").count() == 11
    assert inside.locator("audio").count() == 30
    assert outside.locator("audio").count() == 27
    assert "VOICE <3>" in inside.inner_text()
    assert "flute_acoustic_000-055-100" in outside.inner_text()
    text = page.locator("main").inner_text()
    assert "no bank of hand-crafted presets" in text
    for table, sounds in ((inside, 2 * 10), (outside, 2 * 9)):
        assert len(re.findall("a_mean 0", table.inner_text())) == sounds
    assert page.locator("tr.ours", has_text="Dexed PLoss").count() == 2
    # PLoss has two seeds in the table of numbers.
    row = page.locator("tr", has=page.locator("th", has_text="Dexed PLoss"))
    assert "\t2\t" in row.last.inner_text()
    # Every sound can be decoded, and every picture seen.
    lengths = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map(
          (a) => new Promise((done, fail) => {
            a.onloadedmetadata = () => done(a.duration);
            a.onerror = () => fail(a.src);
            a.preload = "metadata";
            a.load();
          })))"""
    )
    assert len(lengths) == 57 and np.allclose(lengths, 0.5, atol=0.01)
    widths = page.evaluate(
        """() => Promise.all([...document.images].map(async (i) => {
          i.loading = "eager";
          await i.decode();
          return i.naturalWidth;
        }))"""
    )
    # Of the proxy three and, where it can be drawn, the UMAP; the ranking.
    drawn = importlib.util.find_spec("umap") is not None
    assert len(widths) == 57 + 3 + drawn + 1 and min(widths) > 0


_PLAYING = """() => [...document.querySelectorAll("audio")]
  .map((a, i) => a.paused ? -1 : i).filter((i) => i >= 0)"""


def test_one_sound_at_a_time_by_mouse_and_keys(opened):
    page = opened()
    page.evaluate("document.querySelectorAll('audio').forEach(a => a.loop = 1)")
    for i in (0, 4):
        page.evaluate(f"document.querySelectorAll('audio')[{i}].play()")
        page.wait_for_function(f"({_PLAYING})().join() == '{i}'")
    page.keyboard.press("n")
    page.wait_for_function(f"({_PLAYING})().join() == '5'")
    page.keyboard.press("b")
    page.wait_for_function(f"({_PLAYING})().join() == '4'")
    page.keyboard.press("Escape")
    page.wait_for_function(f"({_PLAYING})().join() == ''")
    # A picture opens by key and was not loaded before.
    summary = page.locator("summary").first
    image = page.locator("details img").first
    assert not image.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert image.is_visible()
    page.wait_for_function(
        "document.querySelector('details img').naturalWidth == 480"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_and_both_schemes(opened, scheme):
    page = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
    colours = page.evaluate(
        """() => { const s = getComputedStyle(document.body);
          return [s.backgroundColor, s.color]; }"""
    )
    back, text = (
        sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours
    )
    assert (back > text + 400) == (scheme == "light")
    assert abs(back - text) > 400


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run at"):
        report.find_runs([str(tmp_path)])
    (tmp_path / "run").mkdir()
    config = dexed.get_config("hn_oh")
    (tmp_path / "run/config.json").write_text(config.to_json())
    runs = report.find_runs([str(tmp_path)])
    build = functools.partial(report.build, runs, title="x")
    with pytest.raises(ValueError, match=r"evaluated; run .*--run .*/run"):
        build(tmp_path / "site")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(ValueError, match="holds something else"):
        build(tmp_path / "other")
    assert (tmp_path / "other" / "precious").exists()


def test_a_page_replaces_only_what_it_wrote(site, tmp_path):
    runs = [site.parent / "runs" / "proxy"]
    # A folder of somebody else's, with a file of the same name.
    (tmp_path / "report.js").write_text("theirs")
    with pytest.raises(ValueError, match="something else than a page"):
        report.build(runs, tmp_path, "x")
    assert (tmp_path / "report.js").read_text() == "theirs"
    out = tmp_path / "site"
    report.build(runs, out, "x")
    before = {path for path in out.rglob("*") if path.is_file()}
    (out / "CNAME").write_text("theirs")
    (out / "proxies" / "theirs").touch()
    (outside := tmp_path / "outside").touch()
    ranking = site.parent / "runs" / "ranking"
    report.build([ranking], out, "y")
    after = {path for path in out.rglob("*") if path.is_file()}
    assert {out / "CNAME", out / "proxies" / "theirs"} <= after
    assert not {p for p in after & before if "proxies" in p.parts}
    (out / ".report.json").write_text(json.dumps(["../outside"]))
    with pytest.raises(ValueError, match="not below it"):
        report.build([ranking], out, "z")
    assert outside.exists()


def test_runs_lead_nowhere_else(tmp_path, monkeypatch):
    """Neither their names nor the files they name."""
    # What takes the time is of no interest here.
    monkeypatch.setattr(plots, "sounds", lambda clips, rate, path: path.touch())
    run = matching_run(tmp_path / "runs", "ploss", 0)
    config = json.loads((run / "config.json").read_text())
    config["synth"] = "../../../evil"
    (run / "config.json").write_text(json.dumps(config))
    page = report.build([run], tmp_path / "deep" / "site", "x")
    assert not (tmp_path / "evil").exists()
    assert {"deep", "runs"} == {path.name for path in tmp_path.iterdir()}
    assert "evil" in page.read_text()
    secret = tmp_path / "secret.wav"
    tone(secret, 200)
    file = run / "matching/evaluation.json"
    text = file.read_text()
    wanted = "in_domain/target/000.wav"
    for other in (str(secret), "../../../secret.wav"):
        file.write_text(text.replace(wanted, other))
        with pytest.raises(ValueError, match="not below it"):
            report.build([run], tmp_path / "deep" / "site", "x")
    file.write_text(text)
    (run / "matching" / wanted).unlink()
    (run / "matching" / wanted).symlink_to(secret)
    with pytest.raises(ValueError, match="not below it"):
        report.build([run], tmp_path / "deep" / "site", "x")


def test_a_proxys_name_leads_nowhere_else(site, tmp_path):
    run = shutil.copytree(site.parent / "runs" / "proxy", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["name"] = "/../../../evil"
    (run / "config.json").write_text(json.dumps(config))
    report.build([run], tmp_path / "deep" / "site", "x")
    assert {"deep", "run"} == {path.name for path in tmp_path.iterdir()}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["site"]


def test_runs_of_other_targets_are_refused(tmp_path):
    one = matching_run(tmp_path / "runs", "ploss", 0)
    other = matching_run(tmp_path / "runs", "mix", 0)
    file = other / "matching/evaluation.json"
    file.write_text(file.read_text().replace("VOICE <1>", "ANOTHER"))
    with pytest.raises(ValueError, match="evaluate them together"):
        report.build([one, other], pathlib.Path(tmp_path / "site"), "x")
