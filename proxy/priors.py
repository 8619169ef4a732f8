"""Distributions over presets: uniform, fitted to a bank, variations of one.

A prior maps a row of uniform numbers to a preset, so that whoever draws the
numbers, a counter-based stream or a JAX key, draws the preset:

    prior = Mixture((Uniform(space), Variations(space, voices)), (0.2, 0.8))
    presets = prior.from_uniform(rng.random((256, prior.uniforms)))
    presets = sample(prior, key, (256,))

* `Uniform`: the paper's, every parameter by itself.
* `Fitted`, by `fit`: a mixture of trees over quantised parameters, learned
  from a bank, of which it keeps statistics and no preset.
* `Variations`: children of a bank's presets. `propose` is the same function
  for a search.
* `Mixture`: of the others, with shares.

Every method that takes an array accepts NumPy and JAX arrays alike and
returns the same kind; with JAX arrays they can be traced.
"""

import dataclasses
import functools
import hashlib
import io
import math
import zipfile
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from proxy.space import ParameterSpace, check_sampling


def _namespace(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


@runtime_checkable
class Prior(Protocol):
    """What every prior has."""

    @property
    def space(self) -> ParameterSpace:
        """The space of its presets."""
        ...

    @property
    def uniforms(self) -> int:
        """How many uniform numbers make a preset."""
        ...

    def from_uniform(
        self, u: Float[Any, "*batch uniforms"]
    ) -> Float[Any, "*batch parameters"]:
        """Maps uniform numbers in [0, 1) to presets."""
        ...


def sample(
    prior: Prior, key: Key[Array, ""], shape: tuple[int, ...] = ()
) -> Float[Array, "*batch parameters"]:
    """Draws presets.

    Args:
      prior: the distribution.
      key: JAX random key.
      shape: batch shape.

    Returns:
      float32 presets, `[*shape, parameters]`.
    """
    return prior.from_uniform(jax.random.uniform(key, (*shape, prior.uniforms)))


def digest(prior: Any) -> str:
    """A string that tells a prior from others, for a data set's record.

    Args:
      prior: any of this module's.

    Returns:
      32 hexadecimal digits that follow from the kind of prior, the name of
      its space and every number and array in it.
    """
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if dataclasses.is_dataclass(value) and not isinstance(
            value, ParameterSpace
        ):
            found.update(type(value).__name__.encode())
            for field in dataclasses.fields(value):
                found.update(field.name.encode())
                add(getattr(value, field.name))
        elif isinstance(value, ParameterSpace):
            found.update(value.name.encode())
        elif isinstance(value, tuple):
            found.update(str(len(value)).encode())
            for item in value:
                add(item)
        else:
            array = np.asarray(value)
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())

    add(prior)
    return found.hexdigest()[:32]


# Uniform ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Uniform:
    """The paper's synthetic presets, every parameter by itself.

    Attributes:
      space: of the presets.
      at_default: see `ParameterSpace.from_uniform`.
      at_end: likewise.
    """

    space: ParameterSpace
    at_default: float = 0.0
    at_end: float = 0.0

    def __post_init__(self) -> None:
        """Checks the two probabilities.

        Raises:
          ValueError: when they are no such.
        """
        check_sampling(self.at_default, self.at_end)

    @property
    def uniforms(self) -> int:
        """One for each parameter."""
        return self.space.num_used

    def from_uniform(
        self, u: Float[Any, "*batch uniforms"]
    ) -> Float[Any, "*batch parameters"]:
        """Exactly `ParameterSpace.from_uniform`."""
        return self.space.from_uniform(
            u, at_default=self.at_default, at_end=self.at_end
        )


# Variations ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ways:
    """How children differ from their parents.

    Attributes:
      crossover: probability that a child has modules of another parent.
      difference: probability that it moves along a difference of two others.
      modules: least and greatest probability that a module is the other
        parent's; the probability is uniform between the two, for half of the
        children made by crossover. The other half has one such module.
      share: least and greatest probability that a parameter mutates; at
        least one does. Log-uniform between the two.
      spread: likewise, standard deviation of numerical steps.
      borrow: probability that a parameter that mutates takes the value it
        has in some other parent.
      ranked: whether better parents, which come first, have more children.
    """

    crossover: float = 0.35
    difference: float = 0.4
    modules: tuple[float, float] = (0.5, 0.5)
    share: tuple[float, float] = (0.01, 0.2)
    spread: tuple[float, float] = (0.005, 0.3)
    borrow: float = 0.0
    ranked: bool = True


SEARCH = Ways()
# As many different presets as people might make.
DATA = Ways(
    crossover=0.6,
    difference=0.1,
    modules=(0.15, 0.5),
    share=(0.02, 0.4),
    borrow=0.5,
    ranked=False,
)


def _decisions(space: ParameterSpace) -> dict[str, int]:
    """How many uniform numbers decide what about a variation."""
    once = "first second third fourth way number one single moving factor"
    once += " plain share sure spread"
    modules, parameters = "given place", "moved changed borrowed fresh"
    parameters += " radius angle"  # of normal numbers
    return {
        **dict.fromkeys(once.split(), 1),
        **dict.fromkeys(modules.split(), len(space.module_names)),
        **dict.fromkeys(parameters.split(), space.num_used),
    }


def _sources(
    child: Any, donor: Any, given: Any, place: Any, space: ParameterSpace
) -> Any:
    """Columns of a donor that a child's columns come from.

    A node's come from a node of the same role: its own, or any.
    """
    xp = _namespace(child)
    own = xp.arange(space.num_used, dtype=np.int32)
    if space.routing is None:
        return xp.broadcast_to(own, child.shape)
    chooser = space.index(space.routing.parameter)
    outputs = xp.asarray(space.routing.output_table)

    def roles(preset):
        return outputs[preset[..., chooser].astype(np.int32)]

    # The routing may be among what the donor gives.
    routed = xp.where(given[..., space.modules[chooser], None], donor, child)
    same = roles(routed)[..., :, None] == roles(donor)[..., None, :]
    count = same.sum(-1)
    which = (place[..., list(space.nodes)] * count).astype(np.int32)
    chosen = (xp.cumsum(same, -1) <= which[..., None]).sum(-1)
    nodes = xp.arange(len(space.nodes))
    stay = (count == 0) | xp.diagonal(same, axis1=-2, axis2=-1)
    chosen = xp.where(stay, nodes, chosen)
    node, counterparts = space.node_columns
    return xp.where(
        node >= 0, xp.asarray(counterparts)[chosen[..., node], own], own
    )


def vary(
    u: Float[Any, "*batch uniforms"],
    parents: Float[Any, "parents parameters"],
    space: ParameterSpace,
    ways: Ways = SEARCH,
) -> Float[Any, "*batch parameters"]:
    """Makes variations of presets, each from its own uniform numbers.

    Each child takes after one parent and differs from it in one of three
    ways:

    * crossover: another parent gives it one of its modules
      (`ParameterSpace.modules`), or several. Where the space has a routing,
      roles are kept: what is heard itself comes from what is heard, what
      modulates from what modulates; from the same place where that has the
      role, else from any place of the other parent that has it.
    * difference: a share of its numerical parameters moves along the
      difference of two other parents, as in differential evolution (Storn
      and Price 1997, equation 2);
    * mutation: a share of parameters changes: numerical ones by a normal
      step, switches and categories to a random allowed value, or any of them
      to that of another parent. Half of the children made by crossover are
      mutated as well.

    How large a share and a step are is drawn for every child, so that some
    change in one detail and some in many.

    Args:
      u: uniform in [0, 1), as many as `Variations.uniforms` says.
      parents: hard presets, best first where that matters.
      space: their space.
      ways: how.

    Returns:
      Presets with every value on its grid; values beyond [0, 1] are
      reflected into it.

    Raises:
      ValueError: when there is no parent, or another number of uniforms.
    """
    count, sizes = parents.shape[0], _decisions(space)
    if count == 0:
        raise ValueError("variations need at least one parent")
    if u.shape[-1] != sum(sizes.values()):
        raise ValueError(
            f"a variation of {space.name} is made of {sum(sizes.values())} "
            f"uniform numbers, got {u.shape[-1]}"
        )
    xp = _namespace(u)
    parents = xp.asarray(parents, u.dtype)
    ends = np.cumsum(list(sizes.values()))[:-1]
    drawn = dict(zip(sizes, xp.split(u, ends, axis=-1), strict=True))
    numerical = np.isin(np.arange(space.num_used), space.numerical)

    def index(x, size):
        return xp.minimum((x * size).astype(np.int32), size - 1)

    def between(bounds, x):
        return bounds[0] + x * (bounds[1] - bounds[0])

    def log_between(bounds, x):
        return xp.exp(between([math.log(bound) for bound in bounds], x))

    first = index(drawn["first"], count)
    if ways.ranked:
        # Weights of parents fall like 1, 1/2, 1/3... with the rank.
        edges = np.cumsum(1 / np.arange(1, count + 1.0))
        edges = xp.asarray(edges[:-1] / edges[-1], u.dtype)
        first = xp.searchsorted(edges, drawn["first"], side="right")
    child = parents[first[..., 0]]
    second, third, fourth = (
        parents[index(drawn[name], count)[..., 0]]
        for name in ("second", "third", "fourth")
    )

    crossed = drawn["way"] < ways.crossover
    moved = ~crossed & (drawn["way"] < ways.crossover + ways.difference)

    modules = len(space.module_names)
    given = drawn["given"] < between(ways.modules, drawn["number"])
    one = xp.arange(modules) == index(drawn["one"], modules)
    given = crossed & xp.where(drawn["single"] < 0.5, one, given)
    source = _sources(child, second, given, drawn["place"], space)
    second = xp.take_along_axis(second, source, axis=-1)
    child = xp.where(given[..., space.modules], second, child)

    change = drawn["moved"] < xp.maximum(drawn["moving"], 0.1)
    factor = between((0.2, 1.0), drawn["factor"])
    step = factor * (third - fourth) * (moved & change & numerical)

    change = drawn["changed"] < log_between(ways.share, drawn["share"])
    sure = index(drawn["sure"], space.num_used)
    change = change | (xp.arange(space.num_used) == sure)
    change = change & ~moved & ~(crossed & (drawn["plain"] < 0.5))
    borrowed = change & (drawn["borrowed"] < ways.borrow)
    change = change & ~borrowed
    # Box and Muller's normal numbers; 1 - u is never 0.
    normal = xp.sqrt(-2 * xp.log(1 - drawn["radius"]))
    normal = normal * xp.cos(2 * math.pi * drawn["angle"])
    spread = log_between(ways.spread, drawn["spread"])
    step = step + spread * normal * (change & numerical)

    # Parents may be just outside by rounding; only what moves is reflected.
    away = xp.abs(child + step)
    child = xp.where(step != 0, 1 - xp.abs(1 - away % 2), child)
    fresh = space.from_uniform(drawn["fresh"])
    child = xp.where(change & ~numerical, fresh, child)
    if ways.borrow:
        lender = index(drawn["borrowed"] / ways.borrow, count)
        value = parents[lender, xp.arange(space.num_used)]
        child = xp.where(borrowed, value, child)
    return space.snap(child)


@dataclasses.dataclass(frozen=True, eq=False)
class Variations:
    """Children of a bank's presets, see `vary`.

    Attributes:
      space: of the presets.
      parents: the bank, `[parents, parameters]`.
      ways: how children differ from them.
    """

    space: ParameterSpace
    parents: Float[Any, "parents parameters"]
    ways: Ways = DATA

    @property
    def uniforms(self) -> int:
        """About six for each parameter."""
        return sum(_decisions(self.space).values())

    def from_uniform(
        self, u: Float[Any, "*batch uniforms"]
    ) -> Float[Any, "*batch parameters"]:
        """One child for each row."""
        return vary(u, self.parents, self.space, self.ways)


@functools.partial(jax.jit, static_argnames=("space", "count", "ways"))
def propose(
    key: Key[Array, ""],
    parents: Float[Array, "parents parameters"],
    space: ParameterSpace,
    count: int,
    ways: Ways = SEARCH,
) -> Float[Array, "count parameters"]:
    """Variations of presets, to be scored by the synthesizer's sound.

    Args:
      key: JAX random key.
      parents: hard presets, best first.
      space: their space.
      count: number of children.
      ways: see `vary`.

    Returns:
      The children.

    Raises:
      ValueError: when there is no parent.
    """
    return sample(Variations(space, parents, ways), key, (count,))


# Fitted ----------------------------------------------------------------------

# Steps that a continuous parameter is counted in where a bank shows no coarser
# ones: tenths, quarters and percents are among them.
_STEPS = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A mixture of trees over quantised parameters, see `fit`.

    The values of a parameter are numbered as *steps*, neighbouring steps are
    grouped into *cells*, and cells depend on each other as a tree says, one
    tree for each component. Within a cell, steps are drawn by how often the
    bank has them, whatever the rest of the preset.

    Attributes:
      space: of the presets.
      steps: `[parameters]` uint8: a continuous parameter's values are
        multiples of one over this. 0 for a discrete one, whose steps are its
        allowed values.
      cells: `[parameters, steps]` uint8, the cell of each step, in order.
      weights: `[parameters, steps]` uint8: the probability of a step within
        its cell is proportional to the square of this number.
      shares: `[components]` float32, probability of each component.
      parents: `[components, parameters]` uint8, the parameter that one
        depends on; itself, for the root.
      tables: `[components]` arrays of uint8: for each parameter, for each
        cell of its parent, one number for each of its own cells, whose
        probabilities are proportional to the square of it.
    """

    space: ParameterSpace
    steps: np.ndarray
    cells: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    parents: np.ndarray
    tables: tuple[np.ndarray, ...]

    @property
    def uniforms(self) -> int:
        """One for each parameter, one for the component."""
        return self.space.num_used + 1

    @functools.cached_property
    def _values(self) -> np.ndarray:
        """`[parameters, steps]`: the value of each step."""
        return _step_values(self.space, self.steps, self.cells.shape[1])

    @functools.cached_property
    def _within(self) -> np.ndarray:
        """`[parameters, steps]`: probability of a step within its cell."""
        weights = self.weights.astype(np.float64) ** 2
        rows = np.arange(len(weights))[:, None]
        total = np.zeros((len(weights), self.cells.max() + 1))
        np.add.at(total, (rows, self.cells), weights)
        return weights / total[rows, self.cells]

    @functools.cached_property
    def _conditional(self) -> np.ndarray:
        """`[components, parameters, cells of the parent, cells]`."""
        counts = self.cells.max(1).astype(int) + 1
        found = np.zeros((*self.parents.shape, counts.max(), counts.max()))
        for tables, parents, flat in zip(
            found, self.parents, self.tables, strict=True
        ):
            sizes = counts[parents] * counts
            parts = np.split(flat, np.cumsum(sizes)[:-1])
            for table, above, own, part in zip(
                tables, counts[parents], counts, parts, strict=True
            ):
                squares = part.reshape(above, own).astype(np.float64) ** 2
                table[:above, :own] = squares / squares.sum(1, keepdims=True)
        return found

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """`[components, parameters]`: parents come before their children."""
        rows = np.arange(len(self.parents))[:, None]
        above = np.tile(np.arange(self.space.num_used), (len(rows), 1))
        depth = np.zeros_like(above)
        for _ in range(self.space.num_used):
            depth += above != self.parents[rows, above]
            above = self.parents[rows, above].astype(int)
        return np.argsort(depth, axis=1, kind="stable")

    def from_uniform(
        self, u: Float[Any, "*batch uniforms"]
    ) -> Float[Any, "*batch parameters"]:
        """Inverse distribution functions, parameter by parameter.

        Args:
          u: uniform in [0, 1).

        Returns:
          Presets.

        Raises:
          ValueError: when the last axis is not `uniforms`.
        """
        if u.shape[-1] != self.uniforms:
            raise ValueError(
                f"a fitted preset of {self.space.name} is made of "
                f"{self.uniforms} uniform numbers, got {u.shape[-1]}"
            )
        xp = _namespace(u)
        *batch, _ = u.shape
        u = u.reshape(-1, self.uniforms)
        rows = np.arange(len(u))
        upper = np.cumsum(self._conditional, -1)
        lower = xp.asarray(upper - self._conditional, u.dtype)
        # Beyond the last cell nothing leads, not even rounding.
        upper = xp.asarray(np.where(upper > 1 - 1e-9, 2, upper), u.dtype)
        size = xp.asarray(np.maximum(self._conditional, 1e-9), u.dtype)
        shares = np.cumsum(self.shares.astype(np.float64))[:-1]
        component = (u[:, :1] >= xp.asarray(shares, u.dtype)).sum(-1)
        order = xp.asarray(self._order)[component]
        parents = xp.asarray(self.parents.astype(np.int32))[component]
        cells = xp.zeros((len(u), self.space.num_used), np.int32)
        inside = xp.zeros(cells.shape, u.dtype)
        for turn in range(self.space.num_used):
            column = order[:, turn]
            above = cells[rows, parents[rows, column]]
            at = (component, column, above)
            number = u[rows, 1 + column]
            cell = (number[:, None] >= upper[at]).sum(-1)
            at = (*at, cell)
            cells = _put(cells, (rows, column), cell)
            inside = _put(
                inside, (rows, column), (number - lower[at]) / size[at]
            )
        # Cells are numbered in order and each one's steps sum to 1.
        edges = xp.asarray(np.cumsum(self._within, -1)[:, :-1], u.dtype)
        place = cells + xp.clip(inside, 0, 1 - 1e-4)
        step = (place[..., None] >= edges).sum(-1)
        columns = np.arange(self.space.num_used)
        presets = xp.asarray(self._values, u.dtype)[columns, step]
        return presets.reshape(*batch, self.space.num_used)

    def log_prob(
        self, presets: Float[np.ndarray, "batch parameters"]
    ) -> Float[np.ndarray, " batch"]:
        """Natural logarithm of the probability of presets.

        Args:
          presets: hard presets. A value that the bank did not have counts as
            the nearest one that it had.

        Returns:
          The logarithms; every parameter is discrete here.
        """
        step = _step_of(presets, self._values, self.weights > 0)
        columns = np.arange(self.space.num_used)
        cells = self.cells[columns, step]
        with np.errstate(divide="ignore"):
            tables = np.log(self._conditional)
        joint = np.stack(
            [
                table[columns, cells[:, parents], cells].sum(-1)
                for table, parents in zip(tables, self.parents, strict=True)
            ]
        )
        joint += np.log(self.shares.astype(np.float64))[:, None]
        inside = np.log(self._within[columns, step]).sum(-1)
        return np.logaddexp.reduce(joint, axis=0) + inside


# Arrays of `Fitted` in a file, and how many axes each has.
_SAVED = {
    "steps": 1,
    "cells": 2,
    "weights": 2,
    "shares": 1,
    "parents": 2,
    "tables": 1,
}


def to_bytes(prior: Fitted) -> bytes:
    """Writes a fitted prior.

    Returns:
      The content of a file in NumPy's npz format, some tens of kilobytes.
    """
    arrays = {name: getattr(prior, name) for name in _SAVED}
    arrays["tables"] = np.concatenate(prior.tables)
    file = io.BytesIO()
    np.savez_compressed(file, space=np.array(prior.space.name), **arrays)
    return file.getvalue()


def from_bytes(data: bytes, space: ParameterSpace) -> Fitted:
    """Reads what `to_bytes` wrote.

    Args:
      data: the content of a file.
      space: of the presets that are wanted.

    Returns:
      The prior.

    Raises:
      ValueError: when it is not such a file, or of another space.
    """
    try:
        with np.load(io.BytesIO(data)) as file:
            name = str(file["space"])
            arrays = {field: file[field] for field in _SAVED}
    except (KeyError, EOFError, OSError, ValueError, zipfile.BadZipFile) as e:
        raise ValueError(f"not a file of a fitted prior ({e})") from e
    size = space.num_used
    rows = [len(arrays[f]) for f in ("steps", "cells", "weights")]
    rows.append(arrays["parents"].shape[-1])
    axes = {field: array.ndim for field, array in arrays.items()}
    if name != space.name or axes != _SAVED or set(rows) != {size}:
        raise ValueError(
            f"the fitted prior is one of {name}, with {rows[0]} parameters, "
            f"not of {space.name}, with {size}; fit one with launch.presets fit"
        )
    counts = arrays["cells"].max(1).astype(int) + 1
    sizes = (counts[arrays["parents"]] * counts).sum(1)
    flat = arrays.pop("tables")
    if len(flat) != sizes.sum():
        raise ValueError("not a file of a fitted prior (its tables are short)")
    tables = tuple(np.split(flat, np.cumsum(sizes)[:-1]))
    return Fitted(space, **arrays, tables=tables)


def _put(x: Any, where: Any, values: Any) -> Any:
    if isinstance(x, jax.Array):
        return x.at[where].set(values)
    x[where] = values
    return x


def _step_values(
    space: ParameterSpace, steps: np.ndarray, most: int
) -> np.ndarray:
    """`[parameters, most]`: values of the steps; of those beyond, the last."""
    low, high = space.bounds
    values = np.empty((space.num_used, most))
    for column, (parameter, count) in enumerate(
        zip(space.used, steps, strict=True)
    ):
        choices = np.array(parameter.values or (0.0,))
        if parameter.kind == "categorical":
            choices = np.arange(len(choices))
        if count:
            choices = np.arange(count + 1.0) / count
            choices = np.clip(choices, low[column], high[column])
            # Off a grid that was only assumed, the default is kept exactly.
            nearest = np.abs(choices - parameter.default).argmin()
            if count == _STEPS:
                choices[nearest] = space.defaults[column]
        values[column] = np.pad(
            choices, (0, most - len(choices)), constant_values=choices[-1]
        )
    return values.astype(np.float32)


def _step_of(
    presets: np.ndarray, values: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Number of the nearest known step of each value."""
    found = np.empty(presets.shape, int)
    for column, (grid, some) in enumerate(zip(values, known, strict=True)):
        steps = np.flatnonzero(some)
        away = np.abs(presets[:, column, None] - grid[steps])
        found[:, column] = steps[away.argmin(-1)]
    return found


def _grid(space: ParameterSpace, presets: np.ndarray) -> np.ndarray:
    """Steps of continuous parameters: the fewest that explain the bank."""
    low, high = space.bounds
    found = np.zeros(space.num_used, np.uint8)
    for column, parameter in enumerate(space.used):
        if parameter.interval is None:
            continue
        values = np.unique(presets[:, column].astype(np.float64))
        found[column] = _STEPS
        for steps in range(1, 128):
            grid = np.rint(values * steps) / steps
            grid = np.clip(grid, low[column], high[column])
            if np.abs(grid - values).max() < 1e-6:
                found[column] = steps
                break
    return found


def _group(counts: np.ndarray, kept: set[int], most: int) -> np.ndarray:
    """Cells of steps: the rarest neighbours are merged until few are left.

    Args:
      counts: how often each step occurs.
      kept: steps that stay alone.
      most: number of cells.

    Returns:
      The cell of each step, ascending from 0.
    """
    groups = [[step] for step in range(len(counts))]
    while len(groups) > most:
        masses = [counts[group].sum() for group in groups]
        alone = [bool(kept.intersection(group)) for group in groups]
        together = [
            math.inf if alone[i] or alone[i + 1] else masses[i] + masses[i + 1]
            for i in range(len(groups) - 1)
        ]
        first = int(np.argmin(together))
        if together[first] == math.inf:
            break
        groups[first : first + 2] = [groups[first] + groups[first + 1]]
    cells = np.empty(len(counts), np.uint8)
    for number, group in enumerate(groups):
        cells[group] = number
    return cells


def fit(
    presets: Float[np.ndarray, "presets parameters"],
    space: ParameterSpace,
    *,
    components: int = 2,
    levels: int = 16,
    smoothing: float = 2.0,
    rounds: int = 20,
    seed: int = 0,
) -> Fitted:
    """Learns a distribution from a bank: a mixture of Chow-Liu trees.

    Each component is a tree in which every parameter depends on one other,
    the tree of the greatest mutual information (Chow and Liu 1968,
    "Approximating discrete probability distributions with dependence
    trees"); components and shares are found by expectation maximisation
    (Meila and Jordan 2000, "Learning with mixtures of trees"). What a parent's
    value is rarely seen with backs off to the parameter's own distribution.

    Args:
      presets: of the bank, at least one.
      space: their space.
      components: number of trees.
      levels: cells of a numerical parameter, at most; its default and its
        ends are cells by themselves. A category is always a cell.
      smoothing: presets that the backing-off counts as.
      rounds: of expectation maximisation.
      seed: of its start.

    Returns:
      The distribution, some tens of kilobytes.

    Raises:
      ValueError: for an empty bank, or a space of more than 255 parameters.
    """
    if not len(presets) or space.num_used > 255:
        raise ValueError(
            f"fitting needs a preset at least and 255 parameters at most, got "
            f"{len(presets)} presets of {space.num_used} parameters"
        )
    steps = _grid(space, presets)
    sizes = [len(p.values or ()) for p in space.used]
    sizes = np.where(steps > 0, steps.astype(int) + 1, sizes)
    values = _step_values(space, steps, int(sizes.max()))
    known = np.arange(sizes.max()) < sizes[:, None]
    step = _step_of(presets, values, known)
    default = _step_of(space.defaults[None], values, known)[0]
    weights = np.zeros(values.shape, np.uint8)
    cells = np.zeros(values.shape, np.uint8)
    for column, size in enumerate(sizes.tolist()):
        count = np.bincount(step[:, column], minlength=size)
        kept = {0, int(default[column]), size - 1}
        most = levels
        if space.used[column].kind == "categorical":
            most = size
        cells[column, :size] = own = _group(count, kept, most)
        cells[column, size:] = own[-1]
        for cell in range(own.max() + 1):
            where = np.flatnonzero(own == cell)
            inside = count[where] if count[where].any() else np.ones(len(where))
            weights[column, where] = _quantise(inside)
    state = cells[np.arange(space.num_used), step]
    shares, parents, tables = _mixture_of_trees(
        state, cells.max(1).astype(int) + 1, components, smoothing, rounds, seed
    )
    return Fitted(space, steps, cells, weights, shares, parents, tables)


def _quantise(weights: np.ndarray) -> np.ndarray:
    """Square roots as bytes, the largest of the last axis 255.

    Nothing possible becomes impossible.
    """
    roots = np.sqrt(weights / weights.max(-1, keepdims=True))
    return np.where(weights > 0, np.maximum(np.rint(255 * roots), 1), 0).astype(
        np.uint8
    )


def _mixture_of_trees(
    state: np.ndarray,
    counts: np.ndarray,
    components: int,
    smoothing: float,
    rounds: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Shares, parents and tables of `Fitted`, from the cells of presets."""
    starts = np.cumsum(counts) - counts
    one_hot = np.zeros((len(state), counts.sum()), np.float32)
    one_hot[np.arange(len(state))[:, None], state + starts] = 1
    overall = one_hot.mean(0, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # Each preset starts in the component of the most similar of a few.
    few = one_hot[rng.choice(len(state), components)]
    member = np.eye(components, dtype=np.float32)[(one_hot @ few.T).argmax(1)]
    trees: list[tuple[np.ndarray, list[np.ndarray]]] = []
    shares = np.ones(components)
    for _ in range(rounds if components > 1 else 1):
        shares = (member.sum(0) + 1) / (len(state) + components)
        trees = [
            _tree(one_hot, weight, overall, counts, smoothing)
            for weight in member.T
        ]
        joint = np.log(shares) + np.stack(
            [_tree_log_prob(state, *tree) for tree in trees], axis=-1
        )
        joint -= np.logaddexp.reduce(joint, axis=1, keepdims=True)
        member = np.exp(joint).astype(np.float32)
    return (
        shares.astype(np.float32),
        np.stack([parents for parents, _ in trees]).astype(np.uint8),
        tuple(
            np.concatenate([_quantise(table).ravel() for table in tables])
            for _, tables in trees
        ),
    )


def _tree(
    one_hot: np.ndarray,
    weight: np.ndarray,
    overall: np.ndarray,
    counts: np.ndarray,
    smoothing: float,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The best tree for weighted presets, and its conditional tables."""
    pairs = (one_hot * weight[:, None]).T @ one_hot
    single = np.diagonal(pairs).astype(np.float64)
    edges = np.cumsum(counts)[:-1]
    total = weight.sum()
    # Of the component's own distribution, some is everyone's.
    own = (single + smoothing * overall + 1e-3) / (total + smoothing)
    parts = np.split(own, edges)
    own = np.concatenate([part / part.sum() for part in parts])
    joint = (pairs + smoothing * np.outer(own, own)) / (total + smoothing)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = joint * np.log(joint / np.outer(own, own))
    terms = np.nan_to_num(terms, posinf=0, neginf=0)
    starts = np.cumsum(counts) - counts
    information = np.add.reduceat(
        np.add.reduceat(terms, starts, axis=0), starts, axis=1
    )
    parents = _spanning_tree(information)
    slots = np.split(np.arange(len(own)), edges)
    tables = []
    for column, parent in enumerate(parents):
        if parent == column:
            mine = own[slots[column]]
            tables.append(np.tile(mine, (len(mine), 1)))
            continue
        seen = pairs[np.ix_(slots[parent], slots[column])]
        table = seen + smoothing * own[slots[column]]
        tables.append(table / table.sum(1, keepdims=True))
    return parents, tables


def _spanning_tree(weights: np.ndarray) -> np.ndarray:
    """Parents in the spanning tree of greatest weight (Prim's)."""
    size = len(weights)
    root = int((weights.sum(1) - np.diagonal(weights)).argmax())
    parents = np.full(size, root)
    best = weights[root].copy()
    outside = np.ones(size, bool)
    outside[root] = False
    for _ in range(size - 1):
        column = int(np.where(outside, best, -np.inf).argmax())
        outside[column] = False
        closer = outside & (weights[column] > best)
        parents[closer] = column
        best[closer] = weights[column][closer]
    return parents


def _tree_log_prob(
    state: np.ndarray, parents: np.ndarray, tables: list[np.ndarray]
) -> np.ndarray:
    found = np.zeros(len(state))
    for column, (parent, table) in enumerate(zip(parents, tables, strict=True)):
        found += np.log(table[state[:, parent], state[:, column]])
    return found


# Mixture ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Some presets from one prior, some from another.

    Attributes:
      priors: of one space.
      shares: probability of each, 1 together.
    """

    priors: tuple[Any, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks priors and shares.

        Raises:
          ValueError: when they do not fit together.
        """
        spaces = {prior.space.name for prior in self.priors}
        if (
            len(spaces) != 1
            or len(self.shares) != len(self.priors)
            or min(self.shares) < 0
            or abs(sum(self.shares) - 1) > 1e-6
        ):
            raise ValueError(
                f"a mixture of {len(self.priors)} priors over {sorted(spaces)} "
                f"with shares {self.shares}: it needs one space, and a "
                "share for each prior, 1 together"
            )

    @property
    def space(self) -> ParameterSpace:
        """The space of its presets."""
        return self.priors[0].space

    @property
    def uniforms(self) -> int:
        """One to choose, and as many as the greediest prior needs."""
        return 1 + max(prior.uniforms for prior in self.priors)

    def from_uniform(
        self, u: Float[Any, "*batch uniforms"]
    ) -> Float[Any, "*batch parameters"]:
        """Chooses by the first number; the others go to the chosen prior."""
        xp = _namespace(u)
        edges = xp.asarray(np.cumsum(self.shares)[:-1], u.dtype)
        chosen = (u[..., :1] >= edges).sum(-1, keepdims=True)
        presets = xp.zeros((*u.shape[:-1], self.space.num_used), u.dtype)
        for number, prior in enumerate(self.priors):
            drawn = prior.from_uniform(u[..., 1 : 1 + prior.uniforms])
            presets = xp.where(chosen == number, drawn, presets)
        return presets
