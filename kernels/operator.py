"""How a function that launches kernels becomes an operator of PyTorch's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op` of a function that mutates none of its arguments.

    Kernels run on the GPU that holds its tensors, whichever is the program's present one: Triton asks for that alone.
    """

    def register(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def on_its_device(*given: Any, **named: Any) -> Any:
            tensor = next(value for value in (*given, *named.values()) if isinstance(value, Tensor))
            with torch.cuda.device_of(tensor):
                return function(*given, **named)

        return torch.library.custom_op(f"ezaudio::{name}", on_its_device, mutates_args=(), schema=schema)

    return register
