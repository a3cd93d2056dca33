"""Arrays by name, as a checkpoint keeps them: `part.name` for each array of a part."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


def joined(parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """All parts' arrays in one mapping."""
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def below(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    """One part's arrays, by the names that the part gave them."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
