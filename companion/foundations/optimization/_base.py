"""What every optimizer of this chapter shares: parameters in, one update rule, parameters out."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, StateDict

from companion.core import check_in_range, wide_dtype

__all__ = ["UpdateRule", "check_betas", "check_decay_rate", "check_nonnegative"]


def check_nonnegative(name: str, value: float) -> None:
    """Require a finite number of 0 or more."""
    check_in_range(name, value, low=0.0, open_high=True)


def check_decay_rate(name: str, value: float) -> None:
    """Require the weight of the past in a running average, in [0, 1)."""
    check_in_range(name, value, low=0.0, high=1.0, open_high=True)


def check_betas(group: dict[str, Any]) -> None:
    """Require two decay rates under ``betas``."""
    if len(group["betas"]) != 2:
        raise ValueError(f"betas must be two numbers, got {group['betas']}")
    for index, beta in enumerate(group["betas"]):
        check_decay_rate(f"betas[{index}]", beta)


class UpdateRule(torch.optim.Optimizer):
    r"""Make a PyTorch optimizer of an update rule.

    A rule is a pure function :math:`(\theta, g, s) \mapsto (\theta', s')` from a parameter, its
    gradient and its state to their next values. A subclass names the tensors of its state in
    ``slots`` and defines :meth:`update`. It may add :meth:`update_foreach`, which does the same
    for a list of tensors in place and with few kernel launches; without it, ``update`` is applied
    to one tensor after the other. This class does the rest: parameter groups, closures, missing
    gradients, ``maximize``, precision, and ``state_dict``.

    Args:
        params: Parameters, or dictionaries with ``"params"`` and settings of their own.
        maximize: Whether to ascend, that is to negate every gradient first.
        foreach: Whether to take the fast path. The other one is slower and easier to read, and
            the tests hold the two to each other.
        settings: Hyper-parameters by name. They become the defaults of every group.

    Raises:
        ValueError: If a hyper-parameter is out of its domain, or a parameter is complex.

    Numerics:
        State is kept and updates are computed in float32, or float64 for float64 parameters,
        also where the parameter is bfloat16 or float16. With :math:`\beta_2 = 0.999` a running
        average in bfloat16 would stop moving, since one part in a thousand is below its spacing
        of one in 256. The new parameter is then rounded to its own dtype, so steps smaller than
        half its spacing are lost: keep parameters in float32 and compute in bfloat16 with
        autocast. PyTorch's optimizers keep the state in the dtype of the parameter, which for
        float32 and float64 is the same.

        The fast path holds up to one temporary tensor a parameter. The step count is a Python
        integer, so a step never waits for an accelerator; it also means that a step cannot be
        captured in a CUDA graph.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> class SignDescent(UpdateRule):
        ...     def update(self, param, grad, *slots, step, group):
        ...         return (param - group["lr"] * grad.sign(),)
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> (weight**2).sum().backward()
        >>> SignDescent([weight], lr=0.5).step()
        >>> weight.detach()
        tensor([ 0.5000, -1.5000])
    """

    #: Names of the tensors that the rule keeps for each parameter. They start at zero.
    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, params: ParamsT, *, maximize: bool = False, foreach: bool = True, **settings: Any
    ) -> None:
        super().__init__(params, {**settings, "maximize": maximize, "foreach": foreach})

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return the next parameter and the next state, without changing any argument.

        Args:
            param: The parameter, in float32 or float64.
            grad: Its gradient, in the same dtype. It points uphill: subtract it.
            slots: The state, in the order of ``slots``.
            step: Number of this update, 1 for the first.
            group: Settings of the parameter's group.

        Returns:
            The parameter, then one tensor for each slot.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no update rule")

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Update lists of tensors in place, all of one device and dtype.

        Args:
            params: Parameters. They are overwritten.
            grads: Their gradients. They are left as they are.
            slots: One list for each slot. They are overwritten.
            step: Number of this update, 1 for the first.
            group: Settings of the group.
        """
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            state = [slot[index] for slot in slots]
            new, *new_state = self.update(param, grad, *state, step=step, group=group)
            param.copy_(new)
            for old, value in zip(state, new_state, strict=True):
                old.copy_(value)

    def check_group(self, group: dict[str, Any]) -> None:
        """Require the settings of a group to lie in their domains.

        Args:
            group: The group, defaults filled in.

        Raises:
            ValueError: If one does not.
        """
        check_nonnegative("lr", group["lr"])
        check_nonnegative("weight_decay", group.get("weight_decay", 0.0))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with settings of its own.

        Args:
            param_group: ``"params"``, and any setting that differs from the defaults.

        Raises:
            ValueError: If a setting is out of its domain or a parameter is not real.
        """
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            self.check_group(group)
            for param in group["params"]:
                if not param.is_floating_point():
                    raise ValueError(f"parameters must be real and floating, got {param.dtype}")
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew before the update.

        Returns:
            What the closure returns, or ``None``.

        Raises:
            ValueError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (_, _, step), params in self._buckets(group).items():
                self._apply(params, step, group)
        return loss

    def _buckets(
        self, group: dict[str, Any]
    ) -> dict[tuple[torch.device, torch.dtype, int], list[Tensor]]:
        # Parameters of one bucket share device, dtype and age, so one call updates all of them.
        buckets: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise ValueError(
                    f"gradients must be dense, got layout {grad.layout} for a parameter of "
                    f"shape {tuple(param.shape)}: build the embedding with sparse=False"
                )
            state = self.state[param]
            if not state:
                state["step"] = 0
                for name in self.slots:
                    state[name] = torch.zeros_like(param, dtype=wide_dtype(param.dtype))
            state["step"] += 1
            buckets.setdefault((param.device, param.dtype, state["step"]), []).append(param)
        return buckets

    def _apply(self, params: list[Tensor], step: int, group: dict[str, Any]) -> None:
        dtype = wide_dtype(params[0].dtype)
        wide = [param.to(dtype) for param in params] if dtype != params[0].dtype else params
        grads = [param.grad for param in params if param.grad is not None]
        if any(grad.dtype != dtype for grad in grads):
            grads = [grad.to(dtype) for grad in grads]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        slots = [[self.state[param][name] for param in params] for name in self.slots]
        if group["foreach"]:
            self.update_foreach(wide, grads, *slots, step=step, group=group)
        else:
            UpdateRule.update_foreach(self, wide, grads, *slots, step=step, group=group)
        if dtype != params[0].dtype:
            torch._foreach_copy_(params, wide)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what ``state_dict`` returned.

        Args:
            state_dict: The state of an optimizer with groups of the same sizes.

        Raises:
            ValueError: If the groups do not fit.
        """
        super().load_state_dict(state_dict)
        # PyTorch has just rounded the state to the dtype of the parameter. For half precision
        # that loses what we keep in float32, so it is read again.
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(saved, params, strict=True):
            dtype = wide_dtype(param.dtype)
            if dtype == param.dtype:
                continue
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.detach().to(param.device, dtype, copy=True)
