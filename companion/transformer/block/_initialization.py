r"""Random weights for a Transformer: which size, and how much smaller on the residual branches."""

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from companion.core import HasLinears, check_in_range, randn
from companion.core.linears import Rows
from companion.foundations.backpropagation import weight_variance
from companion.transformer.block._norms import LayerNorm, RMSNorm

__all__ = ["branch_outputs", "initialize_"]

Model = TypeVar("Model", bound=nn.Module)


def branch_outputs(model: nn.Module) -> list[nn.Linear]:
    r"""List the linear maps through which a model writes into its residual stream.

    They are the output maps of attention, :math:`W^O`, and the second matrices of the feed-forward
    networks, in the order in which the modules are registered: the maps that are named ``out`` or
    ``down``, see :func:`companion.core.replace_linears`. A Transformer of :math:`L` layers has
    :math:`2L` of them, and one more a layer with cross-attention.

    Args:
        model: A block, a stack of them, or a whole model.

    Returns:
        The maps themselves, not copies.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> from companion.transformer.block import FeedForward, GatedFeedForward
        >>> len(branch_outputs(nn.ModuleList([FeedForward(3, 5), GatedFeedForward(3, 7)])))
        2
    """
    found: list[nn.Linear] = []
    for layer, maps in _named(model):
        if not maps.keys().isdisjoint(("out", "down")) and layer not in found:
            found.append(layer)
    return found


def _named(model: nn.Module) -> Iterator[tuple[nn.Linear, Mapping[str, Rows]]]:
    """Linear layers of the modules that name their maps, with these."""
    for module in model.modules():
        if isinstance(module, HasLinears):
            for attribute, maps in module.linear_maps().items():
                layer = getattr(module, attribute)
                if isinstance(layer, nn.Linear):
                    yield layer, maps


@torch.no_grad()
def initialize_(
    model: Model,
    *,
    generator: torch.Generator,
    rule: Literal["gpt2", "xavier"] = "gpt2",
    std: float = 0.02,
    branch_gain: float | None = None,
) -> Model:
    r"""Draw all parameters of a model anew, in place.

    Weights are normal with mean 0, biases are 0, gains of norms are 1. The standard deviations are

    .. math:: \text{gpt2: } 0.02, \qquad
        \text{xavier: } \sqrt{\frac{2}{d_{in} + d_{out}}} \text{ for each linear map}

    and the maps that write into the residual stream, :func:`branch_outputs`, get the branch gain
    as a further factor.

    Args:
        model: The model. Its parameters are overwritten.
        generator: The source of randomness.
        rule: ``"gpt2"`` or ``"xavier"``. With ``"xavier"`` the tables of token embeddings are
            standard normal, so that a token starts with a mean square of 1, as in the analysis of
            Xiong et al.; other tables have the deviation ``std``.
        std: Standard deviation of ``"gpt2"``, and of the tables of positions and segments.
        branch_gain: Factor of the maps that write into the residual stream. By default
            :math:`1/\sqrt{N}` with :math:`N` the number of those maps for ``"gpt2"``, which is
            :math:`1/\sqrt{2L}` for a decoder, and 1 for ``"xavier"``.

    Returns:
        The same model.

    Raises:
        ValueError: If the rule is unknown, or ``std`` or ``branch_gain`` is not above 0.

    Numerics:
        A matrix that holds several maps side by side (queries, keys and values; gate and up) is
        drawn part by part, with the sizes of the parts. Tied matrices are drawn once.

    References:
        A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section
        2.3, for the gain :math:`1/\sqrt{N}`; X. Glorot and Y. Bengio, AISTATS 2010, eq. 12, for
        xavier; R. Xiong et al., arXiv:2002.04745, section 3.2, for its use here.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> from companion.transformer.block import FeedForward
        >>> network = initialize_(FeedForward(64, 256), generator=g, std=0.1)
        >>> print(f"{network.up.weight.std():.2f}")
        0.10
    """
    check_in_range("std", std, low=0.0, open_low=True, open_high=True)
    if rule not in ("gpt2", "xavier"):
        raise ValueError(f"rule must be 'gpt2' or 'xavier', got {rule!r}")
    writers = {id(linear) for linear in branch_outputs(model)}
    if branch_gain is None:
        branch_gain = max(len(writers), 1) ** -0.5 if rule == "gpt2" else 1.0
    check_in_range("branch_gain", branch_gain, low=0.0, open_low=True, open_high=True)

    tables = set()
    for module in model.modules():
        tokens = getattr(module, "tokens", None)
        if isinstance(tokens, nn.Embedding):
            tables.add(id(tokens.weight))
    parts = {
        id(linear): [end - first for first, end in maps.values()] for linear, maps in _named(model)
    }
    drawn: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            if isinstance(module, LayerNorm | RMSNorm):
                parameter.fill_(1.0 if name == "weight" else 0.0)
            elif name == "bias":
                parameter.zero_()
            elif isinstance(module, nn.Linear) and id(parameter) not in tables:
                gain = branch_gain if id(module) in writers else 1.0
                rows = parts.get(id(module), [module.out_features])
                deviations = [
                    weight_variance("xavier", module.in_features, size) ** 0.5
                    if rule == "xavier"
                    else std
                    for size in rows
                ]
                start = 0
                for size, deviation in zip(rows, deviations, strict=True):
                    _draw(parameter[start : start + size], gain * deviation, generator)
                    start += size
            elif id(parameter) in tables and rule == "xavier":
                _draw(parameter, 1.0, generator)
            else:
                _draw(parameter, std, generator)
    return model


def _draw(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    made = randn(
        *parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32
    )
    parameter.copy_(deviation * made)
