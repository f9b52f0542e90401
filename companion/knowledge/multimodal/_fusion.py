r"""Where two modalities meet: early, in the middle, or late; and what happens if one is missing."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, check_count, check_in_range, check_shape
from companion.transformer.block import Block, Encoder, TransformerConfig

__all__ = [
    "CrossModal",
    "LowRankFusion",
    "SingleStream",
    "TensorFusion",
    "late_fusion",
    "mixed_attention",
    "modality_mask",
    "modality_share",
]


def late_fusion(
    log_p: Sequence[Float[Tensor, "*batch classes"]], log_prior: Float[Tensor, " classes"]
) -> Float[Tensor, "*batch classes"]:
    r"""Join what several modalities say about a class, each judged by itself.

    .. math:: p(y \mid x_1, \dots, x_K) \propto p(y)^{1 - K} \prod_k p(y \mid x_k)

    This is Bayes' rule if the modalities are independent **given** :math:`y`, and wrong otherwise:
    if :math:`y` is the exclusive or of two fair bits, each says nothing, and so does the product.

    Args:
        log_p: :math:`\ln p(y \mid x_k)` of each modality.
        log_prior: :math:`\ln p(y)`. Without it the prior would be counted :math:`K` times.

    Returns:
        Log-probabilities, normalized. A class without prior stays without; where the modalities
        leave no class between them, all are NaN.

    Raises:
        ValueError: If there is no modality, or shapes differ.

    References:
        Bayes' rule; the product rule of Kittler et al. 1998, doi:10.1109/34.667881.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> each = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
        >>> late_fusion([each, each], torch.tensor([0.9, 0.1], dtype=torch.float64).log()).exp()
        tensor([0.6400, 0.3600], dtype=torch.float64)
    """
    if not log_p:
        raise ValueError("give what one modality says at least")
    for index, given in enumerate(log_p):
        check_shape(f"log_p[{index}]", given, tuple(log_p[0].shape))
    check_shape("log_prior", log_prior, (log_p[0].shape[-1],))
    joined = torch.stack(list(log_p)).sum(0) + (1 - len(log_p)) * log_prior
    joined = joined.masked_fill(log_prior == -math.inf, -math.inf)  # not -inf + inf
    return joined.log_softmax(-1)


class TensorFusion(nn.Module):
    r"""All products of entries of two vectors, and a linear map of them.

    .. math:: y_c = \sum_{ij} W_{ijc} \, \tilde a_i \tilde b_j, \qquad \tilde a = [a, 1],
        \ \tilde b = [b, 1]

    The ones keep what each vector says by itself. :math:`(d_a + 1)(d_b + 1)` weights for each
    output.

    Args:
        first: Width of the first vector.
        second: Width of the second.
        out: Width of the result.
        generator: Source of the weights.

    Attributes:
        weight: (first + 1, second + 1, out); the ones come last.

    Raises:
        ValueError: If a size is below 1.

    References:
        Zadeh et al. 2017, arXiv:1707.07250 (there for three vectors).

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> fuse = TensorFusion(2, 3, out=5, generator=torch.Generator().manual_seed(0))
        >>> fuse(torch.ones(7, 2), torch.ones(7, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, first: int, second: int, *, out: int, generator: torch.Generator) -> None:
        super().__init__()
        for name, size in (("first", first), ("second", second), ("out", out)):
            check_count(name, size)
        shape = (first + 1, second + 1, out)
        drawn = torch.randn(shape, generator=generator, device=generator.device)
        self.weight = nn.Parameter(drawn / math.sqrt(shape[0] * shape[1]))

    def forward(
        self, a: Float[Tensor, "batch first"], b: Float[Tensor, "batch second"]
    ) -> Float[Tensor, "batch out"]:
        """Fuse.

        Args:
            a: The first vector of each example.
            b: The second.

        Returns:
            The fused vector.

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shape("a", a, (None, self.weight.shape[0] - 1))
        check_shape("b", b, (len(a), self.weight.shape[1] - 1))
        return torch.einsum("bi,bj,ijc->bc", _one(a), _one(b), self.weight)


class LowRankFusion(nn.Module):
    r"""Tensor fusion whose weights are a sum of few products: any number of modalities.

    .. math:: y_c = \sum_{r=1}^R \prod_k \bigl(\tilde x_k W_k^{(r)}\bigr)_c, \qquad
        \tilde x_k = [x_k, 1]

    For two modalities it is :class:`TensorFusion` with
    :math:`W_{ijc} = \sum_r W^{(r)}_{1,ic} W^{(r)}_{2,jc}`, without forming the products.

    Args:
        dims: Width of each modality.
        rank: :math:`R`.
        out: Width of the result.
        generator: Source of the weights.

    Attributes:
        weights: One tensor (rank, width + 1, out) for each modality; the ones come last.

    Raises:
        ValueError: If a size is below 1, or there is no modality.

    References:
        Liu et al. 2018, arXiv:1806.00064.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> fuse = LowRankFusion([2, 3, 5], rank=2, out=7, generator=g)
        >>> fuse([torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 5)]).shape
        torch.Size([1, 7])
    """

    def __init__(
        self, dims: Sequence[int], *, rank: int, out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        if not dims:
            raise ValueError("give the width of one modality at least")
        for name, size in (("rank", rank), ("out", out), *(("dims", d) for d in dims)):
            check_count(name, size)
        self.weights = nn.ParameterList(
            torch.randn(rank, d + 1, out, generator=generator, device=generator.device)
            / math.sqrt(d + 1)
            for d in dims
        )

    def forward(self, modalities: Sequence[Float[Tensor, "batch _"]]) -> Float[Tensor, "batch out"]:
        """Fuse.

        Args:
            modalities: A vector of each modality for each example.

        Returns:
            The fused vector.

        Raises:
            ValueError: If their number or a shape does not fit.
        """
        if len(modalities) != len(self.weights):
            raise ValueError(f"{len(self.weights)} modalities are fused, got {len(modalities)}")
        product: Tensor | None = None
        for index, (x, W) in enumerate(zip(modalities, self.weights, strict=True)):
            check_shape(f"modalities[{index}]", x, (len(modalities[0]), W.shape[1] - 1))
            mapped = torch.einsum("bi,ric->rbc", _one(x), W)
            product = mapped if product is None else product * mapped
        assert product is not None
        return product.sum(0)

    def tensor(self) -> Float[Tensor, "first second out"]:
        """Return the weights of the :class:`TensorFusion` of two modalities that this one is.

        Returns:
            Their sum of products.

        Raises:
            ValueError: If there are not two modalities.
        """
        if len(self.weights) != 2:
            raise ValueError(f"two modalities make such a tensor, there are {len(self.weights)}")
        return torch.einsum("ric,rjc->ijc", self.weights[0], self.weights[1])


def _one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def mixed_attention(
    q: Float[Tensor, "*batch n key"],
    own: tuple[Float[Tensor, "*batch m key"], Float[Tensor, "*batch m value"]],
    other: tuple[Float[Tensor, "*batch p key"], Float[Tensor, "*batch p value"]],
) -> tuple[Float[Tensor, "*batch n value"], Float[Tensor, "*batch n"]]:
    r"""Attention to two modalities at once, as a mixture of attention to each.

    .. math:: o = (1 - \lambda)\, o_{\text{own}} + \lambda\, o_{\text{other}}, \qquad
        \lambda = \frac{Z_{\text{other}}}{Z_{\text{own}} + Z_{\text{other}}}, \qquad
        Z = \sum_j e^{q \cdot k_j / \sqrt{d_k}}

    It is the softmax over all keys; what is added to two attentions side by side is one number a
    query, by which it turns to one modality or the other.

    Args:
        q: Queries.
        own: Keys and values of one modality.
        other: Those of the other.

    Returns:
        The outputs, and :math:`\lambda` for each query.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        :math:`\lambda` is the sigmoid of the difference of two log-sums: nothing overflows.

    References:
        Derived in the chapter.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> q, k, v = torch.zeros(1, 2), torch.ones(3, 2), torch.ones(3, 1)
        >>> mixed_attention(q, (k, v), (k[:1], 5 * v[:1]))
        (tensor([[2.]]), tensor([0.2500]))
    """
    outputs, sums = [], []
    for name, (k, v) in (("own", own), ("other", other)):
        check_shape(f"keys of {name}", k, (*k.shape[:-1], q.shape[-1]))
        check_shape(f"values of {name}", v, (*k.shape[:-1], v.shape[-1]))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        outputs.append(scores.softmax(-1) @ v)
        sums.append(scores.logsumexp(-1))
    share = torch.sigmoid(sums[1] - sums[0])
    return torch.lerp(outputs[0], outputs[1], share[..., None]), share


def modality_share(
    weights: Float[Tensor, "*heads n m"], other: Bool[Tensor, " m"]
) -> Float[Tensor, "*heads n"]:
    r"""Return the part of attention that goes to the keys of another modality, :math:`\lambda`.

    Args:
        weights: Attention weights, each row a distribution over keys.
        other: Which keys are of the other modality.

    Returns:
        Numbers from 0 to 1.

    Raises:
        ValueError: If the keys do not fit.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> modality_share(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([False, True, True]))
        tensor([0.5000])
    """
    check_shape("other", other, (weights.shape[-1],))
    return (weights * other).sum(-1)


class CrossModal(HasSites):
    r"""A layer of two streams that read each other: co-attention.

    .. math:: A \leftarrow \mathrm{Block}(A;\, B), \qquad B \leftarrow \mathrm{Block}(B;\, A)

    Each :class:`~companion.transformer.block.Block` lets its own tokens read themselves, then those
    of the other stream as they came in, and then applies its feed-forward layer. The streams have
    parameters of their own.

    Args:
        config: The description of both blocks. Positions belong to what comes before.

    References:
        Lu et al. 2019, "ViLBERT", arXiv:1908.02265; the order self, cross, feed-forward
        is that of the decoder of Vaswani et al. 2017, arXiv:1706.03762.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> config = TransformerConfig(vocab=1, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> A, B = CrossModal(config)(torch.ones(2, 5, 12), torch.ones(2, 7, 12))
        >>> A.shape, B.shape
        (torch.Size([2, 5, 12]), torch.Size([2, 7, 12]))
    """

    sites = ()

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.first = Block(config, cross=True)
        self.second = Block(config, cross=True)

    def forward(
        self,
        A: Float[Tensor, "batch n dim"],
        B: Float[Tensor, "batch m dim"],
        *,
        A_real: Bool[Tensor, "batch n"] | None = None,
        B_real: Bool[Tensor, "batch m"] | None = None,
    ) -> tuple[Float[Tensor, "batch n dim"], Float[Tensor, "batch m dim"]]:
        """Apply the layer.

        Args:
            A: Tokens of the first stream.
            B: Tokens of the second.
            A_real: ``True`` for tokens, ``False`` for padding. A row of nothing but ``False`` is a
                missing modality: what reads it gets the output bias alone.
            B_real: The same for the second.

        Returns:
            Both streams.

        Raises:
            ValueError: If shapes do not fit.
        """
        masks = []
        for name, x, real in (("A_real", A, A_real), ("B_real", B, B_real)):
            if real is not None:
                check_shape(name, real, tuple(x.shape[:2]))
            masks.append(None if real is None else real[:, None, None, :])
        first = self.first(A, B, mask=masks[0], context_mask=masks[1])
        second = self.second(B, A, mask=masks[1], context_mask=masks[0])
        return first, second


class SingleStream(nn.Module):
    r"""One encoder that reads words and pieces of a picture as one sequence.

    .. math:: X = [E_{\text{text}}(w) + s_0;\ F W + s_1], \qquad H = \mathrm{Encoder}(X)

    Args:
        config: The description of the encoder; its two segments tell the modalities apart.
        features: Width of the pieces of a picture.

    Raises:
        ValueError: If a size is below 1, or the description has not two segments.

    References:
        Li et al. 2019, "VisualBERT", arXiv:1908.03557; Chen et al. 2020, "UNITER",
        arXiv:1909.11740.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> config = TransformerConfig(
        ...     vocab=11, dim=12, layers=2, heads=3, ff_dim=31, context=19, segments=2)
        >>> SingleStream(config, features=5)(torch.ones(2, 3).long(), torch.ones(2, 7, 5)).shape
        torch.Size([2, 10, 12])
    """

    def __init__(self, config: TransformerConfig, *, features: int) -> None:
        super().__init__()
        check_count("features", features)
        if config.segments != 2:
            raise ValueError(f"two modalities need segments=2, got {config.segments}")
        self.encoder = Encoder(replace(config))
        self.project = nn.Linear(features, config.dim)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        pieces: Float[Tensor, "batch m features"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        pieces_real: Bool[Tensor, "batch m"] | None = None,
    ) -> Float[Tensor, "batch both dim"]:
        """Read both.

        Args:
            ids: Token ids.
            pieces: Features of the pieces.
            real: ``True`` for tokens, ``False`` for padding.
            pieces_real: ``True`` for pieces that are there.

        Returns:
            Hidden states, those of the words first.

        Raises:
            ValueError: If shapes do not fit.
        """
        check_shape("ids", ids, (None, None))
        check_shape("pieces", pieces, (len(ids), None, self.project.in_features))
        both = torch.cat([self.encoder.tokens(ids.long()), self.project(pieces)], dim=1)
        n, m = ids.shape[1], pieces.shape[1]
        segments = torch.arange(n + m, device=ids.device).ge(n).long().expand(len(ids), -1)
        seen = None
        if real is not None or pieces_real is not None:
            parts = []
            for name, given, width in (("real", real, n), ("pieces_real", pieces_real, m)):
                if given is None:
                    given = torch.ones(len(ids), width, dtype=torch.bool, device=ids.device)
                check_shape(name, given, (len(ids), width))
                parts.append(given)
            seen = torch.cat(parts, dim=1)
        hidden: Tensor = self.encoder(None, embeddings=both, segments=segments, real=seen)
        return hidden


def modality_mask(
    batch: int,
    modalities: int,
    *,
    p: float,
    generator: torch.Generator,
) -> Bool[Tensor, "batch modalities"]:
    r"""Draw which modalities a training example shows: modality dropout.

    Each is dropped with probability :math:`p`; if all are, one of them, drawn at random, comes
    back. So a modality is missing with probability :math:`p - p^K/K` of :math:`K`.

    Args:
        batch: Examples.
        modalities: :math:`K`, 1 or more.
        p: Probability, from 0 to 1.
        generator: Source of the draws; the mask is made on its device.

    Returns:
        ``True`` for what is shown; no row is all ``False``.

    Raises:
        ValueError: If a count is below 1, or ``p`` is no probability.

    References:
        Neverova et al. 2016, "ModDrop", arXiv:1501.00102.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> modality_mask(5, 2, p=1.0, generator=g).sum(1)
        tensor([1, 1, 1, 1, 1])
    """
    check_count("batch", batch)
    check_count("modalities", modalities)
    check_in_range("p", p, low=0.0, high=1.0)
    device = generator.device
    shown = torch.rand(batch, modalities, generator=generator, device=device) >= p
    back = torch.randint(0, modalities, (batch,), generator=generator, device=device)
    lonely = ~shown.any(1, keepdim=True)
    return shown | (lonely & nn.functional.one_hot(back, modalities).bool())
