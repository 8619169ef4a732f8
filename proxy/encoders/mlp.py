"""Dense preset encoders: plain, residual and highway networks.

All follow the paper's: layers before a batch normalisation have no bias,
ReLU throughout, a linear head. Weights before a ReLU start as Kaiming normal.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from proxy.encoders import inputs
from proxy.encoders.norm import BatchNorm
from proxy.space import ParameterSpace

# Plain normals, as in PyTorch; JAX's he_normal and its kin are truncated.
KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
LECUN = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


class DenseBlock(nn.Module):
    """Linear without bias, batch normalisation, ReLU.

    Attributes:
      features: output size.
      activate: whether to apply the ReLU.
      axis_name: mapped axis that batch statistics are shared over.
      dtype: compute type, that of weights and input when None.
    """

    features: int
    activate: bool = True
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch hidden"]:
        """Applies the block."""
        x = nn.Dense(
            self.features,
            use_bias=False,
            kernel_init=KAIMING,
            dtype=self.dtype,
            name="dense",
        )(x)
        x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train)
        return nn.relu(x) if self.activate else x

    def dense(
        self,
        x: Float[Array, "batch features"],
        name: str,
        *,
        train: bool,
        activate: bool = True,
    ) -> Float[Array, "batch hidden"]:
        """Applies a dense block of this block's size, a part of it."""
        return DenseBlock(
            self.features, activate, self.axis_name, self.dtype, name=name
        )(x, train=train)


class MLPBlock(DenseBlock):
    """Two dense blocks of the same size; attributes as in `DenseBlock`."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch hidden"]:
        """Applies the block."""
        x = self.dense(x, "layer_0", train=train)
        return self.dense(x, "layer_1", train=train)


class ResidualBlock(DenseBlock):
    """ReLU(x + two dense blocks), the second one without its ReLU.

    Where input and output sizes differ nothing is added. Attributes as in
    `DenseBlock`. (He et al., https://arxiv.org/abs/1512.03385.)
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch hidden"]:
        """Applies the block."""
        y = self.dense(x, "layer_0", train=train)
        y = self.dense(y, "layer_1", train=train, activate=False)
        return nn.relu(x + y if x.shape == y.shape else y)


class HighwayBlock(DenseBlock):
    """fc(x)·gate(x) + x·(1 - gate(x)), the gate a sigmoid of a linear layer.

    Where input and output sizes differ the block is fc(x), without a gate.
    Gates start almost closed, at bias -1. Attributes as in `DenseBlock`.
    (Srivastava et al., https://arxiv.org/abs/1505.00387.)
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch hidden"]:
        """Applies the block."""
        y = self.dense(x, "fc", train=train)
        if x.shape[-1] != self.features:
            return y
        gate = nn.sigmoid(
            nn.Dense(
                self.features,
                kernel_init=XAVIER,
                bias_init=nn.initializers.constant(-1.0),
                dtype=self.dtype,
                name="gate",
            )(x)
        )
        return x + gate * (y - x)


class TokenBlock(nn.Module):
    """First dense block of `hn_pt`, on the flattened tokens of a preset.

    Tokens are linear in the relaxed preset and so is the layer behind them:
    their product, one row for each slot of the relaxed preset, is all that
    meets the batch. Flattened tokens (6,400 of them on Dexed) are never
    made, and the layer costs as little as on a one-hot input.

    Attributes:
      space: the parameter space.
      features: output size.
      axis_name: mapped axis that batch statistics are shared over.
      dtype: compute type, that of weights and input when None.
    """

    space: ParameterSpace
    features: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        relaxed: Float[Array, "batch width"],
        table: Float[Array, "width features"],
        *,
        train: bool,
    ) -> Float[Array, "batch hidden"]:
        """Applies the block to relaxed presets and their token table."""
        token = table.shape[-1]
        rows = token * self.space.num_used
        kernel = FlatKernel(rows, self.features, name="dense")()
        x = inputs.folded(
            relaxed,
            table,
            kernel.reshape(-1, token, self.features),
            self.space,
            self.dtype,
        )
        x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train)
        return nn.relu(x)


class FlatKernel(nn.Module):
    """The kernel of a dense layer without bias, by itself."""

    rows: int
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "rows features"]:
        """Returns the kernel."""
        return self.param("kernel", KAIMING, (self.rows, self.features))


def head(
    x: Float[Array, "batch features"],
    dimension: int,
    dtype: Any,
    **init: Any,
) -> Float[Array, "batch embedding"]:
    """Linear output layer; call inside a compact method.

    Args:
      x: the last hidden layer.
      dimension: size of the embedding.
      dtype: compute type.
      **init: initial distributions of `nn.Dense`, where not the paper's
        dense networks'.

    Returns:
      The embedding, in float32 at least, whatever the compute type.
    """
    init = {"kernel_init": LECUN, **init}
    x = nn.Dense(dimension, dtype=dtype, name="head", **init)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Encoder(nn.Module):
    """What all preset encoders have in common.

    Attributes:
      space: the parameter space.
      dimension: size of the embedding.
      axis_name: mapped axis that batch statistics are shared over, by the
        encoders that have any.
      dtype: compute type, that of weights and input when None.
    """

    space: ParameterSpace
    dimension: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, relaxed: Float[Array, "batch width"], *, train: bool = False
    ) -> Float[Array, "batch embedding"]:
        """Embeds relaxed presets.

        Args:
          relaxed: presets as `space.to_relaxed` encodes them.
          train: whether to use and record the statistics of this batch;
            changes nothing in an encoder without batch normalisation.

        Returns:
          Predicted audio embeddings.

        Raises:
          ValueError: when the last axis is not the space's width, or the
            sizes do not fit together.
        """
        inputs.check(relaxed, self.space)
        return self.embed(relaxed, train)

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """The network, called inside the compact `__call__`."""
        raise NotImplementedError


class MLP(Encoder):
    """`mlp_oh`: blocks of two dense layers on the one-hot preset.

    Attributes:
      hidden: size of every hidden layer.
      blocks: number of blocks.
    """

    hidden: int = 2048
    blocks: int = 1

    block = MLPBlock

    def view(
        self, relaxed: Float[Array, "batch width"]
    ) -> Float[Array, "batch features"]:
        """What the blocks see of a preset."""
        return relaxed

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """The blocks, one after the other, and the head."""
        x = self.view(relaxed)
        for i in range(self.blocks):
            x = self.block(
                self.hidden,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x, train=train)
        return head(x, self.dimension, self.dtype)


class RawMLP(MLP):
    """`mlp_raw`: as `MLP`, a category being its plug-in value."""

    def view(
        self, relaxed: Float[Array, "batch width"]
    ) -> Float[Array, "batch parameters"]:
        """Plug-in values of the used parameters, in table order."""
        return inputs.raw_values(relaxed, self.space)


class Residual(MLP):
    """`rn_oh`: residual blocks on the one-hot preset; otherwise as `MLP`."""

    hidden: int = 256
    blocks: int = 4

    block = ResidualBlock


class Highway(MLP):
    """`hn_oh`: highway blocks on the one-hot preset; otherwise as `MLP`."""

    hidden: int = 768
    blocks: int = 6

    block = HighwayBlock


class TokenHighway(MLP):
    """`hn_pt`: highway blocks on the flattened tokens, without positions.

    Otherwise as `MLP`.

    Attributes:
      token: size of a token.
    """

    hidden: int = 512
    blocks: int = 6
    token: int = 64

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """A token block, then highway blocks, and the head.

        Raises:
          ValueError: when the flattened tokens are as wide as the hidden
            layers, where the paper's network would have one more gate.
        """
        if self.token * self.space.num_used == self.hidden:
            raise ValueError(
                f"hn_pt: {self.space.num_used} tokens of {self.token} are as "
                f"wide as hidden={self.hidden}; choose another width"
            )
        table = inputs.TokenTable(self.space, self.token, name="tokens")()
        shared = {"axis_name": self.axis_name, "dtype": self.dtype}
        x = TokenBlock(self.space, self.hidden, **shared, name="blocks_0")(
            relaxed, table, train=train
        )
        for i in range(1, self.blocks):
            x = HighwayBlock(self.hidden, **shared, name=f"blocks_{i}")(
                x, train=train
            )
        return head(x, self.dimension, self.dtype)
