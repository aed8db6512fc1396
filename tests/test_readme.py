"""The Korean README says the same as the English one: the same commands and the same figures."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands(text):
    """Return the lines of all shell blocks, without their remarks."""
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines]


def scores(text):
    """Return the decimal fractions and the counts of patients in the paragraph that names the weights' scores."""
    (paragraph,) = [part for part in text.split("\n\n") if "AUROC" in part]
    return sorted(re.findall(r"\d+(?:\.\d+)?", re.sub(r"\(https?://[^)]*\)|`[^`]*`", "", paragraph)))


def test_same_commands_and_scores():
    english, korean = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
    assert commands(english) == commands(korean)
    assert scores(english) == scores(korean) and len(scores(english)) > 10
