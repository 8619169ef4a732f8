"""The application: sounds in, presets out, errors, and in a browser."""

import dataclasses
import functools
import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import scipy.io.wavfile

from datasets import engines
from datasets.presets import reading
from launch.app import server as serving
from launch.app import session as sessions
from proxy import spaces
from tests import commands
from tests.test_match import (  # noqa: F401 - fixtures
    HOLD,
    NOTE,
    OPTIONS,
    RATE,
    SPACE,
    run,
    setup,
    target,
)
from tests.test_report import chromium  # noqa: F401 - a fixture


def wav(sound, rate=RATE):
    file = io.BytesIO()
    scipy.io.wavfile.write(file, rate, np.asarray(sound, np.float32))
    return file.getvalue()


@pytest.fixture(scope="module")
def place(setup):  # noqa: F811
    """The address of an application that is running."""
    options = dataclasses.replace(OPTIONS, evaluations=80, candidates=3)
    listening = serving.listen(0)
    server = serving.server(sessions.Session(setup, options), listening)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listening.close()


def ask(url, data=None, **headers):
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def state(place):
    with urllib.request.urlopen(f"{place}/events", timeout=60) as events:
        return json.loads(events.readline().removeprefix(b"data: "))


def ended(place):
    """The step at hand, when its search is over."""
    until = time.monotonic() + 90
    while (step := state(place)["step"])["state"] not in ("done", "stopped"):
        assert time.monotonic() < until and step["state"] != "failed"
        time.sleep(0.2)
    return step


def refused(place, path, data, **headers):
    status, answer = ask(f"{place}{path}", data, **headers)
    assert 400 <= status < 500
    return json.loads(answer)["error"]


def heard(page):
    """Waits for a sound: the page's own policy forbids `wait_for_function`."""
    until = time.monotonic() + 20
    while not page.evaluate("!player.paused && player.currentTime > 0"):
        assert time.monotonic() < until
        page.wait_for_timeout(50)


def test_what_cannot_be_matched_is_one_sentence(place):
    sound = "/sound?name=a.wav&seconds=5"
    silence = np.zeros(RATE, np.float32)
    assert "a.wav is silent" in refused(place, sound, wav(silence))
    assert "a.wav is not an audio" in refused(place, sound, b"no sound")
    long = 0.1 * np.random.default_rng(0).normal(size=8_000 * 60 * 30)
    long = np.int16(32_767 * np.clip(long, -1, 1))
    file = io.BytesIO()
    scipy.io.wavfile.write(file, 8_000, long)
    assert "30 minutes long" in refused(place, sound, file.getvalue())
    assert "seconds" in refused(place, "/sound?seconds=0", b"")
    # Nothing is there to go on from.
    assert "is there no more" in refused(
        place, "/go-on", b'{"candidate": "1", "seconds": 5}'
    )
    assert state(place)["step"] is None


def test_other_sites_and_names_of_this_host_are_refused(place):
    assert ask(place)[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
    ):
        assert "another site" in refused(place, "/", None, **headers)


def test_a_sound_becomes_a_file_to_load(
    place,
    setup,  # noqa: F811
    target,  # noqa: F811
    chromium,  # noqa: F811
    tmp_path,
):
    file = tmp_path / "tone.wav"
    file.write_bytes(wav(target))
    complaints, requests = [], []
    page = chromium.new_page(viewport={"width": 1_200, "height": 900})
    page.on("console", lambda m: complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(place)
    page.set_input_files("#file", file)
    page.wait_for_selector("#candidates > li", timeout=90_000)
    found = ended(place)
    assert found["renders"] == 80 and len(found["candidates"]) == 3
    best = found["candidates"][0]
    page.wait_for_selector(f"#candidates > li[data-id='{best['id']}']")

    # Played, loudness-matched; one at a time.
    playing = (
        "[...document.querySelectorAll('.playing')].map(r => r.dataset.id)"
    )
    page.click("#candidates > li >> nth=0 >> button.play")
    heard(page)
    assert page.evaluate(playing) == [best["id"]]
    page.keyboard.press("j")  # the next one takes over
    heard(page)
    assert page.evaluate(playing) == [found["candidates"][1]["id"]]
    page.keyboard.press("t")
    page.wait_for_selector("#target.playing")
    page.keyboard.press("Escape")
    assert page.evaluate("player.paused") and page.evaluate(playing) == []
    rate, played = scipy.io.wavfile.read(
        io.BytesIO(ask(f"{place}/sounds/{best['id']}.wav")[1])
    )
    assert rate == RATE and np.abs(played).max() > 0

    # What is downloaded sounds as what was played.
    with page.expect_download() as download:
        page.click("#candidates > li >> nth=0 >> text=.syx")
    download.value.save_as(tmp_path / "found.syx")
    preset = reading.load(tmp_path / "found.syx", SPACE).presets[0]
    settings = dataclasses.replace(
        setup.settings,
        duration=len(played) / RATE,
        hold=found["target"]["hold"],
    )
    clip = engines.get("dexed", settings).render(
        np.asarray(SPACE.to_plugin(preset), np.float32),
        found["target"]["note"],
    )
    np.testing.assert_allclose(clip, played, atol=1e-5)

    # What is locked stays; the step before is a click away.
    page.click("#parts button >> text=lfo")
    page.click("#on")
    page.wait_for_selector("#undo:not([disabled])")
    step = ended(place)
    assert step["locked"] == ["lfo"]
    number = step["number"]
    file = tmp_path / "bank.json"
    file.write_bytes(ask(f"{place}/presets/{number}.json")[1])
    locked = SPACE.mask(["lfo"])
    for other in reading.load(file, SPACE).presets:
        np.testing.assert_allclose(other[locked], preset[locked], atol=0.06)
    page.click("#undo")
    page.wait_for_selector("#undo[disabled]")
    assert state(place)["step"]["number"] == found["number"]

    # The bank's presets that are like it; a recording from the microphone.
    page.keyboard.press("m")
    page.wait_for_selector("#history li:nth-child(3)")
    step = ended(place)
    assert step["title"].startswith("more like #") and step["renders"] == 12
    bank = {preset.tobytes() for preset in setup.bank.presets}
    file.write_bytes(ask(f"{place}/presets/{step['number']}.json")[1])
    alike = reading.load(file, SPACE).presets
    assert {preset.tobytes() for preset in alike} <= bank
    page.click("#record")
    page.wait_for_timeout(1_500)
    page.click("#record")
    page.wait_for_selector("#history li:nth-child(4)")
    assert "recording" in ended(place)["title"]
    page.close()
    assert complaints == []
    assert all(url.startswith((place, "data:", "blob:")) for url in requests)


def test_what_is_odd_about_a_sound_is_told(place):
    time_ = np.arange(RATE) / RATE
    notes = 262 * 2 ** (np.array([0, 4, 7]) / 12)
    waves = 2 * np.pi * notes[:, None, None] * np.arange(1, 6)[:, None] * time_
    chord = 0.1 * np.sin(waves).mean((0, 1))
    noise = 0.1 * np.random.default_rng(0).normal(size=RATE)
    for sound, words in ((chord, "more than one note"), (noise, "no clear")):
        assert ask(f"{place}/sound?name=c.wav&seconds=5", wav(sound))[0] == 200
        step = state(place)["step"]
        assert words in " ".join(step["target"]["remarks"])
        ended(place)


def test_parts_of_a_preset_by_name():
    for name in ("dexed", "diva", "talnm"):
        space = spaces.get(name)
        together = np.concatenate(list(space.parts.values()))
        assert sorted(together) == list(range(space.num_used))
    mask = SPACE.mask(["op1 envelope", "lfo"])
    names = {p.name for p, kept in zip(SPACE.used, mask, strict=True) if kept}
    assert "op1_eg_rate_1" in names and "lfo_speed" in names
    assert "op1_output_level" not in names and "op2_eg_rate_1" not in names
    with pytest.raises(ValueError, match="lfoo"):
        SPACE.mask(["lfoo"])


def test_sounds_are_played_equally_loud():
    time_ = np.arange(RATE) / RATE
    sine = np.sin(2 * np.pi * 997 * time_)
    gain = functools.partial(sessions.gain, sample_rate=RATE)
    assert gain(0.1 * sine, 0.8 * sine) == pytest.approx(5, rel=1e-3)
    assert gain(sine, sine) == pytest.approx(0.5, rel=1e-3)
    # Hardly heard, yet never beyond full scale; silence stays it.
    low = np.sin(2 * np.pi * 25 * time_)
    assert gain(low, sine) == pytest.approx(1, rel=1e-3)
    assert gain(0 * sine, sine) == 1


def test_notes_and_holds_can_be_changed(place, target):  # noqa: F811
    status, _ = ask(f"{place}/sound?name=b.wav&seconds=5", wav(target))
    assert status == 200
    asked = {"note": NOTE, "hold": HOLD, "level": -12.0, "seconds": 5}
    status, answer = ask(
        f"{place}/again",
        json.dumps(asked).encode(),
        **{"Content-Type": "application/json"},
    )
    assert status == 200, answer
    step = ended(place)
    assert step["target"]["note"] == NOTE
    assert step["target"]["hold"] == HOLD
    assert "note" in refused(
        place, "/again", json.dumps({**asked, "note": 200}).encode()
    )


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "launch.app.server")
    monkeypatch.delattr("launch.app.server")
    with pytest.raises(ValueError, match=r"uvicorn: pip install .*run,app"):
        commands.run("launch.app", "--run=none")
