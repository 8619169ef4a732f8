"""The ranking study's sweeps on Dexed: 17 attributes x 10 presets x 20 steps.

    python -m launch.rank --synth dexed --models mel128,mfcc40,mstft

The ten base presets are our own, written over the initial voice in the DX7's
integers. Each names its carriers (the operators that are heard) and the
modulators that colour them, so that one line can say which parameters an
attribute moves, whatever the preset. Overrides hold what makes the attribute
heard: a decay needs a sustain level of zero, an LFO's rate some depth.
"""

from collections.abc import Callable, Mapping
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


def _operator(
    number: int,
    level: int,
    coarse: int = 1,
    fine: int = 0,
    *,
    rates: tuple[int, int, int, int] = (95, 50, 50, 60),
    levels: tuple[int, int, int, int] = (99, 95, 95, 0),
    detune: int = 7,
) -> dict[str, float]:
    values = {"output_level": level, "f_coarse": coarse, "f_fine": fine}
    values["osc_detune"] = detune
    for i in range(4):
        values[f"eg_rate_{i + 1}"] = rates[i]
        values[f"eg_level_{i + 1}"] = levels[i]
    return {f"op{number}_{name}": value for name, value in values.items()}


_PLUCK = (96, 40, 28, 55), (99, 80, 0, 0)
_STRUCK = (99, 45, 25, 50), (99, 85, 0, 0)
_SLOW = (55, 45, 45, 45), (99, 95, 90, 0)


def _with(envelope: Any) -> dict[str, Any]:
    return {"rates": envelope[0], "levels": envelope[1]}


VOICES = {
    "simple": Voice(
        (1, 3),
        (2,),
        2,
        {
            "algorithm": 1,
            **_operator(1, 97),
            **_operator(2, 70),
            **_operator(3, 88, 2),
        },
    ),
    "brass": Voice(
        (1, 3, 4, 5),
        (2, 6),
        6,
        {
            "algorithm": 21,
            "feedback": 5,
            **_operator(1, 92, rates=(72, 60, 50, 60)),
            **_operator(2, 74, rates=(60, 50, 40, 60)),
            **_operator(3, 90, detune=6, rates=(70, 60, 50, 60)),
            **_operator(4, 90, detune=9, rates=(70, 60, 50, 60)),
            **_operator(5, 88, rates=(70, 60, 50, 60)),
            **_operator(6, 76, rates=(60, 50, 40, 60)),
        },
    ),
    "electric piano": Voice(
        (1, 3, 5),
        (2, 4, 6),
        6,
        {
            "algorithm": 4,
            "feedback": 4,
            **_operator(1, 96, **_with(_STRUCK)),
            **_operator(2, 62, 14, **_with(_PLUCK)),
            **_operator(3, 94, **_with(_STRUCK)),
            **_operator(4, 76, 1, **_with(_STRUCK)),
            **_operator(5, 90, detune=10, **_with(_STRUCK)),
            **_operator(6, 70, 1, **_with(_STRUCK)),
        },
    ),
    "bass": Voice(
        (1,),
        (2, 3, 5),
        6,
        {
            "algorithm": 15,
            "feedback": 6,
            **_operator(1, 99, 0, **_with(_STRUCK)),
            **_operator(2, 75, 0, **_with(_PLUCK)),
            **_operator(3, 70, 1, **_with(_PLUCK)),
            **_operator(5, 68, 0, **_with(_STRUCK)),
            **_operator(6, 70, 3, **_with(_PLUCK)),
        },
    ),
    "organ": Voice(
        (1, 2, 3, 5),
        (4, 6),
        6,
        {
            "algorithm": 28,
            "feedback": 3,
            **_operator(1, 90, 0),
            **_operator(2, 88, 1),
            **_operator(3, 86, 2),
            **_operator(4, 60, 1),
            **_operator(5, 84, 3),
            **_operator(6, 60, 4),
        },
    ),
    "bell": Voice(
        (1, 3, 5),
        (2, 4, 6),
        6,
        {
            "algorithm": 4,
            **_operator(1, 95, 1, **_with(_STRUCK)),
            **_operator(2, 78, 3, 50, **_with(_STRUCK)),
            **_operator(3, 92, 2, **_with(_STRUCK)),
            **_operator(4, 72, 7, 1, **_with(_STRUCK)),
            **_operator(5, 88, 1, detune=9, **_with(_STRUCK)),
            **_operator(6, 66, 1, 41, **_with(_STRUCK)),
        },
    ),
    "strings": Voice(
        (1, 2, 4, 5),
        (3, 6),
        3,
        {
            "algorithm": 20,
            "feedback": 6,
            **_operator(1, 90, detune=5, **_with(_SLOW)),
            **_operator(2, 90, detune=9, **_with(_SLOW)),
            **_operator(3, 72, **_with(_SLOW)),
            **_operator(4, 86, 2, detune=6, **_with(_SLOW)),
            **_operator(5, 86, 2, detune=8, **_with(_SLOW)),
            **_operator(6, 68, 2, **_with(_SLOW)),
        },
    ),
    "clavinet": Voice(
        (1, 4),
        (2, 3, 5),
        6,
        {
            "algorithm": 2,
            "feedback": 7,
            **_operator(1, 96, **_with(_PLUCK)),
            **_operator(2, 80, 3, **_with(_PLUCK)),
            **_operator(3, 66, 2, **_with(_PLUCK)),
            **_operator(4, 92, **_with(_PLUCK)),
            **_operator(5, 78, 5, **_with(_PLUCK)),
            **_operator(6, 60, 1, **_with(_PLUCK)),
        },
    ),
    "metal": Voice(
        (1, 3),
        (2, 4, 5),
        6,
        {
            "algorithm": 6,
            "feedback": 7,
            **_operator(1, 94, 1, 37),
            **_operator(2, 82, 2, 71),
            **_operator(3, 90, 3, 13),
            **_operator(4, 78, 5, 29),
            **_operator(5, 72, 1, 83),
            **_operator(6, 65, 7),
        },
    ),
    "lead": Voice(
        (1, 4),
        (2, 5),
        6,
        {
            "algorithm": 2,
            "feedback": 7,
            **_operator(1, 94, detune=5),
            **_operator(2, 80, 1, rates=(99, 60, 50, 60)),
            **_operator(3, 60, 1),
            **_operator(4, 94, detune=10),
            **_operator(5, 78, 2),
            **_operator(6, 70, 1),
        },
    ),
}

_Values = dict[str, float]
_Moved = dict[str, tuple[float, float]]


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
    return _all(
        operators,
        eg_rate_1=99,
        eg_level_1=99,
        eg_level_2=99,
        eg_level_3=99,
    )


def _attack(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = _hold(voice.carriers)
    return _all(voice.carriers, eg_rate_1=(72, 28)), fixed


def _decay(voice: Voice) -> tuple[_Moved, _Values]:
    return _all(voice.carriers, eg_rate_2=(46, 8)), _fall(voice.carriers)


def _release(voice: Voice) -> tuple[_Moved, _Values]:
    # The modulators stay up, so that it is the release that is heard.
    everything = _hold(voice.carriers + voice.modulators)
    everything |= _all(voice.modulators, eg_rate_4=25)
    return _all(voice.carriers, eg_rate_4=(56, 17)), everything


def _brightness(voice: Voice) -> tuple[_Moved, _Values]:
    return _all(voice.modulators, output_level=(48, 88)), {}


def _brightness_attack(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = _hold(voice.carriers + voice.modulators)
    fixed |= _all(voice.modulators, output_level=82)
    return _all(voice.modulators, eg_rate_1=(70, 25)), fixed


def _brightness_decay(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = _hold(voice.carriers) | _fall(voice.modulators)
    fixed |= _all(voice.modulators, output_level=86)
    return _all(voice.modulators, eg_rate_2=(72, 27)), fixed


def _feedback(voice: Voice) -> tuple[_Moved, _Values]:
    # The feedback parameter has 8 settings only. How strongly an operator
    # modulates itself is its level times that, and the level has 100.
    operator = (voice.feedback,)
    fixed = {**_hold(operator), "feedback": 7}
    return _all(operator, output_level=(56, 94)), fixed


def _ratio(voice: Voice) -> tuple[_Moved, _Values]:
    return _all(voice.modulators, f_fine=(0, 38)), _all(
        voice.modulators, output_level=76
    )


def _pitch(voice: Voice) -> tuple[_Moved, _Values]:
    return {"middle_c": (12, 31)}, {}


def _pitch_envelope(voice: Voice) -> tuple[_Moved, _Values]:
    # Up at once, down to the note's pitch within a second.
    return {"pitch_eg_level_1": (50, 88)}, {
        "pitch_eg_rate_1": 99,
        "pitch_eg_rate_2": 50,
        "pitch_eg_level_2": 50,
    }


def _detune(voice: Voice) -> tuple[_Moved, _Values]:
    # Steps of a detune are many cents wide. Three operators that take theirs
    # at different times make 20 different settings: two that are heard, and
    # what colours them.
    first, second = (*voice.carriers, *voice.modulators)[:2]
    third = voice.modulators[-1]
    moved = {
        f"op{first}_osc_detune": (6.8, 14.0),
        f"op{second}_osc_detune": (6.6, 0.0),
        f"op{third}_osc_detune": (6.6, 13.6),
    }
    return moved, _all((first, second), output_level=95)


def _tremolo(voice: Voice) -> _Values:
    fixed = _hold(voice.carriers)
    fixed |= _all(voice.carriers, **{"a_mod_sens.": 3})
    return fixed | {"lfo_wave": 4}


def _amp_rate(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = {**_tremolo(voice), "lfo_am_depth": 70}
    return {"lfo_speed": (14, 52)}, fixed


def _amp_depth(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = {**_tremolo(voice), "lfo_speed": 34}
    return {"lfo_am_depth": (0, 95)}, fixed


def _wobble(voice: Voice) -> _Values:
    fixed = _hold(voice.carriers + voice.modulators)
    fixed |= _all(voice.modulators, **{"a_mod_sens.": 3, "output_level": 84})
    return fixed | {"lfo_wave": 0}


def _brightness_rate(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = {**_wobble(voice), "lfo_am_depth": 75}
    return {"lfo_speed": (14, 52)}, fixed


def _brightness_depth(voice: Voice) -> tuple[_Moved, _Values]:
    fixed = {**_wobble(voice), "lfo_speed": 30}
    return {"lfo_am_depth": (0, 95)}, fixed


def _pitch_rate(voice: Voice) -> tuple[_Moved, _Values]:
    fixed: _Values = {"lfo_pm_depth": 40, "p_mode_sens.": 5, "lfo_wave": 4}
    return {"lfo_speed": (14, 52)}, fixed


def _pitch_depth(voice: Voice) -> tuple[_Moved, _Values]:
    fixed: _Values = {"lfo_speed": 34, "p_mode_sens.": 6, "lfo_wave": 4}
    return {"lfo_pm_depth": (0, 76)}, fixed


_ATTRIBUTES: dict[str, Callable[[Voice], tuple[_Moved, _Values]]] = {
    "attack": _attack,
    "decay": _decay,
    "release": _release,
    "brightness": _brightness,
    "brightness_attack": _brightness_attack,
    "brightness_decay": _brightness_decay,
    "feedback": _feedback,
    "modulator_ratio": _ratio,
    "pitch": _pitch,
    "pitch_envelope": _pitch_envelope,
    "detune": _detune,
    "lfo_rate_on_amp": _amp_rate,
    "lfo_depth_on_amp": _amp_depth,
    "lfo_rate_on_brightness": _brightness_rate,
    "lfo_depth_on_brightness": _brightness_depth,
    "lfo_rate_on_pitch": _pitch_rate,
    "lfo_depth_on_pitch": _pitch_depth,
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
    attributes = {}
    for name, sweep in _ATTRIBUTES.items():
        attributes[name] = rows = []
        for preset, voice in VOICES.items():
            moved, fixed = sweep(voice)
            rows.append(
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
            for name, voice in VOICES.items()
        },
        "attributes": attributes,
    }
