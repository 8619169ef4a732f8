"""What the DX7 engine looks up: its algorithms and its tables of numbers.

All of it is made by NumPy, in double precision where the engine is, once for
each sample rate. `dx7` says where the numbers come from.

Operators are listed as a voice lists them, from the sixth to the first, which
is also the order in which they are computed.
"""

import functools
import itertools
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


def _numbers(text: str, dtype: type = np.int32) -> np.ndarray:
    return np.array(text.split()).astype(dtype)


OPERATORS = 6
# The engine moves its envelopes, its LFO and its pitch once a block.
BLOCK = 64

# The largest value of each byte of a voice: six operators, what belongs to all
# of them, the name, the switches.
_OPERATOR_BYTES = [*[99] * 11, 3, 3, 7, 3, 7, 99, 1, 31, 99, 14]
_VOICE_BYTES = [*[99] * 8, 31, 7, 1, 99, 99, 99, 99, 1, 5, 7, 48]
LARGEST = np.array([*_OPERATOR_BYTES * 6, *_VOICE_BYTES, *[127] * 10, 63])

# How the operators of each algorithm modulate each other: "3>2>1" says that
# the third modulates the second, and that one the first. An operator that
# modulates none is a carrier: it is heard.
_CHAINS = (
    "2>1 6>5>4>3",
    "2>1 6>5>4>3",
    "3>2>1 6>5>4",
    "3>2>1 6>5>4",
    "2>1 4>3 6>5",
    "2>1 4>3 6>5",
    "2>1 4>3 6>5>3",
    "2>1 4>3 6>5>3",
    "2>1 4>3 6>5>3",
    "3>2>1 5>4 6>4",
    "3>2>1 5>4 6>4",
    "2>1 4>3 5>3 6>3",
    "2>1 4>3 5>3 6>3",
    "2>1 4>3 5>4 6>4",
    "2>1 4>3 5>4 6>4",
    "2>1 4>3>1 6>5>1",
    "2>1 4>3>1 6>5>1",
    "2>1 3>1 6>5>4>1",
    "3>2>1 6>4 6>5",
    "3>1 3>2 5>4 6>4",
    "3>1 3>2 6>4 6>5",
    "2>1 6>3 6>4 6>5",
    "3>2 6>4 6>5",
    "6>3 6>4 6>5",
    "6>4 6>5",
    "3>2 5>4 6>4",
    "3>2 5>4 6>4",
    "2>1 5>4>3",
    "4>3 6>5",
    "5>4>3",
    "6>5",
    "",
)
# The operator whose output each algorithm feeds back; into itself, but in the
# fourth and the sixth algorithm, where it goes back to the sixth operator.
_FEEDBACK = "62646564236266262363366666356566"
ALGORITHMS = len(_CHAINS)
FEEDBACK = 6 - np.array([int(operator) for operator in _FEEDBACK])
# Operators in the loop of the feedback.
LOOP = np.array([3 if a == 3 else 2 if a == 5 else 1 for a in range(32)])
# The two long loops, and the last algorithm, are fed back a quarter as much.
WEAK_FEEDBACK = np.isin(np.arange(ALGORITHMS), (3, 5, 31))


def _modulators() -> Bool[np.ndarray, "algorithms targets sources"]:
    table = np.zeros((ALGORITHMS, OPERATORS, OPERATORS), bool)
    for algorithm, chains in enumerate(_CHAINS):
        for chain in chains.split():
            numbers = [6 - int(number) for number in re.findall("[1-6]", chain)]
            for source, target in itertools.pairwise(numbers):
                table[algorithm, target, source] = True
    return table


# MODULATORS[algorithm, target, source]; CARRIERS[algorithm, operator].
MODULATORS = _modulators()
CARRIERS = np.logical_not(MODULATORS.any(axis=1))

# Levels 0 to 99 in steps of .75 dB; those below 20 fall off faster.
LEVELS = np.concatenate(
    [
        [0, 5, 9, 13, 17, 20, 23, 25, 27, 29],
        [31, 33, 35, 37, 39, 41, 42, 43, 45, 46],
        np.arange(20, 100) + 28,
    ]
).astype(np.int32)
# Velocity, in steps of two.
VELOCITIES = _numbers(
    """0 70 86 97 106 114 121 126 132 138 142 148 152 156 160 163 166 170
    173 174 178 181 184 186 189 190 194 196 198 200 202 205 206 209 211 214
    216 218 220 222 224 225 227 229 230 232 233 235 237 238 240 241 242 243
    244 246 246 248 249 250 251 252 253 254"""
)
# Exponential keyboard scaling, by distance from the break point in steps of
# three keys.
SCALING = _numbers(
    """0 1 2 3 4 5 6 7 8 9 11 14 16 19 23 27 33 39 47 56 66 80 94 110 126
    142 158 174 190 206 222 238 250"""
)
PITCH_SENSITIVITY = np.array([0, 10, 20, 33, 55, 92, 153, 255], np.int32)
AMPLITUDE_SENSITIVITY = np.array([0, 4342338, 7171437, 16777216], np.uint32)
# Octaves of the pitch envelope's levels 0 to 99, in units of 1/32.
PITCH_LEVELS = np.array(
    [
        *[-128, -116, -104, -95, -85, -76, -68, -61, -56, -52, -49, -46, -43],
        *range(-41, -33, 2),
        *range(-33, 36),
        *[38, 40, 43, 46, 49, 53, 58, 65, 73, 82, 92, 103, 115, 127],
    ],
    np.int32,
)
_PITCH_RATES = _numbers(
    """1 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11 12 12 13 13 14 14 15 16
    16 17 18 18 19 20 21 22 23 24 25 26 27 28 30 31 33 34 36 37 38 39 41 42
    44 46 47 49 51 53 54 56 58 60 62 64 66 68 70 72 74 76 79 82 85 88 91 94
    98 102 106 110 115 120 125 130 135 141 147 153 159 165 171 178 185 193
    202 211 232 243 254 255""",
    np.int64,
)
# Samples at 44,100 Hz that an envelope waits where it already is.
_PAUSES = _numbers(
    """1764000 1764000 1411200 1411200 1190700 1014300 992250 882000 705600
    705600 584325 507150 502740 441000 418950 352800 308700 286650 253575
    220500 220500 176400 145530 145530 125685 110250 110250 88200 88200
    74970 61740 61740 55125 48510 44100 37485 31311 30870 27562 27562 22050
    18522 17640 15435 14112 13230 11025 9261 9261 7717 6615 6615 5512 5512
    4410 3969 3969 3439 2866 2690 2249 1984 1896 1808 1411 1367 1234 1146
    926 837 837 705 573 573 529 441 441""",
    np.int64,
)
_PAUSES = np.concatenate([_PAUSES, 20 * np.arange(22, -1, -1)])
# Hz of the LFO's speeds 0 to 99, as measured on a DX7.
_LFO_HZ = _numbers(
    """.062541 .125031 .312393 .437120 .624610 .750694 .936330 1.125302
    1.249609 1.436782 1.560915 1.752081 1.875117 2.062494 2.247191 2.374451
    2.560492 2.686728 2.873976 2.998950 3.188013 3.369840 3.500175 3.682224
    3.812065 4.000800 4.186202 4.310716 4.501260 4.623209 4.814636 4.930480
    5.121901 5.315191 5.434783 5.617346 5.750431 5.946717 6.062811 6.248438
    6.431695 6.564264 6.749460 6.868132 7.052186 7.250580 7.375719 7.556294
    7.687577 7.877738 7.993605 8.181967 8.372405 8.504848 8.685079 8.810573
    8.986341 9.122423 9.300595 9.500285 9.607994 9.798158 9.950249 10.117361
    11.251125 11.384335 12.562814 13.676149 13.904338 15.092062 16.366612
    16.638935 17.869907 19.193858 19.425019 20.833333 21.034918 22.502250
    24.003841 24.260068 25.746653 27.173913 27.578599 29.052876 30.693677
    31.191516 32.658393 34.317090 34.674064 36.416606 38.197097 38.550501
    40.387722 40.749796 42.625746 44.326241 44.883303 46.772685 48.590865
    49.261084""",
    np.float64,
)
# A note's frequency ratio 0 to 31, in octaves (2^24 each).
_COARSE = _numbers(
    """-16777216 0 16777216 26591258 33554432 38955489 43368474 47099600
    50331648 53182516 55732705 58039632 60145690 62083076 63876816 65546747
    67108864 68576247 69959732 71268397 72509921 73690858 74816848 75892776
    76922906 77910978 78860292 79773775 80654032 81503396 82323963 83117622"""
)
_FINE = np.floor(
    24204406.323123 * np.log(1 + 0.01 * np.arange(100)) + 0.5
).astype(np.int32)


def _notes() -> Int[np.ndarray, "notes detunings"]:
    """Frequency of notes 0 to 127, detuned by 0 to 14, in octaves of 2^24."""
    octaves = (50857776 + 2**24 // 12 * np.arange(128))[:, None]
    near = (octaves.astype(np.float32) / np.float32(2**24)).astype(np.float64)
    ratio = 0.0209 * np.exp(-0.396 * near) / 7
    detuned = octaves + ratio * octaves * (np.arange(15) - 7)
    return np.trunc(detuned).astype(np.int32)


def _sine() -> Int[np.ndarray, "entries"]:
    """One period of the LFO's sine, 2^24 high, by a rotating vector."""
    half, one = 512, 1 << 30
    cosine = int(np.floor(np.cos(np.pi / half) * one + 0.5))
    sine = int(np.floor(np.sin(np.pi / half) * one + 0.5))
    x, y = one, 0
    table = np.zeros(2 * half + 1, np.int32)
    for i in range(half):
        table[i] = (y + 32) >> 6
        table[i + half] = -table[i]
        x, y = (
            (x * cosine - y * sine + one // 2) >> 30,
            (x * sine + y * cosine + one // 2) >> 30,
        )
    return table


def _log_sine() -> Int[np.ndarray, "4096"]:
    """-1024 log2 |sin|; with its highest bit set in the negative half."""
    middle = (np.arange(1024) + 0.5) / 1024
    sine = np.sin(middle * np.pi / 2).astype(np.float32).astype(np.float64)
    quarter = np.rint(-1024 * np.log2(sine)).astype(np.int32)
    half = np.concatenate([quarter, quarter[::-1]])
    return np.concatenate([half, half | np.int32(-(2**31))])


LOG_SINE = _log_sine()
NOTES, COARSE, FINE, SINE = _notes(), _COARSE, _FINE, _sine()


def _loudness() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """exp(12.2 + .07 s / 2^18) for 24-bit s, as tables of its two halves.

    Returns:
      Whole part and fraction (of 2^32) of the upper 12 bits' exponential, and
      the excess over 1 (of 2^41) of the lower 12 bits'.
    """
    steps = np.arange(4096).astype(np.longdouble) * np.longdouble(0.07) / 2**18
    upper = np.exp(steps * 4096 + np.longdouble(12.2))
    whole = np.floor(upper)
    fraction = np.floor((upper - whole) * 2.0**32)
    # Where the engine's own rounding falls on the other side of an integer.
    # With this all 16,711,681 exponents are those of double precision.
    fraction[[1302, 2601, 3159]] += (-4096, -4096, 4096)
    excess = np.rint(np.expm1(steps) * 2.0**41)
    return (
        whole.astype(np.uint32),
        fraction.astype(np.uint32),
        excess.astype(np.uint32),
    )


LOUDNESS = _loudness()


class Rates(NamedTuple):
    """What depends on the sample rate.

    Attributes:
      increments: of envelopes, by quantised rate 0 to 63.
      pauses: samples that an envelope waits where it already is, by rate.
      first_pauses: the same for a first level of zero.
      pitch_increments: of the pitch envelope, by rate.
      lfo_increments: of the LFO's phase, by speed.
      delays: of the LFO's delay before and after its half, by its setting.
      frequencies: phase increment at 2^20 Hz and above, an octave in 1,024
        steps and one more.
    """

    increments: Int[np.ndarray, "64"]
    pauses: Int[np.ndarray, "100"]
    first_pauses: Int[np.ndarray, "100"]
    pitch_increments: Int[np.ndarray, "100"]
    lfo_increments: Int[np.ndarray, "100"]
    delays: Int[np.ndarray, "2 100"]
    frequencies: Int[np.ndarray, "1025"]


@functools.cache
def rates(sample_rate: int) -> Rates:
    """Makes the tables of a sample rate, in Hz."""
    slower = int(44100.0 / sample_rate * 2**24)
    quick = np.arange(64)
    increments = (4 + (quick & 3)) << (8 + (quick >> 2))
    first = np.where(np.arange(100) < 77, _PAUSES // 20, _PAUSES)

    unit = int(BLOCK * 25190424 / sample_rate + 0.5)
    setting = 99 - np.arange(100)
    slope = (16 + (setting & 15)) << (1 + (setting >> 4))
    delays = unit * np.stack([slope, np.maximum(slope & 0xFF80, 0x80)])
    # Without a delay both slopes are as steep as can be.
    delays[:, 0] = 2**32 - 1

    # Each step rounds, as in the engine. What does not fit into 32 bits (low
    # sample rates) is what a conversion makes of it on x86.
    frequency, steps = 2.0**44 / sample_rate, []
    for _ in range(1025):
        steps.append(np.floor(frequency + 0.5))
        frequency *= 2 ** (1 / 1024)
    frequencies = np.where(np.array(steps) >= 2**31, -(2.0**31), steps)

    pitch_unit = int(BLOCK * 2**24 / (21.3 * sample_rate) + 0.5)
    lfo_unit = int(4437500000.0 * BLOCK / sample_rate)
    return Rates(
        increments=((increments * slower) >> 24).astype(np.int32),
        pauses=((_PAUSES * slower) >> 24).astype(np.int32),
        first_pauses=((first * slower) >> 24).astype(np.int32),
        pitch_increments=(_PITCH_RATES * pitch_unit).astype(np.int32),
        lfo_increments=(_LFO_HZ * lfo_unit).astype(np.uint32),
        delays=delays.astype(np.uint32),
        frequencies=frequencies.astype(np.int32),
    )
