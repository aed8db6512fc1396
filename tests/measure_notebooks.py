"""Measures how the notebooks read: a table to set beside that of other literate projects.

    python tests/measure_notebooks.py [FOLDER]

A cell counts as exported if it begins with `#| export`. Failure tests are calls of `test_fail` and `pytest.raises`; exercises are the
numbered lines under a heading `Exercises`; links are those in the text. The last row holds sums or, for cells, the median and the
largest of all. What an exported cell does is define, so it never has an output: the share of cells with a saved output is given of all
code cells and of those that are not exported.
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

import pandas as pd

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "nbs"


def measure(notebooks):
    """Return what some notebooks hold together."""
    cells = [cell | {"text": "".join(cell["source"])} for path in notebooks for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    exported = [cell["text"].split("\n", 1)[-1] for cell in code if cell["text"].startswith("#| export")] or [""]
    text = "\n".join(cell["text"] for cell in cells if cell["cell_type"] == "markdown")
    outputs = [output for cell in code for output in cell["outputs"]]
    lines = [len(cell.splitlines()) for cell in exported]
    shown, run = sum(bool(cell["outputs"]) for cell in code), sum(not cell["text"].startswith("#| export") for cell in code)
    every = "\n".join(cell["text"] for cell in code)
    return {
        "cells": len(cells),
        "exported": len(exported),
        "lines, median": median(lines),
        "lines, most": max(lines),
        "characters, median": median(map(len, exported)),
        "lines over 110": sum(len(line) > 110 for line in every.splitlines()),
        "figures": sum(bool({"image/png", "image/jpeg"} & set(output.get("data", {}))) for output in outputs),
        "with output, %": round(100 * shown / len(code)),
        "of not exported, %": round(100 * shown / max(1, run)),
        "failure tests": len(re.findall(r"test_fail\(|pytest\.raises", every)),
        "links": len(re.findall(r"\]\([^)]+\)", text)),
        "exercises": sum(len(re.findall(r"^\d+\. ", part, re.M)) for part in re.findall(r"## Exercises\n(.*?)(?=\n## |\Z)", text, re.S)),
    }


notebooks = sorted(FOLDER.glob("*.ipynb"))
rows = {path.stem: measure([path]) for path in notebooks} | {"all": measure(notebooks)}
with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_rows", None):
    print(pd.DataFrame(rows).T.astype(int))
