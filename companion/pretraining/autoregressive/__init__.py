r"""Autoregressive pre-training: GPT and Llama, their loss, scaling laws, and text written on.

Models are :class:`companion.transformer.block.Decoder`, described by :func:`gpt1_config`,
:func:`gpt2_config`, :func:`gpt3_config` or :func:`llama_config`, and started by
:func:`initialize`. :class:`PanguAlpha` adds a :class:`QueryLayer`. :func:`next_token_loss` is what
they are trained with, on :class:`PackedTokens` for example.

Book: :doc:`/book/pretraining/autoregressive`.
"""

from companion.pretraining.autoregressive._draw import draw
from companion.pretraining.autoregressive._exposure import expected_mistakes, scheduled_sampling
from companion.pretraining.autoregressive._forms import (
    GPT2_SIZES,
    GPT3_TABLE,
    GPT3Row,
    gpt1_config,
    gpt2_config,
    gpt3_config,
    initialize,
    llama_config,
)
from companion.pretraining.autoregressive._loss import (
    next_token_log_probs,
    next_token_loss,
    text_log_probs,
)
from companion.pretraining.autoregressive._packed import PackedTokens, document_places
from companion.pretraining.autoregressive._query import (
    PanguAlpha,
    QueryLayer,
    pangu_config,
    pangu_parameters,
)
from companion.pretraining.autoregressive._scaling import (
    BESIROGLU,
    HOFFMANN,
    ScalingFit,
    ScalingLaw,
    fit_scaling_law,
    optimal_allocation,
    scaling_objective,
)

__all__ = [
    "BESIROGLU",
    "GPT2_SIZES",
    "GPT3_TABLE",
    "HOFFMANN",
    "GPT3Row",
    "PackedTokens",
    "PanguAlpha",
    "QueryLayer",
    "ScalingFit",
    "ScalingLaw",
    "document_places",
    "draw",
    "expected_mistakes",
    "fit_scaling_law",
    "gpt1_config",
    "gpt2_config",
    "gpt3_config",
    "initialize",
    "llama_config",
    "next_token_log_probs",
    "next_token_loss",
    "optimal_allocation",
    "pangu_config",
    "pangu_parameters",
    "scaling_objective",
    "scheduled_sampling",
    "text_log_probs",
]
