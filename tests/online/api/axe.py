"""axe-core, which finds what keeps people out of a page, in a page of the browser."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.online.api.chromium import Page

_RUN = """axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map((one) => {
    const nodes = one.nodes.map((node) => `${node.target.join(' ')} ${node.failureSummary}`);
    return `${one.impact} ${one.id}: ${nodes.join('; ')}`;
}))"""


@cache
def _script() -> str:
    """The script of the package that brings it; a test is skipped where that is not installed."""
    found = find_spec("axe_core_python")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("axe-core-python is not installed: pages are not looked at by axe-core")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text()


def violations(page: Page) -> Any:
    """What axe-core finds in the page as it stands, a line for each rule."""
    page.ask("Runtime.evaluate", expression=_script())
    return page.run(_RUN)
