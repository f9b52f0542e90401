"""The decoders of the GPT papers and of Llama, as descriptions, and their random weights."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from companion.core import check_count
from companion.transformer.block import (
    Decoder,
    Learned,
    Rope,
    TransformerConfig,
    initialize_,
)

__all__ = [
    "GPT2_SIZES",
    "GPT3_TABLE",
    "GPT3Row",
    "gpt1_config",
    "gpt2_config",
    "gpt3_config",
    "initialize",
    "llama_config",
]


@dataclass(frozen=True)
class GPT3Row:
    """One row of table 2.1 of the GPT-3 paper, as printed.

    Attributes:
        name: The nominal number of parameters.
        layers: Blocks.
        dim: Width of the residual stream.
        heads: Heads.
        head_dim: Components of a head.
        batch: Tokens of a batch.
        lr: Peak learning rate.

    Book: :doc:`/book/pretraining/autoregressive`
    """

    name: str
    layers: int
    dim: int
    heads: int
    head_dim: int
    batch: float
    lr: float


#: Table 2.1 of Brown et al. 2020, arXiv:2005.14165, as printed. Two rows do not add up: 24 heads
#: of 128 are not 2048, and 40 heads of 128 are 5120, not 5140.
GPT3_TABLE = (
    GPT3Row("125M", 12, 768, 12, 64, 0.5e6, 6.0e-4),
    GPT3Row("350M", 24, 1024, 16, 64, 0.5e6, 3.0e-4),
    GPT3Row("760M", 24, 1536, 16, 96, 0.5e6, 2.5e-4),
    GPT3Row("1.3B", 24, 2048, 24, 128, 1e6, 2.0e-4),
    GPT3Row("2.7B", 32, 2560, 32, 80, 1e6, 1.6e-4),
    GPT3Row("6.7B", 32, 4096, 32, 128, 2e6, 1.2e-4),
    GPT3Row("13B", 40, 5140, 40, 128, 2e6, 1.0e-4),
    GPT3Row("175B", 96, 12288, 96, 128, 3.2e6, 0.6e-4),
)

#: Layers, width and heads of the four models of GPT-2.
GPT2_SIZES = MappingProxyType(
    {
        "small": (12, 768, 12),
        "medium": (24, 1024, 16),
        "large": (36, 1280, 20),
        "xl": (48, 1600, 25),
    }
)


def gpt1_config(
    size: tuple[int, int, int] = (12, 768, 12),
    *,
    vocab: int = 40478,
    context: int = 512,
    dropout: float = 0.1,
) -> TransformerConfig:
    """Describe GPT of 2018: post-norm, learned positions, GELU.

    Args:
        size: Layers, width and heads.
        vocab: Number of token ids.
        context: Longest sequence.
        dropout: Share of components, and of attention weights, dropped in training.

    Returns:
        The description; by default of the model of the paper.

    Raises:
        ValueError: If a size is below 1, or heads do not divide the width.

    References:
        Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", sec.
        4.1: "residual, embedding, and attention dropouts with a rate of 0.1".

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import parameter_count
        >>> parameter_count(gpt1_config(), kind="decoder")
        116534784
    """
    layers, dim, heads = size
    return TransformerConfig(
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        ff_dim=4 * dim,
        context=context,
        norm_place="post",
        activation="gelu_tanh",
        positions=Learned(),
        dropout=dropout,
        attention_dropout=dropout,
    )


def gpt2_config(
    size: str | tuple[int, int, int] = "small",
    *,
    vocab: int = 50257,
    context: int = 1024,
    dropout: float = 0.0,
) -> TransformerConfig:
    """Describe GPT-2: pre-norm with a last norm, learned positions, GELU, biases, a tied head.

    Args:
        size: ``"small"``, ``"medium"``, ``"large"``, ``"xl"``, or layers, width and heads.
        vocab: Number of token ids.
        context: Longest sequence.
        dropout: Share of components dropped in training; the released models had 0.1.

    Returns:
        The description.

    Raises:
        ValueError: If the size is unknown or does not fit.

    References:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sec. 2.3 and
        table 2. Its parameter counts, 117M to 1542M, are too low; the released files have the
        numbers of :func:`companion.transformer.block.parameter_count`.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import parameter_count
        >>> parameter_count(gpt2_config("small"), kind="decoder")
        124439808
    """
    if isinstance(size, str):
        if size not in GPT2_SIZES:
            raise ValueError(f"size must be one of {', '.join(GPT2_SIZES)}, got {size!r}")
        size = GPT2_SIZES[size]
    layers, dim, heads = size
    return TransformerConfig(
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        ff_dim=4 * dim,
        context=context,
        activation="gelu_tanh",
        positions=Learned(),
        dropout=dropout,
    )


def gpt3_config(
    name: str = "175B", *, vocab: int = 50257, context: int = 2048
) -> TransformerConfig:
    """Describe a model of the GPT-3 paper, with dense attention in every layer.

    The paper alternates dense layers with locally banded sparse ones; that changes the cost of
    attention and no number of parameters.

    Args:
        name: A name in :data:`GPT3_TABLE`.
        vocab: Number of token ids.
        context: Longest sequence.

    Returns:
        The description, with the sizes as printed.

    Raises:
        ValueError: If there is no such row.

    References:
        Brown et al. 2020, arXiv:2005.14165, sec. 2.1 and table 2.1.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import parameter_count
        >>> print(f"{parameter_count(gpt3_config(), kind='decoder'):,}")
        174,604,259,328
    """
    rows = {row.name: row for row in GPT3_TABLE}
    if name not in rows:
        raise ValueError(f"name must be one of {', '.join(rows)}, got {name!r}")
    row = rows[name]
    return TransformerConfig(
        vocab=vocab,
        dim=row.dim,
        layers=row.layers,
        heads=row.heads,
        head_dim=row.head_dim,
        ff_dim=4 * row.dim,
        context=context,
        activation="gelu_tanh",
        positions=Learned(),
    )


def llama_config(
    size: tuple[int, int, int],
    *,
    vocab: int,
    context: int,
    kv_heads: int | None = None,
    ff_dim: int | None = None,
    multiple: int = 256,
    base: float = 10000.0,
    tied: bool = False,
    dropout: float = 0.0,
) -> TransformerConfig:
    r"""Describe a decoder in the form of Llama.

    RMSNorm before each layer and at the end, rotary positions, SwiGLU, no biases. The width inside
    the feed-forward network is :math:`\frac83 d`, rounded down and then up to a multiple.

    Args:
        size: Layers, width and heads.
        vocab: Number of token ids.
        context: Longest sequence.
        kv_heads: Key and value heads; by default as many as heads.
        ff_dim: Width inside the feed-forward network, if not by the rule.
        multiple: The width by the rule is a multiple of this.
        base: Base of the rotary angles.
        tied: Whether the output layer is the table of token embeddings.
        dropout: Share of components dropped in training; Llama has none.

    Returns:
        The description.

    Raises:
        ValueError: If a size is below 1 or does not fit.

    References:
        Touvron et al. 2023, arXiv:2302.13971, sec. 2.2 and table 2.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> llama_config((32, 4096, 32), vocab=32000, context=2048).ff_dim
        11008
    """
    layers, dim, heads = size
    check_count("multiple", multiple)
    if ff_dim is None:
        ff_dim = -(-(8 * dim // 3) // multiple) * multiple
    return TransformerConfig(
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        ff_dim=ff_dim,
        context=context,
        norm="rms",
        activation="swiglu",
        positions=Rope(base=base),
        attention_bias=False,
        ff_bias=False,
        tied=tied,
        dropout=dropout,
    )


def initialize(
    config: TransformerConfig,
    *,
    generator: torch.Generator,
    form: Literal["gpt2", "llama"] = "gpt2",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Decoder:
    r"""Make a decoder with random weights.

    All weights are normal with the standard deviation 0.02, biases 0, gains of norms 1. In the
    form of GPT-2 the maps that write into the residual stream are smaller by :math:`1/\sqrt{2L}`.

    Args:
        config: The description.
        generator: The source of randomness; the global one is left alone.
        form: ``"gpt2"``, or ``"llama"``, which leaves out that factor, as ``transformers`` does.
            The papers of Llama do not say how they start.
        device: Where the model is put; by default the CPU.
        dtype: Type of the parameters; by default PyTorch's.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If the form is unknown.

    Numerics:
        Weights are drawn in float32 on the generator's device and then moved.

    References:
        Radford et al. 2019, sec. 2.3. The released code of GPT-2 draws the table of positions
        with 0.01 instead.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> model = initialize(gpt2_config((2, 24, 3), vocab=11, context=7), generator=g)
        >>> bool(model.blocks[0].attention.out.bias.eq(0).all())
        True
    """
    if form not in ("gpt2", "llama"):
        raise ValueError(f"form must be 'gpt2' or 'llama', got {form!r}")
    with torch.random.fork_rng(devices=[]):
        # PyTorch's modules draw from the global generator as they are made.
        model = Decoder(config)
    model = model.to(device=device, dtype=dtype)
    return initialize_(model, generator=generator, branch_gain=1.0 if form == "llama" else None)
