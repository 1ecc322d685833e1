"""Sounds: what is heard is what was given, and its picture shows its frequencies."""

import json
import wave
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import signal

from whence.core.audio import FLOOR, HEIGHT, LONGEST, MOST_SAMPLES, WIDTH, spectrogram
from whence.core.display import describe
from whence.errors import BadArgument, UnknownName

RATE = 16000


def hear(example, rate=RATE) -> dict:
    return describe(example, "audio", rate=rate)


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def played(display: dict) -> np.ndarray:
    """Samples of the file, as whole numbers of 16 bits."""
    with wave.open(BytesIO(b64decode(display["wav"]))) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert file.getframerate() == display["rate"]
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def pixels(display: dict) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(display["png"]))))


# ------------------------------------------------------------------------- numbers


def test_whole_numbers_of_sixteen_bits_are_played_as_they_are():
    given = np.random.default_rng(0).integers(-(2**15), 2**15, 5000, dtype=np.int16)
    assert np.array_equal(played(hear(given)), given)
    assert np.array_equal(played(hear(given.tolist())), given)  # as a list they have 64 bits


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.float32])
def test_every_type_of_numbers_sounds_the_same(dtype):
    steps = np.array([0, 64, -64, 32, -128])  # of 128: held by all types alike
    info = None if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    full = 1 if info is None else 2 ** (info.bits - 1)
    middle = full if info is not None and info.min == 0 else 0
    given = (steps * (full / 128) + middle).astype(dtype)
    assert np.array_equal(played(hear(given)), steps * 256)


def test_a_tensor_in_half_precision_sounds_like_its_array():
    given = np.array([0.0, 0.5, -0.25], dtype=np.float32)
    assert hear(torch.tensor(given, dtype=torch.bfloat16, requires_grad=True)) == hear(given)


def test_channels_on_either_axis_are_mixed():
    left, right = tone(440), tone(880)
    expected = hear((left + right) / 2)
    for given in (np.stack([left, right]), np.stack([left, right], axis=1)):
        assert hear(given) == expected | {"channels": 2}
    assert hear(left[None]) == hear(left)


def test_what_goes_beyond_one_is_made_quieter_as_a_whole_and_says_so():
    loud = hear(4 * tone(440))
    assert loud["scaled"] == "the loudest sample, 2, is played as 1"
    assert abs(played(loud)).max() == 2**15 - 1
    assert "scaled" not in hear(tone(440))


def test_samples_that_are_no_number_are_silent_and_counted():
    given = tone(440)
    given[[3, 7]] = np.nan, np.inf
    display = hear(given)
    assert display["missing"] == 2
    assert played(display)[[3, 7]].tolist() == [0, 0]
    assert played(hear(np.full(10, np.nan))).tolist() == [0] * 10
    json.dumps(display, allow_nan=False)


def test_silence_is_black_and_says_so():
    display = hear(np.zeros(RATE))
    assert display["silent"] is True
    assert set(pixels(display).ravel()) == {0}
    assert "silent" not in hear(tone(440))


def test_one_sample_is_a_sound_and_none_is_not():
    display = hear(np.array([0.5]))
    assert played(display).tolist() == [2**14]
    assert display["seconds"] == 1 / RATE
    assert hear(np.zeros(0)) == {"kind": "none", "text": "a sound without samples"}


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_a_long_sound_is_cut_with_what_is_left_out(rate):
    display = hear(np.zeros(12 * rate, dtype=np.int16), rate)
    kept = len(played(display))
    assert kept == min(int(LONGEST * rate), MOST_SAMPLES)
    assert display["seconds"] == kept / rate
    assert display["more"] == pytest.approx(12 - kept / rate)
    assert len(display["wav"]) + len(display["png"]) < 700_000  # 480 kB in base64, and the picture


# ------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("step", [128, None])
def test_a_spectrogram_is_that_of_scipy(step):
    """Every 128 samples where that fits the picture, else wider."""
    samples = 128 * WIDTH if step else 160_000
    given = np.random.default_rng(1).normal(size=samples) / 4
    step = step or -(-samples // WIDTH)
    window = signal.windows.hann(512, sym=False)
    padded = np.pad(given, 256)
    frames = [padded[start : start + 512] * window for start in range(0, samples + 1, step)]
    sizes = np.abs(np.array([np.fft.rfft(frame) for frame in frames])).T
    expected = np.maximum(20 * np.log10(sizes / sizes.max()), FLOOR)
    assert spectrogram(given, RATE) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("frequency", [1000, 4000, 7000])
def test_a_tone_is_one_bright_line_at_its_height(frequency):
    display = hear(tone(frequency))
    rows = pixels(display).astype(float).mean(1)
    assert pixels(display).shape == (HEIGHT, WIDTH) == (display["height"], display["width"])
    expected = HEIGHT * (1 - frequency / (RATE / 2))
    assert abs(int(rows.argmax()) + 0.5 - expected) <= 1.5  # a row is 1.5 % of all frequencies


def test_time_runs_to_the_right():
    columns = pixels(hear(np.concatenate([np.zeros(RATE), tone(1000)]))).astype(float).mean(0)
    assert columns[: WIDTH // 2 - 4].max() < columns[WIDTH // 2 + 4 :].min()


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("rate", [None, 0, -8000, 44100.5, "16000", True, float("nan"), 10**9])
def test_a_sound_needs_its_rate(rate):
    with pytest.raises(BadArgument, match="rate="):
        hear(tone(440), rate)


@pytest.mark.parametrize(
    "given", [np.zeros((9, 9)), np.zeros((2, 3, 4)), np.array(1.0), np.zeros(4, complex), [True]]
)
def test_what_is_no_waveform_is_refused_with_its_shape(given):
    with pytest.raises(BadArgument, match="cannot be played"):
        hear(given)


def test_numbers_are_played_only_where_that_was_asked_for():
    assert describe(tone(440), rate=RATE)["kind"] == "row"
    with pytest.raises(UnknownName, match=r"Did you mean 'rate'\?"):
        describe(tone(440), "audio", rates=RATE)


def test_the_sound_among_several_parts_is_played():
    parts = {"input_values": tone(440), "attention_mask": np.ones((3, 3, 3))}
    assert hear(parts) == hear(tone(440))
    assert describe(hear(parts)) == hear(parts)
