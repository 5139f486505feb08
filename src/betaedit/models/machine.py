"""Describes the machine: figures differ by rounding between processors, devices and numbers of threads."""

from __future__ import annotations

import platform
from typing import Any

import torch

from betaedit.compiled.library import NoKernelsError
from betaedit.models.load import LanguageModel
from betaedit.models.runners.kernels import find_kernels


def describe_machine(model: LanguageModel) -> dict[str, Any]:
    """Device, processor, its instructions that torch uses, threads, the runner, and whether kernels are compiled."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "runner": model.runner.backend,
        "kernels": not isinstance(find_kernels(), NoKernelsError),
    }
