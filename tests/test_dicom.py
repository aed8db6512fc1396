"""Phantom to X-ray angiography objects to an imported cohort: the same predictions."""

import numpy as np
import pandas as pd
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, XRayAngiographicImageStorage, generate_uid

from coding_vessels.anatomy import VIEWS
from coding_vessels.cli import main
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import read_cohort, read_frame


def save(path, frame, patient, view, packed):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.BurnedInAnnotation = "Hong^Gildong", patient, "NO"
    dataset.SeriesDescription = {"L": "left ", "R": "right "}[view[0]] + {"I": "ICA", "V": "VA"}[view[1]]
    dataset.PositionerPrimaryAngle = 0 if view[-1] == "A" else 90
    run = np.stack([np.full_like(frame, 255), frame])  # before the contrast medium comes, and after
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.SamplesPerPixel = *frame.shape, 2, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 16, 10, 9, 0, "MONOCHROME1"
    dataset.PixelData = (1023 - run.astype(np.uint16) * 4).tobytes()
    if packed:
        dataset.compress(RLELossless)
    dataset.save_as(path, enforce_file_format=True)


def test_round_trip_gives_the_same_predictions(tmp_path, capsys):
    cohort = write_cohort(tmp_path / "cohort", 3, seed=4, size=300)
    studies, _ = read_cohort(cohort / "test.csv", cohort, labelled=False)
    (tmp_path / "hospital").mkdir()
    for study in studies:
        for view, path in zip(VIEWS, study.frames):
            save(tmp_path / f"hospital/{study.index}_{view}.dcm", read_frame(path), f"H{study.index}", view, packed=view == "LV-B")
    (tmp_path / "hospital/report.pdf").write_bytes(b"%PDF-1.7")
    assert main(f"import-dicom {tmp_path}/hospital --out {tmp_path}/new --key {tmp_path}/key.csv".split()) == 3  # the PDF is named
    out = capsys.readouterr().out
    assert "report.pdf" in out and "3 patients" in out and "Hong" not in out
    for name in ("cohort", "new"):
        assert main(f"predict --csv {tmp_path}/{name}/test.csv --images {tmp_path}/{name} --out {tmp_path}/{name}_output.csv".split()) == 0
        (tmp_path / "probabilities.csv").rename(tmp_path / f"{name}_probabilities.csv")
        for file in ("positions.csv", "warnings.csv"):
            (tmp_path / file).unlink(missing_ok=True)
    key = pd.read_csv(tmp_path / "key.csv", dtype=str).drop_duplicates("Index").set_index("Index").patient.str[1:]
    before, after = (pd.read_csv(tmp_path / f"{name}_probabilities.csv", dtype={"Index": str}).set_index("Index") for name in ("cohort", "new"))
    after.index = after.index.map(key)
    assert sorted(after.index) == sorted(before.index)
    assert (after.loc[before.index] != before).to_numpy().sum() == 0
