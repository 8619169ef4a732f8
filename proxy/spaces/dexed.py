"""Dexed: a DX7 emulation, 155 parameters, 100 of them varied.

Six operators with the same 22 parameters each; operator 1 alone has its
output level up by default. Broadband carriers are rare among random FM
patches, so ratios and fixed-frequency mode are sampled with weights.

An algorithm says which operator modulates which, and which are heard.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from proxy.space import (
    Pairs,
    Parameter,
    Routing,
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


# The DX7's 32 algorithms: chains of operators that modulate the next one; the
# operators that are heard; which one feeds back into which.
_ALGORITHMS = (
    ("2>1 6>5>4>3", "13", "6>6"),
    ("2>1 6>5>4>3", "13", "2>2"),
    ("3>2>1 6>5>4", "14", "6>6"),
    ("3>2>1 6>5>4", "14", "4>6"),
    ("2>1 4>3 6>5", "135", "6>6"),
    ("2>1 4>3 6>5", "135", "5>6"),
    ("2>1 4>3 6>5>3", "13", "6>6"),
    ("2>1 4>3 6>5>3", "13", "4>4"),
    ("2>1 4>3 6>5>3", "13", "2>2"),
    ("3>2>1 5>4 6>4", "14", "3>3"),
    ("3>2>1 5>4 6>4", "14", "6>6"),
    ("2>1 4>3 5>3 6>3", "13", "2>2"),
    ("2>1 4>3 5>3 6>3", "13", "6>6"),
    ("2>1 4>3 5>4 6>4", "13", "6>6"),
    ("2>1 4>3 5>4 6>4", "13", "2>2"),
    ("2>1 4>3>1 6>5>1", "1", "6>6"),
    ("2>1 4>3>1 6>5>1", "1", "2>2"),
    ("2>1 3>1 6>5>4>1", "1", "3>3"),
    ("3>2>1 6>4 6>5", "145", "6>6"),
    ("3>1 3>2 5>4 6>4", "124", "3>3"),
    ("3>1 3>2 6>4 6>5", "1245", "3>3"),
    ("2>1 6>3 6>4 6>5", "1345", "6>6"),
    ("3>2 6>4 6>5", "1245", "6>6"),
    ("6>3 6>4 6>5", "12345", "6>6"),
    ("6>4 6>5", "12345", "6>6"),
    ("3>2 5>4 6>4", "124", "6>6"),
    ("3>2 5>4 6>4", "124", "3>3"),
    ("2>1 5>4>3", "136", "5>5"),
    ("4>3 6>5", "1235", "6>6"),
    ("5>4>3", "1236", "5>5"),
    ("6>5", "12345", "6>6"),
    ("", "123456", "6>6"),
)


def _pairs(chains: str) -> Pairs:
    """Pairs of neighbours in chains of operators, numbered from 0."""
    paths = [[int(n) - 1 for n in c.split(">")] for c in chains.split()]
    return tuple(pair for path in paths for pair in itertools.pairwise(path))


ROUTING = Routing(
    parameter="algorithm",
    modules=tuple(f"op{number}" for number in range(1, 7)),
    edges=tuple(_pairs(chains) for chains, _, _ in _ALGORITHMS),
    loops=tuple(_pairs(loop) for _, _, loop in _ALGORITHMS),
    outputs=tuple(
        tuple(int(n) - 1 for n in carriers) for _, carriers, _ in _ALGORITHMS
    ),
    feedback="feedback",
)

SPACE = space(
    "dexed",
    _GLOBAL + [p for number in range(1, 7) for p in _operator(number)],
    routing=ROUTING,
)

# The engine's level of each output or envelope level, in units of 0.75 dB.
_LEVELS = np.concatenate(
    [
        [0, 5, 9, 13, 17, 20, 23, 25, 27, 29],
        [31, 33, 35, 37, 39, 41, 42, 43, 45, 46],
        np.arange(20, 100) + 28,
    ]
)
# An operator at this level or below is skipped by the engine, both in Q8
# octaves of amplitude, full scale 15.
_SKIPPED = 24


def _columns(*suffixes: str) -> np.ndarray:
    """Columns of the six operators, one row each."""
    return np.array(
        [
            [SPACE.index(f"op{number}_{suffix}") for suffix in suffixes]
            for number in range(1, 7)
        ]
    )


def free(
    presets: Float[Array, "*batch parameters"],
) -> Bool[Array, "*batch parameters"]:
    """Parameters that may change, all of them at once, and nothing is heard.

    Those of operators that the engine skips, or that feed skipped ones only;
    of an LFO that modulates nothing; rates between equal levels; the
    feedback of an operator that is not heard. It errs towards False.

    Args:
      presets: hard presets.

    Returns:
      True for what is free.
    """

    def raw(columns, most=99):
        return jnp.rint(presets[..., columns] * most).astype(jnp.int32)

    column = SPACE.index
    algorithm = presets[..., column("algorithm")].astype(jnp.int32)
    edges = jnp.asarray(ROUTING.edge_table, bool)[algorithm]
    carriers = jnp.asarray(ROUTING.output_table, bool)[algorithm]
    feedback = presets[..., column("feedback"), None] > 0

    levels = _columns(*(f"eg_level_{i}" for i in range(1, 5)))
    rates = _columns(*(f"eg_rate_{i}" for i in range(1, 5)))
    output = _columns("output_level")
    table = jnp.asarray(_LEVELS)
    reached = table[raw(levels)] // 2 * 64
    loudness = table[raw(output)] * 32 - 4256
    silent = (reached + loudness <= _SKIPPED).all(-1)
    # Whatever its envelope.
    muted = (table[99] // 2 * 64 + loudness <= _SKIPPED)[..., 0]

    # Where several operators share a loop, the engine skips none of them.
    looped = np.zeros(ROUTING.output_table.shape, bool)
    for number, (loop,) in enumerate(ROUTING.loops):
        if loop[0] != loop[1]:
            looped[number, min(loop) : max(loop) + 1] = True
    kept = jnp.asarray(looped)[algorithm] & feedback
    heard = carriers & ~silent | kept
    for _ in range(6):
        through = (edges & heard[..., None, :]).any(-1)
        heard = heard | through & ~silent
    unheard = ~heard
    found = jnp.zeros(presets.shape, bool)

    def mark(found, columns, which):
        return found.at[..., columns].set(which | found[..., columns])

    # What keeps a silent one silent is not free.
    every = np.stack([SPACE.module_columns[m] for m in SPACE.nodes])
    found = mark(found, every, unheard[..., None])
    bound = (unheard & silent)[..., None]
    found = found.at[..., output].set(found[..., output] & ~bound)
    bound = bound & ~muted[..., None]
    found = found.at[..., levels].set(found[..., levels] & ~bound)

    same = reached[..., 1:3] == reached[..., :2]
    same = jnp.stack([same[..., 0] & same[..., 1], same[..., 1]], -1)
    found = mark(found, rates[:, 1:3], same)

    own = jnp.asarray(ROUTING.loop_table, bool)[algorithm]
    loops = jnp.diagonal(own, axis1=-2, axis2=-1).any(-1)
    lone = (jnp.diagonal(own, axis1=-2, axis2=-1) & heard).any(-1)
    found = mark(found, column("feedback"), loops & ~lone)

    depths = [column(f"lfo_{kind}_depth") for kind in ("pm", "am")]
    pitch, amplitude = (raw(depth) == 0 for depth in depths)
    dull = presets[..., column("p_mode_sens.")] == 0
    found = mark(found, column("p_mode_sens."), pitch)
    found = mark(found, depths[0], dull & ~pitch)
    sensitive = _columns("a_mod_sens.")
    # A sensitive operator is a little quieter even at a depth of 0.
    deaf = ~((presets[..., sensitive[:, 0]] > 0) & heard).any(-1)
    found = mark(found, depths[1], deaf & ~amplitude)
    still = (pitch | dull) & (amplitude | deaf)
    lfo = np.array([column(f"lfo_{name}") for name in ("speed", "delay")])
    lfo = np.append(lfo, column("lfo_wave"))
    found = mark(found, lfo, still[..., None])

    bends = raw(np.array([column(f"pitch_eg_level_{i}") for i in range(1, 5)]))
    flat = (bends[..., 1:] == bends[..., :1]).all(-1)
    rates = np.array([column(f"pitch_eg_rate_{i}") for i in range(1, 5)])
    return mark(found, rates, flat[..., None])


# Columns of what `louder` moves.
LEVELS = _columns("output_level")[:, 0]
# Decibels of a step of a level.
_STEP = float(20 * np.log10(2) / 8)
# The output level nearest to each of the engine's.
_LEVEL_OF = np.abs(_LEVELS[:, None] - np.arange(128)).argmin(0)


def _heard(
    presets: Float[Array, "*batch parameters"],
) -> tuple[Array, Array, Array]:
    """Levels of the engine, which operators are heard, which are in loops."""
    algorithm = presets[..., SPACE.index("algorithm")].astype(jnp.int32)
    heard = jnp.asarray(ROUTING.output_table, bool)[algorithm]
    loops = jnp.asarray(ROUTING.loop_table, bool)[algorithm].any(-1)
    fed_back = presets[..., SPACE.index("feedback"), None] > 0
    levels = jnp.rint(presets[..., LEVELS] * 99).astype(jnp.int32)
    levels = jnp.asarray(_LEVELS)[levels]
    return levels, heard, loops & fed_back


def headroom(
    presets: Float[Array, "*batch parameters"],
) -> Float[Array, "*batch"]:
    """By how much presets could be louder, and sound the same otherwise.

    Args:
      presets: hard presets.

    Returns:
      Decibels until the loudest operator that is heard is all the way up; NaN
      where one feeds back, so that its level is no level alone.
    """
    levels, heard, looped = _heard(presets)
    most = _STEP * (127 - jnp.where(heard, levels, 0).max(-1))
    return jnp.where((heard & looped).any(-1), jnp.nan, most)


def louder(
    presets: Float[Array, "*batch parameters"],
    decibels: Float[Array, "*batch"],
) -> Float[Array, "*batch parameters"]:
    """Presets with the level of all operators that are heard moved.

    Args:
      presets: hard presets.
      decibels: by how much each is to be louder, at most its `headroom`; done
        in steps of 0.75 dB.

    Returns:
      Presets; what is heard is the same, but for its level, and for attacks,
      which all begin at one level.
    """
    levels, heard, _ = _heard(presets)
    steps = jnp.rint(decibels / _STEP).astype(jnp.int32)
    moved = jnp.clip(levels + jnp.where(heard, steps[..., None], 0), 0, 127)
    moved = (jnp.asarray(_LEVEL_OF)[moved] / 99).astype(presets.dtype)
    moved = jnp.where(heard, moved, presets[..., LEVELS])
    return presets.at[..., LEVELS].set(moved)
