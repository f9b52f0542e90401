r"""From gradient descent to AdamW: the rules by which every language model is trained.

Notation of the book: parameters :math:`\theta`, gradient :math:`g_t`, learning rate :math:`\eta`,
weight decay :math:`\lambda`, momentum :math:`\mu`, decay rates :math:`\beta_1, \beta_2`.

Each method comes twice. A pure function such as :func:`adamw_update` is the equation, tensor by
tensor. A class such as :class:`AdamW` is a ``torch.optim.Optimizer`` with a fast path over lists
of tensors; ``foreach=False`` makes it run the pure function instead.

Conventions where the literature differs, each stated again at its function:

- Momentum accumulates gradients without a factor :math:`1 - \mu`, and the learning rate is
  outside (PyTorch, not Polyak). Nesterov's parameter is the point ahead.
- :math:`\epsilon` stands outside the root, and in Adam after the bias correction.
- Weight decay is coupled (added to the gradient) in SGD, Momentum, Nesterov, AdaGrad, RMSProp and
  Adam, and decoupled (:math:`\theta \leftarrow (1 - \eta \lambda) \theta`) in AdamW, Lion and
  Muon. The decay of AdamW is multiplied by the whole learning rate.
- Muon averages its momentum and multiplies in the dtype that it is told.

State is kept in float32 or better, whatever the dtype of the parameters.

Book: :doc:`/book/foundations/optimization`.
"""

from companion.foundations.optimization._adam import (
    Adam,
    AdamW,
    adam_update,
    adamw_update,
    bias_correction,
)
from companion.foundations.optimization._adaptive import (
    AdaGrad,
    RMSProp,
    adagrad_update,
    rmsprop_update,
)
from companion.foundations.optimization._base import UpdateRule
from companion.foundations.optimization._clip import (
    clip_by_global_norm,
    clip_grad_norm_,
    global_norm,
)
from companion.foundations.optimization._curvature import (
    TopEigenvalues,
    hessian_topk,
    hessian_vector_product,
)
from companion.foundations.optimization._descent import (
    SGD,
    Momentum,
    Nesterov,
    momentum_update,
    nesterov_update,
    sgd_update,
)
from companion.foundations.optimization._lion import Lion, lion_update
from companion.foundations.optimization._muon import (
    CUBIC,
    QUINTIC,
    Muon,
    muon_scale,
    muon_update,
    newton_schulz,
)
from companion.foundations.optimization._quadratic import (
    descent_bound,
    gradient_descent_optimum,
    heavy_ball_matrix,
    heavy_ball_optimum,
    sgd_variance,
)
from companion.foundations.optimization._schedules import inv_sqrt, warmup_cosine, wsd

__all__ = [
    "CUBIC",
    "QUINTIC",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Lion",
    "Momentum",
    "Muon",
    "Nesterov",
    "RMSProp",
    "TopEigenvalues",
    "UpdateRule",
    "adagrad_update",
    "adam_update",
    "adamw_update",
    "bias_correction",
    "clip_by_global_norm",
    "clip_grad_norm_",
    "descent_bound",
    "global_norm",
    "gradient_descent_optimum",
    "heavy_ball_matrix",
    "heavy_ball_optimum",
    "hessian_topk",
    "hessian_vector_product",
    "inv_sqrt",
    "lion_update",
    "momentum_update",
    "muon_scale",
    "muon_update",
    "nesterov_update",
    "newton_schulz",
    "rmsprop_update",
    "sgd_update",
    "sgd_variance",
    "warmup_cosine",
    "wsd",
]
