r"""Trained models, and what is done with them: checkpoints both ways, text in and out.

Book: :doc:`/book/transformer/block`.
"""

from companion.models._bert import load_bert
from companion.models._checkpoint import load_pretrained, minilm, smollm2
from companion.models._denoising import load_bart, load_t5, load_xlnet
from companion.models._export import save_llama
from companion.models._generate import History, Pick, generate, greedy, sample
from companion.models._text import TextDecoder, TextEncoder

__all__ = [
    "History",
    "Pick",
    "TextDecoder",
    "TextEncoder",
    "generate",
    "greedy",
    "load_bart",
    "load_bert",
    "load_pretrained",
    "load_t5",
    "load_xlnet",
    "minilm",
    "sample",
    "save_llama",
    "smollm2",
]
