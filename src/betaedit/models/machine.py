"""What computes: figures differ by rounding between processors, devices and numbers of threads."""

from __future__ import annotations

import platform
from typing import Any

import torch

from betaedit.models.load import LanguageModel
from betaedit.models.native.kernels import find_kernels
from betaedit.native.library import NoKernelsError


def describe_machine(model: LanguageModel) -> dict[str, Any]:
    """Device, processor, its instructions that torch uses, number of threads, and whether kernels are compiled."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": not isinstance(find_kernels(), NoKernelsError),
    }
