r"""Erasure inside of a model, at its sites, by one call."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Bool, Integer
from torch import Tensor, nn

from companion.core import Seen, check_count, check_several, check_shape, site_names, watch
from companion.knowledge.robustness import evaluating
from companion.trust.debiasing._eraser import Eraser
from companion.trust.debiasing._leace import ErasureFitter, Method

__all__ = ["Scrubber", "TextBatch", "scrub"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TextBatch:
    """Texts with the concept that shall be erased.

    Attributes:
        ids: Tokens.
        real: ``True`` for tokens, ``False`` for padding.
        concept: A class for each text, or for each token.
        rows: Which tokens the eraser is fitted to; all real ones by default. It acts on all.
    """

    ids: Integer[Tensor, "batch n"]
    real: Bool[Tensor, "batch n"]
    concept: Integer[Tensor, "..."]
    rows: Bool[Tensor, "batch n"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Scrubber:
    """Erasers for some sites of a model.

    Attributes:
        erasers: An eraser for the name of each site.

    Book: :doc:`/book/trust/debiasing`
    """

    erasers: Mapping[str, Eraser]

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[Seen]:
        """Erase while the ``with`` block runs.

        Args:
            model: The model, or another with these sites.

        Yields:
            What :func:`companion.core.watch` read: nothing.

        Raises:
            ValueError: If a site is not there.
        """
        with watch(model, replace=dict(self.erasers)) as seen:
            yield seen


def scrub(
    model: nn.Module,
    batches: Sequence[TextBatch],
    *,
    sites: Sequence[str],
    classes: int,
    sequential: bool = True,
    method: Method = "leace",
    shrinkage: float = 0.0,
) -> Scrubber:
    r"""Fit erasers at some sites of a model, so that no linear probe finds a concept there.

    Tokens are rows, with the concept of their text or their own.

    Args:
        model: A model with sites that takes ``ids`` and ``real``: an encoder or a decoder. It is
            read in evaluation mode, so that dropout does not blur the fit, and left in its own.
        batches: What it reads.
        sites: Names, with ``*`` for any characters, such as ``"blocks.*.stream"``.
        classes: How many classes the concept has.
        sequential: Fit site after site, in the order of the model, each on what it gets when those
            before it are erased, with one pass over the batches a site. Otherwise all are fitted
            in one pass to the untouched model: where several sites are erased together, those
            behind the first then see other activations than they were fitted to.
        method: As in :meth:`ErasureFitter.eraser`.
        shrinkage: As there.

    Returns:
        The erasers. Use them as ``with scrub(...).applied(model): ...``.

    Raises:
        ValueError: If there is no batch, no site has a name, shapes do not fit, or a mask is not
            Boolean: whole numbers would pick rows by their index.

    References:
        Belrose et al. 2023, arXiv:2306.03819, section 6: *concept scrubbing*.

    Book: :doc:`/book/trust/debiasing`
    """
    check_several("sites", sites)
    check_count("batches", len(batches))
    check_count("classes", classes)
    with watch(model, read=list(sites)):
        pass  # says which names are wrong
    wanted = [n for n in site_names(model) if any(fnmatchcase(n, pattern) for pattern in sites)]
    erasers: dict[str, Eraser] = {}
    for group in [[name] for name in wanted] if sequential else [wanted]:
        fitters: dict[str, ErasureFitter] = {}
        for batch in batches:
            real = batch.real
            check_shape("real", real, tuple(batch.ids.shape))
            for name, mask in (("real", real), ("rows", batch.rows)):
                if mask is not None and mask.dtype != torch.bool:
                    raise ValueError(f"{name} must be Boolean, got {mask.dtype}: use == or .bool()")
            concept = batch.concept
            if concept.ndim == 1:
                check_shape("concept", concept, (len(batch.ids),))
                concept = concept[:, None].expand_as(batch.ids)
            check_shape("concept", concept, tuple(batch.ids.shape))
            if batch.rows is not None:
                check_shape("rows", batch.rows, tuple(batch.ids.shape))
            watched = watch(model, replace=erasers, read=group)
            with evaluating(model), torch.no_grad(), watched as seen:
                model(batch.ids, real=real)
            chosen = real if batch.rows is None else batch.rows & real
            for name in group:
                rows = seen[name][chosen]
                if name not in fitters:
                    fitters[name] = ErasureFitter(rows.shape[-1], classes, device=rows.device)
                fitters[name].update(rows, concept[chosen])
        for name, fitter in fitters.items():
            erasers[name] = fitter.eraser(method, shrinkage=shrinkage)
    return Scrubber(erasers=erasers)
