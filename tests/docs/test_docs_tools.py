"""What makes the pages: the configuration reference, links, equations, and the site as a whole."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docs_helpers import DOCS, PAGES, ROOT, prose

import gid_cuda
from docs_tools import config_reference, hygiene, links
from docs_tools.docstrings import as_markdown
from docs_tools.equations import drawn
from docs_tools.lines import broken_well
from gid_cuda import config as schema
from gid_cuda import distill, ops

# Their names say it all.
PLAIN = {"seed", "device", "train.steps", "train.optimizer", "train.lr", "train.momentum"}
PLAIN |= {"train.clip_grad_norm"}


def test_every_key_stands_in_the_reference_once_with_its_meaning() -> None:
    page = config_reference.page()
    keys = config_reference.keys()
    assert len(keys) > 80 and {"seed", "train.lr", "distill.fitnet.weight", "data.train.split"} <= dict(keys).keys()
    assert {key for key, meaning in keys if not meaning} <= PLAIN
    for key, _ in keys:
        assert page.count(f'<a id="{key}">') + page.count(f"{{ #{key} }}") == 1, key


def test_no_comment_of_the_schema_is_lost() -> None:
    """Each that stands among the keys of a section."""
    page = " ".join(config_reference.page().replace("\\*", "*").replace("\\|", "|").split())
    found = 0
    for section in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(section, ast.ClassDef) or section.name == "Section":
            continue
        fields = [field for field in section.body if isinstance(field, ast.AnnAssign)]
        lines = inspect.getsource(schema).splitlines()[section.lineno : fields[-1].end_lineno]
        for comment in re.findall(r"(?:^ *|  )# (.*)$", "\n".join(lines), re.MULTILINE):
            found += 1
            assert comment.replace("<", "&lt;").replace(">", "&gt;") in page, comment
    assert found > 60


def test_kinds_and_defaults_in_words() -> None:
    rows = {}
    for line in config_reference.page().splitlines():
        if key := re.match(r'\| <a id="([\w.]+)"></a>`\w+` \| (.*?) \| (.*?) \| ', line):
            rows[key[1]] = (key[2], key[3])
    assert rows["train.steps"] == ("whole number, 1 or more", "required")
    assert rows["train.batch_size"] == ("whole number, 1 or more", "`16`")
    assert rows["data.hflip"] == ("number from 0 to 1", "`0.5`")
    assert rows["model.norm"] == ("`frozen`, `live`", "`frozen`")
    assert rows["model.trainable_layers"] == ("whole number, 0 or more, at most 6 or `none`", "`none`")
    assert rows["data.classes"] == ("list: text or `none`", "`none`")
    assert rows["input.mean"] == ("list of 3: number", "`[0.485, 0.456, 0.406]`")
    assert rows["seed"][0] == "whole number, 0 or more, below 2^63"
    assert rows["teacher"] == ("section [model](#model) or `none`", "`none`")


def test_every_link_leads_somewhere() -> None:
    pages = [page.relative_to(ROOT) for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]]
    known = {"docs/reference/config.md": config_reference.anchors()}
    assert list(links.broken(pages, known)) == []


def test_broken_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text(
        "# A b, c\n[1](b.md) [2](#a-b-c) [3](#d) [4](../x.py) [5](https://x.org/y) `[6](no.md)`\n"
        "[7](reference/config.md#train.lr) [8](reference/config.md#train.rl)\n\n    [9](no.md)\n"
    )
    known = {"docs/reference/config.md": {"train.lr"}}
    assert list(links.broken([Path("docs/a.md")], known)) == [
        "docs/a.md: there is no b.md",
        "docs/a.md: docs/a.md has no place #d",
        "docs/a.md: there is no ../x.py",
        "docs/a.md: docs/reference/config.md has no place #train.rl",
    ]


def test_links_out_of_the_pages_become_names() -> None:
    page = Path("docs/own_detector.md")
    text = "[`examples/point_detector.py`](../examples/point_detector.py), [it](../setup.py), [data](own_data.md)"
    assert links.outside_as_names(text, page) == "`examples/point_detector.py`, it (`setup.py`), [data](own_data.md)"
    with pytest.raises(FileNotFoundError, match="docs/own_detector.md: there is no ../no.py"):
        links.outside_as_names("[x](../no.py)", page)


def test_equations_are_drawn() -> None:
    page = drawn(r'<p>of <span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[\frac{1}{n}\]</div>')
    assert page.count("<svg") == 2 and "arithmatex" not in page and '<div class="equation"><svg' in page
    assert 'aria-label="a &lt; b"' in page and 'fill="currentColor"' in page
    for data, box in re.findall(r'viewBox="([^"]*)".*? d="([^"]*)"', page):
        left, top, width, height = map(float, data.split())
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", box)]
        assert left <= min(numbers[::2]) and max(numbers[::2]) <= left + width
        assert top <= min(numbers[1::2]) and max(numbers[1::2]) <= top + height
    with pytest.raises(ValueError, match="nonsense"):
        drawn(r'<span class="arithmatex">\(\nonsense\)</span>')


def test_commands_wrap_and_spreads_stay_together() -> None:
    block = "<pre><span></span><code>a &lt;b\n  c\n</code></pre>"
    python = '<pre><span></span><code><span class="n">a</span> = 1\n</code></pre>'
    assert broken_well(f"<td>1.5 ± 0.2</td>{block}{python}") == (
        "<td>1.5\u00a0±\u00a00.2</td>"
        '<pre><span></span><code class="commands"><span>a &lt;b\n</span><span>  c\n</span></code></pre>' + python
    )


def test_the_contents_list_every_page() -> None:
    """mkdocs' strict build asks for it, and is not at hand everywhere."""
    settings = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- .+: ([\w/]+\.md)$", settings, re.MULTILINE)
    written = [page.relative_to(DOCS).as_posix() for page in PAGES]
    assert sorted(listed) == sorted([*written, "changelog.md", "reference/config.md"])


def test_every_equation_of_the_pages_can_be_drawn() -> None:
    found = [
        equation
        for page in PAGES
        for equation in re.findall(r"\$\$\n(.*?)\n\$\$|(?<!\$)\$([^$\n`]+)\$(?!\$)", prose(page), re.DOTALL)
    ]
    assert len(found) > 20
    for block, inline in found:
        drawn(rf'<span class="arithmatex">\({block or inline}\)</span>')


def test_docstrings_become_markdown_that_says_the_same() -> None:
    written = """\
Over all Ch*P*P values of `a*b`.

    code = a * b

loss, other = alpha * beta: what
    goes on here.
scope: all
Then a sentence: with a colon.

Args:
    k: how many * many.
"""
    assert (
        as_markdown(written)
        == """\
Over all Ch\\*P\\*P values of `a*b`.

    code = a * b

- `loss, other` = alpha \\* beta: what
    goes on here.
- `scope`: all

Then a sentence: with a colon.

Args:
    k: how many * many.
"""
    )


def test_hygiene_of_every_file_of_the_checkout() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and not name.endswith((".png", ".jpg"))]
    assert len(files) > 100
    assert [problem for file in files if file.is_file() for problem in hygiene.problems(file)] == []


def test_hygiene_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one \ntwo\r\n" + b"<" * 7 + b" HEAD\nlast")
    assert hygiene.main([str(file)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(str(file)) for line in told] == [
        ": line ends of Windows",
        ":1: white space at the line's end",
        ":2: white space at the line's end",
        ":3: a mark of a merge conflict",
        ": should end with one line break",
    ]
    file.write_text("fine\n")
    assert hygiene.main([str(file)]) == 0 and capsys.readouterr().out == ""


def test_hooks_need_nothing_from_elsewhere() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local" and all(hook["language"] == "system" for hook in repository["hooks"])
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff", "hygiene", "tables"]


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gid_cuda.__version__ and citation["license"] == "Apache-2.0"
    assert citation["references"][0]["authors"][0] == {"family-names": "Dai", "given-names": "Xing"}
    assert gid_cuda.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs pip install -e '.[docs]'")
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = {page: page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert {page.name for page in pages} >= {"index.html", "config.html", "operators.html", "changelog.html"}
    for page, text in pages.items():
        assert re.findall(r'(?:src="|<link[^>]*href=")https?:', text) == [], page
        assert "arithmatex" not in text and "$$" not in text, page
    concepts = (tmp_path / "site/concepts.html").read_text()
    assert concepts.count('<div class="equation"><svg') >= 8
    operators = (tmp_path / "site/reference/operators.html").read_text()
    assert all(re.search(rf'<h2 id="[\w.]+\.{name}"', operators) for name in ops.__all__)
    for style in (tmp_path / "site").rglob("*.css"):
        assert re.findall(r"url\([\"']?https?:|@import", style.read_text()) == [], style


def test_each_operator_and_each_name_of_distillation_has_its_place() -> None:
    for page, module in (("operators.md", ops), ("distillation.md", distill)):
        named = re.findall(r"^::: ([\w.]+)$", (DOCS / "reference" / page).read_text(), re.MULTILINE)
        public = {name for name in module.__all__ if not name.isupper() or name == "GID"}
        assert public <= {path.rpartition(".")[2] for path in named}
        for path in named:
            where, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(where), name), path
