"""The optional packages, by extra: a command that lacks one says so in one line before it begins."""

from importlib.util import find_spec

WORKER = ("apscheduler", "fsspec", "numba", "numpy", "pyroaring", "river", "safetensors", "torch")

#: What an extra of pyproject.toml brings, by the names that are imported.
EXTRAS = {
    "worker": WORKER,
    "backtest": (*WORKER, "matplotlib", "optuna", "pyarrow", "scipy"),
    "embedded": ("fakeredis",),
    "privacy": ("dp_accounting",),
}


class MissingExtraError(Exception):
    """The command needs packages that are not installed; the message begins with the command's name."""


def require_extras(command: str, *extras: str) -> None:
    """Raises MissingExtraError where a package of one of `extras` is not installed. It imports none of them."""
    missing = [extra for extra in extras if not all(map(_is_installed, EXTRAS[extra]))]
    if missing:
        names = " and ".join(f'"{extra}"' for extra in missing)
        what = "extra" if len(missing) == 1 else "extras"
        raise MissingExtraError(
            f"{command}: needs the packages of the {what} {names}: pip install 'nextclick[{','.join(missing)}]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: it was imported without a spec
        return False
