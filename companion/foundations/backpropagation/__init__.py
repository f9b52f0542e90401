r"""Backpropagation and signal propagation: a small reverse-mode engine, and why scale matters.

Conventions of the book: vectors are rows, tokens are rows, a linear layer is :math:`Y = X W + b`
with :math:`W` of shape ``(d_in, d_out)``, the transpose of ``nn.Linear.weight``. Jacobians are
laid out as :math:`[\partial y / \partial x]_{ij} = \partial y_j / \partial x_i`, so a gradient is
pulled back by :math:`\bar x = \bar y \, (\partial y / \partial x)^\top`. A bar marks the gradient
of one scalar, and has the shape of what it stands over.

Three parts:

- Vector-Jacobian products as pure functions, each with its derivation: :func:`linear_backward`,
  :func:`gelu_backward`, :func:`embedding_backward` and others. They take what the forward pass
  saved, then the gradient, and return the gradient of each input.
- The engine made of them: :class:`Node`, :func:`backward`, :func:`checkpoint`, with
  :func:`gradcheck` to test it by finite differences. It is for reading and measuring; PyTorch's
  autograd does the same, faster.
- The size of signals: :func:`init_weights`, :func:`signal_stats`, and the rules of maximal update
  parametrization, :func:`width_scaling`.

Book: :doc:`/book/foundations/backpropagation`.
"""

from companion.foundations.backpropagation._activations import (
    ACTIVATIONS,
    exp_backward,
    gelu_backward,
    log_backward,
    log_softmax_backward,
    relu_backward,
    sigmoid_backward,
    silu_backward,
    tanh_backward,
)
from companion.foundations.backpropagation._gradcheck import gradcheck, numerical_vjp
from companion.foundations.backpropagation._initialization import (
    RULES,
    init_weights,
    orthogonal,
    weight_variance,
)
from companion.foundations.backpropagation._mup import Scaling, WidthMLP, width_scaling
from companion.foundations.backpropagation._places import (
    embedding_backward,
    index_backward,
    mean_backward,
    reshape_backward,
    sum_backward,
    transpose_backward,
)
from companion.foundations.backpropagation._reverse import (
    backward,
    checkpoint,
    topological_order,
    value_and_gradients,
)
from companion.foundations.backpropagation._signal import (
    SignalStats,
    feed_forward,
    signal_stats,
)
from companion.foundations.backpropagation._tape import Node
from companion.foundations.backpropagation._vjps import (
    add_backward,
    divide_backward,
    linear_backward,
    matmul_backward,
    multiply_backward,
    power_backward,
    unbroadcast,
)

__all__ = [
    "ACTIVATIONS",
    "RULES",
    "Node",
    "Scaling",
    "SignalStats",
    "WidthMLP",
    "add_backward",
    "backward",
    "checkpoint",
    "divide_backward",
    "embedding_backward",
    "exp_backward",
    "feed_forward",
    "gelu_backward",
    "gradcheck",
    "index_backward",
    "init_weights",
    "linear_backward",
    "log_backward",
    "log_softmax_backward",
    "matmul_backward",
    "mean_backward",
    "multiply_backward",
    "numerical_vjp",
    "orthogonal",
    "power_backward",
    "relu_backward",
    "reshape_backward",
    "sigmoid_backward",
    "signal_stats",
    "silu_backward",
    "sum_backward",
    "tanh_backward",
    "topological_order",
    "transpose_backward",
    "unbroadcast",
    "value_and_gradients",
    "weight_variance",
    "width_scaling",
]
