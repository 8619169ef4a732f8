"""Dexed, a Yamaha DX7, in batches."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from proxy.synths import dx7_control, dx7_operators
from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_control import Control, lookup
from proxy.synths.dx7_operators import Loop, Rows
from proxy.synths.dx7_tables import BLOCK, OPERATORS

CHUNK = 50
TILE = 256


class Routing(NamedTuple):
    algorithm: Array
    fed: Array
    length: Array
    shift: Array


def routing(voices) -> Routing:
    algorithm = voices[:, 134].astype(jnp.int32)
    amount = voices[:, 135].astype(jnp.int32)
    weak = lookup(tables.WEAK_FEEDBACK, algorithm)
    shift = jnp.minimum(8 - amount + jnp.where(weak, 2, 0), 16) + 1
    return Routing(
        algorithm,
        amount > 0,
        lookup(tables.LOOP, algorithm).astype(jnp.int32),
        shift,
    )


def _take(values, operator):
    """Values [blocks, operators, batch], operator [batch]."""
    return jnp.take_along_axis(values, operator[None, None], 1)[:, 0]


def _feed(control: Control, route: Routing, memory):
    long = route.length > 1
    at = lookup(tables.FEEDBACK, route.algorithm).astype(jnp.int32)
    first = jnp.where(long, 0, at)
    on = _take(control.active, first) & route.fed

    def loop(operators, order):
        parts = [[], [], [], []]
        for i, o in enumerate(order):
            told = (
                control.phase,
                control.increment,
                control.gain if i == 0 else control.last_gain,
                control.ramp if i == 0 else jnp.zeros_like(control.ramp),
            )
            for p, x in zip(parts, told):
                p.append(_take(x, o))
        return Loop(*(jnp.stack(p) for p in parts))

    one = loop(None, [first])
    longer = loop(
        None,
        [jnp.zeros_like(first), jnp.ones_like(first), jnp.full_like(first, 2)],
    )
    after, out = dx7_operators.feedback(
        one, route.shift, jnp.ones_like(first), on & ~long, memory
    )
    after, out3 = jax.lax.cond(
        (on & long).any(),
        lambda: dx7_operators.feedback(
            longer, route.shift, route.length, on & long, after
        ),
        lambda: (after, out),
    )
    return after, jnp.where(long, out3, out), on


@functools.partial(jax.jit, static_argnames=("duration", "sample_rate"))
def render(voices, *, note, velocity, hold, duration: float, sample_rate: int):
    batch = voices.shape[0]
    note, velocity, hold = (
        jnp.broadcast_to(jnp.asarray(x), (batch,))
        for x in (note, velocity, hold)
    )
    samples = round(duration * sample_rate)
    blocks = -(-samples // BLOCK)
    chunks = -(-blocks // CHUNK)
    route = routing(voices)
    modulators = (tables.MODULATORS << np.arange(OPERATORS)).sum(2)
    carriers = (tables.CARRIERS << np.arange(OPERATORS)).sum(1)
    modulators = lookup(modulators.astype(np.int32), route.algorithm).T
    carriers = lookup(carriers.astype(np.int32), route.algorithm)
    at = lookup(tables.FEEDBACK, route.algorithm).astype(jnp.int32)
    told = dx7_control.note_on(voices, note, velocity, hold, sample_rate)
    rows_count = batch * CHUNK
    tiles = -(-rows_count // TILE)

    def chunk(i, carry):
        state, memory, sound = carry
        state, control = dx7_control.control(told, state, CHUNK, sample_rate)
        memory, looped, on = _feed(control, route, memory)
        k = np.arange(OPERATORS)[:, None]
        source = jnp.where(control.active, 1, 0)
        source = jnp.where(on[:, None] & (k == at), 2, source)
        # Before the loop's end, its operators are not heard
        inner = on[:, None] & (route.length > 1) & (k < at)
        source = jnp.where(inner, 0, source)
        rows = Rows(
            control.phase,
            control.increment,
            control.gain,
            control.ramp,
            source,
            jnp.broadcast_to(modulators, source.shape),
        )
        heard = ((source > 0) & ((carriers >> k) & 1 > 0)).any(1)
        heard = heard.T.reshape(-1)
        # [operators, batch, blocks]
        flat = jnp.stack(
            [x.transpose(1, 2, 0).reshape(OPERATORS, -1) for x in rows]
        )
        looped = looped.transpose(2, 0, 1).reshape(-1, BLOCK)
        car = jnp.repeat(carriers, CHUNK)
        place = jnp.cumsum(heard) - 1
        order = (
            jnp.zeros(tiles * TILE, jnp.int32)
            .at[jnp.where(heard, place, tiles * TILE)]
            .set(jnp.arange(rows_count, dtype=jnp.int32), mode="drop")
        )
        count = place[-1] + 1

        def tile(c):
            t, packed = c
            rows_ = jax.lax.dynamic_slice(order, (t * TILE,), (TILE,))
            out = dx7_operators.play(
                Rows(*flat[:, :, rows_]), looped[rows_], car[rows_]
            )
            return t + 1, jax.lax.dynamic_update_slice(
                packed, out, (t * TILE, 0)
            )

        packed = jnp.zeros((tiles * TILE, BLOCK), jnp.float32)
        _, packed = jax.lax.while_loop(
            lambda c: c[0] * TILE < count, tile, (0, packed)
        )
        out = jnp.where(heard[:, None], packed[jnp.maximum(place, 0)], 0)
        out = out.reshape(batch, CHUNK * BLOCK)
        sound = jax.lax.dynamic_update_slice(sound, out, (0, i * CHUNK * BLOCK))
        return state, memory, sound

    none = jnp.zeros(batch, jnp.int32)
    sound = jnp.zeros((batch, chunks * CHUNK * BLOCK), jnp.float32)
    carry = dx7_control.start(told), (none, none), sound
    return jax.lax.fori_loop(0, chunks, chunk, carry)[2][:, :samples]
