r"""How bias in vectors is measured, what removes it, and what only hides it.

* **Association tests**: :func:`weat`, on words :func:`word_weat`, made of :func:`association`,
  :func:`effect_size`, :func:`permutation_test`; sentences by :func:`in_sentences`. Other measures:
  :func:`direct_bias`, :func:`relative_norm_distance`, :func:`negative_sentiment`,
  :func:`log_skew`, :func:`bias_amplification`.
* **Hard debiasing**: :func:`bias_directions`, :func:`neutralize`, :func:`equalize`,
  :func:`hard_debias`; whether it can be undone, :func:`two_means`, :func:`cluster_accuracy`.
* **Linear erasure**: :func:`leace`, :class:`ErasureFitter` batch by batch, with
  :class:`Eraser`, :class:`OracleEraser`, :func:`cross_covariance`, :func:`one_hot`; by probes,
  :func:`inlp` with :func:`logistic_probe`, :func:`balanced_accuracy`. Inside of a model:
  :func:`scrub`.
* **While learning**: :func:`reweigh`, :func:`fair_logistic` with :func:`decision_covariance`,
  :func:`project_gradient` beside :func:`companion.knowledge.robustness.reverse_gradient`,
  :func:`exponentiated_gradient` with :func:`moment_matrix`, :func:`logistic_learner`,
  :func:`game_gap`.
* **Texts**: :class:`SwapLexicon`, and while a model writes, :class:`SelfDebias` with
  :func:`self_debias_logits`.

Book: :doc:`/book/trust/debiasing`.
"""

from companion.trust.debiasing._association import (
    Association,
    WordAssociation,
    association,
    effect_size,
    in_sentences,
    negative_sentiment,
    relative_norm_distance,
    weat,
    word_weat,
)
from companion.trust.debiasing._avoid import SelfDebias, self_debias_logits
from companion.trust.debiasing._eraser import Eraser, OracleEraser, cross_covariance, one_hot
from companion.trust.debiasing._game import (
    FairMixture,
    exponentiated_gradient,
    game_gap,
    logistic_learner,
    moment_matrix,
)
from companion.trust.debiasing._hard import (
    bias_directions,
    cluster_accuracy,
    direct_bias,
    equalize,
    hard_debias,
    neutralize,
    two_means,
)
from companion.trust.debiasing._leace import ErasureFitter, leace
from companion.trust.debiasing._permutation import PermutationTest, permutation_test
from companion.trust.debiasing._probe import (
    LinearProbe,
    NullProjection,
    balanced_accuracy,
    inlp,
    logistic_probe,
)
from companion.trust.debiasing._scrub import Scrubber, TextBatch, scrub
from companion.trust.debiasing._text import SwapLexicon, bias_amplification, log_skew
from companion.trust.debiasing._training import (
    FairLogistic,
    decision_covariance,
    fair_logistic,
    project_gradient,
    reweigh,
)

__all__ = [
    "Association",
    "Eraser",
    "ErasureFitter",
    "FairLogistic",
    "FairMixture",
    "LinearProbe",
    "NullProjection",
    "OracleEraser",
    "PermutationTest",
    "Scrubber",
    "SelfDebias",
    "SwapLexicon",
    "TextBatch",
    "WordAssociation",
    "association",
    "balanced_accuracy",
    "bias_amplification",
    "bias_directions",
    "cluster_accuracy",
    "cross_covariance",
    "decision_covariance",
    "direct_bias",
    "effect_size",
    "equalize",
    "exponentiated_gradient",
    "fair_logistic",
    "game_gap",
    "hard_debias",
    "in_sentences",
    "inlp",
    "leace",
    "log_skew",
    "logistic_learner",
    "logistic_probe",
    "moment_matrix",
    "negative_sentiment",
    "neutralize",
    "one_hot",
    "permutation_test",
    "project_gradient",
    "relative_norm_distance",
    "reweigh",
    "scrub",
    "self_debias_logits",
    "two_means",
    "weat",
    "word_weat",
]
