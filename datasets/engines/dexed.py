"""The Dexed engine in process, made to sound like the plug-in.

Dexed emulates the Yamaha DX7, whose voice is a list of small integers. The
plug-in shows each of them as a value in [0, 1]; `PARAMETERS` says which byte
of the DX7's single-voice format (VCED: 155 bytes, and one more for the
operator switches) each plug-in parameter is, and what its largest value is:
integer = round(raw value * largest).

dexed-py (GPL-3) is imported when a renderer is made, not before: the tables
and conversions of this module work without it.
"""

import functools
import importlib.metadata
import importlib.util
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

import proxy.spaces
from datasets.engines import Renderer, RenderError, RenderSettings, fade
from proxy.space import ParameterSpace
from proxy.synths import dx7, dx7_level

VOICE_BYTES = 156
NAME_BYTES = slice(145, 155)
SWITCHES_BYTE = 155

# Bytes of one operator in their VCED order, with the largest value of each.
_OPERATOR = (
    ("eg_rate_1", 99),
    ("eg_rate_2", 99),
    ("eg_rate_3", 99),
    ("eg_rate_4", 99),
    ("eg_level_1", 99),
    ("eg_level_2", 99),
    ("eg_level_3", 99),
    ("eg_level_4", 99),
    ("break_point", 99),
    ("l_scale_depth", 99),
    ("r_scale_depth", 99),
    ("l_key_scale", 3),
    ("r_key_scale", 3),
    ("rate_scaling", 7),
    ("a_mod_sens.", 3),
    ("key_velocity", 7),
    ("output_level", 99),
    ("mode", 1),
    ("f_coarse", 31),
    ("f_fine", 99),
    ("osc_detune", 14),
)
# Bytes that belong to the whole voice, from byte 126 on.
_VOICE = (
    ("pitch_eg_rate_1", 99),
    ("pitch_eg_rate_2", 99),
    ("pitch_eg_rate_3", 99),
    ("pitch_eg_rate_4", 99),
    ("pitch_eg_level_1", 99),
    ("pitch_eg_level_2", 99),
    ("pitch_eg_level_3", 99),
    ("pitch_eg_level_4", 99),
    ("algorithm", 31),
    ("feedback", 7),
    ("osc_key_sync", 1),
    ("lfo_speed", 99),
    ("lfo_delay", 99),
    ("lfo_pm_depth", 99),
    ("lfo_am_depth", 99),
    ("lfo_key_sync", 1),
    ("lfo_wave", 5),
    ("p_mode_sens.", 7),
    ("middle_c", 48),
)
# A voice lists its operators from the sixth to the first.
PARAMETERS: Mapping[str, tuple[int, int]] = {
    **{
        f"op{operator}_{name}": ((6 - operator) * len(_OPERATOR) + byte, most)
        for operator in range(1, 7)
        for byte, (name, most) in enumerate(_OPERATOR)
    },
    **{
        name: (6 * len(_OPERATOR) + byte, most)
        for byte, (name, most) in enumerate(_VOICE)
    },
}
# Voices whose loudest levels are told in one call.
_TOLD = 512
SWITCHES: Mapping[str, int] = {f"op{n}_switch": n for n in range(1, 7)}


@functools.cache
def largest() -> Int[np.ndarray, "bytes"]:
    """Largest allowed value of each VCED byte (127 for the name)."""
    bounds = np.full(VOICE_BYTES, 127)
    bounds[SWITCHES_BYTE] = 63
    for byte, most in PARAMETERS.values():
        bounds[byte] = most
    bounds.setflags(write=False)
    return bounds


@functools.cache
def _columns(space: ParameterSpace) -> dict[str, np.ndarray]:
    """Index tables between a space's plug-in values and a voice's bytes."""
    column = {p.name: i for i, p in enumerate(space.parameters)}
    missing = sorted((set(PARAMETERS) | set(SWITCHES)) - set(column))
    if missing:
        raise ValueError(
            f"space {space.name!r} is not Dexed's: it lacks "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    fixed = [n for n in column if n not in PARAMETERS and n not in SWITCHES]
    return {
        "parameters": np.array([column[n] for n in PARAMETERS]),
        "bytes": np.array([byte for byte, _ in PARAMETERS.values()]),
        "largest": np.array([most for _, most in PARAMETERS.values()]),
        "switches": np.array([column[n] for n in SWITCHES]),
        "fixed": np.array([column[n] for n in fixed], np.int64),
        "fixed_defaults": np.array(
            [space.parameters[column[n]].default for n in fixed], np.float32
        ),
        "defaults": np.array([p.default for p in space.parameters], np.float32),
    }


def to_voices(
    values: Float[np.ndarray, "*batch parameters"], space: ParameterSpace
) -> UInt8[np.ndarray, "*batch bytes"]:
    """Converts plug-in values to DX7 voices.

    Args:
      values: raw plug-in values in [0, 1], all 155 parameters of Dexed.
      space: the Dexed space.

    Returns:
      VCED bytes [*batch, 156], named "INIT VOICE"; the last byte holds the
      operator switches (bit 5: operator 1).

    Raises:
      RenderError: the values have another length than the table, are not
        finite or not in [0, 1], or one of the parameters that a DX7 voice
        has no byte for (the plug-in's filter, output level and master tune)
        is not at its default.
    """
    table = _columns(space)
    values = np.asarray(values, np.float32)
    if values.shape[-1] != space.num_parameters:
        raise RenderError(
            f"{values.shape[-1]} plug-in values given, {space.name} has "
            f"{space.num_parameters} parameters (use space.to_plugin(preset))"
        )
    names = [p.name for p in space.parameters]
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        where = np.argwhere(wrong)[0]
        raise RenderError(
            f"plug-in value of {names[where[-1]]!r} is "
            f"{values[tuple(where)]}, outside [0, 1]"
        )
    off = np.abs(values[..., table["fixed"]] - table["fixed_defaults"]) > 1e-3
    if off.any():
        where = np.argwhere(off)[0]
        column = table["fixed"][where[-1]]
        raise RenderError(
            f"{names[column]!r} is "
            f"{values[tuple(where[:-1])][column]:g}, but the embedded Dexed "
            f"can only render it at its default, "
            f"{table['fixed_defaults'][where[-1]]:g}: it belongs to the "
            "plug-in, not to the DX7 voice"
        )
    voices = np.zeros((*values.shape[:-1], VOICE_BYTES), np.uint8)
    voices[..., table["bytes"]] = np.rint(
        values[..., table["parameters"]] * table["largest"]
    )
    voices[..., NAME_BYTES] = np.frombuffer(b"INIT VOICE", np.uint8)
    switches = values[..., table["switches"]] >= 0.5
    voices[..., SWITCHES_BYTE] = switches @ (1 << np.arange(5, -1, -1))
    return voices


def from_voices(
    voices: Shaped[np.ndarray, "*batch bytes"], space: ParameterSpace
) -> Float[np.ndarray, "*batch parameters"]:
    """Converts DX7 voices to plug-in values; the inverse of `to_voices`.

    Args:
      voices: VCED bytes [*batch, 155] (every operator is on) or
        [*batch, 156], each within its DX7 range.
      space: the Dexed space.

    Returns:
      Raw plug-in values in [0, 1], float32 [*batch, 155]; parameters that a
      DX7 voice has no byte for are at their defaults.
    """
    table = _columns(space)
    values = np.broadcast_to(
        table["defaults"], (*voices.shape[:-1], space.num_parameters)
    ).copy()
    values[..., table["parameters"]] = (
        voices[..., table["bytes"]] / table["largest"]
    )
    if voices.shape[-1] > SWITCHES_BYTE:
        switches = voices[..., SWITCHES_BYTE, None] >> np.arange(5, -1, -1)
        values[..., table["switches"]] = switches & 1
    return values


def _silence_switched_off(voice: np.ndarray) -> bytes:
    """Mutes operators by their levels, as the engine ignores the switches.

    With its output level and every envelope level at zero an operator's gain
    underflows to exactly zero, which is what the switch does.
    """
    voice = voice.copy()
    for operator in range(1, 7):
        if not voice[SWITCHES_BYTE] >> (6 - operator) & 1:
            start = PARAMETERS[f"op{operator}_eg_rate_1"][0]
            voice[start + 4 : start + 8] = 0
            voice[start + 16] = 0
    return voice.tobytes()


class Dexed(Renderer):
    """What both of Dexed's engines share.

    Args:
      settings: how presets are made to sound; the defaults when left out.
    """

    name = "dexed"

    def __init__(self, settings: RenderSettings | None = None) -> None:
        self.settings = settings or RenderSettings()
        self.space = proxy.spaces.get("dexed")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings,)

    def at(self, settings: RenderSettings) -> "Dexed":
        """As `Renderer.at`."""
        return type(self)(settings)

    def surely_silent(
        self, values: Float[np.ndarray, "batch parameters"]
    ) -> Bool[np.ndarray, "batch"]:
        """Tells silent presets from their envelopes, without rendering them.

        Of presets drawn at random, about 92 in 100 are silent, and this finds
        19 in 20 of those at a hundredth of a render's time. It errs towards
        False: what it calls silent, `check_level` would.

        Raises:
          RenderError: as in `render`.
        """
        voices = to_voices(values, self.space)
        silent = np.zeros(len(voices), bool)
        for start in range(0, len(voices), _TOLD):
            part = voices[start : start + _TOLD]
            bound = dx7_level.rms_bound(
                # Filled up: one shape, compiled once.
                np.pad(part, ((0, _TOLD - len(part)), (0, 0))),
                hold=self.settings.hold,
                duration=self.settings.duration - self.settings.note_on,
            )
            # The envelopes are followed in steps of 25 ms: 5 % of head room.
            level = np.asarray(bound)[: len(part)] * dx7.GAIN * 1.05
            silent[start : start + _TOLD] = level < self.settings.min_rms
        return silent


class DexedRenderer(Dexed):
    """Renders Dexed presets with dexed-py; safe to share between threads.

    The output of dexed-py is brought to the plug-in's: gain 1/8 and the
    plug-in's DC blocker, y[n] = x[n] - x[n-1] + (1 - 126 / sample rate) y[n-1].
    A render takes about 6 ms for 5 s of audio at 44.1 kHz, most of it without
    the interpreter lock.

    The engine's tables depend on the sample rate and are shared by a whole
    process: renderers of two sample rates may take turns, but must not render
    at the same moment.

    Raises:
      ImportError: dexed-py is not installed.
    """

    # More threads than these make data no faster: what is around a render
    # holds the interpreter lock. (On 16 cores, 2 threads drew and rendered 123
    # presets a second, 4 threads 116, 4 processes 172.)
    max_threads = 2

    def __init__(self, settings: RenderSettings | None = None) -> None:
        if importlib.util.find_spec("dexed") is None:
            raise ImportError(
                "the Dexed engine needs dexed-py: pip install dexed-py"
            )
        # Takes most of a second, which not every command needs.
        from scipy import signal

        self._filter = signal.lfilter
        super().__init__(settings)
        self.version = f"dexed-py {importlib.metadata.version('dexed-py')}"
        self._threads = threading.local()

    def render(
        self,
        values: Float[np.ndarray, " parameters"],
        note: int | None = None,
    ) -> Float[np.ndarray, " samples"]:
        """As `Renderer.render`, of all 155 parameters.

        Raises:
          RenderError: a value is out of range, or a parameter that only the
            plug-in has is not at its default.
        """
        return self.render_voice(to_voices(values, self.space), note)

    def render_voice(
        self,
        voice: UInt8[np.ndarray, " bytes"],
        note: int | None = None,
    ) -> Float[np.ndarray, " samples"]:
        """Renders one DX7 voice, VCED bytes [156]; see `render`.

        Raises:
          RenderError: the note or a byte is out of its range, or the engine
            is busy at another sample rate.
        """
        settings = self.settings
        note = settings.note if note is None else note
        if not 0 <= note <= 127:
            raise RenderError(f"MIDI note {note} is outside 0 to 127")
        if (voice > largest()).any():
            byte = int(np.argmax(voice > largest()))
            raise RenderError(
                f"byte {byte} of the voice is {voice[byte]}, above its "
                f"largest value {largest()[byte]}"
            )
        local = self._threads
        if not hasattr(local, "synth"):
            import dexed

            local.synth = dexed._RawDexedSynth(float(settings.sample_rate), 0)
            # Kept, as fresh memory costs more time than the filter does.
            local.sound = np.zeros(settings.samples, np.float32)
        synth = local.synth
        synth.load_sysex(_silence_switched_off(voice))
        start = round(settings.note_on * settings.sample_rate)
        length = settings.samples - start
        try:
            # Half a sample more, so that the engine's truncation is ours.
            sound = synth.render(
                note,
                settings.velocity,
                settings.hold,
                (length + 0.5) / settings.sample_rate,
            )
        except RuntimeError as error:
            raise RenderError(str(error)) from error
        local.sound[start:] = sound[:length]
        pole = np.float32(1 - 126 / settings.sample_rate)
        audio = self._filter(
            np.array([dx7.GAIN, -dx7.GAIN], np.float32),
            np.array([1, -pole], np.float32),
            local.sound,
        )
        return fade(np.asarray(audio), settings)
