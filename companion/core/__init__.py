"""Layer 0: devices, randomness, validation, training and figures, shared by every chapter."""

from companion.core.checkpoints import Checkpoints, Progress, Stateful
from companion.core.devices import processor_name, resolve_device
from companion.core.linears import (
    HasLinears,
    LinearLike,
    LinearPlace,
    linear_places,
    replace_linears,
    restore_linears,
)
from companion.core.parallel import (
    LossModule,
    MainProcessError,
    Processes,
    average_,
    is_main,
    on_main,
    parallelize,
    processes,
)
from companion.core.precision import wide, wide_dtype
from companion.core.random import generator, rand, randint, randn
from companion.core.sites import HasSites, Seen, site_names, watch
from companion.core.training import TrainingLog, train
from companion.core.validation import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_several,
    check_shape,
)

__all__ = [
    "Checkpoints",
    "HasLinears",
    "HasSites",
    "LinearLike",
    "LinearPlace",
    "LossModule",
    "MainProcessError",
    "Processes",
    "Progress",
    "Seen",
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
    "check_several",
    "check_shape",
    "generator",
    "is_main",
    "linear_places",
    "on_main",
    "parallelize",
    "processes",
    "processor_name",
    "rand",
    "randint",
    "randn",
    "replace_linears",
    "resolve_device",
    "restore_linears",
    "site_names",
    "train",
    "watch",
    "wide",
    "wide_dtype",
]
