r"""Text that obeys: tilted distributions, guidance, automata, steering, and prompts.

Everything here plugs into :func:`companion.models.generate`: what changes logits is a ``warp`` of
:func:`companion.models.sample`, and what changes activations replaces them at the model's sites.

* **Distributions**: :func:`tilt`, :func:`log_partition`, :func:`fit_tilt`.
* **Guidance**: :func:`guided_logits` and :class:`Guidance`, :func:`experts_logits` and
  :class:`Experts`, :func:`bayes_logits` and :class:`ClassifierGuidance`, :func:`class_log_probs`.
* **Structure**: :class:`Vocabulary`, :class:`Automaton`, :class:`TokenIndex`,
  :func:`schema_regex`, :func:`is_recursive`, :class:`Pushdown`, and :class:`Constraint` that masks
  by them; exactly, :class:`Lookahead` by :func:`completion_probability`, :func:`exact_sample`,
  :func:`constrained_paths`; at the end of a prompt, :func:`heal`.
* **Activations**: :func:`steering_vector`, :func:`steer`, :func:`pplm_step`.
* **Prompts**: :func:`few_shot`, :func:`calibrate`; what may happen within them:
  :func:`gradient_step_weights`, :func:`linear_attention`, :func:`mixture_prediction`. Soft prompts
  are :class:`companion.pretraining.transfer.PromptTuning`.

Book: :doc:`/book/generation/control`.
"""

from companion.generation.control._automaton import Automaton
from companion.generation.control._constraint import (
    Constraint,
    Exact,
    Lookahead,
    Paths,
    completion_probability,
    constrained_paths,
    exact_sample,
)
from companion.generation.control._guide import (
    ClassifierGuidance,
    Experts,
    Guidance,
    bayes_logits,
    class_log_probs,
    experts_logits,
    guided_logits,
)
from companion.generation.control._healing import Healed, heal
from companion.generation.control._in_context import (
    InContextWeights,
    gradient_step_weights,
    linear_attention,
    mixture_prediction,
)
from companion.generation.control._index import Grammar, TokenIndex
from companion.generation.control._prompt import calibrate, few_shot
from companion.generation.control._pushdown import Pushdown
from companion.generation.control._schema import is_recursive, schema_regex
from companion.generation.control._steer import (
    pplm_objective,
    pplm_step,
    steer,
    steering_vector,
)
from companion.generation.control._tilt import Tilt, fit_tilt, log_partition, tilt
from companion.generation.control._vocabulary import Vocabulary

__all__ = [
    "Automaton",
    "ClassifierGuidance",
    "Constraint",
    "Exact",
    "Experts",
    "Grammar",
    "Guidance",
    "Healed",
    "InContextWeights",
    "Lookahead",
    "Paths",
    "Pushdown",
    "Tilt",
    "TokenIndex",
    "Vocabulary",
    "bayes_logits",
    "calibrate",
    "class_log_probs",
    "completion_probability",
    "constrained_paths",
    "exact_sample",
    "experts_logits",
    "few_shot",
    "fit_tilt",
    "gradient_step_weights",
    "guided_logits",
    "heal",
    "is_recursive",
    "linear_attention",
    "log_partition",
    "mixture_prediction",
    "pplm_objective",
    "pplm_step",
    "schema_regex",
    "steer",
    "steering_vector",
    "tilt",
]
