"""From files and folders of sounds to folders of results."""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from datasets import drawing, sounds
from launch import Config, cli
from launch.match import output, search
from launch.match.judge import Options
from launch.runs import build, checkpoints, making, metrics, opened
from launch.runs.opened import Setup

# Presets that are drawn where there is no bank, and how many at once.
_DRAWN = 16_384
_BLOCK = 256


def open_setup(
    run: pathlib.Path, plugin: str | None = None, presets: str | None = None
) -> Setup:
    """Opens a run to match sounds with; finds its bank where there is none.

    A proxy that was not trained here, as that which comes with the project,
    searches presets drawn from its prior, and says itself how they sound. Not
    so uniform ones: most are silent.

    Args:
      run: directory of the run.
      plugin: path of a VST3 plug-in in place of the run's; None for that.
      presets: file or folder of banks in place of the run's; None for that.

    Raises:
      FileNotFoundError: when there is no run, or nothing to search.
      ValueError: when it does not fit, or the plug-in is missing.
    """
    find, config = None, checkpoints.read_config(run)
    trained = config.kind == "estimator" or (run / metrics.FILE).exists()
    if presets:
        find = functools.partial(_rendered, presets)
    elif not trained and not config.prior.uniform:
        find = _drawn
    return opened.setup(run, plugin, find)


def _rendered(
    presets: str, config: Config, proxy: opened.ProxyRun, engine: opened.Engine
) -> opened.Bank:
    """A bank of the user's."""
    del proxy
    config.presets = presets
    return opened.open_bank(making.matching_source(config, engine=engine))


def _drawn(
    config: Config, proxy: opened.ProxyRun, engine: opened.Engine
) -> opened.Bank:
    """Draws of the proxy's prior, and what it says of them."""
    with making.maker(config, engine) as maker:
        draw = functools.partial(
            drawing.draw, maker.space, maker.seed, "search", prior=maker.prior
        )
        starts = range(0, _DRAWN, _BLOCK)
        parts = [draw(range(row, row + _BLOCK))[:, 0] for row in starts]
    presets = np.concatenate(parts)
    predict = build.predictor(config, _BLOCK)
    return opened.Bank(presets, predict(proxy.state, presets), "drawn")


def match(
    items: Sequence[sounds.Item],
    out: pathlib.Path,
    open_setup: Callable[[], Setup],
    options: Options,
    asked: Mapping[str, Any],
) -> Iterator[dict[str, Any] | None]:
    """Matches files, one after the other.

    Args:
      items: the files.
      out: folder of the results, with a folder for each file.
      open_setup: opens the run; called when the first sound needs it.
      options: how the searches are done.
      asked: what a result is to be recognised by, among it "note" and "hold",
        which are None where they are to be detected.

    Yields:
      Of each file, what is in its result.json, or None when it failed. After
      Ctrl-C, the sound at hand is the last.

    Raises:
      ValueError: for mistakes that concern all sounds, or the only one.
      FileNotFoundError: for an only file that is missing.
    """
    warm = set[int]()
    setup: Setup | None = None
    for item in items:
        folder = out / item.name
        result = _finished(folder, asked)
        if result is None:
            try:
                # Before anything is loaded, so that its mistakes come first.
                sounds.read(item.path, 32_000)
            except cli.EXPECTED as error:
                if len(items) == 1:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
                yield None
                continue
            setup = setup or open_setup()
            try:
                result = _match(setup, item, options, folder, asked, warm)
            except cli.EXPECTED as error:
                if len(items) == 1:
                    raise
                print(f"error: {item.name}: {error}", file=sys.stderr)
                yield None
                continue
            score = result["candidates"][0]["distances"]["a_mean"]
            print(
                f"{item.name}: note {result['note']}, a_mean {score:.3f}, "
                f"{result['renders']:,} renders, {result['seconds']:.1f} s",
                flush=True,
            )
        yield result
        if result["interrupted"]:
            return


def _finished(folder: pathlib.Path, asked: Mapping[str, Any]) -> Any:
    """The result of a sound that was matched in the same way, or None."""
    path = folder / output.RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        same = result["asked"] == asked and not result["interrupted"]
    except (KeyError, TypeError, ValueError):  # cut off: matched again
        return None
    return result if same else None


def _match(
    setup: Setup,
    item: sounds.Item,
    options: Options,
    folder: pathlib.Path,
    asked: Mapping[str, Any],
    warm: set[int],
) -> dict[str, Any]:
    """Matches one file; `warm` are lengths that searches are compiled for."""
    rate = setup.settings.sample_rate
    sound = sounds.read(item.path, rate, most=setup.settings.duration)
    length, remarks = len(sound.audio), list(sound.remarks)
    note = item.note if asked["note"] is None else asked["note"]
    if note is None:
        note = sounds.pitch(sound.audio, rate)
        if note is None:
            note = setup.settings.note
            remarks.append(f"no clear pitch: rendered at note {note} (--note)")
    hold = item.hold if asked["hold"] is None else asked["hold"]
    if hold is None:
        hold = sounds.hold(sound.audio, rate)
    for remark in remarks:
        print(f"{item.name}: {remark}", flush=True)
    if length not in warm and not options.evaluations:
        search.warm_up(setup, length, options)
        warm.add(length)
    match = search.search(
        setup, sound.audio, note, hold, options, label=item.name
    )
    about = {
        "file": str(item.path),
        "note": note,
        "hold": round(hold, 3),
        "length": round(length / rate, 3),
        "sample_rate": rate,
        "bank": f"{len(setup.bank.presets)} {setup.bank.source} presets",
        "remarks": remarks,
        "asked": asked,
    }
    return output.write(
        folder,
        item.name,
        match,
        sound.audio,
        setup.space,
        rate,
        about,
        setup.engine().write_state,
    )
