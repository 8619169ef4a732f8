"""The ranking study's sweeps on Dexed: 17 attributes x 10 presets x 20 steps.

    python -m launch.rank --synth dexed --models mel128,mfcc40,mstft

The ten base presets are our own, written over the initial voice in the DX7's
integers. Each names its carriers (the operators that are heard) and the
modulators that colour them, so that one line can say which parameters an
attribute moves, whatever the preset. Overrides hold what makes the attribute
heard: a decay needs a sustain level of zero, an LFO's rate some depth.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Largest integers of the parameters that do not go to 99.
_LARGEST = {
    "algorithm": 31,
    "feedback": 7,
    "f_coarse": 31,
    "osc_detune": 14,
    "a_mod_sens.": 3,
    "p_mode_sens.": 7,
    "lfo_wave": 5,
    "middle_c": 48,
    "mode": 1,
}


class Voice(NamedTuple):
    """A base preset.

    Attributes:
      carriers: operators that are heard.
      modulators: operators that colour them.
      feedback: the operator that modulates itself, in this algorithm.
      values: DX7 integers by parameter, over the initial voice.
    """

    carriers: tuple[int, ...]
    modulators: tuple[int, ...]
    feedback: int
    values: Mapping[str, float]


# Rates and levels of an operator's envelope.
_ENVELOPES = {
    "held": ((95, 50, 50, 60), (99, 95, 95, 0)),
    "pluck": ((96, 40, 28, 55), (99, 80, 0, 0)),
    "struck": ((99, 45, 25, 50), (99, 85, 0, 0)),
    "slow": ((55, 45, 45, 45), (99, 95, 90, 0)),
    "blown": ((70, 60, 50, 60), (99, 95, 95, 0)),
    "blown_first": ((72, 60, 50, 60), (99, 95, 95, 0)),
    "swell": ((60, 50, 40, 60), (99, 95, 95, 0)),
    "quick": ((99, 60, 50, 60), (99, 95, 95, 0)),
}

# A voice's name, carriers, modulators, the operator that modulates itself,
# algorithm and feedback; then a line for each operator that sounds: number,
# output level, coarse and fine frequency, detune, envelope.
_VOICES = """
simple          13   2    2   1 0
    1  97   1  0   7  held
    2  70   1  0   7  held
    3  88   2  0   7  held
brass           1345 26   6  21 5
    1  92   1  0   7  blown_first
    2  74   1  0   7  swell
    3  90   1  0   6  blown
    4  90   1  0   9  blown
    5  88   1  0   7  blown
    6  76   1  0   7  swell
electric_piano  135  246  6   4 4
    1  96   1  0   7  struck
    2  62  14  0   7  pluck
    3  94   1  0   7  struck
    4  76   1  0   7  struck
    5  90   1  0  10  struck
    6  70   1  0   7  struck
bass            1    235  6  15 6
    1  99   0  0   7  struck
    2  75   0  0   7  pluck
    3  70   1  0   7  pluck
    5  68   0  0   7  struck
    6  70   3  0   7  pluck
organ           1235 46   6  28 3
    1  90   0  0   7  held
    2  88   1  0   7  held
    3  86   2  0   7  held
    4  60   1  0   7  held
    5  84   3  0   7  held
    6  60   4  0   7  held
bell            135  246  6   4 0
    1  95   1  0   7  struck
    2  78   3 50   7  struck
    3  92   2  0   7  struck
    4  72   7  1   7  struck
    5  88   1  0   9  struck
    6  66   1 41   7  struck
strings         1245 36   3  20 6
    1  90   1  0   5  slow
    2  90   1  0   9  slow
    3  72   1  0   7  slow
    4  86   2  0   6  slow
    5  86   2  0   8  slow
    6  68   2  0   7  slow
clavinet        14   235  6   2 7
    1  96   1  0   7  pluck
    2  80   3  0   7  pluck
    3  66   2  0   7  pluck
    4  92   1  0   7  pluck
    5  78   5  0   7  pluck
    6  60   1  0   7  pluck
metal           13   245  6   6 7
    1  94   1 37   7  held
    2  82   2 71   7  held
    3  90   3 13   7  held
    4  78   5 29   7  held
    5  72   1 83   7  held
    6  65   7  0   7  held
lead            14   25   6   2 7
    1  94   1  0   5  held
    2  80   1  0   7  quick
    3  60   1  0   7  held
    4  94   1  0  10  held
    5  78   2  0   7  held
    6  70   1  0   7  held
"""

_Values = dict[str, float]
_Moved = dict[str, tuple[float, float]]


def _read(table: str) -> dict[str, Voice]:
    voices, values = {}, {}
    for line in table.strip().splitlines():
        if not line.startswith(" "):
            name, carriers, modulators, *rest = line.split()
            feedback, algorithm, amount = map(int, rest)
            values = {"algorithm": algorithm, "feedback": amount}
            voices[name.replace("_", " ")] = Voice(
                tuple(map(int, carriers)),
                tuple(map(int, modulators)),
                feedback,
                values,
            )
            continue
        number, level, coarse, fine, detune, envelope = line.split()
        rates, levels = _ENVELOPES[envelope]
        values |= _all(
            (int(number),),
            output_level=int(level),
            f_coarse=int(coarse),
            f_fine=int(fine),
            osc_detune=int(detune),
            **{f"eg_rate_{i}": rate for i, rate in enumerate(rates, 1)},
            **{f"eg_level_{i}": level for i, level in enumerate(levels, 1)},
        )
    return voices


def _all(operators: tuple[int, ...], **values: Any) -> dict[str, Any]:
    return {
        f"op{number}_{name}": value
        for number in operators
        for name, value in values.items()
    }


def _fall(operators: tuple[int, ...]) -> _Values:
    """Fall to silence while the note is held."""
    return _all(operators, eg_level_1=99, eg_level_2=0, eg_level_3=0)


def _hold(operators: tuple[int, ...]) -> _Values:
    """Reach full level at once and keep it as long as the note."""
    levels = {"eg_level_1": 99, "eg_level_2": 99, "eg_level_3": 99}
    return _all(operators, eg_rate_1=99, **levels)


def _sweeps(voice: Voice) -> dict[str, tuple[_Moved, _Values]]:
    """For each attribute what moves, from where to where, and what is set."""
    heard, colour = voice.carriers, voice.modulators
    held, everything = _hold(heard), _hold(heard + colour)
    # Steps of a detune are many cents wide. Three operators that take theirs
    # at different times make 20 different settings: two that are heard, and
    # what colours them.
    first, second = (heard + colour)[:2]
    tremolo = held | _all(heard, **{"a_mod_sens.": 3}) | {"lfo_wave": 4}
    wobble = {"a_mod_sens.": 3, "output_level": 84}
    wobble = everything | _all(colour, **wobble) | {"lfo_wave": 0}
    vibrato = {"lfo_wave": 4}
    return {
        "attack": (_all(heard, eg_rate_1=(72, 28)), held),
        "decay": (_all(heard, eg_rate_2=(46, 8)), _fall(heard)),
        # The modulators stay up, so that it is the release that is heard.
        "release": (
            _all(heard, eg_rate_4=(56, 17)),
            everything | _all(colour, eg_rate_4=25),
        ),
        "brightness": (_all(colour, output_level=(48, 88)), {}),
        "brightness_attack": (
            _all(colour, eg_rate_1=(70, 25)),
            everything | _all(colour, output_level=82),
        ),
        "brightness_decay": (
            _all(colour, eg_rate_2=(72, 27)),
            held | _fall(colour) | _all(colour, output_level=86),
        ),
        # The feedback parameter has 8 settings only. How strongly an operator
        # modulates itself is its level times that, and the level has 100.
        "feedback": (
            _all((voice.feedback,), output_level=(56, 94)),
            _hold((voice.feedback,)) | {"feedback": 7},
        ),
        "modulator_ratio": (
            _all(colour, f_fine=(0, 38)),
            _all(colour, output_level=76),
        ),
        "pitch": ({"middle_c": (12, 31)}, {}),
        # Up at once, down to the note's pitch within a second.
        "pitch_envelope": (
            {"pitch_eg_level_1": (50, 88)},
            {"pitch_eg_rate_1": 99, "pitch_eg_rate_2": 50}
            | {"pitch_eg_level_2": 50},
        ),
        "detune": (
            _all((first,), osc_detune=(6.8, 14.0))
            | _all((second,), osc_detune=(6.6, 0.0))
            | _all(colour[-1:], osc_detune=(6.6, 13.6)),
            _all((first, second), output_level=95),
        ),
        "lfo_rate_on_amp": (
            {"lfo_speed": (14, 52)},
            tremolo | {"lfo_am_depth": 70},
        ),
        "lfo_depth_on_amp": (
            {"lfo_am_depth": (0, 95)},
            tremolo | {"lfo_speed": 34},
        ),
        "lfo_rate_on_brightness": (
            {"lfo_speed": (14, 52)},
            wobble | {"lfo_am_depth": 75},
        ),
        "lfo_depth_on_brightness": (
            {"lfo_am_depth": (0, 95)},
            wobble | {"lfo_speed": 30},
        ),
        "lfo_rate_on_pitch": (
            {"lfo_speed": (14, 52)},
            vibrato | {"lfo_pm_depth": 40, "p_mode_sens.": 5},
        ),
        "lfo_depth_on_pitch": (
            {"lfo_pm_depth": (0, 76)},
            vibrato | {"lfo_speed": 34, "p_mode_sens.": 6},
        ),
    }


def _largest(parameter: str) -> int:
    name = parameter.split("_", 1)[1] if parameter[:2] == "op" else parameter
    return _LARGEST.get(name, 99)


def get_table() -> dict[str, Any]:
    """The table of sweeps, as `launch.rank` takes it.

    Returns:
      Plug-in values in [0, 1] throughout: "presets" by name, and for each
      attribute its sweeps, whose "parameters" map what moves to the values of
      the first and the last step. Other fields say how it is played.
    """
    voices = _read(_VOICES)
    attributes = {}
    for preset, voice in voices.items():
        for name, (moved, fixed) in _sweeps(voice).items():
            attributes.setdefault(name, []).append(
                {
                    "preset": preset,
                    "parameters": {
                        key: [end / _largest(key) for end in ends]
                        for key, ends in moved.items()
                    },
                    "overrides": {
                        key: value / _largest(key)
                        for key, value in fixed.items()
                        if key not in moved
                    },
                }
            )
    return {
        "synth": "dexed",
        "steps": 20,
        "note": 60,
        "velocity": 100,
        "held_seconds": 2.0,
        "render_seconds": 4.0,
        "presets": {
            name: {
                key: value / _largest(key)
                for key, value in voice.values.items()
            }
            for name, voice in voices.items()
        },
        "attributes": attributes,
    }
