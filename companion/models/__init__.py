r"""Trained models, and what is done with them: checkpoints both ways, text in and text out.

:func:`load_pretrained` reads a checkpoint folder of any family (BERT, GPT-2, Llama, BART, T5,
XLNet) and :func:`save_pretrained` writes one; :func:`minilm` and :func:`smollm2` are the two models
that come with the book. :func:`generate` is the one loop that writes; how a token is chosen is a
:class:`Pick`, such as :func:`greedy` or what :func:`sample` makes.

This is a wing of the house and no chapter: machinery that many chapters share.

Book: :doc:`/book/transformer/block`.
"""

from companion.models._chat import render_chat
from companion.models._generate import History, NextToken, Pick, generate, greedy, sample
from companion.models._pretrained import load_pretrained, minilm, save_pretrained, smollm2
from companion.models._text import TextDecoder, TextEncoder, TextEncoderDecoder, TextTwoStream

__all__ = [
    "History",
    "NextToken",
    "Pick",
    "TextDecoder",
    "TextEncoder",
    "TextEncoderDecoder",
    "TextTwoStream",
    "generate",
    "greedy",
    "load_pretrained",
    "minilm",
    "render_chat",
    "sample",
    "save_pretrained",
    "smollm2",
]
