r"""What a streaming cache computes, as a definition: all tokens of a text at once."""

from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_shape
from companion.transformer.attention import streaming_mask
from companion.transformer.block._config import NoPositions, Rope
from companion.transformer.block._model import Decoder
from companion.transformer.positions import rotate

__all__ = ["check_positions", "streaming_logits"]


def streaming_logits(
    model: Decoder, ids: Integer[Tensor, "batch n"], *, sinks: int, window: int
) -> Float[Tensor, "batch n vocab"]:
    r"""Compute at once what a model says token by token with a streaming cache.

    This is the definition of :class:`companion.transformer.block.StreamingCache`.

    Token :math:`t` reads :func:`companion.transformer.attention.streaming_mask`. Its query meets
    the keys of the window at its own position :math:`t`, and those of the sinks at position
    :math:`\min(t, s + w - 1)`, which is where it stands within the cache. To use the
    fused kernels, a query carries both rotations side by side, twice as wide, and a key is zero
    in the half that does not concern it:

    .. math:: \begin{bmatrix} q R_t & q R_{\min(t, s + w - 1)} \end{bmatrix} \cdot
        \begin{bmatrix} k R_j & 0 \end{bmatrix} \;\text{or}\;
        \cdot \begin{bmatrix} 0 & k R_j \end{bmatrix}

    Args:
        model: A decoder with rotary positions, or without any.
        ids: Token ids, no more than the model's context.
        sinks: First tokens that stay.
        window: Latest tokens that stay.

    Returns:
        Logits at every position.

    Raises:
        ValueError: If a size is out of range, the text is longer than the model's context, or its
            positions are of another kind.

    Book: :doc:`/book/transformer/cost`
    """
    check_shape("ids", ids, (None, None))
    mask = streaming_mask(sinks=sinks, window=window)
    check_positions(model)
    n = ids.shape[1]
    check_count("tokens", n, high=model.config.context)
    places = torch.arange(n, device=ids.device)
    x = model.embed(ids, places)
    rotation = None
    if model.rotary is not None:
        apply = partial(rotate, interleaved=model.rotary.interleaved, head_axis=2)
        near = model.rotary(places, dtype=x.dtype)
        far = model.rotary(places.clamp(max=sinks + window - 1), dtype=x.dtype)
        sink = (places < sinks)[:, None, None]

        def rotation(qk: Tensor) -> Tensor:
            first, second = apply(qk, near), apply(qk, far)
            # Which half of a key is kept: (n, heads, 1). Queries, which come first, keep both.
            key = (torch.arange(qk.shape[2], device=qk.device) >= model.config.heads)[:, None]
            return torch.cat(
                [first.masked_fill(key & sink, 0), second.masked_fill(key & ~sink, 0)], -1
            )

    for block in model.blocks:
        x = block(x, mask=mask, rotation=rotation)
    logits: Tensor = model.head(x if model.final_norm is None else model.final_norm(x))
    return logits


def check_positions(model: Decoder) -> None:
    """Require positions that a stream can count within its cache.

    Args:
        model: A decoder.

    Raises:
        ValueError: If its positions are counted from the beginning of the text.
    """
    places = model.config.positions
    if not isinstance(places, Rope | NoPositions):
        raise ValueError(
            f"streaming needs a model with rotary positions or none, got {type(places).__name__}"
        )
