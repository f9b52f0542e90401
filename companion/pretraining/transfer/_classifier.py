"""A pretrained model with a classifier on top."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_count
from companion.pretraining.transfer._prompts import PromptTuning
from companion.pretraining.transfer._representations import Pooling, pool
from companion.transformer.block import Decoder, Encoder

__all__ = ["Classifier"]


class Classifier(nn.Module):
    r"""Pooled hidden states of a model, and a linear layer to the logits of classes.

    .. math:: z = \mathrm{pool}(f_\theta(x))\, W + b

    :math:`W` and :math:`b` start at zero: all classes are equally likely before training.

    Args:
        model: An encoder or decoder, with LoRA, prefixes or adapters or without, or one behind
            :class:`PromptTuning`. It is kept, not copied, and trained as its parameters allow.
        classes: Number of classes, 2 or more.
        pooling: As in :func:`pool`; ``"last"`` suits decoders.

    Attributes:
        model: The model.
        head: ``nn.Linear`` with :math:`W^\top` and :math:`b`.

    Raises:
        ValueError: If there are fewer than two classes.

    Book: :doc:`/book/pretraining/transfer`
    """

    def __init__(
        self,
        model: Encoder | Decoder | PromptTuning,
        *,
        classes: int,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        check_count("classes", classes, low=2)
        self.model = model
        self.pooling: Pooling = pooling
        inner = model.model if isinstance(model, PromptTuning) else model
        weight = inner.tokens.weight
        made = nn.Linear(inner.config.dim, classes, device="meta", dtype=weight.dtype)
        self.head = made.to_empty(device=weight.device)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    def features(
        self, ids: Integer[Tensor, "batch n"], *, real: Bool[Tensor, "batch n"]
    ) -> Float[Tensor, "batch dim"]:
        """Compute the pooled hidden states.

        Args:
            ids: Token ids.
            real: ``True`` for tokens, ``False`` for padding.

        Returns:
            One row for each text.
        """
        read = getattr(self.model, "hidden", self.model)
        return pool(read(ids, real=real), real, pooling=self.pooling)

    def forward(
        self, ids: Integer[Tensor, "batch n"], *, real: Bool[Tensor, "batch n"]
    ) -> Float[Tensor, "batch classes"]:
        """Compute the logits of the classes.

        Args:
            ids: Token ids.
            real: ``True`` for tokens, ``False`` for padding.

        Returns:
            Logits, not normalized.
        """
        logits: Tensor = self.head(self.features(ids, real=real))
        return logits
