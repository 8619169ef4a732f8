"""What a preset is: typed parameters, their sampling and their encodings.

A synthesizer is described once, by a `ParameterSpace`: the ordered table of
its automatable parameters. Some are *used*, that is, varied; the others are
held at their defaults. Three views of the same preset exist:

* **preset**: `[*batch, parameters]` over the used parameters, in table order.
  A numerical or binary parameter is the plug-in's raw value in [0, 1]; a
  categorical one is the index of its category among the allowed ones.
* **relaxed preset**: `[*batch, width]`. First the numerical and binary values
  together, in table order; then, per categorical parameter in table order, a
  block of category probabilities. A preset maps to it exactly (one-hot
  blocks), and gradients can reach all of it.
* **plug-in values**: `[*batch, num_parameters]`, the raw value in [0, 1] of
  every parameter of the table, unused ones at their defaults.

Every method that takes an array accepts NumPy and JAX arrays alike and
returns the same kind; with JAX arrays they can be traced.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from proxy import unknown

Kind = Literal["numerical", "binary", "categorical"]
# Names of an envelope's parameters, in a module that has others too.
_ENVELOPE = re.compile(r"_eg_|[_:](attack|decay|sustain|release)$")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One automatable parameter of a synthesizer.

    Attributes:
      name: the parameter's name, unique in its space.
      kind: "numerical", "binary" or "categorical".
      default: raw value in [0, 1] that an unused parameter is held at.
      used: whether presets vary it.
      index: position of the parameter in the plug-in's own list.
      interval: (low, high) of a continuous parameter, else None.
      values: the allowed raw values of a discrete parameter, else None.
      weights: sampling weights of `values`, None for uniform.
      excluded_category_indices: positions in the plug-in's full list of
        categories that `values` leaves out.
    """

    name: str
    kind: Kind
    default: float
    used: bool = True
    index: int = 0
    interval: tuple[float, float] | None = None
    values: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None
    excluded_category_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
          ValueError: naming the parameter and the field that is off.
        """
        if (self.interval is None) == (self.values is None):
            raise ValueError(
                f"parameter {self.name!r}: give either an interval "
                "(continuous) or values (discrete)"
            )
        if self.interval is not None and self.kind != "numerical":
            raise ValueError(
                f"parameter {self.name!r}: only a numerical parameter can be "
                f"continuous, this one is {self.kind}"
            )
        if self.interval is not None and not (
            0 <= self.interval[0] < self.interval[1] <= 1
        ):
            raise ValueError(
                f"parameter {self.name!r}: interval {self.interval} is not "
                "an ascending pair in [0, 1]"
            )
        if self.weights is not None and (
            self.values is None
            or len(self.weights) != len(self.values)
            or min(self.weights) < 0
            or sum(self.weights) <= 0
        ):
            raise ValueError(
                f"parameter {self.name!r}: weights must be non-negative, one "
                "for each allowed value, and not all zero"
            )


def _grid(size: int, excluded: tuple[int, ...] = ()) -> tuple[float, ...]:
    """Evenly spaced raw values, to the three decimals plug-ins report."""
    return tuple(
        round(i / (size - 1), 3) for i in range(size) if i not in excluded
    )


def numerical(
    name: str,
    default: float,
    low: float = 0.0,
    high: float = 1.0,
    *,
    used: bool = True,
) -> Parameter:
    """A continuous parameter, uniform in [low, high] when sampled."""
    return Parameter(name, "numerical", default, used, interval=(low, high))


def stepped(
    name: str,
    default: float,
    steps: int | tuple[float, ...],
    *,
    weights: tuple[float, ...] | None = None,
    used: bool = True,
) -> Parameter:
    """A numerical parameter on a grid.

    Args:
      name: the parameter's name.
      default: raw value in [0, 1].
      steps: number of evenly spaced values from 0 to 1, or the values.
      weights: sampling weights, uniform when None.
      used: whether presets vary it.

    Returns:
      The parameter.
    """
    values = _grid(steps) if isinstance(steps, int) else steps
    return Parameter(
        name, "numerical", default, used, values=values, weights=weights
    )


def binary(
    name: str,
    default: float,
    *,
    weights: tuple[float, float] | None = None,
    used: bool = True,
) -> Parameter:
    """A switch: raw value 0 or 1."""
    return Parameter(
        name, "binary", default, used, values=(0.0, 1.0), weights=weights
    )


def categorical(
    name: str,
    default: float,
    cardinality: int,
    *,
    excluded: tuple[int, ...] = (),
    weights: tuple[float, ...] | None = None,
    used: bool = True,
) -> Parameter:
    """A choice among unordered categories.

    Args:
      name: the parameter's name.
      default: raw value in [0, 1].
      cardinality: how many categories the plug-in offers, excluded ones
        counted.
      excluded: positions among them that presets never take.
      weights: sampling weights of the allowed ones, uniform when None.
      used: whether presets vary it.

    Returns:
      The parameter, whose categories are the allowed ones.
    """
    return Parameter(
        name,
        "categorical",
        default,
        used,
        values=_grid(cardinality, excluded),
        weights=weights,
        excluded_category_indices=excluded,
    )


Pairs = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Routing:
    """How modules feed each other, as one categorical parameter tells.

    Nodes are numbered as in `modules`; every field from `edges` on has one
    entry for each category of the parameter.

    Attributes:
      parameter: name of the parameter that chooses.
      modules: names of the nodes, among `ParameterSpace.module_names`.
      edges: pairs (source, target) of which the first modulates the second;
        no cycles.
      loops: pairs (source, target) that feed back.
      outputs: nodes that are heard themselves; the others modulate.
      feedback: name of the numerical parameter that is 0 where loops do
        nothing.
    """

    parameter: str
    modules: tuple[str, ...]
    edges: tuple[Pairs, ...]
    loops: tuple[Pairs, ...]
    outputs: tuple[tuple[int, ...], ...]
    feedback: str

    def _matrices(self, pairs: tuple[Pairs, ...]) -> np.ndarray:
        size = len(self.modules)
        table = np.zeros((len(pairs), size, size), np.float32)
        for matrix, some in zip(table, pairs, strict=True):
            for source, target in some:
                matrix[source, target] = 1
        return table

    @functools.cached_property
    def edge_table(self) -> np.ndarray:
        """`[categories, source, target]`, 1 where one modulates the other."""
        return self._matrices(self.edges)

    @functools.cached_property
    def loop_table(self) -> np.ndarray:
        """`[categories, source, target]`, 1 where one feeds back."""
        return self._matrices(self.loops)

    @functools.cached_property
    def output_table(self) -> np.ndarray:
        """`[categories, nodes]`, 1 where a node is heard itself."""
        table = np.zeros((len(self.outputs), len(self.modules)), np.float32)
        for row, some in zip(table, self.outputs, strict=True):
            row[list(some)] = 1
        return table


class Graph(NamedTuple):
    """A preset's routing; expected, where its category is uncertain.

    Attributes:
      edges: the first node modulates the second, in [0, 1].
      loops: the first node feeds back into the second, in [0, 1].
      outputs: the node is heard itself, in [0, 1].
    """

    edges: Float[Any, "*batch nodes nodes"]
    loops: Float[Any, "*batch nodes nodes"]
    outputs: Float[Any, "*batch nodes"]


def space(
    name: str,
    parameters: list[Parameter],
    *,
    missing: tuple[int, ...] = (),
    routing: Routing | None = None,
) -> "ParameterSpace":
    """Numbers a table of parameters and freezes it.

    Args:
      name: the synthesizer's name.
      parameters: the parameters in the plug-in's order.
      missing: plug-in indices the table leaves out.
      routing: how modules feed each other, where presets tell.

    Returns:
      The space, each parameter with its plug-in index.
    """
    indices = (i for i in range(len(parameters) + len(missing)))
    kept = (i for i in indices if i not in missing)
    return ParameterSpace(
        name,
        tuple(
            dataclasses.replace(p, index=i)
            for i, p in zip(kept, parameters, strict=True)
        ),
        routing,
    )


def check_sampling(at_default: float, at_end: float) -> None:
    """Checks the two probabilities of `ParameterSpace.from_uniform`.

    Raises:
      ValueError: when one is negative, or they are 1 and more together.
    """
    # In this form, what is not a number is refused.
    if not (at_default >= 0 and at_end >= 0 and at_default + at_end < 1):
        raise ValueError(
            f"sampling: at_default is {at_default} and at_end is {at_end}; "
            "need probabilities that are less than 1 together"
        )


def _index(chosen: list[bool]) -> np.ndarray:
    # 32 bits with and without jax_enable_x64: one trace serves both.
    return np.flatnonzero(chosen).astype(np.int32)


def _namespace(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class ParameterSpace:
    """The parameters of one synthesizer; hashable, static under `jit`.

    Attributes:
      name: the synthesizer's name, e.g. "dexed".
      parameters: every automatable parameter, in the plug-in's order.
      routing: how modules feed each other, None where presets do not tell.
    """

    name: str
    parameters: tuple[Parameter, ...]
    routing: Routing | None = None

    def __post_init__(self) -> None:
        """Checks the table.

        Raises:
          ValueError: when two parameters share a name, or the routing does
            not fit them.
        """
        names = [p.name for p in self.parameters]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(
                f"space {self.name!r}: duplicate parameter names {twice}; "
                "qualify them by module"
            )
        if self.routing is not None:
            self._check_routing(self.routing)

    def _check_routing(self, routing: Routing) -> None:
        chooser = self.used[self.index(routing.parameter)]
        self.index(routing.feedback)
        count = len(chooser.values or ())
        tables = (routing.edges, routing.loops, routing.outputs)
        if any(len(table) != count for table in tables):
            raise ValueError(
                f"space {self.name!r}: the routing needs one entry for each "
                f"of the {count} categories of {routing.parameter!r}"
            )
        alike = [{self.module_names[m] for m in some} for some in self.layouts]
        if not any(set(routing.modules) <= names for names in alike):
            raise ValueError(
                f"space {self.name!r}: the routing's nodes "
                f"{list(routing.modules)} must be modules of one layout; "
                f"those that are alike: {[sorted(a) for a in alike]}"
            )

    def __hash__(self) -> int:
        """Cheap: `jit` hashes its static arguments on every call."""
        return hash((self.name, len(self.parameters)))

    # Static index tables ---------------------------------------------------

    @functools.cached_property
    def used(self) -> tuple[Parameter, ...]:
        """The varied parameters, in table order."""
        return tuple(p for p in self.parameters if p.used)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the used parameters, in table order."""
        return tuple(p.name for p in self.used)

    @property
    def num_parameters(self) -> int:
        """Size of the whole table, used or not."""
        return len(self.parameters)

    @property
    def num_used(self) -> int:
        """Size of a preset."""
        return len(self.used)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """Positions of the used parameters in the whole table."""
        return _index([p.used for p in self.parameters])

    def _columns(self, *kinds: Kind) -> np.ndarray:
        return _index([p.kind in kinds for p in self.used])

    @functools.cached_property
    def numerical(self) -> np.ndarray:
        """Columns of a preset that are numerical."""
        return self._columns("numerical")

    @functools.cached_property
    def binary(self) -> np.ndarray:
        """Columns of a preset that are binary."""
        return self._columns("binary")

    @functools.cached_property
    def noncategorical(self) -> np.ndarray:
        """Columns of a preset that are numerical or binary."""
        return self._columns("numerical", "binary")

    @functools.cached_property
    def categorical(self) -> np.ndarray:
        """Columns of a preset that are categorical."""
        return self._columns("categorical")

    @functools.cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of allowed categories of each categorical parameter."""
        return tuple(len(self.used[c].values or ()) for c in self.categorical)

    @property
    def width(self) -> int:
        """Size of a relaxed preset."""
        return len(self.noncategorical) + sum(self.cardinalities)

    @functools.cached_property
    def category_offsets(self) -> np.ndarray:
        """First position, in a relaxed preset, of each categorical block."""
        starts = np.cumsum((0, *self.cardinalities))[:-1]
        return len(self.noncategorical) + starts.astype(np.int32)

    @functools.cached_property
    def slot_column(self) -> np.ndarray:
        """For each category slot of a relaxed preset, its preset column."""
        return np.repeat(self.categorical, self.cardinalities)

    @functools.cached_property
    def slot_category(self) -> np.ndarray:
        """For each category slot of a relaxed preset, its category index."""
        return np.concatenate(
            [np.arange(0), *(np.arange(c) for c in self.cardinalities)]
        ).astype(np.int32)

    @functools.cached_property
    def slot_value(self) -> np.ndarray:
        """For each category slot of a relaxed preset, its raw value."""
        return np.concatenate(
            [
                np.zeros(0),
                *(self.used[c].values or () for c in self.categorical),
            ]
        )

    @functools.cached_property
    def relaxed_from_logit(self) -> np.ndarray:
        """`[width]`: for each relaxed position, the logit that feeds it.

        An estimator's logits follow the used parameters in table order, a
        categorical one taking as many places as it has categories.
        """
        sizes = np.array(
            [
                len(p.values or ()) if p.kind == "categorical" else 1
                for p in self.used
            ]
        )
        starts = np.cumsum(sizes) - sizes
        return np.concatenate(
            [
                starts[self.noncategorical],
                starts[self.slot_column] + self.slot_category,
            ]
        ).astype(np.int32)

    @functools.cached_property
    def category_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions, in a relaxed preset, of each categorical block.

        Returns:
          `slots [categorical, choices]`, padded with a block's first position
          to the widest block, and `real [categorical, choices]`, which of
          them are not padding.
        """
        choices = np.arange(max(self.cardinalities, default=1), dtype=np.int32)
        real = choices < np.array(self.cardinalities, int)[:, None]
        first = self.category_offsets[:, None]
        return np.where(real, first + choices, first), real

    @functools.cached_property
    def _discrete(self) -> np.ndarray:
        """Columns with a list of values."""
        return _index([p.values is not None for p in self.used])

    def _padded(self, rows: list[Any], fill: float) -> np.ndarray:
        widest = max((len(r) for r in rows), default=0)
        table = np.full((len(rows), widest), fill)
        for row, out in zip(rows, table, strict=True):
            out[: len(row)] = row
        return table

    @functools.cached_property
    def _choices(self) -> np.ndarray:
        """What a discrete column holds: raw values, or category indices."""
        rows = []
        for column in self._discrete:
            p = self.used[column]
            values = p.values or ()
            index = p.kind == "categorical"
            rows.append(range(len(values)) if index else values)
        # Infinity is never the nearest choice.
        return self._padded(rows, np.inf)

    @functools.cached_property
    def _cumulative(self) -> np.ndarray:
        """Upper edge of each choice in the unit interval, the last left out."""
        rows = []
        for column in self._discrete:
            p = self.used[column]
            weights = np.array(p.weights or [1.0] * len(p.values or ()))
            rows.append(np.cumsum(weights / weights.sum())[:-1])
        return self._padded(rows, np.inf)

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of every preset column."""
        low, high = np.zeros(self.num_used), np.ones(self.num_used)
        for i, p in enumerate(self.used):
            if p.interval is not None:
                low[i], high[i] = p.interval
            elif p.kind == "categorical":
                high[i] = len(p.values or ()) - 1
            else:
                low[i], high[i] = (p.values or (0,))[0], (p.values or (1,))[-1]
        return low, high

    @functools.cached_property
    def defaults(self) -> np.ndarray:
        """The preset nearest to the table's defaults."""
        return self.from_plugin(np.array([p.default for p in self.parameters]))

    def index(self, name: str) -> int:
        """Column of a used parameter in a preset.

        Raises:
          ValueError: when no used parameter has this name; lists near ones.
        """
        try:
            return self.names.index(name)
        except ValueError:
            kind = f"used parameter of {self.name}"
            raise ValueError(unknown(kind, name, self.names)) from None

    # Modules ---------------------------------------------------------------

    @functools.cached_property
    def _module_of(self) -> tuple[tuple[str, ...], np.ndarray]:
        words = [re.match(r"[a-z]*_?\d*", p.name.lower()) for p in self.used]
        found = [word.group().rstrip("_") if word else "" for word in words]
        names, module = np.unique(np.array(found, str), return_inverse=True)
        return tuple(map(str, names)), module.astype(np.int32)

    @property
    def module_names(self) -> tuple[str, ...]:
        """Names of the modules, sorted."""
        return self._module_of[0]

    @property
    def modules(self) -> np.ndarray:
        """`[parameters]`: the number of each used parameter's module.

        Which parameters belong together, one operator's or one envelope's,
        is told by their names, of which the first word counts with the number
        that follows it: "op1_eg_rate_1", "env1:attack", "osc_1_tune".
        """
        return self._module_of[1]

    @functools.cached_property
    def module_columns(self) -> tuple[np.ndarray, ...]:
        """Columns of a preset that each module consists of, in table order."""
        numbers = range(len(self.module_names))
        return tuple(_index((self.modules == m).tolist()) for m in numbers)

    @functools.cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Columns of what a person may want to keep of a preset, by name.

        A module, or a module's envelope and the rest of it by themselves; a
        module of one parameter has that one's name.
        """
        found: dict[str, np.ndarray] = {}
        for module, columns in zip(
            self.module_names, self.module_columns, strict=True
        ):
            names = [self.used[column].name for column in columns]
            timed = [bool(_ENVELOPE.search(name.lower())) for name in names]
            if len(columns) == 1:
                found[names[0]] = columns
            elif all(timed) or sum(timed) < 2:
                found[module] = columns
            else:
                found[f"{module} envelope"] = columns[timed]
                found[f"{module} tone"] = columns[np.logical_not(timed)]
        return found

    def mask(self, parts: Iterable[str]) -> np.ndarray:
        """`[parameters]`: True for the parameters of some of the `parts`.

        Raises:
          ValueError: for a name that is none of them; lists near ones.
        """
        chosen = np.zeros(self.num_used, bool)
        for name in parts:
            if name not in self.parts:
                known = list(self.parts)
                raise ValueError(unknown(f"part of {self.name}", name, known))
            chosen[self.parts[name]] = True
        return chosen

    @functools.cached_property
    def layouts(self) -> tuple[tuple[int, ...], ...]:
        """Modules that are alike, together: same parameters, same values.

        Ordered by their first module; most modules are alone.
        """

        def layout(module: int) -> tuple[Any, ...]:
            prefix = len(self.module_names[module])
            members = [self.used[c] for c in self.module_columns[module]]
            return tuple(
                (p.name[prefix:], p.kind, p.interval, p.values) for p in members
            )

        alike: dict[tuple[Any, ...], list[int]] = {}
        for module in range(len(self.module_names)):
            alike.setdefault(layout(module), []).append(module)
        return tuple(map(tuple, alike.values()))

    @functools.cached_property
    def nodes(self) -> tuple[int, ...]:
        """The modules that are nodes of the routing, none without one."""
        names = () if self.routing is None else self.routing.modules
        return tuple(self.module_names.index(name) for name in names)

    @functools.cached_property
    def node_columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Which node a column belongs to, and its counterparts in the others.

        Returns:
          `[parameters]`, the node, -1 for none; `[nodes, parameters]`, the
          column in a column's place in another node, itself for none.
        """
        node = np.full(self.num_used, -1, np.int32)
        columns = [self.module_columns[module] for module in self.nodes]
        own = np.arange(self.num_used, dtype=np.int32)
        counterparts = np.tile(own, (len(columns), 1))
        for number, mine in enumerate(columns):
            node[mine] = number
            for other, theirs in enumerate(columns):
                counterparts[other, mine] = theirs
        return node, counterparts

    def graph(self, relaxed: Float[Any, "*batch width"]) -> Graph:
        """The routing of relaxed presets, expected over its categories.

        Args:
          relaxed: relaxed presets.

        Returns:
          The graph, linear in the probabilities of the categories.

        Raises:
          ValueError: when the space has no routing, or the last axis is not
            `width`.
        """
        self._check(relaxed, self.width, "a relaxed preset")
        if self.routing is None:
            raise ValueError(f"{self.name} has no routing")
        xp = _namespace(relaxed)
        column = self.index(self.routing.parameter)
        slots = np.flatnonzero(self.slot_column == column)
        weights = relaxed[..., slots + len(self.noncategorical)]

        def expected(table):
            flat = xp.asarray(table.reshape(len(table), -1), relaxed.dtype)
            return (weights @ flat).reshape(
                *weights.shape[:-1], *table[0].shape
            )

        return Graph(
            expected(self.routing.edge_table),
            expected(self.routing.loop_table),
            expected(self.routing.output_table),
        )

    def _check(self, x: Any, size: int, what: str) -> None:
        if x.ndim < 1 or x.shape[-1] != size:
            raise ValueError(
                f"{what} of {self.name} has {size} values on its last axis, "
                f"got an array of shape {tuple(x.shape)}"
            )

    # Sampling --------------------------------------------------------------

    def from_uniform(
        self,
        u: Float[Any, "*batch parameters"],
        *,
        at_default: float = 0.0,
        at_end: float = 0.0,
    ) -> Float[Any, "*batch parameters"]:
        """Maps uniform numbers to presets by inverse distribution functions.

        Continuous parameters are uniform in their interval, discrete ones
        follow their weights (the paper's synthetic presets, section 2.1).

        People leave much of a preset as they found it and turn knobs all the
        way. `at_default` and `at_end` give a share of the probability of every
        numerical parameter to its default and, half each, to its two ends;
        the rest keeps its shape. Both are 0 in the paper, whose synthetic
        presets rarely come near those made by hand.

        Args:
          u: uniform in [0, 1).
          at_default: probability of the default, or of the allowed value
            nearest to it.
          at_end: probability of the lowest and the highest value together.

        Returns:
          Presets, independent across columns.

        Raises:
          ValueError: when the last axis is not `num_used`, a probability is
            negative, or the two are 1 and more together.
        """
        check_sampling(at_default, at_end)
        if not at_default + at_end:
            return self._from_uniform(u)
        self._check(u, self.num_used, "a block of uniforms")
        xp = _namespace(u)
        columns = self.numerical
        part = u[..., columns]
        taken = at_default + at_end
        rest = xp.clip((part - taken) / (1 - taken), 0, 1 - 2**-20)
        presets = self._from_uniform(self._put(u, columns, rest))
        low, high = (xp.asarray(b[columns], u.dtype) for b in self.bounds)
        default = xp.asarray(self.defaults[columns], u.dtype)
        values = xp.where(part < taken, high, presets[..., columns])
        values = xp.where(part < at_default + at_end / 2, low, values)
        values = xp.where(part < at_default, default, values)
        return self._put(presets, columns, values)

    def _from_uniform(self, u: Any) -> Any:
        self._check(u, self.num_used, "a block of uniforms")
        xp = _namespace(u)
        low, high = (xp.asarray(b, u.dtype) for b in self.bounds)
        presets = low + u * (high - low)
        choice = (
            u[..., self._discrete, None]
            >= xp.asarray(self._cumulative, u.dtype)
        ).sum(-1)
        rows = np.arange(len(self._discrete), dtype=np.int32)
        drawn = xp.asarray(self._choices, u.dtype)[rows, choice]
        return self._put(presets, self._discrete, drawn)

    def sample(
        self,
        key: Key[Array, ""],
        shape: tuple[int, ...] = (),
    ) -> Float[Array, "*batch parameters"]:
        """Draws random presets, as the paper does.

        Args:
          key: JAX random key.
          shape: batch shape.

        Returns:
          float32 presets, `[*shape, num_used]`.
        """
        return self.from_uniform(
            jax.random.uniform(key, (*shape, self.num_used))
        )

    # Encodings -------------------------------------------------------------

    def _put(self, x: Any, columns: np.ndarray, values: Any) -> Any:
        if isinstance(x, jax.Array):
            return x.at[..., columns].set(values)
        x = np.array(x)
        x[..., columns] = values
        return x

    def snap(
        self, preset: Float[Any, "*batch parameters"]
    ) -> Float[Any, "*batch parameters"]:
        """Moves every value to the nearest one allowed.

        Args:
          preset: any real values; a category index may be fractional.

        Returns:
          Presets with continuous values clipped to their interval and
          discrete ones on their grid.

        Raises:
          ValueError: when the last axis is not `num_used`.
        """
        self._check(preset, self.num_used, "a preset")
        xp = _namespace(preset)
        low, high = (xp.asarray(b, preset.dtype) for b in self.bounds)
        clipped = xp.clip(preset, low, high)
        choices = xp.asarray(self._choices, preset.dtype)
        nearest = xp.argmin(
            xp.abs(clipped[..., self._discrete, None] - choices), axis=-1
        )
        rows = np.arange(len(self._discrete), dtype=np.int32)
        return self._put(clipped, self._discrete, choices[rows, nearest])

    def to_relaxed(
        self, preset: Float[Any, "*batch parameters"]
    ) -> Float[Any, "*batch width"]:
        """Encodes presets exactly: values as they are, categories one-hot.

        Raises:
          ValueError: when the last axis is not `num_used`.
        """
        self._check(preset, self.num_used, "a preset")
        xp = _namespace(preset)
        one_hot = preset[..., self.slot_column] == xp.asarray(
            self.slot_category, preset.dtype
        )
        return xp.concatenate(
            [preset[..., self.noncategorical], one_hot.astype(preset.dtype)],
            axis=-1,
        )

    def from_relaxed(
        self, relaxed: Float[Any, "*batch width"]
    ) -> Float[Any, "*batch parameters"]:
        """Decodes relaxed presets: most probable category, switch over 1/2.

        Numerical values pass unchanged; `snap` puts them on their grid.

        Raises:
          ValueError: when the last axis is not `width`.
        """
        self._check(relaxed, self.width, "a relaxed preset")
        xp = _namespace(relaxed)
        split = len(self.noncategorical)
        preset = xp.zeros((*relaxed.shape[:-1], self.num_used), relaxed.dtype)
        preset = self._put(preset, self.noncategorical, relaxed[..., :split])
        switches = (preset[..., self.binary] >= 0.5).astype(relaxed.dtype)
        preset = self._put(preset, self.binary, switches)
        slots, real = self.category_blocks
        blocks = xp.where(real, relaxed[..., slots], -xp.inf)
        best = xp.argmax(blocks, axis=-1).astype(relaxed.dtype)
        return self._put(preset, self.categorical, best)

    def to_plugin(
        self, preset: Float[Any, "*batch parameters"]
    ) -> Float[Any, "*batch all_parameters"]:
        """Raw values in [0, 1] of every parameter, unused ones at default.

        Raises:
          ValueError: when the last axis is not `num_used`.
        """
        self._check(preset, self.num_used, "a preset")
        xp = _namespace(preset)
        split = len(self.noncategorical)
        defaults = np.array([p.default for p in self.parameters])
        values = xp.broadcast_to(
            xp.asarray(defaults, preset.dtype),
            (*preset.shape[:-1], self.num_parameters),
        )
        values = self._put(values, self.positions, preset)
        if len(self.categorical) == 0:
            return values
        slots, _ = self.category_blocks
        table = xp.asarray(self.slot_value, preset.dtype)[slots - split]
        category = preset[..., self.categorical].astype(np.int32)
        raw = table[np.arange(len(self.categorical)), category]
        return self._put(values, self.positions[self.categorical], raw)

    def from_plugin(
        self, values: Float[Any, "*batch all_parameters"]
    ) -> Float[Any, "*batch parameters"]:
        """The nearest preset to a set of raw plug-in values.

        Continuous values are clipped to their interval, discrete ones go to
        the nearest grid value or allowed category; unused ones are ignored.

        Args:
          values: raw values in [0, 1] of every parameter of the table.

        Returns:
          Presets; `from_plugin(to_plugin(x))` is exactly `x`.

        Raises:
          ValueError: when the last axis is not `num_parameters`.
        """
        self._check(values, self.num_parameters, "a set of plug-in values")
        xp = _namespace(values)
        preset = values[..., self.positions]
        if len(self.categorical):
            split = len(self.noncategorical)
            slots, real = self.category_blocks
            table = np.where(real, self.slot_value[slots - split], np.inf)
            raw = preset[..., self.categorical, None]
            nearest = xp.argmin(
                xp.abs(raw - xp.asarray(table, values.dtype)), axis=-1
            ).astype(values.dtype)
            preset = self._put(preset, self.categorical, nearest)
        return self.snap(preset)
