"""Published weights of the audio models: download, verify, read, cache.

They are not part of this project: they are downloaded once, into
`$XDG_CACHE_HOME/synth-proxy-jax/weights` (or below `~/.cache`), in the
published format, and converted whenever they are loaded. Neither PyTorch nor
Keras is needed; OpenL3's take h5py.

What an address holds may be replaced by its publisher: AudioMAE's names a
commit, EfficientAT's and PaSST's a release, OpenL3's a branch of which no
commit is known here. So the checksum of the first download is recorded, and
later ones are held to it, see `download.fetch`; that of `mn04` is known.

* `mn01` to `mn40`: MIT, https://github.com/fschmid56/EfficientAT;
* `passt_s`, `passt_l`: Apache-2.0, https://github.com/kkoutini/PaSST;
* `openl3_*`: CC BY 4.0, https://github.com/marl/openl3, branch `models`;
* `audiomae`: CC BY 4.0, https://github.com/facebookresearch/AudioMAE, as
  ported to timm by gaunernst on huggingface.co, for which there is an address
  that programs can download from. The original's own files work as `path`.
"""

import dataclasses
import os
import pathlib
from typing import Any

from datasets import download, files
from datasets.weights import keras, pickles
from proxy import audio
from proxy.published import efficientat, openl3, vit

_RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
_PASST = "https://github.com/kkoutini/PaSST/releases/download/"
_OPENL3 = "https://github.com/marl/openl3/raw/models/"
_AUDIOMAE = (
    "https://huggingface.co/gaunernst/"
    "vit_base_patch16_1024_128.audiomae_as2m_ft_as20k/"
    "resolve/3058f72115c8cd670377b9c36d5774cabfdd7ac7/"
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
      file: name of the file in the cache.
      sha256: its checksum; None where we never had the file in hand. Then the
        checksum on first use is recorded beside it, and every later load is
        held against that.
      release: the start of its URL.
      remote: the rest of it, where that is not the name in the cache.
    """

    file: str
    sha256: str | None = None
    release: str = _RELEASE
    remote: str | None = None

    @property
    def url(self) -> str:
        """Where it is published."""
        return self.release + (self.remote or self.file)


PUBLISHED = {
    "mn01": Published("mn01_as_mAP_298.pt"),
    "mn02": Published("mn02_as_mAP_378.pt"),
    "mn04": Published(
        "mn04_as_mAP_432.pt",
        "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
    ),
    "mn05": Published("mn05_as_mAP_443.pt"),
    "mn10": Published("mn10_as_mAP_471.pt"),
    "mn20": Published("mn20_as_mAP_478.pt"),
    "mn30": Published("mn30_as_mAP_482.pt"),
    "mn40": Published("mn40_as_mAP_484.pt"),
    # With knowledge distillation, as the paper's PaSST-S and PaSST-L.
    "passt_s": Published("passt-s-kd-ap.486.pt", release=_PASST + "v.0.0.9/"),
    "passt_l": Published("passt-l-kd-ap.47.pt", release=_PASST + "v.0.0.10/"),
    "audiomae": Published(
        "audiomae-as2m-ft-as20k.bin",
        release=_AUDIOMAE,
        remote="pytorch_model.bin",
    ),
    **{
        f"openl3_{spectrum}_{content}": Published(
            f"openl3_audio_{spectrum}_{content}-v0_4_0.h5.gz", release=_OPENL3
        )
        for spectrum in audio.openl3.SPECTRA
        for content in audio.openl3.CONTENTS
    },
}


def load(
    name: str,
    cache_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Variables of an audio model from its published weights.

    Args:
      name: one of `PUBLISHED`, as in `AudioModel.weights`.
      cache_dir: where downloads are kept; None for `weights` in
        `download.cache_folder()`.
      path: a file to read instead of downloading.
      sha256: the checksum to expect instead of the known one: for weights of
        your own, or to pin a width whose checksum is not known here.

    Returns:
      `{"params": ...}`, and "batch_stats" where there are any, of float32
      NumPy arrays.

    Raises:
      ValueError: for an unknown name, a wrong checksum (nothing is deleted),
        a file that is not what it should be, or a cache folder that cannot
        be written to.
      FileNotFoundError: when `path` does not exist, or the file is not cached
        and cannot be downloaded; says where to get and to put it.
      ImportError: when reading it takes a library that is not installed.
    """
    file, _ = _fetch(name, cache_dir, path, sha256)
    try:
        return _variables(name, file)
    except ValueError as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: {error}") from error


def digest(
    name: str,
    cache_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    fetch: bool = False,
) -> str:
    """Which file `load` would read, told by its sha256.

    It is downloaded only if `fetch` says so.

    Returns:
      The checksum in hexadecimal; "" for a file that is not at hand and not
      fetched, and whose checksum is not known beforehand.

    Raises:
      As `load` does, except for what is in the file.
    """
    if fetch:
        return _fetch(name, cache_dir, path, None)[1]
    file = _place(name, cache_dir, path)
    if file.is_file():
        return files.sha256(file)
    return "" if path is not None else PUBLISHED[name].sha256 or ""


def _place(
    name: str,
    cache_dir: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """Where the file of that name is, or will be."""
    if name not in PUBLISHED:
        raise ValueError(
            f"No published weights are known as {name!r}: "
            f"use one of {', '.join(PUBLISHED)}."
        )
    if path is not None:
        return pathlib.Path(path)
    folder = pathlib.Path(cache_dir or download.cache_folder() / "weights")
    return folder / PUBLISHED[name].file


def _fetch(
    name: str,
    cache_dir: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
    sha256: str | None,
) -> tuple[pathlib.Path, str]:
    """The verified file and its checksum, downloaded if need be."""
    file = _place(name, cache_dir, path)
    url, expected = PUBLISHED[name].url, sha256 or PUBLISHED[name].sha256
    if path is None:
        return file, download.fetch(url, path=file, sha256=expected)
    if not file.is_file():
        raise FileNotFoundError(
            f"There are no weights at {file}: download {url}, "
            "or leave the path out."
        )
    if expected:
        return file, download.verify(file, expected)
    return file, files.sha256(file)


def _variables(name: str, file: pathlib.Path) -> dict[str, Any]:
    """Reads and converts a file."""
    if name.startswith("openl3"):
        return openl3.variables(keras.read(file))
    state = pickles.read(file)
    if name in audio.efficientat.WIDTHS:
        return efficientat.variables(state, audio.efficientat.WIDTHS[name])
    if name in audio.passt.DEPTHS:
        return vit.passt_variables(state, audio.passt.DEPTHS[name])
    return vit.audiomae_variables(state)
