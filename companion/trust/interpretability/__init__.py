r"""When a picture of attention is an explanation, and which attributions keep their promises.

* **Attention**: :func:`mixed_with_residual`, :func:`rollout`, :func:`attention_flow`,
  :func:`value_norms`; other weights with the same output, :func:`null_attention`,
  :func:`alternative_attention`.
* **Attributions**: :func:`saliency`, :func:`gradient_times_input`, :func:`integrated_gradients`
  with :func:`gauss_legendre`, :func:`layer_relevance`, :func:`shapley`, :func:`sampled_shapley`.
* **Inside a decoder**: :func:`lens_logits`, :func:`logit_lens`, :class:`Translator` with
  :func:`fit_translator` and :func:`tune_translator`, :func:`direct_logits`;
  :func:`activation_patching`, :func:`attribution_patching`, :func:`patching_effect`,
  :func:`induction_scores`.
* **Directions**: :class:`SparseAutoencoder`, :func:`train_autoencoder`,
  :func:`autoencoder_report`; probes with :func:`control_labels`, :func:`probe_selectivity`,
  :func:`online_code_length`.
* **Faithfulness**: :func:`erasure`, :func:`random_erasure`, :func:`kendall_tau`;
  :func:`rationale_objective`, :func:`rationale_surrogate`.

Book: :doc:`/book/trust/interpretability`.
"""

from companion.trust.interpretability._attention import (
    alternative_attention,
    attention_flow,
    mixed_with_residual,
    null_attention,
    rollout,
    value_norms,
)
from companion.trust.interpretability._autoencoder import (
    AutoencoderReport,
    SparseAutoencoder,
    autoencoder_report,
    train_autoencoder,
)
from companion.trust.interpretability._faithfulness import (
    Erasure,
    erasure,
    kendall_tau,
    random_erasure,
    rationale_objective,
    rationale_surrogate,
)
from companion.trust.interpretability._gradients import (
    PathAttribution,
    gauss_legendre,
    gradient_times_input,
    integrated_gradients,
    layer_relevance,
    saliency,
)
from companion.trust.interpretability._lenses import (
    LogitParts,
    Translator,
    direct_logits,
    fit_translator,
    lens_logits,
    logit_lens,
    tune_translator,
)
from companion.trust.interpretability._patching import (
    Patching,
    activation_patching,
    attribution_patching,
    induction_scores,
    patching_effect,
)
from companion.trust.interpretability._probes import (
    ProbeReport,
    control_labels,
    online_code_length,
    probe_selectivity,
)
from companion.trust.interpretability._shapley import (
    ShapleyEstimate,
    sampled_shapley,
    shapley,
)

__all__ = [
    "AutoencoderReport",
    "Erasure",
    "LogitParts",
    "Patching",
    "PathAttribution",
    "ProbeReport",
    "ShapleyEstimate",
    "SparseAutoencoder",
    "Translator",
    "activation_patching",
    "alternative_attention",
    "attention_flow",
    "attribution_patching",
    "autoencoder_report",
    "control_labels",
    "direct_logits",
    "erasure",
    "fit_translator",
    "gauss_legendre",
    "gradient_times_input",
    "induction_scores",
    "integrated_gradients",
    "kendall_tau",
    "layer_relevance",
    "lens_logits",
    "logit_lens",
    "mixed_with_residual",
    "null_attention",
    "online_code_length",
    "patching_effect",
    "probe_selectivity",
    "random_erasure",
    "rationale_objective",
    "rationale_surrogate",
    "rollout",
    "saliency",
    "sampled_shapley",
    "shapley",
    "train_autoencoder",
    "tune_translator",
    "value_norms",
]
