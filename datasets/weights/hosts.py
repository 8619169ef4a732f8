"""Audio models that run in PyTorch, in libraries that the user installs.

They are for comparison: an audio model has to run only once, to make a data
set, and a proxy of it is then trained and used like any other. No gradient
comes through them; `AudioModel.differentiable` says so.

* `clap` (transformers): the projected, normalised embedding of the clip,
  which is a mean over time already;
* `dac` (transformers): the mean over time of the quantised latents `z`, 1,024
  channels at 86 Hz; `dac_latents`: of the projected latents of the 9
  codebooks, 8 channels each;
* `m2l` (music2latent): the mean over time of the latents, 64 channels at
  11 Hz; `m2l_features`: of the encoder's features before its bottleneck.

transformers comes with the extra `torch-models`. music2latent is under CC
BY-NC 4.0, so it is installed by hand. Both download their weights themselves,
transformers those of one revision; where there is no network, `path` names a
folder with them.
"""

import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from proxy import audio

# Commits of the models on the Hugging Face hub.
_REVISIONS = {
    "laion/larger_clap_music": "a0b4534a14f58e20944452dff00a22a06ce629d1",
    "descript/dac_44khz": "c1bc521685adf9cfe247bc39a5ca58917eda1ac4",
}
# Clips that go through a model together.
_BLOCK = 16

Embed = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
      embed: `[batch, samples]` sounds, float32 at the model's rate, to
        embeddings `[batch, embedding]`, float32.
      sha256: digest of its weights, names included.
    """

    embed: Embed
    sha256: str


@functools.lru_cache(maxsize=1)
def load(name: str, path: str | None = None) -> Loaded:
    """Loads a model; the last one stays in memory.

    Args:
      name: name of a model of `proxy.audio` outside JAX.
      path: the weights: for models of transformers, a folder or another name
        of the same kind on the Hugging Face hub, of which the newest revision
        is taken; for music2latent, a file.

    Returns:
      The model, on an accelerator when PyTorch sees one.

    Raises:
      ValueError: for a model that runs in JAX, or weights that make
        embeddings of another size.
      ImportError: when its library is not installed; says how to.
      FileNotFoundError: when its weights cannot be had.
    """
    model = audio.get(name)
    if model.host is None:
        raise ValueError(f"Audio model {name!r} runs in JAX, not in PyTorch.")
    library, torch = _library(model, model.host), _library(model, "torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = {"clap": _clap, "dac": _dac, "m2l": _m2l}[name.split("_")[0]]
    try:
        network, forward = make(library, torch, model, path, device)
    except OSError as error:
        raise FileNotFoundError(
            f"The weights of {name} ({path or model.weights}) cannot be "
            f"loaded ({error}). With a connection they are downloaded; "
            "without, give a folder that holds them."
        ) from error

    def embed(
        sounds: Float[np.ndarray, "batch samples"],
    ) -> Float[np.ndarray, "batch embedding"]:
        rows = []
        for start in range(0, len(sounds), _BLOCK):
            block = np.ascontiguousarray(sounds[start : start + _BLOCK])
            with torch.inference_mode():
                rows.append(forward(block.astype(np.float32)))
        embeddings = np.concatenate(rows)
        if embeddings.shape[1:] != (model.dimension,):
            raise ValueError(
                f"{path or model.weights} makes embeddings of shape "
                f"{embeddings.shape[1:]}, where {name} has {model.dimension} "
                "numbers: it is a model of another kind."
            )
        return embeddings

    return Loaded(embed, _digest(network))


def _library(model: audio.AudioModel, library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        remedy = (
            "pip install music2latent (CC BY-NC 4.0)"
            if library == "music2latent"
            else "pip install 'synth-proxy-jax[torch-models]'"
        )
        raise ImportError(
            f"Audio model {model.name!r} runs in {library}, which is not "
            f"installed: {remedy}"
        ) from error


def _revision(source: str | None) -> dict[str, str]:
    """The argument that pins a model of the hub, where its commit is known."""
    known = _REVISIONS.get(source or "")
    return {"revision": known} if known else {}


def _digest(network: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _clap(
    transformers: Any,
    torch: Any,
    model: audio.AudioModel,
    path: str | None,
    device: str,
) -> tuple[Any, Embed]:
    """LAION-CLAP: its own mean, of one pass over the repeated clip.

    Wu et al., "Large-Scale Contrastive Language-Audio Pretraining with
    Feature Fusion and Keyword-to-Caption Augmentation" (ICASSP 2023). Clips
    shorter than 10 s are repeated to fill them, as its feature extractor does.
    """
    source = path or model.weights
    pin = _revision(source)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(source, **pin)
    network = transformers.ClapModel.from_pretrained(source, **pin)
    network = network.eval().to(device)

    def forward(sounds: np.ndarray) -> np.ndarray:
        inputs = extractor(
            list(sounds), sampling_rate=model.sample_rate, return_tensors="pt"
        )
        output = network.get_audio_features(
            inputs["input_features"].to(device),
            is_longer=inputs["is_longer"].to(device),
        )
        # From transformers 5 on it comes with what it was computed from.
        return _numpy(getattr(output, "pooler_output", output))

    return network, forward


def _dac(
    transformers: Any,
    torch: Any,
    model: audio.AudioModel,
    path: str | None,
    device: str,
) -> tuple[Any, Embed]:
    """The Descript Audio Codec's encoder, averaged over time.

    Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN"
    (NeurIPS 2023). Clips are filled up with zeros to whole frames.
    """
    source = path or model.weights
    network = transformers.DacModel.from_pretrained(source, **_revision(source))
    network = network.eval().to(device)
    hop = int(np.prod(network.config.downsampling_ratios))

    def forward(sounds: np.ndarray) -> np.ndarray:
        sounds = np.pad(sounds, ((0, 0), (0, -sounds.shape[1] % hop)))
        coded = network.encode(torch.from_numpy(sounds)[:, None].to(device))
        frames = (
            coded.projected_latents
            if model.name.endswith("latents")
            else coded.quantized_representation
        )
        return _numpy(frames).mean(axis=-1)

    return network, forward


def _m2l(
    music2latent: Any,
    torch: Any,
    model: audio.AudioModel,
    path: str | None,
    device: str,
) -> tuple[Any, Embed]:
    """Music2Latent's encoder, averaged over time.

    Pasini, Lattner and Fazekas, "Music2Latent: Consistency Autoencoders for
    Latent Audio Compression" (ISMIR 2024).
    """
    coder = music2latent.EncoderDecoder(
        load_path_inference=path, device=torch.device(device)
    )

    def forward(sounds: np.ndarray) -> np.ndarray:
        # It takes a batch for the channels of one recording.
        frames = coder.encode(
            torch.from_numpy(sounds),
            extract_features=model.name.endswith("features"),
        )
        return _numpy(frames).mean(axis=-1)

    return coder.gen, forward
