r"""How a reward becomes a gradient, and where loops that reward themselves go wrong.

* **Policy gradients**: :func:`bandit_gradient`, :func:`reinforce_loss`, :func:`optimal_baseline`,
  :func:`rloo_advantages`, :func:`grpo_advantages`; critics, :func:`gae`, :func:`value_loss`.
* **More than one update by the same texts**: :func:`ppo_loss`, :func:`grpo_loss`,
  :func:`clipped_share`, :func:`importance_weights`.
* **A reference**: :func:`kl_estimate`, :func:`penalized_rewards`, :func:`kl_optimum`.
* **Comparisons**: :func:`bradley_terry_loss`, :func:`fit_bradley_terry`, :class:`RewardModel`,
  :func:`dpo_loss`, :func:`simpo_loss`, :func:`kto_loss`.
* **Rewards that mislead**: :func:`overoptimization`, :func:`fit_overoptimization`; judging oneself,
  :func:`p_true`, :func:`majority_rewards`, :func:`correction`, :func:`corrected_accuracy`.
* **Models**: :func:`head_log_probs`, :func:`completion_scores`, :func:`write_samples`,
  :func:`pad_prompts`, :func:`all_texts`; and the loop :func:`reinforce`.

Log-probabilities and divergences are in nats.

Book: :doc:`/book/frontiers/reinforcement`.
"""

from companion.frontiers.reinforcement._advantages import (
    Advantages,
    bandit_gradient,
    gae,
    grpo_advantages,
    optimal_baseline,
    rloo_advantages,
)
from companion.frontiers.reinforcement._exact import (
    KLOptimum,
    OverOptimization,
    all_texts,
    fit_overoptimization,
    kl_optimum,
    overoptimization,
)
from companion.frontiers.reinforcement._judgment import (
    Correction,
    corrected_accuracy,
    correction,
    majority_rewards,
    p_true,
)
from companion.frontiers.reinforcement._kl import kl_estimate, penalized_rewards
from companion.frontiers.reinforcement._loop import ReinforceLog, reinforce
from companion.frontiers.reinforcement._losses import (
    clipped_share,
    grpo_loss,
    importance_weights,
    ppo_loss,
    reinforce_loss,
    value_loss,
)
from companion.frontiers.reinforcement._preference import (
    DPO,
    bradley_terry_loss,
    dpo_loss,
    fit_bradley_terry,
    kto_loss,
    simpo_loss,
)
from companion.frontiers.reinforcement._reward_model import RewardModel, last_real
from companion.frontiers.reinforcement._samples import Samples, pad_prompts, write_samples
from companion.frontiers.reinforcement._scores import (
    TokenScores,
    completion_scores,
    head_log_probs,
)

__all__ = [
    "DPO",
    "Advantages",
    "Correction",
    "KLOptimum",
    "OverOptimization",
    "ReinforceLog",
    "RewardModel",
    "Samples",
    "TokenScores",
    "all_texts",
    "bandit_gradient",
    "bradley_terry_loss",
    "clipped_share",
    "completion_scores",
    "corrected_accuracy",
    "correction",
    "dpo_loss",
    "fit_bradley_terry",
    "fit_overoptimization",
    "gae",
    "grpo_advantages",
    "grpo_loss",
    "head_log_probs",
    "importance_weights",
    "kl_estimate",
    "kl_optimum",
    "kto_loss",
    "last_real",
    "majority_rewards",
    "optimal_baseline",
    "overoptimization",
    "p_true",
    "pad_prompts",
    "penalized_rewards",
    "ppo_loss",
    "reinforce",
    "reinforce_loss",
    "rloo_advantages",
    "simpo_loss",
    "value_loss",
    "write_samples",
]
