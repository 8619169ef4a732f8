"""Dexed: a DX7 emulation, 155 parameters, 100 of them varied.

Six operators with the same 22 parameters each; operator 1 alone has its
output level up by default. Broadband carriers are rare among random FM
patches, so ratios and fixed-frequency mode are sampled with weights.
"""

from proxy.space import (
    Parameter,
    binary,
    categorical,
    numerical,
    space,
    stepped,
)

# Frequency ratios: low ones are what patches are made of.
_COARSE = (
    *(0.16, 0.32, 0.08),
    *[0.04] * 6,
    *[0.024] * 3,
    *[0.016] * 3,
    *[0.008] * 3,
    *[0.004] * 14,
)
_MODE = (0.75, 0.25)

_GLOBAL = [
    numerical("cutoff", 1.0, used=False),
    numerical("resonance", 0.0, used=False),
    numerical("output", 1.0, used=False),
    numerical("master_tune_adj", 0.5, used=False),
    categorical("algorithm", 0.0, 32),
    stepped("feedback", 0.0, 8),
    binary("osc_key_sync", 1.0, used=False),
    numerical("lfo_speed", 0.35),
    numerical("lfo_delay", 0.0, 0.0, 0.5),
    numerical("lfo_pm_depth", 0.0),
    numerical("lfo_am_depth", 0.0),
    binary("lfo_key_sync", 1.0, used=False),
    categorical("lfo_wave", 0.0, 6, excluded=(5,)),
    stepped("middle_c", 0.5, 48, used=False),
    stepped("p_mode_sens.", 1.0, 8, weights=(0.75, *[0.035714] * 7)),
    numerical("pitch_eg_rate_1", 1.0),
    numerical("pitch_eg_rate_2", 1.0),
    numerical("pitch_eg_rate_3", 1.0),
    numerical("pitch_eg_rate_4", 1.0),
    numerical("pitch_eg_level_1", 0.5),
    numerical("pitch_eg_level_2", 0.5),
    numerical("pitch_eg_level_3", 0.5),
    numerical("pitch_eg_level_4", 0.5),
]


def _operator(number: int) -> list[Parameter]:
    """The 22 parameters of one operator."""
    name = f"op{number}_{{}}".format
    level = 1.0 if number == 1 else 0.0
    return [
        numerical(name("eg_rate_1"), 1.0),
        numerical(name("eg_rate_2"), 1.0),
        numerical(name("eg_rate_3"), 1.0),
        numerical(name("eg_rate_4"), 1.0, 0.45, 1.0),
        numerical(name("eg_level_1"), 1.0),
        numerical(name("eg_level_2"), 1.0),
        numerical(name("eg_level_3"), 1.0),
        numerical(name("eg_level_4"), 0.0),
        numerical(name("output_level"), level),
        categorical(name("mode"), 0.0, 2, weights=_MODE),
        stepped(name("f_coarse"), 0.032258063554763794, 32, weights=_COARSE),
        numerical(name("f_fine"), 0.0),
        stepped(name("osc_detune"), 0.5, 15),
        numerical(name("break_point"), 0.4, used=False),
        numerical(name("l_scale_depth"), 0.0, used=False),
        numerical(name("r_scale_depth"), 0.0, used=False),
        categorical(name("l_key_scale"), 0.0, 4, used=False),
        categorical(name("r_key_scale"), 0.0, 4, used=False),
        stepped(name("rate_scaling"), 0.0, 8, used=False),
        stepped(name("a_mod_sens."), 0.0, 4),
        stepped(name("key_velocity"), 0.0, 8, used=False),
        binary(name("switch"), 1.0, used=False),
    ]


SPACE = space(
    "dexed",
    _GLOBAL + [p for number in range(1, 7) for p in _operator(number)],
)
