"""Layer 0: devices, randomness, validation, training and figures, shared by every chapter."""

from companion.core.checkpoints import Checkpoints, Progress, Stateful
from companion.core.devices import resolve_device, resolve_dtype
from companion.core.parallel import (
    LossModule,
    MainProcessError,
    Processes,
    average_,
    is_main,
    is_parallel,
    on_main,
    parallelize,
    processes,
)
from companion.core.random import generator, rand, randint, randn
from companion.core.training import TrainingLog, train
from companion.core.validation import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
)

__all__ = [
    "Checkpoints",
    "LossModule",
    "MainProcessError",
    "Processes",
    "Progress",
    "Stateful",
    "TrainingLog",
    "average_",
    "can_read",
    "check_count",
    "check_finite",
    "check_floating",
    "check_ids",
    "check_in_range",
    "check_same_shape",
    "check_shape",
    "generator",
    "is_main",
    "is_parallel",
    "on_main",
    "parallelize",
    "processes",
    "rand",
    "randint",
    "randn",
    "resolve_device",
    "resolve_dtype",
    "train",
]
