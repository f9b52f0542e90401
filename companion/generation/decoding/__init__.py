r"""Which text to write, given the probabilities: sampling, search, and choice among samples.

What writes plugs into :func:`companion.models.generate`, the one loop: a change of the logits is
the ``warp`` of :func:`companion.models.sample`, a beam search is a pick, and speculative decoding
is a model that reads ahead. Only :func:`exact_search` has a loop of its own, since it takes up
prefixes of different lengths.

* **Changes of the logits**: :func:`temperature`, :func:`top_k`, :func:`top_p`, :func:`min_p`,
  :func:`typical`, :func:`epsilon`, :func:`eta`, :func:`top_n_sigma`; with a look at the text,
  :func:`repetition_penalty`, :func:`presence_penalty`, :func:`frequency_penalty`,
  :func:`no_repeat_ngram`; in a row, :class:`Pipeline`; with a second model, :class:`Contrast`. What
  they do to the distribution: :func:`distortion`.
* **Search**: :func:`beam_search`, :func:`exact_search`.
* **Choice among samples**: :func:`best_of_n`, :func:`best_of_n_law`, :func:`best_of_n_kl`,
  :func:`expected_utilities`, :func:`rejection_accept`, :func:`snis`, :func:`gumbel_top_k`,
  :func:`noisy_channel`.
* **Reading ahead**: :class:`Speculative` with :class:`PromptLookup` or :class:`DraftModel`, whose
  model may be an :func:`early_exit`; :func:`speculative_draw`, :func:`acceptance`,
  :func:`residual`, :func:`tokens_per_pass`.
* **Texts in numbers**: :func:`distinct_ngrams`, :func:`zipf_exponent`.

Book: :doc:`/book/generation/decoding`.
"""

from companion.generation.decoding._beam import Beams, Mode, beam_search, exact_search
from companion.generation.decoding._contrast import Contrast
from companion.generation.decoding._draft import (
    Draft,
    DraftModel,
    PromptLookup,
    Proposal,
    early_exit,
)
from companion.generation.decoding._penalties import (
    frequency_penalty,
    no_repeat_ngram,
    presence_penalty,
    repetition_penalty,
)
from companion.generation.decoding._pipeline import Pipeline
from companion.generation.decoding._resample import (
    Weighted,
    best_of_n,
    best_of_n_kl,
    best_of_n_law,
    expected_utilities,
    gumbel_top_k,
    noisy_channel,
    rejection_accept,
    snis,
)
from companion.generation.decoding._speculative import (
    Accepted,
    Speculative,
    acceptance,
    residual,
    speculative_draw,
    tokens_per_pass,
)
from companion.generation.decoding._text import distinct_ngrams, zipf_exponent
from companion.generation.decoding._warp import (
    Distortion,
    distortion,
    epsilon,
    eta,
    min_p,
    temperature,
    top_k,
    top_n_sigma,
    top_p,
    typical,
)

__all__ = [
    "Accepted",
    "Beams",
    "Contrast",
    "Distortion",
    "Draft",
    "DraftModel",
    "Mode",
    "Pipeline",
    "PromptLookup",
    "Proposal",
    "Speculative",
    "Weighted",
    "acceptance",
    "beam_search",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_law",
    "distinct_ngrams",
    "distortion",
    "early_exit",
    "epsilon",
    "eta",
    "exact_search",
    "expected_utilities",
    "frequency_penalty",
    "gumbel_top_k",
    "min_p",
    "no_repeat_ngram",
    "noisy_channel",
    "presence_penalty",
    "rejection_accept",
    "repetition_penalty",
    "residual",
    "snis",
    "speculative_draw",
    "temperature",
    "tokens_per_pass",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical",
    "zipf_exponent",
]
