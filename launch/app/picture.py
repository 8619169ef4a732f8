"""Draws the application as README.md shows it.

    python -m launch.app.picture SOUND.wav

starts it, lets it match the sound, locks a part of the best candidate and
photographs the page. Needs Chromium and the extra `dev`.
"""

import io
import pathlib
import re
import shutil
import subprocess
import sys

import PIL.Image
from absl import flags

from launch import cli

_OUTPUT = flags.DEFINE_string(
    "output", "launch/app/picture.png", "File of the picture."
)
_EVALUATIONS = flags.DEFINE_integer("evaluations", 2_000, "Presets to hear.")


def _photograph(address: str, sound: str, browser: str) -> bytes:
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1200, "height": 780})
        page.goto(address)
        page.set_input_files("#file", sound)
        page.wait_for_selector("#status.done", timeout=600_000)
        page.click("#parts >> text=lfo")
        page.click(".node >> nth=0")
        page.wait_for_load_state("load")
        picture = page.screenshot()
        chromium.close()
        return picture


def main(words: list[str]) -> None:
    """Runs the command."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("there is no chromium on this machine")
    if len(words) != 1 or not pathlib.Path(words[0]).is_file():
        raise ValueError("name one sound file to be matched")
    command = [sys.executable, "-m", "launch.app", "--port=0"]
    command += [f"--evaluations={_EVALUATIONS.value}", "--candidates=5"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True
    ) as application:
        try:
            lines = iter(application.stdout or ())
            found = (re.search(r"http://\S+", line) for line in lines)
            address = next(filter(None, found), None)
            if address is None:
                raise RuntimeError("the application has not started")
            picture = _photograph(address.group(), words[0], browser)
        finally:
            application.terminate()
    out = pathlib.Path(_OUTPUT.value)
    image = PIL.Image.open(io.BytesIO(picture)).convert("RGB")
    # Few colours make a small file; not chosen by how often they occur, or
    # the spectrograms would take them all.
    coverage = PIL.Image.Quantize.MAXCOVERAGE
    image = image.quantize(128, coverage, dither=PIL.Image.Dither.NONE)
    image.save(out, optimize=True)
    print(f"wrote {out}, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    cli.run(main, arguments=True)
