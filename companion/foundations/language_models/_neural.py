r"""The neural probabilistic language model of Bengio, Ducharme, Vincent and Jauvin."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.core import check_count, check_ids, check_shape, randn

__all__ = ["NPLM", "NPLMConfig"]


@dataclass(frozen=True, kw_only=True)
class NPLMConfig:
    """Sizes of the model.

    Attributes:
        vocab_size: Number of outcomes, EOS included.
        context: Number m of symbols that the model sees, 1 or more.
        dim: Size d of the vector of a symbol.
        hidden: Number h of hidden units.
    """

    vocab_size: int
    context: int = 4
    dim: int = 32
    hidden: int = 64

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "dim", "hidden"):
            check_count(name, getattr(self, name), low=1)


class NPLM(nn.Module):
    r"""A neural probabilistic language model.

    .. math:: P(w \mid c) = \mathrm{softmax}\big(\tanh(x W_1 + b_1)\, W_2 + b_2\big)_w

    The row :math:`x` holds the rows of the embedding :math:`E`, of d entries each, for the m last
    symbols :math:`c_1, \dots, c_m`, written one after the other. BOS, the id ``vocab_size``, has a
    row of :math:`E` and no column of :math:`W_2`.

    Args:
        config: The sizes.
        generator: The source of randomness of the first weights. They have standard deviation
            :math:`1/\sqrt{d_{in}}`, those of :math:`E` 1; :math:`W_2` and the biases start at 0,
            so the first distribution is uniform.

    Numerics:
        :math:`2 m d h + 2 h |\mathcal V|` FLOPs a token forward.

    References:
        Y. Bengio, R. Ducharme, P. Vincent and C. Jauvin, "A neural probabilistic language model",
        JMLR 3, 2003, section 2. Without their optional direct connections from embeddings to
        outputs.

    Book:
        :doc:`/book/foundations/language_models`

    Example:
        >>> config = NPLMConfig(vocab_size=5, context=2, dim=3, hidden=7)
        >>> model = NPLM(config, generator=torch.Generator().manual_seed(0))
        >>> model(torch.tensor([[5, 0], [0, 4]])).shape
        torch.Size([2, 5])
    """

    def __init__(self, config: NPLMConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        v, m, d, h = config.vocab_size, config.context, config.dim, config.hidden
        self.embedding = nn.Parameter(randn(v + 1, d, generator=generator))
        self.w1 = nn.Parameter(randn(m * d, h, generator=generator) / (m * d) ** 0.5)
        self.b1 = nn.Parameter(torch.zeros_like(self.w1[0]))
        self.w2 = nn.Parameter(torch.zeros(h, v, device=self.w1.device))
        self.b2 = nn.Parameter(torch.zeros_like(self.w2[0]))

    def forward(self, contexts: Int[Tensor, "batch context"]) -> Float[Tensor, "batch vocab"]:
        """Return the logits of the next symbol.

        Args:
            contexts: The m symbols before, the oldest first.

        Returns:
            Logits in nats.

        Raises:
            ValueError: If there are not m symbols, or an id is out of range.
        """
        check_shape("contexts", contexts, (None, self.config.context))
        check_ids("contexts", contexts, self.config.vocab_size + 1)
        rows = self.embedding[contexts].flatten(1)
        return torch.tanh(rows @ self.w1 + self.b1) @ self.w2 + self.b2

    def log_prob(
        self, contexts: Int[Tensor, "batch context"], symbols: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        r"""Return :math:`\log P(w \mid c)` of each symbol.

        Args:
            contexts: The m symbols before, the oldest first.
            symbols: The symbols.

        Returns:
            Log-probabilities in nats.

        Raises:
            ValueError: If shapes do not fit, or an id is out of range.
        """
        check_shape("symbols", symbols, (contexts.shape[0],))
        check_ids("symbols", symbols, self.config.vocab_size)
        return -F.cross_entropy(self(contexts), symbols, reduction="none")
