"""Store what a long training run found, with what is needed to repeat it."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import companion
from companion import core

FOLDER = Path(companion.__file__).parent / "data" / "runs"


def machine() -> str:
    """Processor, threads, and the accelerator if there is one."""
    threads = torch.get_num_threads()
    described = f"{core.processor_name()}, {threads} thread{'s' if threads > 1 else ''}"
    return (
        f"{described}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else described
    )


def store(name: str, results: dict[str, Any], *, seed: int, seconds: float) -> Path:
    """Write the run's file, whole or not at all.

    Args:
        name: Name of the run, that of its script.
        results: What JSON can hold; no NaN.
        seed: What all random numbers of the run come from.
        seconds: Wall time.

    Returns:
        Where the file is.
    """
    script = f"book/_runs/{Path(sys.argv[0]).name}"
    fields = {
        "name": name,
        "command": " ".join(["python", script, *sys.argv[1:]]),
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "companion": companion.__version__,
        },
        "results": results,
    }
    text = json.dumps(fields, indent=1, allow_nan=False)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path
