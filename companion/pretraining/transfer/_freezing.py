"""What is trained and what stays: freezing, counting, and saving the trained part alone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from companion.core._storage import write_tensors

__all__ = ["freeze", "load_trained", "save_trained", "trainable_parameters", "trained_state"]


def freeze(module: nn.Module) -> None:
    """Exclude all parameters of a module from training, in place.

    Args:
        module: Whose parameters no longer require gradients.

    Book: :doc:`/book/pretraining/transfer`
    """
    module.requires_grad_(False)


def trainable_parameters(module: nn.Module) -> int:
    """Count the numbers that training would change.

    Args:
        module: Any module.

    Returns:
        Entries of all parameters that require gradients; tied ones count once.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> layer = nn.Linear(5, 7)
        >>> trainable_parameters(layer)
        42
        >>> freeze(layer)
        >>> trainable_parameters(layer)
        0
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require gradients, by name: detached, and shared with the module.

    Args:
        module: Any module.

    Returns:
        Names and tensors. Writing into one changes the module.

    Book: :doc:`/book/pretraining/transfer`
    """
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def save_trained(
    module: nn.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the trained parameters alone to a safetensors file.

    For a model with LoRA, prefixes, prompts or adapters this is the adapter, without the model.

    Args:
        module: Whose parameters that require gradients are saved.
        path: The file; an existing one is replaced.
        metadata: Strings to be kept with it, for example the rank.

    Raises:
        ValueError: If nothing is trained.

    Book: :doc:`/book/pretraining/transfer`
    """
    state = trained_state(module)
    if not state:
        raise ValueError("no parameter requires a gradient, so there is nothing to save")
    write_tensors(
        Path(path),
        {name: tensor.contiguous() for name, tensor in state.items()},
        metadata=dict(metadata or {}),
    )


def load_trained(module: nn.Module, path: str | Path) -> dict[str, str]:
    """Read what :func:`save_trained` wrote into a module that is built like the saved one.

    Args:
        module: Its trained parameters are overwritten.
        path: The file.

    Returns:
        The metadata of the file.

    Raises:
        ValueError: If names or shapes are not those of the module's trained parameters, or LoRA
            is merged, so that its factors act no more. Nothing is changed then.

    Book: :doc:`/book/pretraining/transfer`
    """
    if any(getattr(part, "merged", False) for part in module.modules()):
        raise ValueError("the weights hold a merged change already: unmerge it first")
    state = trained_state(module)
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        if names != set(state):
            more, less = sorted(names - set(state)), sorted(set(state) - names)
            raise ValueError(
                f"the file does not fit the model: it has {more[:3] or 'nothing'} too much and "
                f"lacks {less[:3] or 'nothing'}; build the model as it was when it was saved"
            )
        read = {name: file.get_tensor(name) for name in state}
        metadata = dict(file.metadata() or {})
    for name, tensor in read.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in the file and "
                f"{tuple(state[name].shape)} in the model"
            )
    with torch.no_grad():
        for name, tensor in read.items():
            state[name].copy_(tensor)
    return metadata
