"""Run notebooks from top to bottom and save their outputs: python tests/run_notebooks.py [NAME ...]

NAME is a notebook's name or its beginning, for example 03, or tutorials/1. Without names, all run. What goes to stderr
(progress bars, TensorFlow's messages) and cell counters are not saved, so that outputs can be compared.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from coding_vessels.files import whole

folder = Path(__file__).parents[1] / "nbs"
notebooks = {path.relative_to(folder).as_posix(): path for path in sorted([*folder.glob("*.ipynb"), *folder.glob("tutorials/*.ipynb")])}
wanted = [name for name in notebooks if name.startswith(tuple(sys.argv[1:] or [""]))]
if not wanted:
    sys.exit(f"no notebook matches {' '.join(sys.argv[1:])}; there are {', '.join(notebooks)}.")
for name in wanted:
    path = notebooks[name]
    print(name, flush=True)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": path.parent}}).execute()
    for cell in notebook.cells:
        cell.metadata = {name: kept for name, kept in cell.metadata.items() if name == "jupyter"}    # folded solutions
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.pop("execution_count", None)
                output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
                if output.output_type == "execute_result":
                    output.execution_count = None
    notebook.metadata = {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    with whole(path) as beside:
        nbformat.write(notebook, beside())
