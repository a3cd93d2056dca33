"""Arrays by name, as a checkpoint keeps them: `part.name` for each array of a part."""

from collections.abc import Mapping
from typing import Any, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")


def joined(parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """All parts' arrays in one mapping."""
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def below(arrays: Mapping[str, T], part: str) -> dict[str, T]:
    """One part's arrays (or tensors), by the names that the part gave them."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
