r"""Transfer: what a pretrained model gives to a new task, and how it is bent to it.

A :func:`linear_probe` leaves the model as it is. :func:`add_lora`, :func:`add_prefix`,
:class:`PromptTuning` and :func:`add_adapters` freeze it and train a few numbers beside it;
:class:`Classifier` puts a head on any of them, and :func:`save_trained` keeps the trained part
alone. :func:`fisher_diagonal` and :func:`ewc_penalty` hold a model near its start.
:func:`self_similarity`, :func:`mean_cosine` and :func:`whiten` look at its vectors, and
:func:`senses_by_translation` finds real words in several senses to look at.

Conventions: tokens are rows; the factors of LoRA are stored as the book writes them, :math:`W =
W_0 + \frac{\alpha}{r} A B`; functions named ``add_...`` change the model in place and freeze all
that they do not add.

Book: :doc:`/book/pretraining/transfer`.
"""

from companion.pretraining.transfer._adapter import AdaptedLinear, Adapter, add_adapters
from companion.pretraining.transfer._classifier import Classifier
from companion.pretraining.transfer._forgetting import ewc_penalty, fisher_diagonal
from companion.pretraining.transfer._freezing import (
    freeze,
    load_trained,
    save_trained,
    trainable_parameters,
    trained_state,
)
from companion.pretraining.transfer._linearized import linearized, tangent_kernel
from companion.pretraining.transfer._lora import (
    LoRALinear,
    add_lora,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from companion.pretraining.transfer._probe import Probe, linear_probe, probe_hessian
from companion.pretraining.transfer._prompts import (
    PrefixTuning,
    PromptTuning,
    add_prefix,
    remove_prefix,
)
from companion.pretraining.transfer._representations import (
    Pooling,
    Whitening,
    fit_whitening,
    mean_cosine,
    pool,
    self_similarity,
    whiten,
)
from companion.pretraining.transfer._senses import Occurrence, senses_by_translation, tell_senses

__all__ = [
    "AdaptedLinear",
    "Adapter",
    "Classifier",
    "LoRALinear",
    "Occurrence",
    "Pooling",
    "PrefixTuning",
    "Probe",
    "PromptTuning",
    "Whitening",
    "add_adapters",
    "add_lora",
    "add_prefix",
    "ewc_penalty",
    "fisher_diagonal",
    "fit_whitening",
    "freeze",
    "linear_probe",
    "linearized",
    "load_trained",
    "mean_cosine",
    "merge_lora",
    "pool",
    "probe_hessian",
    "remove_lora",
    "remove_prefix",
    "save_trained",
    "self_similarity",
    "senses_by_translation",
    "tangent_kernel",
    "tell_senses",
    "trainable_parameters",
    "trained_state",
    "unmerge_lora",
    "whiten",
]
