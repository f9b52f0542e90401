"""CLIP's loss in chunks beside the dense one, and Whisper beside that of transformers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._pair import Pair, Side, close
from companion import data
from companion.knowledge.multimodal import clip_loss, log_mel, suppress, whisper
from companion.models import generate, greedy

ROWS, DIM, CHUNK, WRITTEN = 4096, 512, 256, 24


def _rows(device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    made = [F.normalize(torch.randn(ROWS, DIM, generator=g), dim=1) for _ in range(2)]
    made.append(torch.tensor(2.66))
    return [x.to(device).requires_grad_() for x in made]


def _ours(device: torch.device) -> Side:
    inputs = _rows(device)

    def run() -> list[Tensor]:
        loss = clip_loss(*inputs, chunk_size=CHUNK)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    return run


def _dense(device: torch.device) -> Side:
    U, V, s = inputs = _rows(device)
    ids = torch.arange(ROWS, device=device)

    def run() -> list[Tensor]:
        S = s.exp() * U @ V.T
        loss = (F.cross_entropy(S, ids) + F.cross_entropy(S.T, ids)) / 2
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    return run


def _source(device: torch.device) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return log_mel(0.1 * torch.randn(480_000, generator=g))[None].to(device)


def _our_whisper(device: torch.device) -> Side:
    model, source = whisper(device=device), _source(device)
    assert model.speech is not None
    start = torch.tensor([model.speech.start], device=device)
    pick = suppress(greedy, always=(model.speech.stop,))

    def run() -> Tensor:
        return generate(model, start, tokens=WRITTEN, pick=pick, source=source)

    return run


def _their_whisper(device: torch.device) -> Side:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    held = data.whisper()
    z = held.config
    model: Any = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=z.vocab, num_mel_bins=z.mels, d_model=z.dim,
            encoder_layers=z.layers, decoder_layers=z.layers,
            encoder_attention_heads=z.heads, decoder_attention_heads=z.heads,
            encoder_ffn_dim=z.ff_dim, decoder_ffn_dim=z.ff_dim,
            max_source_positions=z.frames, max_target_positions=z.context,
            pad_token_id=held.stop, bos_token_id=held.stop, eos_token_id=held.stop,
            decoder_start_token_id=held.start[0],
        )
    )  # fmt: skip
    model.eval()
    model.load_state_dict(dict(held.weights), strict=False)
    model, source = model.to(device), _source(device)
    start = torch.tensor([held.start], device=device)
    make: Any = GenerationConfig
    settings = make(
        max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, eos_token_id=held.stop,
        pad_token_id=held.stop, decoder_start_token_id=held.start[0], suppress_tokens=None,
        begin_suppress_tokens=None, return_timestamps=False, is_multilingual=False,
        no_timestamps_token_id=held.start[1],
    )  # fmt: skip
    model.generation_config = settings

    def run() -> Tensor:
        with torch.no_grad():
            written: Tensor = model.generate(source, decoder_input_ids=start)
        return written[:, -WRITTEN:]

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="multimodal/clip",
        task=f"CLIP's loss and gradients, {ROWS} pairs of width {DIM}, {CHUNK} rows at a time",
        peer="two dense cross-entropies",
        ours=_ours,
        theirs=_dense,
        same=close(1e-3),
        speed=1 / 1.2,
        rounds=2,
    )
    yield Pair(
        name="multimodal/whisper",
        task=f"Whisper tiny.en, 30 seconds read and {WRITTEN} tokens written",
        peer="transformers.WhisperForConditionalGeneration",
        ours=_our_whisper,
        theirs=_their_whisper,
        same=close(0.0),
        needs=["transformers"],
        speed=1.0,
        rounds=2,
    )
