"""A waveform as a file that plays and a picture of its frequencies, in plain JSON.

    {"kind": "audio", "wav": base64, "seconds": s, "rate": r, "png": base64, "width", "height"}

and where they apply "more": seconds left out, "channels": how many were mixed, "silent": true,
"scaled": words, "missing": samples that are no number.
"""

import wave
from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from whence.errors import BadArgument

Array = np.ndarray[Any, Any]

LONGEST, MOST_SAMPLES = 10.0, 240_000
"""Seconds and samples that are kept of a sound: at most 480 kB, 5 s at 48 kHz."""

WIDTH, HEIGHT = 240, 96
"""Pixels of a spectrogram, however long the sound is."""

FLOOR = -60.0
"""Decibels below the loudest place of the spectrogram that are painted black."""

_FASTEST = 1_000_000
_WINDOW = 0.032
"""Seconds that one column of a spectrogram hears, as usual for speech."""

_MOST_CHANNELS = 8
_FULL = 2**15
"""One unit of loudness in whole numbers of 16 bits, as which sounds are kept."""


def sound(waveform: Array, rate: float | None) -> dict[str, Any]:
    """The display of a waveform; several channels are mixed to one.

    Whole numbers count up to the largest of their type, those of 64 bits up to 2^15. A sound that
    goes beyond 1 is made quieter as a whole, and says so; what is no number is silent.

    Args:
        waveform: (samples,), or (channels, samples) with at most 8 channels on either axis.
        rate: samples a second.

    Raises:
        BadArgument: no such rate, or numbers that are no waveform.
    """
    checked = _checked_rate(waveform, rate)
    channels = _as_channels(waveform)
    samples = channels.shape[1]
    if samples == 0:
        return {"kind": "none", "text": "a sound without samples"}
    kept = min(samples, max(1, int(LONGEST * checked)), MOST_SAMPLES)
    loudness = _as_loudness(channels[:, :kept])
    missing = int(loudness.size - np.isfinite(loudness).sum())
    signal = np.nan_to_num(loudness, nan=0.0, posinf=0.0, neginf=0.0).mean(0)  # (kept,)
    peak = float(np.abs(signal).max())
    told: dict[str, Any] = {
        "more": (samples - kept) / checked,
        "channels": len(channels) if len(channels) > 1 else 0,
        "silent": peak == 0,
        "scaled": f"the loudest sample, {peak:.3g}, is played as 1" if peak > 1 else "",
        "missing": missing,
    }
    signal = signal / max(peak, 1.0)
    return {
        "kind": "audio",
        "wav": b64encode(_as_wav(signal, checked)).decode("ascii"),
        "png": b64encode(_as_png(spectrogram(signal, checked))).decode("ascii"),
        "width": WIDTH,
        "height": HEIGHT,
        "seconds": kept / checked,
        "rate": checked,
    } | {name: value for name, value in told.items() if value}


def spectrogram(signal: Array, rate: int) -> Array:
    """How loud every frequency is at every time, in decibels below the loudest.

        level[f, t] = 20 log10 |sum_s w[s] x[t h + s - n/2] exp(-2 pi i f s / n)| - its largest

    with a Hann window w of n samples, the power of two nearest to 32 ms, moved by h = n/4 samples,
    or by more where the picture would become wider than `WIDTH`. Silence is `FLOOR` everywhere.

    Args:
        signal: (S,) with S > 0.
        rate: samples a second.

    Returns:
        (n/2 + 1, T): frequencies 0 to rate/2 by times, FLOOR to 0.
    """
    length = max(16, 2 ** round(np.log2(_WINDOW * rate)))
    step = max(length // 4, -(-len(signal) // WIDTH))
    padded = np.pad(signal, length // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::step]  # (T, n)
    sizes = np.abs(np.fft.rfft(frames * np.hanning(length + 1)[:-1])).T
    loudest = float(sizes.max()) or 1.0
    return 20 * np.log10(np.maximum(sizes / loudest, 10 ** (FLOOR / 20)))


def _checked_rate(waveform: Array, rate: float | None) -> int:
    is_number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if rate is None or not is_number or not 1 <= rate <= _FASTEST or rate != int(rate):
        raise BadArgument(
            found=f"rate={rate!r} for a sound of {_words(waveform)}.",
            why=f"A player has to know the samples a second, a whole number up to {_FASTEST:,}.",
            remedy='Say it, as in display={"kind": "audio", "rate": 16000}.',
        )
    return int(rate)


def _as_channels(waveform: Array) -> Array:
    """(channels, samples) in the numbers that were given."""
    if waveform.ndim == 1:
        waveform = waveform[None]
    if waveform.ndim == 2 and waveform.shape[0] > _MOST_CHANNELS >= waveform.shape[1]:
        waveform = waveform.T
    is_waveform = waveform.ndim == 2 and 1 <= waveform.shape[0] <= _MOST_CHANNELS
    if waveform.dtype.kind not in "iuf" or not is_waveform:
        raise BadArgument(
            found=f"{_words(waveform)} cannot be played.",
            why="A sound is numbers of shape (samples,), or (channels, samples) with at most "
            f"{_MOST_CHANNELS} channels.",
            remedy="Show a spectrogram as display='image', or pass a callable that gives the "
            "waveform.",
        )
    return waveform


def _as_loudness(values: Array) -> Array:
    """Numbers of which 1 is the loudest that a file of their type holds."""
    loudness = values.astype(np.float64)
    if values.dtype.kind == "f":
        return loudness
    full = _FULL if values.itemsize == 8 else 2 ** (8 * values.itemsize - 1)
    is_unsigned = values.dtype.kind == "u" and values.itemsize < 8
    return (loudness - full * is_unsigned) / full


def _as_wav(signal: Array, rate: int) -> bytes:
    """A file of 16 bits and one channel; (S,) whole numbers of 16 bits come back as they were."""
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        whole = np.rint(signal * _FULL).clip(-_FULL, _FULL - 1)
        file.writeframes(whole.astype("<i2").tobytes())
    return buffer.getvalue()


def _as_png(levels: Array) -> bytes:
    """Time to the right, frequency upwards; white is the loudest."""
    grey = np.rint(255 * (1 - levels[::-1] / FLOOR)).astype(np.uint8)
    image = Image.fromarray(grey).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _words(array: Array) -> str:
    return f"{array.dtype} array of shape {array.shape}"
