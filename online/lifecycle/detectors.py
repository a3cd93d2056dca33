"""river's two drift detectors, without what else `import river.drift` brings along.

Its packages import all of their modules, and those scipy.stats, SQLAlchemy and narwhals: 1.0 s at each start, and
85 MB, for two detectors that need none of it. So river.drift and river.stats stand there as empty packages while the
two modules are imported, and are taken away again: a module that imports river.drift later gets all of it. Where that
does not work, as with another version of river, they are imported as ever.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import river

_EMPTIED = ("river.stats", "river.drift")


@contextmanager
def _empty_packages() -> Iterator[dict[str, ModuleType]]:
    """Packages whose modules can be imported one by one, while nothing of river.drift or river.stats is imported."""
    packages = {}
    try:
        for name in _EMPTIED:
            packages[name] = ModuleType(name)
            packages[name].__path__ = [f"{river.__path__[0]}/{name.partition('.')[2]}"]
            sys.modules[name] = packages[name]
            setattr(river, name.partition(".")[2], packages[name])
        yield packages
    finally:
        for name in [name for name in sys.modules if name.startswith(_EMPTIED)]:
            del sys.modules[name]
        for name in packages:
            delattr(river, name.partition(".")[2])


def _detectors() -> tuple[Any, Any]:
    if "river.drift" not in sys.modules and "river.stats" not in sys.modules:
        try:
            with _empty_packages() as packages:
                packages["river.stats"].base = importlib.import_module("river.stats.base")  # type: ignore[attr-defined]
                mean = importlib.import_module("river.stats.mean")
                packages["river.stats"].Mean = mean.Mean  # type: ignore[attr-defined]
                adwin = importlib.import_module("river.drift.adwin")
                page_hinkley = importlib.import_module("river.drift.page_hinkley")
            return adwin.ADWIN, page_hinkley.PageHinkley
        except (ImportError, AttributeError):
            pass
    drift = importlib.import_module("river.drift")
    return drift.ADWIN, drift.PageHinkley


ADWIN, PageHinkley = _detectors()
