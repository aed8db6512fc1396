"""The shipped weights: what they say of five patients in every engine, and that saved outputs were made with them."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from coding_vessels.anatomy import LABELS
from coding_vessels.engines import SHIPPED, export_model, load_engine
from coding_vessels.prediction import predict_studies
from coding_vessels.studies import read_cohort

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "data/demo"
DIGEST = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["keras", "openvino", "onnx"])
def test_golden_probabilities(name, tmp_path):
    model = SHIPPED
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        shutil.copy(SHIPPED, tmp_path / "vessel.keras")
        model = tmp_path / "vessel.keras"
        export_model(model, name)
    studies, _ = read_cohort(DEMO / "test.csv", DEMO, labelled=False)
    now = predict_studies(load_engine(model, name), studies)[0].set_index("Index")[list(LABELS)]
    kept = pd.read_csv(DEMO / "probabilities.csv", dtype={"Index": str}).set_index("Index")[list(LABELS)]
    assert len(now) == 5
    pd.testing.assert_frame_equal(now, kept, check_exact=False, rtol=0, atol=1e-4)


def test_saved_outputs_are_of_these_weights():
    said = {}
    for path in sorted([*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs/tutorials").glob("*.ipynb")]):
        outputs = [cell["outputs"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        said[path.stem] = set(re.findall(r"weights ([0-9a-f]{16})\b", json.dumps(outputs)))
    told = {name: digests for name, digests in said.items() if digests}
    assert {"08a_engines", "08b_size", "10_report", "12_weights", "15_outside", "1_read_one_patient"} <= set(told)
    assert {name: digests for name, digests in told.items() if digests != {DIGEST}} == {}


def test_flagged_aneurysms_have_a_width():
    """In pixels of the frame, where the sac ends within its square; and none where a network has no masks."""
    from dataclasses import replace

    from coding_vessels.prediction import read_study

    studies, _ = read_cohort(DEMO / "test.csv", DEMO, labelled=False)
    readings = [read_study(load_engine(), study, threshold=0.2) for study in studies]
    places = [place for reading in readings for place in reading.positions()]
    assert any(place[5] is not None for place in places)
    assert all(place[5] is None or 0 < place[5] < 100 for place in places)
    millimetres = [place[7] for place in places if place[0] == "L_MCA"]    # of the one true sac among them
    assert len(millimetres) == 2 and all(0.5 < width / 5.934 <= 1 for width in millimetres)
    blind = replace(readings[1], masks=None).positions()
    assert blind and all(place[5] is None for place in blind)


def test_exporting_needs_tensorflow(monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(ValueError, match="exporting needs Keras on TensorFlow; call it again without KERAS_BACKEND"):
        export_model(SHIPPED)
