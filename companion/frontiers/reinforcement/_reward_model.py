r"""A model that gives a text one number: a decoder with a head, read at the last token."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_shape
from companion.transformer.block import Decoder

__all__ = ["RewardModel", "last_real"]


def last_real(real: Bool[Tensor, "batch n"]) -> Integer[Tensor, " batch"]:
    """Find the last token of each row, wherever its padding is.

    Args:
        real: ``True`` for tokens, ``False`` for padding on either side. The ids are not asked: the
            token that pads may also end a prompt.

    Returns:
        The column of the rightmost token; the last column for a row of padding only.

    Raises:
        ValueError: If the mask is not boolean or has no column.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> last_real(torch.tensor([[True, True, False], [False, True, True]]))
        tensor([1, 2])
    """
    check_shape("real", real, (None, None))
    if real.dtype != torch.bool or real.shape[1] == 0:
        raise ValueError(
            f"real must be boolean with one column at least, got {real.dtype} of shape "
            f"{tuple(real.shape)}"
        )
    return real.shape[1] - 1 - real.flip(1).long().argmax(1)


class RewardModel(nn.Module):
    r"""Give each text a reward: :math:`r(x) = w \cdot h_{\mathrm{last}}(x)`.

    Args:
        decoder: What reads the text; usually a copy of the policy. It is trained, too.

    References:
        Stiennon et al. 2020, arXiv:2009.01325.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> RewardModel(Decoder(config))(torch.tensor([[1, 2, 3]]))  # before any training
        tensor([0.], grad_fn=<SqueezeBackward1>)
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        weight = decoder.head.weight
        self.score = nn.Linear(
            decoder.config.dim, 1, bias=False, device=weight.device, dtype=weight.dtype
        )
        nn.init.zeros_(self.score.weight)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Read texts.

        Args:
            ids: Token ids.
            real: ``True`` for tokens, ``False`` for padding on either side; all by default.

        Returns:
            A reward for each.

        Raises:
            ValueError: If shapes do not fit or an id is out of range.
        """
        hidden = self.decoder.hidden(ids, real=real)
        if real is None:
            kept = hidden[:, -1]
        else:
            place = last_real(real)[:, None, None].expand(-1, 1, hidden.shape[-1])
            kept = hidden.gather(1, place).squeeze(1)
        scores: Tensor = self.score(kept).squeeze(-1)
        return scores
