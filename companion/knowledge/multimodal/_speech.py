r"""From air pressure to a picture of sound: filters on the mel scale, and log-mel spectrograms."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, wide

__all__ = ["log_mel", "mel_filters"]

_KNEE = 1000.0  # Slaney's scale is linear below it, in Hz
_PER_MEL = 200.0 / 3.0
_STEP = math.log(6.4) / 27.0


def mel_filters(
    *,
    rate_hz: int,
    fft: int,
    mels: int,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    scale: Literal["slaney", "htk"] = "slaney",
    unit_area: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "bins mels"]:
    r"""Return triangular filters whose centers are equally spaced on the mel scale.

    With :math:`f_0 < \dots < f_{M+1}` equally spaced in mels, filter :math:`m` is

    .. math:: F_{km} = a_m \max\Bigl(0, \min\Bigl(
        \frac{\nu_k - f_{m-1}}{f_m - f_{m-1}}, \frac{f_{m+1} - \nu_k}{f_{m+1} - f_m}\Bigr)\Bigr)

    at the frequency :math:`\nu_k` of bin :math:`k`, with :math:`a_m = 2/(f_{m+1} - f_{m-1})` for
    unit area, or 1.

    Args:
        rate_hz: Samples a second.
        fft: Length of the Fourier transform; there are ``fft // 2 + 1`` bins.
        mels: Filters.
        low_hz: Where the first filter begins, in Hz.
        high_hz: Where the last one ends; by default half of ``rate_hz``.
        scale: ``"slaney"``: linear up to 1000 Hz and logarithmic beyond, as in Whisper; ``"htk"``:
            :math:`2595 \log_{10}(1 + f/700)`. They are not interchangeable.
        unit_area: Whether each filter integrates to 1 over Hz; otherwise its peak is 1.
        device: Where the result is put.
        dtype: Its type; computed in float64.

    Returns:
        One filter a column. A filter narrower than a bin may be zero throughout.

    Raises:
        ValueError: If a size is below 1, the frequencies are not in order up to half of
            ``rate_hz``, or the scale is unknown.

    References:
        Slaney 1998, "Auditory Toolbox"; Young et al., "The HTK Book", sec. 5.4.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> mel_filters(rate_hz=16000, fft=400, mels=80).shape
        torch.Size([201, 80])
    """
    for name, value in (("rate_hz", rate_hz), ("fft", fft), ("mels", mels)):
        check_count(name, value)
    high = rate_hz / 2 if high_hz is None else high_hz
    check_in_range("low_hz", low_hz, low=0.0, high=high, open_high=True)
    check_in_range("high_hz", high, low=0.0, high=rate_hz / 2)
    if scale not in ("slaney", "htk"):
        raise ValueError(f"scale must be slaney or htk, got {scale!r}")
    wide_type = torch.float64 if torch.device(device or "cpu").type != "mps" else torch.float32
    ends = (_to_mel(low_hz, scale), _to_mel(high, scale))
    places = torch.linspace(*ends, mels + 2, device=device, dtype=wide_type)
    f = _to_hz(places, scale)
    nu = torch.linspace(0, rate_hz / 2, fft // 2 + 1, device=device, dtype=wide_type)[:, None]
    rising = (nu - f[:-2]) / (f[1:-1] - f[:-2])
    falling = (f[2:] - nu) / (f[2:] - f[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    if unit_area:
        filters = filters * (2 / (f[2:] - f[:-2]))
    return filters.to(dtype)


def _to_mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595.0 * math.log10(1.0 + hz / 700.0)
    return hz / _PER_MEL if hz < _KNEE else _KNEE / _PER_MEL + math.log(hz / _KNEE) / _STEP


def _to_hz(mel: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    knee = _KNEE / _PER_MEL
    return torch.where(mel < knee, mel * _PER_MEL, _KNEE * (_STEP * (mel - knee)).exp())


def log_mel(
    waveform: Float[Tensor, "*batch samples"],
    *,
    rate_hz: int = 16000,
    window: int = 400,
    hop: int = 160,
    mels: int = 80,
    decades: float = 8.0,
) -> Float[Tensor, "*batch mels frames"]:
    r"""Compute the log-mel spectrogram that Whisper reads.

    .. math:: S_{mt} = \log_{10} \max\bigl(10^{-10}, \sum_k F_{km} \lvert X_{kt} \rvert^2\bigr),
        \qquad Y_{mt} = \tfrac14 \max(S_{mt}, \max S - D) + 1

    :math:`X` is the Fourier transform of windows of the waveform, weighted by a Hann window and
    centered at multiples of the hop; beyond its ends the waveform is reflected. :math:`\max S` is
    the largest entry of **this** clip, so what stands beside it in a batch does not matter.

    Args:
        waveform: Air pressure, between -1 and 1.
        rate_hz: Samples a second. Whisper was trained on 16,000; resample what has another rate.
        window: Samples of a window; 400 are 25 ms.
        hop: Samples from one window to the next; 160 are 10 ms.
        mels: Filters of :func:`mel_filters`.
        decades: :math:`D`; what is weaker than the peak by more powers of ten is raised to that.

    Returns:
        ``samples // hop`` frames for each clip; the last one of the transform is left out, as in
        Whisper. Float32, or float64 for float64.

    Raises:
        ValueError: If a clip is not longer than half a window, which reflection needs, or is no
            floating point; if a size is not positive.

    Numerics:
        A clip of silence gives :math:`-1.5` everywhere. Half precision is raised to float32: the
        floor of :math:`10^{-10}` is zero in float16.

    References:
        Radford et al. 2022, arXiv:2212.04356, sec. 2.2, and its published code.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> log_mel(torch.sin(torch.arange(16000) / 3)).shape
        torch.Size([80, 100])
    """
    check_floating("waveform", waveform)
    check_count("window", window, low=2)
    check_count("hop", hop)
    check_in_range("decades", decades, low=0.0, open_low=True, open_high=True)
    if waveform.ndim < 1 or waveform.shape[-1] <= window // 2:
        raise ValueError(
            f"a clip must be longer than half a window of {window} samples, "
            f"got shape {tuple(waveform.shape)}: pad it with zeros"
        )
    x = wide(waveform)
    *batch, samples = x.shape
    hann = torch.hann_window(window, device=x.device, dtype=x.dtype)
    X = torch.stft(
        x.reshape(-1, samples), window, hop, window=hann, center=True, return_complex=True
    )
    power = X[..., :-1].abs().square()
    filters = mel_filters(rate_hz=rate_hz, fft=window, mels=mels, device=x.device, dtype=x.dtype)
    S = (filters.T @ power).clamp(min=1e-10).log10()
    S = torch.maximum(S, S.amax(dim=(-2, -1), keepdim=True) - decades)
    return ((S + 4) / 4).reshape(*batch, mels, -1)
