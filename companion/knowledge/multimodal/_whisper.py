"""Whisper: the book's encoder-decoder with ears, its weights, and the call that transcribes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion import data
from companion.core import check_count, check_floating, check_shape
from companion.knowledge.multimodal._speech import log_mel
from companion.models import History, Pick, generate, greedy
from companion.transformer.block import Encoder, EncoderDecoder, Learned, TransformerConfig
from companion.transformer.block._model import _CrossStack
from companion.transformer.multi_head import KVCache

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SignalToText", "SpeechTokens", "Whisper", "suppress", "transcribe", "whisper"]

#: Samples that Whisper reads at a time: 30 seconds.
WINDOW = 480_000


class SignalToText(EncoderDecoder):
    r"""An encoder-decoder whose source is no text: a front end turns it into vectors.

    .. math:: H = \mathrm{Encoder}(\mathrm{front}(S) + P), \qquad
        p(w_t \mid w_{<t}, S) = \mathrm{Decoder}(w_{<t}, H)

    Everything behind the front end is that of
    :class:`~companion.transformer.block.EncoderDecoder`: :func:`companion.models.generate` writes,
    and :func:`companion.core.watch` looks inside.

    Args:
        config: The description of the decoder, and of the encoder but for its positions.
        front: Makes (batch, positions, ``config.dim``) of a source. It has a method
            ``positions(source)`` that gives their number without computing them.
        positions: Most positions of the encoder, each with a learned vector.

    Raises:
        ValueError: If a size is below 1, or the decoder's positions are not learned.

    References:
        Radford et al. 2022, arXiv:2212.04356, sec. 2.2 (sound); Vinyals et al. 2015,
        arXiv:1411.4555 (pictures).

    Book: :doc:`/book/knowledge/multimodal`
    """

    def __init__(self, config: TransformerConfig, *, front: nn.Module, positions: int) -> None:
        nn.Module.__init__(self)
        check_count("positions", positions)
        self.front = front
        self.decoder = _CrossStack(config, cross=True)
        # The encoder reads no tokens: it holds the table of the decoder and does not use it.
        own = replace(config, context=positions, positions=Learned())
        self.encoder = Encoder(replace(own, vocab=1))
        self.encoder.tokens, self.encoder.config = self.decoder.tokens, own

    def source_length(self, source: Tensor) -> int:
        """How many positions of the encoder a source takes.

        Args:
            source: What the front end reads.

        Returns:
            The number of positions.

        Raises:
            ValueError: If the shape does not fit.
        """
        measured: int = self.front.positions(source)  # type: ignore[operator]
        return measured

    def encode(
        self,
        source: Float[Tensor, "batch ..."],
        *,
        real: Bool[Tensor, "batch m"] | None = None,
    ) -> Float[Tensor, "batch m dim"]:
        """Read the source.

        Args:
            source: What the front end takes.
            real: ``True`` for positions that may be read; all by default.

        Returns:
            The encoder's hidden states.

        Raises:
            ValueError: If a shape does not fit.
        """
        return self.encoder.run(None, real=real, embeddings=self.front(source))

    def cache(self, batch: int, capacity: int, *, source: int) -> tuple[KVCache, KVCache]:
        """Reserve the caches for decoding.

        Args:
            batch: Sequences side by side.
            capacity: Most target tokens.
            source: Positions of the encoder.

        Returns:
            The cache of the target's own past, and that of the source.
        """
        check_count("source", source, high=self.encoder.config.context)
        return self.decoder.cache(batch, capacity), self.decoder._join("cross", batch, source)


class _Ears(nn.Module):
    """Two convolutions over time; the second one halves the number of frames."""

    def __init__(self, mels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)

    def positions(self, source: Tensor) -> int:
        check_shape("source", source, (None, self.conv1.in_channels, None))
        return (source.shape[2] + 1) // 2

    def forward(self, source: Tensor) -> Tensor:
        self.positions(source)
        x = nn.functional.gelu(self.conv1(source))
        return nn.functional.gelu(self.conv2(x)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class SpeechTokens:
    """How a recognizer's decoder is steered, and its ids become text.

    Attributes:
        tokenizer: From ids to text.
        start: Tokens that a transcript starts with.
        stop: The token that ends it.
        suppressed: Tokens that are never written.
        suppressed_first: Tokens that are not written first.
    """

    tokenizer: "Tokenizer"
    start: tuple[int, ...]
    stop: int
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()


class Whisper(SignalToText):
    r"""The speech recognizer Whisper, made of the book's own blocks.

    Two convolutions turn a log-mel spectrogram into one vector for each 20 ms. A pre-norm encoder
    reads these with fixed sines as positions, and a decoder with learned ones writes the
    transcript, with a table of tokens that is also its output layer.

    In Whisper the maps to keys have no biases. Here they have some, which are zero and stay so: a
    bias of the keys adds :math:`q \cdot b` to all scores of a query, so the softmax does not
    depend on it, and its gradient is zero.

    Args:
        config: The description of the decoder: pre-norm, learned positions, GELU, tied.
        frames: Positions of the encoder; half the frames of the spectrogram.
        mels: Bands of the spectrogram.

    Attributes:
        speech: How text is written, for :func:`transcribe`; ``None`` until it is set.

    Raises:
        ValueError: If a size is below 1, or the width is odd.

    References:
        Radford et al. 2022, arXiv:2212.04356, sec. 2.2.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> config = TransformerConfig(
        ...     vocab=11, dim=12, layers=2, heads=3, ff_dim=31, context=9, positions=Learned())
        >>> model = Whisper(config, frames=17, mels=5)
        >>> model(torch.ones(2, 5, 34), torch.tensor([[1, 2], [1, 3]])).shape
        torch.Size([2, 2, 11])
    """

    def __init__(self, config: TransformerConfig, *, frames: int = 1500, mels: int = 80) -> None:
        check_count("mels", mels)
        if config.dim % 2:
            raise ValueError(f"sines and cosines come in pairs: dim must be even, is {config.dim}")
        super().__init__(config, front=_Ears(mels, config.dim), positions=frames)
        table = self.encoder.positions
        assert table is not None
        table.weight = nn.Parameter(_sines(frames, config.dim), requires_grad=False)
        self.speech: SpeechTokens | None = None


def _sines(frames: int, dim: int) -> Tensor:
    """Sines, then cosines, of wavelengths from 2 pi to 10,000 times that."""
    half = dim // 2
    speeds = torch.exp(-math.log(10000) / max(half - 1, 1) * torch.arange(half))
    angles = torch.arange(frames)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def whisper(
    *,
    directory: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Whisper:
    """Whisper tiny.en, ready to transcribe English speech.

    Args:
        directory: Where the files are (see :func:`companion.data.whisper`); by default the
            installed data.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters.

    Returns:
        The model in evaluation mode, with its tokens of speech.

    Raises:
        companion.data.MissingDataError: If the data are not installed.
        companion.data.CorruptDataError: If a file differs from the pinned one.

    References:
        Radford et al. 2022, arXiv:2212.04356.

    Book: :doc:`/book/knowledge/multimodal`
    """
    held = data.whisper(directory=directory)
    sizes = held.config
    config = TransformerConfig(
        vocab=sizes.vocab,
        dim=sizes.dim,
        layers=sizes.layers,
        heads=sizes.heads,
        ff_dim=sizes.ff_dim,
        context=sizes.context,
        norm_eps=sizes.norm_eps,
        positions=Learned(),
    )
    with torch.device("meta"):
        model = Whisper(config, frames=sizes.frames, mels=sizes.mels)
    model.load_state_dict(_ours(held.weights), assign=True)
    model.decoder.head.weight = model.decoder.tokens.weight
    model.encoder.tokens = model.decoder.tokens
    model.encoder.positions.weight.requires_grad_(False)  # type: ignore[union-attr]
    model.speech = SpeechTokens(
        held.tokenizer, held.start, held.stop, held.suppressed, held.suppressed_first
    )
    return model.to(device=device, dtype=dtype).eval()


_NORMS = {
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn_layer_norm": "cross_norm",
    "final_layer_norm": "feed_forward_norm",
}


def _ours(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, queries, keys and values in one matrix."""
    weights: dict[str, Tensor] = {}
    for side in ("encoder", "decoder"):
        base = f"model.{side}"
        weights[f"{side}.positions.weight"] = held[f"{base}.embed_positions.weight"]
        weights[f"{side}.tokens.weight"] = held["model.decoder.embed_tokens.weight"]
        for kind in ("weight", "bias"):
            weights[f"{side}.final_norm.{kind}"] = held[f"{base}.layer_norm.{kind}"]
        layers = {name.split(".")[3] for name in held if name.startswith(f"{base}.layers.")}
        parts = {"attention": "self_attn"}
        if side == "decoder":
            parts["cross"] = "encoder_attn"
        for layer in layers:
            their, our = f"{base}.layers.{layer}", f"{side}.blocks.{layer}"
            for part, name in parts.items():
                q, k, v = (f"{their}.{name}.{x}_proj" for x in "qkv")
                weights[f"{our}.{part}.qkv.weight"] = torch.cat(
                    [held[f"{x}.weight"] for x in (q, k, v)]
                )
                zero = torch.zeros_like(held[f"{q}.bias"])
                weights[f"{our}.{part}.qkv.bias"] = torch.cat(
                    [held[f"{q}.bias"], zero, held[f"{v}.bias"]]
                )
            for kind in ("weight", "bias"):
                for part, name in parts.items():
                    weights[f"{our}.{part}.out.{kind}"] = held[f"{their}.{name}.out_proj.{kind}"]
                weights[f"{our}.feed_forward.up.{kind}"] = held[f"{their}.fc1.{kind}"]
                weights[f"{our}.feed_forward.down.{kind}"] = held[f"{their}.fc2.{kind}"]
                for name, part in _NORMS.items():
                    if f"{their}.{name}.{kind}" in held:
                        weights[f"{our}.{part}.{kind}"] = held[f"{their}.{name}.{kind}"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            weights[f"front.{conv}.{kind}"] = held[f"model.encoder.{conv}.{kind}"]
    weights["decoder.head.weight"] = held["model.decoder.embed_tokens.weight"]
    return weights


def suppress(
    pick: Pick, *, always: tuple[int, ...] = (), first: tuple[int, ...] = ()
) -> Callable[[Tensor, History], Tensor]:
    """Make a pick that never chooses some tokens, and others not as the first that is written.

    Args:
        pick: What chooses among the rest.
        always: Tokens that are never chosen.
        first: Tokens that are not chosen first.

    Returns:
        The pick.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> history = History(torch.tensor([[0]]), 1, None, torch.tensor([False]))
        >>> suppress(greedy, always=(1,))(torch.tensor([[0.0, 5.0, 1.0]]), history)
        tensor([2])
    """

    def chosen(logits: Tensor, history: History, /) -> Tensor:
        begins = history.ids.shape[1] == history.prompt
        banned = [*always, *(first if begins else ())]
        if banned:
            places = torch.tensor(banned, device=logits.device)
            logits = logits.index_fill(-1, places, -math.inf)
        return pick(logits, history)  # type: ignore[return-value]

    return chosen


def transcribe(
    model: Whisper,
    waveform: Float[Tensor, " samples"],
    *,
    tokens: int = 224,
    pick: Pick = greedy,
    batch_size: int = 8,
) -> str:
    """Write down what is said.

    The waveform is cut into windows of 30 seconds, the last one filled with silence; each is read
    for itself, so a word on a border may be lost.

    Args:
        model: From :func:`whisper`.
        waveform: One channel, 16,000 samples a second, between -1 and 1.
        tokens: Most tokens for a window.
        pick: How each token is chosen (see :func:`companion.models.generate`).
        batch_size: Windows that are read at once.

    Returns:
        The transcript, without spaces at its ends.

    Raises:
        ValueError: If the waveform is empty, no floating point, or has more than one channel; if
            the model does not know how text is written, or the window is too long for it.

    Numerics:
        The encoder reads 30 seconds whatever there is to hear: a clip of one second costs as much.
        A model of this kind may invent words where there is silence or noise.

    References:
        Radford et al. 2022, arXiv:2212.04356, sec. 2.3; greedy, without the fallbacks of sec. 4.5.

    Book: :doc:`/book/knowledge/multimodal`
    """
    check_floating("waveform", waveform)
    check_shape("waveform", waveform, (None,))
    check_count("samples of the waveform", len(waveform))
    check_count("batch_size", batch_size)
    speech = model.speech
    if speech is None:
        raise ValueError("the model has no tokens of speech: set model.speech, or use whisper()")
    frames = 2 * model.encoder.config.context
    if frames * 160 != WINDOW:
        raise ValueError(f"windows of 30 s have 3000 frames, and the model reads {frames}")
    picked = suppress(pick, always=speech.suppressed, first=speech.suppressed_first)
    weight = model.front.conv1.weight  # type: ignore[union-attr]
    texts: list[str] = []
    windows = nn.functional.pad(waveform, (0, -len(waveform) % WINDOW)).view(-1, WINDOW)
    for some in torch.split(windows, batch_size):
        source = log_mel(some).to(weight)  # type: ignore[arg-type]
        start: Integer[Tensor, "batch n"] = torch.tensor(speech.start, device=source.device)
        ids = generate(
            model,
            start.expand(len(some), -1),
            tokens=tokens,
            pick=picked,
            stop=(speech.stop,),
            source=source,
        )
        for row in ids.tolist():
            texts.append(speech.tokenizer.decode(row, skip_special_tokens=True).strip())
    return " ".join(text for text in texts if text)
