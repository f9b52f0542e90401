"""Let the package carry the displayed formulas of the book, so that notebooks run without it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TABLE = "companion/verify/tex/displays.json"


def table(root: Path) -> dict[str, str]:
    """Collect label and TeX of every formula in the book."""
    # The module stands alone; the package itself needs what a build does not have.
    path = root / "companion" / "verify" / "tex" / "_source.py"
    spec = importlib.util.spec_from_file_location("displays", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.table_of(root / "book")
    return found


class DisplayedFormulas(BuildHookInterface[Any]):
    """Writes the table before the files of a wheel or a source archive are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the table from the book. A source archive has no book, but the table itself."""
        root = Path(self.root)
        if not (root / "book").is_dir():
            return
        made = Path(self.directory) / "displays.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(table(root), indent=1, ensure_ascii=False, sort_keys=True)
        made.write_text(text + "\n", encoding="utf-8")
        build_data["force_include"][str(made)] = TABLE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing beside what was built."""
        (Path(self.directory) / "displays.json").unlink(missing_ok=True)
