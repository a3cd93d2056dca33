"""Arrays by name, as a checkpoint keeps them: `part.name` for each array of a part."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")


def joined(parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """All parts' arrays in one mapping."""
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def below(arrays: Mapping[str, T], part: str) -> dict[str, T]:
    """One part's arrays (or tensors), by the names that the part gave them."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def as_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device; on the CPU, where it lies in one piece, without a copy."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
