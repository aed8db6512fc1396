"""Every notebook runs from top to bottom, and the package and README are what the notebooks give."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))


def typed(command, *words, **options):
    """Run a command of the environment's, which needs not to be activated."""
    place = Path(sys.executable).parent
    path = f"{place}{os.pathsep}{os.environ['PATH']}"    # the tutorials type commands
    return subprocess.run([sys.executable, str(place / command), *words], env=os.environ | {"PATH": path}, **options)


@pytest.mark.parametrize("path", NOTEBOOKS + TUTORIALS, ids=lambda path: path.stem)
def test_notebook(path):
    words = "--path", str(path), "--n_workers", "1", "--do_print"
    done = typed("nbdev_test", *words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_notebooks_have_outputs():
    import nbformat

    assert len(NOTEBOOKS) >= 12
    for path in NOTEBOOKS + TUTORIALS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert any(cell.outputs for cell in cells), f"{path.name} has no saved outputs"
        errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
        assert not errors, f"{path.name} has a saved error"
        assert path.stat().st_size < 1.5e6, f"{path.name} is too large"


def _snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}


def test_export_changes_nothing(tmp_path):
    copy = tmp_path / "copy"
    for name in ("nbs", "coding_vessels"):
        shutil.copytree(ROOT / name, copy / name)
    for path in (path for path in ROOT.iterdir() if path.suffix in (".ini", ".toml", ".py", ".md")):
        shutil.copy(path, copy)
    typed("nbdev_export", cwd=copy, check=True, capture_output=True)
    assert _snapshot(copy / "coding_vessels") == _snapshot(ROOT / "coding_vessels")


def test_readme_is_the_index(tmp_path):
    command = [sys.executable, "-m", "nbconvert", "--to", "markdown", "nbs/index.ipynb", "--output-dir", str(tmp_path)]
    command += ["--output", "README", "--NbConvertApp.output_files_dir=nbs/images"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    for image in (tmp_path / "nbs" / "images").iterdir():
        assert image.read_bytes() == (ROOT / "nbs" / "images" / image.name).read_bytes()


def test_notebooks_import_only_from_lower_numbers():
    import re

    order = {path.stem.split("_", 1)[1]: path.stem.split("_")[0] for path in NOTEBOOKS if path.stem[0].isdigit()}
    for path in NOTEBOOKS:
        if path.stem in ("index", "11_cli"):
            continue
        for name in re.findall(r"(?:from|import) coding_vessels\.(\w+)", path.read_text(encoding="utf-8")):
            assert order[name] <= path.stem.split("_")[0], f"{path.stem} imports from {order[name]}_{name}"


def test_light_modules_do_not_import_tensorflow():
    names = "anatomy phantom studies preprocessing batches dicom engines evaluation size prediction risk report cli".split()
    program = f"import sys; [__import__('coding_vessels.' + name) for name in {names}]; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_links_between_notebooks_lead_somewhere():
    import json
    import re

    for path in NOTEBOOKS + TUTORIALS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        links = re.findall(r"\]\(([^)#]+\.ipynb)\)", "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"))
        assert links, f"{path.name} links to no other notebook"
        lost = [link for link in links if "://" not in link and not (path.parent / link).exists()]
        assert not lost, f"{path.name} links to {lost}"


def test_each_notebook_leads_to_its_neighbours():
    import json

    names = [path.stem for path in NOTEBOOKS if path.stem[0].isdigit()]
    for name, earlier, later in zip(names, [None, *names], [*names[1:], None]):
        last = "".join(json.loads((ROOT / f"nbs/{name}.ipynb").read_text(encoding="utf-8"))["cells"][-1]["source"]).splitlines()[-1]
        wanted = [f"← [`{earlier}`]({earlier}.ipynb)"] * bool(earlier) + [f"[`{later}`]({later}.ipynb) →"] * bool(later)
        assert last == " · ".join(wanted), f"{name} ends with {last}"


def test_each_notebook_says_how_long_it_runs_and_opens_elsewhere():
    import json

    for path in (path for path in NOTEBOOKS if path.stem[0].isdigit()):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        head = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert "*Runs in " in head and f"/blob/main/nbs/{path.name})*" in head, path.name


def test_the_reporting_checklist_is_whole_and_leads_somewhere():
    import re

    text = (ROOT / "data/CLAIM.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.M)] == list(range(1, 45))
    assert set(re.findall(r"^\| \d+ \|[^|]*\| ([^|]*) \|", text, re.M)) == {"yes", "in part", "no", "not applicable"}
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    assert len(links) > 20 and not [link for link in links if not (ROOT / "data" / link).is_file()]


def test_solutions_are_folded():
    import json

    found = 0
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for task, solution in zip(cells, cells[1:]):
            if "".join(task["source"]).startswith("## Exercises"):
                assert solution["metadata"] == {"jupyter": {"source_hidden": True}}, f"{path.name} shows its solutions"
                found += 1
    assert found >= 11
