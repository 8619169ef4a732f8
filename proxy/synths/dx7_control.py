"""What the DX7 engine decides once a note, and once a block of 64 samples.

`note_on` reads a voice; `control` then follows its LFO, envelopes and pitch
through the blocks, and tells every operator's phase, frequency and gains in
each. Integers of 32 bits throughout, wrapping where the engine's do.

Arrays end in the batch, so that one instruction serves many voices; operators
go from the sixth to the first. `dx7` says where the laws come from.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt, UInt8

from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_tables import BLOCK, OPERATORS

# Gains count attenuation, in 1/1024 of 6 dB; where both ends of a block are
# beyond this, the engine leaves the operator out.
SILENT = 16384 - 100
_FULL = 1 << 24


class Note(NamedTuple):
    """What a voice comes to at a note and a velocity.

    Attributes:
      targets: of the envelopes' four segments, 2^24 an octave of amplitude.
      increments: of the segments, a block.
      pauses: samples that a segment lasts whose target is already reached.
      first_pause: samples before a first segment whose level is zero, else 0.
      pitch: of the operators, in octaves of 2^24.
      fixed: operators whose pitch follows neither note nor modulation.
      sensitivity: of the operators to amplitude modulation, 0 to 2^24.
      pitch_targets: of the pitch envelope's four segments.
      pitch_increments: of its segments, a block.
      lfo_increment: of the LFO's phase, a block.
      lfo_start: its phase at note-on.
      lfo_wave: its form, 0 to 5.
      lfo_delays: of its delay's two slopes, a block.
      pitch_depth: of pitch modulation, 0 to 255.
      pitch_sensitivity: to it, 0 to 255.
      amplitude_depth: of amplitude modulation, 0 to 255.
      release: the block that the note's end falls before.
    """

    targets: Int[Array, "4 operators batch"]
    increments: Int[Array, "4 operators batch"]
    pauses: Int[Array, "4 operators batch"]
    first_pause: Int[Array, "operators batch"]
    pitch: Int[Array, "operators batch"]
    fixed: Bool[Array, "operators batch"]
    sensitivity: UInt[Array, "operators batch"]
    pitch_targets: Int[Array, "4 batch"]
    pitch_increments: Int[Array, "4 batch"]
    lfo_increment: UInt[Array, " batch"]
    lfo_start: UInt[Array, " batch"]
    lfo_wave: Int[Array, " batch"]
    lfo_delays: UInt[Array, "2 batch"]
    pitch_depth: UInt[Array, " batch"]
    pitch_sensitivity: Int[Array, " batch"]
    amplitude_depth: UInt[Array, " batch"]
    release: Int[Array, " batch"]


class State(NamedTuple):
    """Where a note is, between two blocks.

    Attributes:
      block: blocks since note-on.
      level: of the envelopes.
      segment: of the envelopes, 0 to 4; the last is their end.
      pause: samples that are left of a segment which stays where it is.
      pitch_level: of the pitch envelope.
      pitch_segment: of the pitch envelope.
      lfo_phase: of the LFO.
      lfo_random: its generator's state.
      lfo_delay: its delay's state.
      gain: of the operators at the end of the block before.
      phase: of the operators, 2^24 a cycle.
    """

    block: Int[Array, ""]
    level: Int[Array, "operators batch"]
    segment: Int[Array, "operators batch"]
    pause: Int[Array, "operators batch"]
    pitch_level: Int[Array, " batch"]
    pitch_segment: Int[Array, " batch"]
    lfo_phase: UInt[Array, " batch"]
    lfo_random: UInt[Array, " batch"]
    lfo_delay: UInt[Array, " batch"]
    gain: Int[Array, "operators batch"]
    phase: Int[Array, "operators batch"]


class Control(NamedTuple):
    """What the operators are told in each block.

    Attributes:
      phase: at the block's first sample, 2^24 a cycle.
      increment: of the phase, a sample.
      gain: attenuation before the first sample, in 1/1024 of 6 dB.
      ramp: of the gain, a sample.
      last_gain: what the ramp was to reach; the next block starts from it.
      active: operators that are not left out as silent.
    """

    phase: Int[Array, "blocks operators batch"]
    increment: Int[Array, "blocks operators batch"]
    gain: Int[Array, "blocks operators batch"]
    ramp: Int[Array, "blocks operators batch"]
    last_gain: Int[Array, "blocks operators batch"]
    active: Bool[Array, "blocks operators batch"]


def lookup(table: np.ndarray, index: Array) -> Array:
    """Entries of a table; the indices must be within it."""
    # Unsigned, as a negative index would count from the end.
    index = index.astype(jnp.uint32)
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def multiply(
    a: UInt[Array, "..."], b: UInt[Array, "..."]
) -> tuple[UInt[Array, "..."], UInt[Array, "..."]]:
    """The 64-bit product of unsigned integers, as its upper and lower half."""
    a_low, a_high = a & 0xFFFF, a >> 16
    b_low, b_high = b & 0xFFFF, b >> 16
    # At most (2^16 - 1)^2 + 2 (2^16 - 1), which fits.
    middle = a_high * b_low + ((a_low * b_low) >> 16)
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other >> 16), a * b


def held_samples(
    hold: Float[Array, "*batch"], sample_rate: int
) -> Int[Array, "*batch"]:
    """Rounds seconds (float32, up to 2^31 samples) to whole samples.

    Exactly, but for a hold below 1/4096 second that lies next to half a
    sample. A product in float32 would be off by samples. The seconds are cut in
    three
    parts instead, whose products with the sample rate are whole numbers.
    """
    whole = jnp.floor(hold)
    upper = jnp.floor((hold - whole) * 4096)
    lower = ((hold - whole) * 4096 - upper) * _FULL
    high, low = multiply(
        lower.astype(jnp.uint32), jnp.full_like(lower, sample_rate, jnp.uint32)
    )
    # Of 1/4096 sample.
    parts = upper.astype(jnp.int32) * sample_rate + 2048
    parts = parts + ((high << 8) | (low >> 24)).astype(jnp.int32)
    return whole.astype(jnp.int32) * sample_rate + (parts >> 12)


def _scaling(
    group: Int[Array, "operators batch"],
    depth: Int[Array, "operators batch"],
    curve: Int[Array, "operators batch"],
) -> Int[Array, "operators batch"]:
    """Levels added by keyboard scaling: -lin, -exp, +exp or +lin."""
    steep = lookup(tables.SCALING, jnp.minimum(group, 32))
    exponential = (curve == 1) | (curve == 2)
    linear = (group * depth * 329) >> 12
    scale = jnp.where(exponential, (steep * depth * 329) >> 15, linear)
    return jnp.where(curve < 2, -scale, scale)


def note_on(
    voices: UInt8[Array, "batch bytes"],
    note: Int[Array, " batch"],
    velocity: Int[Array, " batch"],
    hold: Float[Array, " batch"],
    sample_rate: int,
) -> Note:
    """Reads voices, and applies note and velocity to them.

    Args:
      voices: VCED bytes and the switches, 156 of them.
      note: MIDI note.
      velocity: MIDI velocity.
      hold: seconds from note-on to note-off.
      sample_rate: in Hz.

    Returns:
      What the blocks are made from.
    """
    rates = tables.rates(sample_rate)
    voices = voices.astype(jnp.int32).T
    batch = voices.shape[1]
    operators = voices[:126].reshape(OPERATORS, 21, batch).swapaxes(0, 1)
    on = (voices[155] >> np.arange(OPERATORS)[:, None]) & 1
    # One that is switched off is one whose levels are zero.
    levels = operators[4:8] * on
    output = operators[16] * on
    note = jnp.clip(note.astype(jnp.int32) + voices[144] - 24, 0, 127)

    distance = note - operators[8] - 17
    left = _scaling((1 - distance) // 3, operators[9], operators[11])
    right = _scaling((distance + 1) // 3, operators[10], operators[12])
    scaling = jnp.where(distance < 0, left, right)
    loudness = jnp.minimum(lookup(tables.LEVELS, output) + scaling, 127) << 5
    hit = lookup(tables.VELOCITIES, velocity.astype(jnp.int32) >> 1) - 239
    loudness = loudness + (((operators[15] * hit + 7) >> 3) << 4)
    loudness = jnp.maximum(loudness, 0)
    targets = (lookup(tables.LEVELS, levels) >> 1 << 6) + loudness - 4256

    faster = (operators[13] * jnp.clip(note // 3 - 7, 0, 31)) >> 3
    quick = jnp.minimum((operators[:4] * 41 >> 6) + faster, 63)
    rate = jnp.minimum(operators[:4] + faster, 99)
    first = lookup(rates.first_pauses, rate[0])

    fixed = operators[17] > 0
    coarse, fine, detune = operators[18], operators[19], operators[20]
    absolute = (4458616 * ((coarse & 3) * 100 + fine)) >> 3
    absolute = absolute + 13457 * jnp.maximum(detune - 7, 0)
    ratio = lookup(tables.NOTES.ravel(), note * 15 + detune)
    ratio = ratio + lookup(tables.COARSE, coarse) + lookup(tables.FINE, fine)

    # Longer than any render, so that it fits an integer.
    hold = jnp.clip(hold.astype(jnp.float32), 0, 2.0**30 / sample_rate)
    return Note(
        targets=jnp.maximum(targets, 16) << 16,
        increments=lookup(rates.increments, quick),
        pauses=lookup(rates.pauses, rate),
        first_pause=jnp.where(levels[0] == 0, first, 0),
        pitch=jnp.where(fixed, absolute, ratio),
        fixed=fixed,
        sensitivity=lookup(tables.AMPLITUDE_SENSITIVITY, operators[14]),
        pitch_targets=lookup(tables.PITCH_LEVELS, voices[130:134]) << 19,
        pitch_increments=lookup(rates.pitch_increments, voices[126:130]),
        lfo_increment=lookup(rates.lfo_increments, voices[137]),
        lfo_start=jnp.where(voices[141] > 0, 2**31 - 1, 0).astype(jnp.uint32),
        lfo_wave=voices[142],
        lfo_delays=jnp.stack(
            [lookup(delays, voices[138]) for delays in rates.delays]
        ),
        pitch_depth=((voices[139] * 165) >> 6).astype(jnp.uint32),
        pitch_sensitivity=lookup(tables.PITCH_SENSITIVITY, voices[143]),
        amplitude_depth=((voices[140] * 165) >> 6).astype(jnp.uint32),
        release=-(-held_samples(hold, sample_rate) // BLOCK),
    )


def start(note: Note) -> State:
    """The state at note-on."""
    nothing = jnp.zeros_like(note.pitch)
    none = jnp.zeros_like(note.release)
    return State(
        block=jnp.zeros((), jnp.int32),
        level=nothing,
        segment=nothing,
        pause=note.first_pause,
        pitch_level=note.pitch_targets[3],
        pitch_segment=none,
        lfo_phase=note.lfo_start,
        lfo_random=none.astype(jnp.uint32),
        lfo_delay=none.astype(jnp.uint32),
        # As if from silence: one less than none at all.
        gain=nothing + 16383,
        phase=nothing,
    )


def of_segment(
    values: Num[Array, "4 *shape"], segment: Int[Array, "*shape"]
) -> Num[Array, "*shape"]:
    """Takes the value of each envelope's segment; of the fourth at its end."""
    first = jnp.where(segment == 0, values[0], values[1])
    return jnp.where(
        segment < 2, first, jnp.where(segment == 2, values[2], values[3])
    )


def envelope_step(
    note: Note,
    level: Int[Array, "operators batch"],
    segment: Int[Array, "operators batch"],
    pause: Int[Array, "operators batch"],
    held: Bool[Array, " batch"],
    released: Bool[Array, " batch"],
) -> tuple[
    Int[Array, "operators batch"],
    Int[Array, "operators batch"],
    Int[Array, "operators batch"],
]:
    """Moves envelopes by one block.

    An envelope falls in straight lines, and rises in steps that get smaller:
    17 octaves less the level, in whole octaves, times the increment. Where a
    segment ends at the level that it started from, it lasts for a time of its
    own, in which nothing moves.

    Args:
      note: holds the laws of the segments.
      level: of the envelopes.
      segment: that they are in, 0 to 4.
      pause: samples that are left of a segment that stays.
      held: whether the key is down during this block.
      released: whether it was let go just before it.

    Returns:
      Level, segment and pause after the block.
    """

    def enter(where: Array, entered: Array, segment: Array, pause: Array):
        target = of_segment(note.targets, entered)
        stays = of_segment(note.pauses, entered)
        stays = jnp.where((entered < 4) & (target == level), stays, 0)
        return (
            jnp.where(where, entered, segment),
            jnp.where(where, stays, pause),
        )

    last = jnp.full_like(segment, 3)
    segment, pause = enter(released, last, segment, pause)
    left = pause - BLOCK
    over = (pause > 0) & (left <= 0)
    segment, pause = enter(over, segment + 1, segment, jnp.maximum(left, 0))

    target = of_segment(note.targets, segment)
    increment = of_segment(note.increments, segment)
    rising = target > level
    floor = jnp.maximum(level, 1716 << 16)
    risen = floor + (((17 << 24) - floor) >> 24) * increment
    moved = jnp.where(
        rising,
        jnp.minimum(risen, target),
        jnp.maximum(level - increment, target),
    )
    moves = (segment < jnp.where(held, 3, 4)) & (pause == 0)
    level = jnp.where(moves, moved, level)
    segment, pause = enter(
        moves & (level == target), segment + 1, segment, pause
    )
    return level, segment, pause


def pitch_step(
    note: Note,
    level: Int[Array, " batch"],
    segment: Int[Array, " batch"],
    held: Bool[Array, " batch"],
    released: Bool[Array, " batch"],
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """Moves pitch envelopes by one block, in straight lines.

    Args:
      note: holds the laws of the segments.
      level: of the envelopes.
      segment: that they are in, 0 to 4.
      held: whether the key is down during this block.
      released: whether it was let go just before it.

    Returns:
      Level and segment after the block.
    """
    segment = jnp.where(released, 3, segment)
    target = of_segment(note.pitch_targets, segment)
    increment = of_segment(note.pitch_increments, segment)
    moved = jnp.where(
        target > level,
        jnp.minimum(level + increment, target),
        jnp.maximum(level - increment, target),
    )
    moves = segment < jnp.where(held, 3, 4)
    level = jnp.where(moves, moved, level)
    return level, segment + (moves & (level == target))


def lfo_wave(
    wave: Int[Array, "*batch"],
    phase: UInt[Array, "*batch"],
    random: UInt[Array, "*batch"],
) -> Int[Array, "*batch"]:
    """The LFO: triangle, saw down, saw up, square, sine, sample and hold.

    Args:
      wave: its form, 0 to 5.
      phase: 2^32 a cycle.
      random: state of the generator behind sample and hold, 0 to 255.

    Returns:
      Values from 0 to 2^24.
    """
    ramp = (phase ^ np.uint32(1 << 31)) >> 8
    triangle = phase >> 7
    triangle = jnp.where(phase >> 31 > 0, ~triangle, triangle) & 0xFFFFFF
    square = (~phase >> 7) & _FULL
    index, between = phase >> 22, ((phase >> 8) & 0x3FFF).astype(jnp.int32)
    near = lookup(tables.SINE, index)
    slope = lookup(np.diff(tables.SINE), index)
    sine = (1 << 23) + ((near + ((slope * between) >> 14)) >> 1)
    held = ((random ^ 0x80) + 1) << 16
    result = sine.astype(jnp.uint32)
    for form, values in (
        (0, triangle),
        (1, 0xFFFFFF - ramp),
        (2, ramp),
        (3, square),
        (5, held),
    ):
        result = jnp.where(wave == form, values, result)
    return result.astype(jnp.int32)


def pitch_modulation(
    note: Note, lfo: Int[Array, " batch"], strength: UInt[Array, " batch"]
) -> Int[Array, " batch"]:
    """Vibrato, in octaves of 2^24.

    Args:
      note: holds depth and sensitivity.
      lfo: its values, 0 to 2^24.
      strength: of the LFO, 0 to 2^24, by its delay.

    Returns:
      What is added to the pitch of operators that are not fixed.
    """
    swing = note.pitch_sensitivity * (lfo - (1 << 23))
    size = jnp.abs(swing).astype(jnp.uint32)
    high, low = multiply(note.pitch_depth * strength.astype(jnp.uint32), size)
    # The engine shifts the signed product, which rounds away from zero below.
    rest = ((high & 127) | low) != 0
    size = (high >> 7) + ((swing < 0) & rest)
    size = size.astype(jnp.int32)
    return jnp.where(swing < 0, -size, size)


def increments(
    pitch: Int[Array, "*shape"], sample_rate: int
) -> Int[Array, "*shape"]:
    """Phase increments a sample (2^24 a cycle) of pitches (2^24 an octave)."""
    table = tables.rates(sample_rate).frequencies
    index = (pitch & 0xFFFFFF) >> 14
    between = pitch & 0x3FFF
    near = lookup(table, index)
    slope = lookup(np.diff(table), index)
    # A product of 35 bits, of which the lowest 14 are dropped.
    upper, lower = slope >> 14, slope & 0x3FFF
    exact = near + upper * between + ((lower * between) >> 14)
    # Beyond 2^20 Hz the shift turns negative, and a CPU takes it modulo 32.
    return exact >> ((20 - (pitch >> 24)) & 31)


def attenuation(
    level: Int[Array, "*shape"], modulation: UInt[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """What amplitude modulation takes from a level.

    Args:
      level: of an envelope, below 2^28.
      modulation: its depth times the operator's sensitivity, 0 to 255/256 of
        2^24.

    Returns:
      level * exp(12.2 + .07 modulation / 2^18) / 2^24, rounded down twice, as
      the exponential is rounded before.
    """
    whole, fraction, excess = tables.LOUDNESS
    upper, lower = modulation >> 12, modulation & 4095
    whole, fraction = lookup(whole, upper), lookup(fraction, upper)
    excess = lookup(excess, lower)
    # whole + (fraction + (whole + fraction) * excess), of 2^41.
    high, low = multiply(whole, excess)
    more, _ = multiply(fraction, excess)
    low_more = low + more
    high = high + (low_more < low)
    shifted = fraction << 9
    all_low = low_more + shifted
    high = high + (fraction >> 23) + (all_low < shifted)
    high, low = multiply(level.astype(jnp.uint32), whole + (high >> 9))
    return ((high << 8) | (low >> 24)).astype(jnp.int32)


def amplitude_modulation(
    note: Note, lfo: Int[Array, " batch"], strength: UInt[Array, " batch"]
) -> UInt[Array, "operators batch"]:
    """Depth of tremolo, as `attenuation` takes it.

    Args:
      note: holds depth and sensitivity.
      lfo: its values, 0 to 2^24.
      strength: of the LFO, 0 to 2^24, by its delay.

    Returns:
      0 to 255/256 of 2^24.
    """
    depth = (note.amplitude_depth * strength.astype(jnp.uint32)) >> 8
    high, low = multiply(depth, (_FULL - lfo).astype(jnp.uint32))
    high, low = multiply((high << 8) | (low >> 24), note.sensitivity)
    return (high << 8) | (low >> 24)


def _blocks(
    note: Note, state: State, count: int
) -> tuple[State, tuple[Array, Array, Array]]:
    """Follows LFO and envelopes through `count` blocks.

    Returns:
      The state after them, gains and phases left as they were; and in each
      block the pitch's bend, the operators' amplitude modulation, and their
      envelopes.
    """

    def step(state: State, _: None):
        held = state.block < note.release
        released = state.block == note.release
        phase = state.lfo_phase + note.lfo_increment
        wrapped = phase < note.lfo_increment
        random = jnp.where(
            wrapped, (state.lfo_random * 179 + 17) & 255, state.lfo_random
        )
        lfo = lfo_wave(note.lfo_wave, phase, random)
        slope = jnp.where(state.lfo_delay >> 31 > 0, *note.lfo_delays[::-1])
        delay = state.lfo_delay + slope
        # Once the delay would wrap it stays, and the LFO is at full strength.
        full = delay < slope
        strength = jnp.where(delay >> 31 > 0, (delay >> 7) & 0xFFFFFF, 0)
        strength = jnp.where(full, _FULL, strength)
        pitch_level, pitch_segment = pitch_step(
            note, state.pitch_level, state.pitch_segment, held, released
        )
        level, segment, pause = envelope_step(
            note, state.level, state.segment, state.pause, held, released
        )
        state = state._replace(
            block=state.block + 1,
            level=level,
            segment=segment,
            pause=pause,
            pitch_level=pitch_level,
            pitch_segment=pitch_segment,
            lfo_phase=phase,
            lfo_random=random,
            lfo_delay=jnp.where(full, state.lfo_delay, delay),
        )
        bend = pitch_level + pitch_modulation(note, lfo, strength)
        return state, (bend, amplitude_modulation(note, lfo, strength), level)

    return jax.lax.scan(step, state, None, count)


def control(
    note: Note, state: State, count: int, sample_rate: int
) -> tuple[State, Control]:
    """Follows notes through `count` blocks.

    Args:
      note: what the voices come to, from `note_on`.
      state: where they are, from `start` or from here.
      count: number of blocks.
      sample_rate: in Hz.

    Returns:
      The state after the blocks, and what each operator is told in each.
    """
    # Three loops over the blocks, though the second has no memory: what a loop
    # returns is computed once, where XLA would compute it again for each use;
    # and by one thread, as several cost more than they save on arrays of this
    # size.
    state, told = _blocks(note, state, count)

    def applied(_: None, told: tuple[Array, Array, Array]):
        bend, modulation, level = told
        pitch = jnp.where(note.fixed, note.pitch, note.pitch + bend)
        less = attenuation(level, modulation)
        level = jnp.where(note.sensitivity > 0, level - less, level)
        return None, (16384 - (level >> 14), increments(pitch, sample_rate))

    def summed(carry: tuple[Array, Array], told: tuple[Array, Array]):
        gain, phase = carry
        last, increment = told
        active = (gain <= SILENT) | (last <= SILENT)
        ramp = (last - gain + 32) >> 6
        block = Control(phase, increment, gain, ramp, last, active)
        return (last, phase + (increment << 6)), block

    _, told = jax.lax.scan(applied, None, told)
    (gain, phase), blocks = jax.lax.scan(
        summed, (state.gain, state.phase), told
    )
    return state._replace(gain=gain, phase=phase), blocks
