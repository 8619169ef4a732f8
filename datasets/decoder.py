"""Audio files, decoded in a process of their own; see `datasets.child`.

Decoders crash on damaged files, and hang or ask for gigabytes on others.
"""

from typing import Any

import numpy as np

# Seconds read at once.
_BLOCK = 5.0
# Sample rates and channels that sounds have.
_RATES = (1_000, 1_000_000)
_CHANNELS = 64


class Host:
    """What may be asked for.

    Args:
      sound: where decoded sounds go, float32.
    """

    def __init__(self, sound: np.ndarray) -> None:
        import pedalboard.io  # noqa: F401, which takes some memory itself

        self.sound = sound

    def read(
        self, path: bytes, rate: int, most: float, silence: float, quiet: float
    ) -> tuple[int, float]:
        """Decodes mono audio from a file's first sounding block on.

        Args:
          path: the file.
          rate: sample rate wanted, in Hz.
          most: seconds of sound wanted.
          silence: seconds of silence to skip at most.
          quiet: peak below which a block is silent.

        Returns:
          How many samples, `most` seconds and two blocks or fewer; seconds in
          the file from where they start.

        Raises:
          ValueError: it is not audio, damaged, or holds nothing to hear.
        """
        import pedalboard.io

        # Opened here, as pedalboard takes no name that is not UTF-8.
        with open(path, "rb") as opened:
            try:
                file: Any = pedalboard.io.AudioFile(opened)
            except (ValueError, RuntimeError) as error:
                # It shows the object that it was given.
                reason = str(error).partition(": <_io")[0]
                raise ValueError(
                    f"is not an audio file that can be read ({reason}); give "
                    "a WAV, FLAC or MP3"
                ) from None
            with file:
                return self._read(file, rate, most, silence, quiet)

    def _read(
        self, file: Any, rate: int, most: float, silence: float, quiet: float
    ) -> tuple[int, float]:
        if not file.frames:
            raise ValueError("holds no sample")
        low, high = _RATES
        if not (low <= file.samplerate <= high) or (
            file.num_channels > _CHANNELS
        ):
            raise ValueError(
                f"says that it has {file.samplerate:,.0f} Hz and "
                f"{file.num_channels:,} channels: up to {high:,} Hz and "
                f"{_CHANNELS} channels are read"
            )
        total = file.frames / file.samplerate
        source = file
        if round(file.samplerate) != rate:
            source = file.resampled_to(float(rate))
        block, wanted = round(_BLOCK * rate), round(most * rate)
        if wanted + 2 * block > len(self.sound):
            raise ValueError(f"cannot be read for {most:g} s at {rate:,} Hz")
        kept, skipped = 0, 0.0
        while kept < wanted + block:
            try:
                samples = source.read(block)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"is damaged: {error}") from None
            if not samples.shape[-1]:
                break
            mono = samples.mean(0)
            if not np.isfinite(mono).all():
                raise ValueError(
                    "has samples that are NaN or infinite: export it again"
                )
            if not kept and np.abs(mono).max() < quiet:
                skipped += len(mono) / rate
                if skipped >= silence:
                    raise ValueError(
                        f"is silent for its first {skipped:g} s: cut them off"
                    )
                continue
            self.sound[kept : kept + len(mono)] = mono
            kept += len(mono)
        return kept, total - skipped
