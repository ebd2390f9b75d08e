"""The scripts, executed cell by cell as notebooks on one real experiment."""

import json
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import pytest
import yaml

from experiment.main import main

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).resolve().parents[2] / "script"
PARAMETERS = {
    "network": {"name": "lenet300_100", "dataset": "Digits", "outputSize": 10},
    "training": {"numEpochs": 2, "batchSize": 128, "optimizer": "Adam", "transformsFinal": [{"type": "ToTensor"}]},
    "retraining": None,
    "experiments": {
        "mode": "retrain",
        "methods": [{"name": "SVD", "settings": {"layers": ["fc1"]}}],
        "spacing": [{"type": "manual", "values": [0.9, 0.8]}],
        "measure": ["rank"],
    },
    "customizations": [{"key": ["retraining", "startEpoch"], "value": value} for value in (1, 2)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A working directory with the results of a sweep over retraining whose only factored layer is fc1."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "small.yaml").write_text(yaml.safe_dump(PARAMETERS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("experiment.report.plots.gallery.GALLERY", ())  # the notebooks draw
        assert main(["small.yaml", "-j", "1", "-q"]) == 0
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]  # a kernel of this interpreter
    spec = folder / "kernels" / "own" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": command, "display_name": "own", "language": "python"}))
    return folder


@pytest.mark.filterwarnings("ignore")  # of Jupyter
@pytest.mark.parametrize(
    ("name", "plots", "text"),
    [
        ("results_viewer", 1, "Prune potential: parameters removed in percent"),
        ("retrain_sweep", 1, "by loss (points) and retraining"),
        ("load_networks", 0, "SVD at keep ratio 0.8"),
        ("rank_study", 3, "ranks-training"),
    ],
)
def test_a_script_runs_as_a_notebook(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, plots: int, text: str
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    notebook = jupytext.read(SCRIPTS / f"{name}.py")
    assert sum(cell.cell_type == "code" for cell in notebook.cells) >= 3
    nbclient.NotebookClient(notebook, kernel_name="own", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == plots
    assert text in "".join(output.get("text", "") for output in outputs)
