"""What a data set is made from, and how two of them are told apart."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from datasets import engines
from datasets.files import ShardError
from proxy.space import check_sampling

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Everything that the content of a data set depends on.

    Attributes:
      name: name of the data set, in its file names: lower case, digits, `_`.
      synth: name of the synthesizer.
      synth_version: version of the engine that renders it.
      space: digest of its `ParameterSpace`, see `space_digest`.
      parameters: size of a preset.
      audio_model: name of the audio model.
      audio_weights: published weights of the audio model, "" for none.
      embedding: size of its embedding.
      settings: how presets are rendered.
      seed: seed of the synthetic presets, in [0, 2^63).
      splits: (name, number of rows) of every split.
      shard_size: rows of a shard; the last one of a split may have fewer.
      embed_batch: rows embedded at once. It belongs to the content, because
        the last bits of a matrix product depend on its shape.
      keep_audio: whether the sound is kept beside the embedding.
      source: "synthetic" (sampled) or "handcrafted" (given).
      presets: digest of the given presets, "" for sampled ones.
      format: version of this layout.
      weights_sha256: of the audio model's weights; "" for a model without
        weights.
      at_default: of `proxy.priors.Uniform`, the probability of a default; 0
        in the paper, for another prior and for given presets.
      at_end: of `proxy.priors.Uniform`, the probability of an interval's end;
        0 in the paper, for another prior and for given presets.
      prior: digest of what presets are drawn from, see `proxy.priors.digest`;
        "" for `proxy.priors.Uniform` and for given presets.
    """

    name: str
    synth: str
    synth_version: str
    space: str
    parameters: int
    audio_model: str
    audio_weights: str
    embedding: int
    settings: engines.RenderSettings
    seed: int
    splits: tuple[tuple[str, int], ...]
    shard_size: int
    embed_batch: int
    keep_audio: bool = False
    source: Literal["synthetic", "handcrafted"] = "synthetic"
    presets: str = ""
    format: int = FORMAT
    weights_sha256: str = ""
    at_default: float = 0.0
    at_end: float = 0.0
    prior: str = ""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: naming the field and what it may be.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"data set name {self.name!r}: use lower-case letters, "
                "digits and underscores, a letter first"
            )
        if not self.splits:
            raise ValueError(f"data set {self.name}: it has no split")
        for split, rows in self.splits:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", split):
                raise ValueError(
                    f"split name {split!r}: use lower-case letters, digits "
                    "and underscores, a letter first"
                )
            if rows < 1:
                raise ValueError(f"split {split!r} has {rows} rows, need >= 1")
        for field in ("shard_size", "embed_batch"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)}, need >= 1"
                )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, need 0 <= seed < 2^63")
        check_sampling(self.at_default, self.at_end)

    @property
    def samples(self) -> int:
        """Length of a sound, in samples."""
        return self.settings.samples

    def rows(self, split: str) -> int:
        """Number of rows of a split.

        Raises:
          ValueError: when there is no such split; lists those there are.
        """
        sizes = dict(self.splits)
        if split not in sizes:
            raise ValueError(
                f"data set {self.name} has no split {split!r}, only "
                + ", ".join(sizes)
            )
        return sizes[split]

    @property
    def shards(self) -> list[tuple[str, int]]:
        """(split, number in that split) of every shard, split by split."""
        return [
            (split, number)
            for split, _ in self.splits
            for number in range(self.num_shards(split))
        ]

    def num_shards(self, split: str) -> int:
        """Number of shards of a split."""
        return -(-self.rows(split) // self.shard_size)

    def shard_rows(self, split: str, shard: int) -> range:
        """Row numbers, in their split, of a shard's records."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.rows(split)))

    def filename(self, split: str, shard: int) -> str:
        """File name of a shard."""
        return (
            f"{self.name}-{split}.array_record-{shard:05d}-of-"
            f"{self.num_shards(split):05d}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        spec = dataclasses.asdict(self)
        spec["splits"] = dict(self.splits)
        # Left out where they say nothing: digests of specs stay the same.
        for field in ("weights_sha256", "at_default", "at_end", "prior"):
            if not spec[field]:
                del spec[field]
        return spec

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "DataSpec":
        """The spec that `to_dict` described.

        Raises:
          ShardError: when it is not one, e.g. of a later format.
        """
        try:
            if spec["format"] != FORMAT:
                raise ValueError(f"format {spec['format']}, not {FORMAT}")
            fields = dict(spec)
            fields["settings"] = engines.RenderSettings.from_dict(
                spec["settings"]
            )
            fields["splits"] = tuple(spec["splits"].items())
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ShardError(
                f"the data set's metadata cannot be read ({error}); it was "
                "made by another version of this project"
            ) from error

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that two different specs do not share."""
        text = json.dumps(self.to_dict())
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def space_digest(space: Any) -> str:
    """Digest of a `ParameterSpace`: changes when any parameter does."""
    return hashlib.sha256(repr(space).encode()).hexdigest()[:12]


def presets_digest(
    presets: Float[np.ndarray, "rows parameters"], names: Sequence[str]
) -> str:
    """Digest of given presets and their names, order included."""
    digest = hashlib.sha256(np.ascontiguousarray(presets, "<f4").tobytes())
    digest.update("\0".join(names).encode())
    return digest.hexdigest()[:12]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves = {}
    for key, value in tree.items():
        leaves.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return leaves


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
    """Lists `field: wanted A, found B` for every field that differs.

    Fields may be nested, as in what `DataSpec.to_dict` gives.

    Returns:
      One line per difference, in the order of `wanted`; [] when equal.
    """
    a, b = _flatten(wanted), _flatten(found)
    missing = "nothing"
    return [
        f"{key}: wanted {a.get(key, missing)}, found {b.get(key, missing)}"
        for key in dict.fromkeys([*a, *b])
        if a.get(key, missing) != b.get(key, missing)
    ]
