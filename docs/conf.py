"""The site: the notebooks as they are saved, the front page in two languages, and every public name.

    pip install -e '.[dev]' && sphinx-build -W docs _site

What the configuration writes into this folder, it writes anew each time: copies of the notebooks without the
cells that only serve the export and the tests, both READMEs, the cards, a page for each module, llms.txt.
"""

import configparser
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

here = Path(__file__).parent
root = here.parent
settings = configparser.ConfigParser()
settings.read(root / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
source = f"{settings['git_url']}/blob/{settings['branch']}/"

project, copyright, release = settings["title"], settings["copyright"], settings["version"]
html_math_renderer = "mathml"       # formulas without a script from elsewhere
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme, html_title = "pydata_sphinx_theme", settings["title"]
html_extra_path = ["llms.txt"]
html_theme_options = {
    "github_url": settings["git_url"],
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": False,        # each notebook names its neighbours itself
    "footer_start": ["copyright"],
    "footer_end": ["notice"],
}
templates_path = ["templates"]
nb_execution_mode = "off"           # what was saved beside the code is shown; the tests run it
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"          # the docstrings say it
add_module_names = False
autodoc_preserve_defaults = True
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]


def written(name: str, text: str):
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    (here / name).write_text(text, encoding="utf-8")


def page(readme: str, contents: str = "") -> str:
    """Return a README whose links lead to pages of the site where it has them, and the contents after it."""
    text = (root / readme).read_text(encoding="utf-8")
    text = re.sub(re.escape(source) + r"nbs/([\w/]+\.ipynb)", r"notebooks/\1", text)
    text = text.replace(f"{settings['git_url']}/tree/{settings['branch']}/nbs", "notebooks.md")
    text = text.replace(source + "README.ko.md", "ko.md").replace("](README.md", "](index.md")
    return text.replace("nbs/images/", "notebooks/images/") + contents


def card(file: str, cards: dict[str, str]) -> str:
    """Return a card whose links lead to pages of the site where it has them, else to the repository."""
    text, folder = (root / file).read_text(encoding="utf-8"), (root / file).parent

    def link(found: re.Match) -> str:
        path = (folder / found[1]).resolve().relative_to(root.resolve()).as_posix()
        if path.startswith("nbs/"):
            return f"](../notebooks/{path.removeprefix('nbs/')})"
        own = {"README.md": "../index.md"} | {known: f"{name}.md" for known, name in cards.items()}
        return f"]({own.get(path, source + path)})"

    return re.sub(r"\]\((?!\w+:)([^)#]+)\)", link, text)


def toctree(pages: list[str], *options: str) -> str:
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def shown(notebook: dict) -> dict:
    """Return a notebook without the cells that only serve the export or the tests, and without directives."""
    served = re.compile(r"#\|\s*(default_exp|hide)\b")
    notebook["cells"] = [cell for cell in notebook["cells"] if not served.match("".join(cell["source"]))]
    for cell in notebook["cells"]:
        cell["source"] = re.sub(r"\A(#\|.*\n)+", "", "".join(cell["source"]))
    return notebook


def title_of(notebook: dict) -> tuple[str, str]:
    """Return a notebook's title and the line below it: what comes in and goes out."""
    text = next("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    lines = [line.strip("#> ") for line in text.splitlines() if line.strip()]
    return lines[0], lines[1]


for name in ("notebooks", "api"):
    shutil.rmtree(here / name, ignore_errors=True)
shutil.copytree(root / "nbs" / "images", here / "notebooks" / "images")
titles = {}
for path in sorted((root / "nbs").rglob("[0-9]*.ipynb")):
    name = path.relative_to(root / "nbs").as_posix()
    if ".ipynb_checkpoints" not in name:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        titles[name] = title_of(notebook)
        written(f"notebooks/{name}", json.dumps(shown(notebook)))
course = [name for name in titles if "/" not in name]
tutorials = [name for name in titles if "/" in name]
written("notebooks.md", "# The notebooks\n\nIn the order in which a patient goes through them.\n"
        + toctree([f"notebooks/{name}" for name in course], ":maxdepth: 1"))
written("tutorials.md", "# Tutorials\n\nOne task each, with everything that is typed.\n"
        + toctree([f"notebooks/{name}" for name in tutorials], ":maxdepth: 1"))
pages = ["The notebooks <notebooks>", "Tutorials <tutorials>", "Cards <cards>", "api", "한국어 <ko>"]
written("index.md", page("README.md", toctree(pages, ":hidden:")))
written("ko.md", page("README.ko.md"))
cards = {"coding_vessels/assets/MODEL_CARD.md": "model", "data/DATA_CARD.md": "data",
         "data/CLAIM.md": "claim", "CHANGELOG.md": "changes"}
for file, name in cards.items():
    written(f"cards/{name}.md", card(file, cards))
written("cards.md", "# Cards\n\nWhat was measured, on what, and what is missing.\n"
        + toctree([f"cards/{name}" for name in cards.values()], ":maxdepth: 1"))
about = f"> {settings['description']}. A Python package and a course in notebooks. Not a medical device."
listed = [f"- [{title}](notebooks/{name.removesuffix('.ipynb')}.html): {line}"
          for name, (title, line) in titles.items()]
written("llms.txt", "\n".join([f"# {project}", "", about, "", *listed, ""]))

package = import_module(settings["lib_name"])
names = [name for _, name, _ in iter_modules(package.__path__) if not name.startswith("_")]
public = [name for name in names if getattr(import_module(f"{package.__name__}.{name}"), "__all__", None)]
written("api.md", "# Every public name\n\nBy module, in the order of the alphabet.\n"
        + toctree([f"api/{name}" for name in public], ":maxdepth: 1"))
for name in public:
    members = f".. automodule:: {package.__name__}.{name}\n   :members:\n"
    written(f"api/{name}.rst", f"{name}\n{'=' * len(name)}\n\n{members}")


def formula(display: str):
    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise SkipNode
    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", formula("inline"), formula("block"))
