"""Sparse and linear attention against their packages, and a window against full attention."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion.efficiency.sparse_attention import (
    favor_attention,
    gaussian_frequencies,
    linformer_attention,
    local_attention,
    lsh_attention,
)

LENGTH, HEADS, WIDTH = 4096, 4, 32
WINDOW, RANK, FEATURES, CHUNK, ROUNDS = 128, 64, 64, 64, 2


def _drawn(device: torch.device, count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return list(torch.randn(count, 1, HEADS, LENGTH, WIDTH, generator=g).to(device))


def _window_ours(device: torch.device) -> Side:
    Q, K, V = _drawn(device, 3)
    return lambda: local_attention(Q, K, V, before=WINDOW)


def _window_theirs(device: torch.device) -> Side:
    from local_attention import LocalAttention  # type: ignore[import-untyped]

    Q, K, V = _drawn(device, 3)
    package = LocalAttention(
        WINDOW, causal=True, look_backward=1, exact_windowsize=True, use_rotary_pos_emb=False
    ).to(device)
    return lambda: package(Q, K, V)


def _full(device: torch.device) -> Side:
    Q, K, V = _drawn(device, 3)
    return lambda: F.scaled_dot_product_attention(Q, K, V, is_causal=True)


def _linformer(device: torch.device) -> Any:
    from linformer import LinformerSelfAttention  # type: ignore[import-untyped]

    torch.manual_seed(0)  # in a process of its own
    width = HEADS * WIDTH
    layer = LinformerSelfAttention(width, LENGTH, k=RANK, heads=HEADS).to(device).eval()
    g = torch.Generator().manual_seed(0)
    return layer, torch.randn(1, LENGTH, width, generator=g).to(device)


def _linformer_ours(device: torch.device) -> Side:
    layer, x = _linformer(device)

    def run() -> Tensor:
        with torch.no_grad():
            Q, K, V = (
                part(x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
                for part in (layer.to_q, layer.to_k, layer.to_v)
            )
            read = linformer_attention(Q, K, V, E=layer.proj_k.mT, F=layer.proj_v.mT)
            out: Tensor = layer.to_out(read.transpose(1, 2).flatten(2))
            return out

    return run


def _linformer_theirs(device: torch.device) -> Side:
    layer, x = _linformer(device)

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = layer(x)
            return out

    return run


def _frequencies(device: torch.device) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return gaussian_frequencies(FEATURES, WIDTH, generator=g).to(device)


def _short(device: torch.device) -> list[Tensor]:
    """Queries and keys so short that what the package adds to its features hardly counts."""
    Q, K, V = _drawn(device, 3)
    return [0.2 * Q, 0.2 * K, V]


def _favor_ours(device: torch.device) -> Side:
    Q, K, V = _short(device)
    omega = _frequencies(device)
    return lambda: favor_attention(Q, K, V, omega=omega)


def _favor_theirs(device: torch.device) -> Side:
    from performer_pytorch import FastAttention  # type: ignore[import-untyped]

    Q, K, V = _short(device)
    package = FastAttention(dim_heads=WIDTH, nb_features=FEATURES, causal=False).to(device)
    package.projection_matrix.copy_(_frequencies(device))
    return lambda: package(Q, K, V)


def _hash_ours(device: torch.device) -> Side:
    QK, V = _drawn(device, 2)
    g = torch.Generator(device).manual_seed(0)
    half = LENGTH // CHUNK // 2

    def run() -> Tensor:  # the package draws its rotations in the call too
        drawn = torch.randn(1, WIDTH, ROUNDS, half, generator=g.manual_seed(0), device=device)
        return lsh_attention(QK, V, rotations=drawn[0].transpose(0, 1), chunk=CHUNK)

    return run


def _hash_theirs(device: torch.device) -> Side:
    from reformer_pytorch.reformer_pytorch import LSHAttention  # type: ignore[import-untyped]

    QK, V = _drawn(device, 2)
    package = LSHAttention(
        bucket_size=CHUNK,
        n_hashes=ROUNDS,
        attend_across_buckets=False,
        allow_duplicate_attention=False,
    ).to(device)

    def run() -> Tensor:
        torch.manual_seed(0)  # in a process of its own
        with torch.no_grad():
            read: Tensor = package(QK[0], V[0])[0]
            return read[None]

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    size = f"{LENGTH:,} tokens, {HEADS} heads of width {WIDTH}"
    window = f"{size}, causal window of {WINDOW + 1} keys"
    yield Pair(
        name="sparse/window",
        task=window,
        peer="local-attention",
        needs=["local_attention"],
        ours=_window_ours,
        theirs=_window_theirs,
        same=close(1e-4),
        speed=1.0,
    )
    yield Pair(
        name="sparse/window-full",
        task=window,
        peer="torch scaled_dot_product_attention, causal, which reads all keys",
        ours=_window_ours,
        theirs=_full,
        same=_as_far_as_the_window,
        speed=4.0,
        note="Two tasks: the share of the pairs that are read is a sixteenth.",
    )
    yield Pair(
        name="sparse/linformer",
        task=f"{size}, {RANK} mixtures of the keys, with its four projections",
        peer="linformer",
        needs=["linformer"],
        ours=_linformer_ours,
        theirs=_linformer_theirs,
        same=close(1e-4),
        speed=1.0,
    )
    yield Pair(
        name="sparse/performer",
        task=f"{size}, {FEATURES} random features, short queries and keys",
        peer="performer-pytorch",
        needs=["performer_pytorch"],
        ours=_favor_ours,
        theirs=_favor_theirs,
        same=close(2e-2),
        speed=1.0,
        note="Both do the same products; the package adds 0.0001 to each feature, ours nothing.",
    )
    yield Pair(
        name="sparse/lsh",
        task=f"{size}, {ROUNDS} rounds of hashing, chunks of {CHUNK}",
        peer="reformer-pytorch",
        needs=["reformer_pytorch"],
        ours=_hash_ours,
        theirs=_hash_theirs,
        same=close(1e-4),
        speed=1.0,
    )


def _as_far_as_the_window(ours: Tensor, theirs: Tensor) -> None:
    """The first queries have no more keys than the window holds."""
    seen = slice(0, WINDOW + 1)
    close(1e-4)(ours[:, :, seen], theirs[:, :, seen])
