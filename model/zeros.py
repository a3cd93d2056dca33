"""Large tensors of zeros that take memory as they are filled."""

import math

import numpy as np
import torch
from torch import Tensor


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """As `torch.zeros`. On the CPU the system hands out each page when it is first written to: torch writes all of
    them at once, and a memory for 2,048 users that holds 300 took as much as a full one.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size or torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(size, np.uint8)
    return torch.from_numpy(pages).view(dtype).reshape(shape)
