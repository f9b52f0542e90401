"""Coarse and compressed attention: against the Nyström package, full attention, and DeepSeek."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._pair import Pair, Side, close
from benchmarks.pairs._peers import quiet
from companion.efficiency.multiscale import (
    MultiHeadLatentAttention,
    hierarchical_attention,
    nystrom_attention,
)

HEADS, WIDTH = 4, 32
LATENT = {"rank": 128, "head_dim": 64, "rope_dim": 32, "value_dim": 64}


def _package(device: torch.device) -> nn.Module:
    from nystrom_attention import NystromAttention  # type: ignore[import-untyped]

    torch.manual_seed(0)
    made: nn.Module = NystromAttention(
        dim=HEADS * WIDTH, dim_head=WIDTH, heads=HEADS, num_landmarks=64, residual=False
    )
    return made.to(device).eval()


def _text(device: torch.device, n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(1, n, HEADS * WIDTH, generator=g).to(device)


def _nystrom(n: int, *, ours: bool) -> Any:
    def make(device: torch.device) -> Side:
        layer: Any = _package(device)
        x = _text(device, n)

        def mine() -> Tensor:
            with torch.no_grad():
                q, k, v = (
                    t.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
                    for t in layer.to_qkv(x).chunk(3, -1)
                )
                read = nystrom_attention(q, k, v, landmarks=64)
                out: Tensor = layer.to_out(read.transpose(1, 2).flatten(2))
                return out

        def theirs() -> Tensor:
            with torch.no_grad():
                out: Tensor = layer(x)
                return out

        return mine if ours else theirs

    return make


def _heads(device: torch.device, n: int) -> list[Tensor]:
    """Keys that are equal in blocks of 256, so that both sides compute the same."""
    g = torch.Generator().manual_seed(0)
    Q, V = torch.randn(2, 1, HEADS, n, WIDTH, generator=g).to(device)
    K = torch.randn(1, HEADS, n // 256, WIDTH, generator=g).to(device)
    return [Q, K.repeat_interleave(256, 2), V]


def _hierarchy(n: int, *, ours: bool) -> Any:
    def make(device: torch.device) -> Side:
        Q, K, V = _heads(device, n)

        def run() -> Tensor:
            with torch.no_grad():
                if ours:
                    return hierarchical_attention(Q, K, V, leaf=16)
                return F.scaled_dot_product_attention(Q, K, V)

        return run

    return make


def _latent(n: int, *, form: str) -> Any:
    """One new token against n - 1 kept ones."""

    def make(device: torch.device) -> Side:
        torch.manual_seed(0)
        layer = MultiHeadLatentAttention(512, 8, **LATENT, form=form).to(device).eval()  # type: ignore[arg-type]
        cache = layer.make_cache(1, n, device=device)
        x = torch.randn(1, n, 512, generator=torch.Generator().manual_seed(0)).to(device)

        def still(t: Tensor) -> Tensor:
            return t

        with torch.no_grad():
            layer(x[:, :-1], cache=cache, rotation=still)

        def run() -> Tensor:
            cache.truncate(n - 1)
            with torch.no_grad():
                out: Tensor = layer(x[:, -1:], cache=cache, rotation=still)
                return out

        return run

    return make


def _deepseek(n: int) -> Any:
    def make(device: torch.device) -> Side:
        quiet()
        from transformers import DeepseekV3Config, DynamicCache
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

        config: Any = DeepseekV3Config(  # type: ignore[call-arg]
            hidden_size=512,
            num_attention_heads=8,
            num_key_value_heads=8,
            q_lora_rank=None,
            kv_lora_rank=LATENT["rank"],
            qk_nope_head_dim=LATENT["head_dim"],
            qk_rope_head_dim=LATENT["rope_dim"],
            v_head_dim=LATENT["value_dim"],
            rope_interleave=False,
            attn_implementation="sdpa",
        )
        torch.manual_seed(0)
        ours = MultiHeadLatentAttention(512, 8, **LATENT).to(device)  # type: ignore[arg-type]
        theirs: Any = DeepseekV3Attention(config, 0).to(device).eval()
        named = {
            "q_proj.weight": ours.query.weight,
            "kv_a_proj_with_mqa.weight": ours.squeeze.weight,
            "kv_a_layernorm.weight": ours.norm.weight,
            "kv_b_proj.weight": ours.expand.weight,
            "o_proj.weight": ours.out.weight,
        }
        theirs.load_state_dict(named)
        x = torch.randn(1, n, 512, generator=torch.Generator().manual_seed(0)).to(device)
        width = LATENT["rope_dim"]
        still = (torch.ones(1, n, width, device=device), torch.zeros(1, n, width, device=device))
        cache = DynamicCache()
        with torch.no_grad():
            theirs(x[:, :-1], tuple(t[:, :-1] for t in still), None, past_key_values=cache)

        def run() -> Tensor:
            cache.crop(n - 1 - cache.get_seq_length())  # what the last call added
            with torch.no_grad():
                new = tuple(t[:, -1:] for t in still)
                out: Tensor = theirs(x[:, -1:], new, None, past_key_values=cache)[0]
                return out

        return run

    return make


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    size = f"{HEADS} heads of {WIDTH}"
    for n in (512, 4096):
        yield Pair(
            name=f"multiscale/nystrom-{n}",
            task=f"{n:,} tokens, 64 landmarks, {size}, with projections",
            peer="nystrom-attention",
            needs=["nystrom_attention"],
            ours=_nystrom(n, ours=True),
            theirs=_nystrom(n, ours=False),
            # Their iteration starts from the norms of all heads, so six steps end elsewhere.
            same=close(0.05),
            speed=1.0,
        )
    yield Pair(
        name="multiscale/hierarchy",
        task=f"4,096 tokens, leaf of 16, {size}, keys equal in blocks of 256",
        peer="torch scaled_dot_product_attention",
        ours=_hierarchy(4096, ours=True),
        theirs=_hierarchy(4096, ours=False),
        same=close(1e-4),
        note="Keys are equal in blocks, so that the two compute the same.",
    )
    yield Pair(
        name="multiscale/mla-absorbed",
        task="one new token, 2,048 held, 8 heads, latent vectors of 128",
        peer="DeepseekV3Attention of transformers",
        needs=["transformers"],
        ours=_latent(2048, form="auto"),
        theirs=_deepseek(2048),
        same=close(1e-4),
        speed=1.0,
        note="The peer makes all keys and values again at each step; ours is absorbed.",
    )
