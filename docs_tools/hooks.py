"""mkdocs calls these while it builds; see mkdocs.yml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs_tools import config_reference, links  # noqa: E402
from docs_tools.lines import broken_well  # noqa: E402


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that no file in docs/ holds."""
    from mkdocs.structure.files import File

    pages = {"reference/config.md": config_reference.page(), "changelog.md": (ROOT / "CHANGELOG.md").read_text()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return links.outside_as_names(markdown, Path("docs", page.file.src_uri))


def on_page_content(html: str, **_: Any) -> str:
    from docs_tools.equations import drawn

    return drawn(broken_well(html))
