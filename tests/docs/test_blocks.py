"""The Python that the documentation shows runs: each page's ```python blocks, in order, in one temporary folder."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page):
    """The blocks of a page, each behind as many empty lines as stand before it, so that a traceback shows its line."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text.count("\n", 0, found.start(1)) + found[1] for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = {"__name__": "__main__"}
    try:
        for block in blocks(page):
            exec(compile(block, page, "exec", dont_inherit=True), names)
        # A page that shows tests shows tests that pass.
        for name in [name for name in names if name.startswith("test_")]:
            names[name]()
    finally:
        torch.set_num_threads(threads)


def test_every_block_is_closed():
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, f"{page.name} has a ``` without its other"


def test_outputs_are_those_of_today():
    spec = importlib.util.spec_from_file_location("outputs", ROOT / "docs" / "outputs.py")
    outputs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(outputs)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert outputs.renewed(text) == text, f"{page.name} shows old output: run python docs/outputs.py"
