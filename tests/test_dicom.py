"""Phantom to X-ray angiography objects to an imported cohort: the same predictions."""

import csv
import os
import shutil
import tracemalloc

import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, XRayAngiographicImageStorage, generate_uid

from coding_vessels.anatomy import VIEWS
from coding_vessels.cli import main
from coding_vessels.dicom import import_dicom
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import read_cohort, read_frame


def save(path, frame, patient, view, packed=False, study="1.2.3", length=2):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.BurnedInAnnotation = "Hong^Gildong", patient, "NO"
    dataset.StudyInstanceUID, dataset.StudyDate = study, "20160304"
    dataset.SeriesDescription = {"L": "left ", "R": "right "}[view[0]] + {"I": "ICA", "V": "VA"}[view[1]]
    dataset.PositionerPrimaryAngle = 0 if view[-1] == "A" else 90
    run = np.stack([np.full_like(frame, 255)] * (length - 1) + [frame])  # before the contrast medium comes, and after
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.SamplesPerPixel = *frame.shape, length, 1
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
    assert "report.pdf" in out and "3 studies" in out and "Hong" not in out
    for name in ("cohort", "new"):
        assert main(f"predict --csv {tmp_path}/{name}/test.csv --images {tmp_path}/{name} --out {tmp_path}/{name}_output.csv".split()) == 0
        (tmp_path / "probabilities.csv").rename(tmp_path / f"{name}_probabilities.csv")
        for file in ("positions.csv", "warnings.csv", "prediction.json"):
            (tmp_path / file).unlink(missing_ok=True)
    key = pd.read_csv(tmp_path / "key.csv", dtype=str).drop_duplicates("Index").set_index("Index").patient.str[1:]
    before, after = (pd.read_csv(tmp_path / f"{name}_probabilities.csv", dtype={"Index": str}).set_index("Index") for name in ("cohort", "new"))
    after.index = after.index.map(key)
    assert sorted(after.index) == sorted(before.index)
    assert (after.loc[before.index] != before).to_numpy().sum() == 0


def write_studies(folder, patients, size=64, length=2):
    """Write one study a patient, all views white but for a dark square."""
    folder.mkdir()
    frame = np.full((size, size), 200, np.uint8)
    frame[20:30, 20:30] = 50
    for number, patient in enumerate(patients):
        for view in VIEWS:
            save(folder / f"{number}_{view}.dcm", frame, patient, view, study=f"1.2.{number}", length=length)
    return folder


def test_key_is_never_readable_by_others_and_gives_ids_back(tmp_path, monkeypatch):
    patients, modes = ["-0042", "=1+1", "@7", 'Kim, "Y"'], []
    hospital = write_studies(tmp_path / "hospital", patients)
    to_csv = pd.DataFrame.to_csv

    def watched(table, *args, **options):
        to_csv(table, *args, **options)
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.rglob("key*"))

    monkeypatch.setattr(pd.DataFrame, "to_csv", watched)
    before = os.umask(0)
    try:
        import_dicom(hospital, tmp_path / "new", tmp_path / "key.csv")
    finally:
        os.umask(before)
    assert modes and set(modes) == {0o600}
    with open(tmp_path / "key.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["patient"] for row in rows} == set(patients)
    assert len({row["Index"] for row in rows}) == len({row["study"] for row in rows}) == 4 and {row["date"] for row in rows} == {"20160304"}


def test_runs_do_not_stay_in_memory(tmp_path):
    hospital = write_studies(tmp_path / "hospital", list("123456"), size=128, length=60)
    import_dicom(hospital, tmp_path / "warm", tmp_path / "warm.csv")
    tracemalloc.start()
    import_dicom(hospital, tmp_path / "new", tmp_path / "key.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 60 * 128**2  # bytes: of 48 runs, fewer than 24 at any time


@pytest.mark.parametrize("taken", ["key.csv", "new/other.csv"])
def test_what_another_import_wrote_meanwhile_stays(tmp_path, monkeypatch, taken):
    """Two imports under one name, started at the same time: the later one loses, and leaves nothing."""
    hospital, to_csv = write_studies(tmp_path / "hospital", ["1"]), pd.DataFrame.to_csv

    def beaten(table, *args, **options):
        (tmp_path / taken).parent.mkdir(exist_ok=True)
        (tmp_path / taken).write_text("other")
        to_csv(table, *args, **options)
        monkeypatch.undo()

    monkeypatch.setattr(pd.DataFrame, "to_csv", beaten)
    with pytest.raises(OSError):
        import_dicom(hospital, tmp_path / "new", tmp_path / "key.csv")
    assert (tmp_path / taken).read_text() == "other"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["hospital", taken.split("/")[0]])


def test_partial_studies_are_kept(tmp_path, capsys):
    hospital = write_studies(tmp_path / "hospital", ["1", "2"])
    for name in ("0_LI-A.dcm", "1_RV-B.dcm"):
        (hospital / name).unlink()
    (hospital / "report.pdf").write_bytes(b"%PDF-1.7")
    assert main(f"import-dicom {hospital} --out {tmp_path}/new --key {tmp_path}/key.csv".split()) == 3
    said = capsys.readouterr().out
    assert all(part in said for part in ("report.pdf", "lacks LI-A", "lacks RV-B", "2 studies"))
    key = pd.read_csv(tmp_path / "key.csv", dtype=str)
    images = {path.stem for path in (tmp_path / "new" / "images").iterdir()}
    assert images == set(key["Index"] + key["view"]) and len(images) == 14


def test_a_proposed_mapping_can_be_handed_back(tmp_path, capsys):
    """With descriptions that say nothing, the mapping lists every file; completed, it imports all of them."""
    hospital = write_studies(tmp_path / "hospital", ["1", "2"])
    for path in hospital.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.SeriesDescription = "run"
        dataset.save_as(path)
    (hospital / "report.pdf").write_bytes(b"%PDF-1.7")
    assert main(f"import-dicom {hospital} --out {tmp_path}/new --key {tmp_path}/key.csv".split()) == 1
    assert "no frame that can be placed" in capsys.readouterr().err
    assert main(f"import-dicom {hospital} --propose {tmp_path}/mapping.csv".split()) == 0
    assert "16 of them leave their view open" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "mapping.csv", dtype=str, keep_default_na=False)
    assert set(table["file"]) == {path.name for path in hospital.iterdir()}
    assert table.set_index("file").loc["report.pdf", "view"] == "-"
    said = table["file"].str.extract(r"_(.+)\.dcm", expand=False)
    table["view"] = table["view"].where(table["view"] != "", said)
    table.to_csv(tmp_path / "mapping.csv", index=False)
    words = f"import-dicom {hospital} --out {tmp_path}/new --key {tmp_path}/key.csv --mapping {tmp_path}/mapping.csv"
    assert main(words.split()) == 0
    assert len(list((tmp_path / "new" / "images").iterdir())) == 16


def test_import_asks_for_what_it_needs(tmp_path, capsys):
    (tmp_path / "hospital").mkdir()
    assert main(f"import-dicom {tmp_path}/hospital --out {tmp_path}/new".split()) == 1
    assert "give --out and --key, or --propose" in capsys.readouterr().err
    assert main(f"import-dicom {tmp_path}/hospital --propose {tmp_path}/mapping.csv".split()) == 1
    (tmp_path / "hospital" / "report.pdf").write_bytes(b"%PDF-1.7")
    assert main(f"import-dicom {tmp_path}/hospital --propose {tmp_path}/mapping.csv".split()) == 1
    said = capsys.readouterr().err
    assert said.count("holds no file that is readable DICOM") == 2 and not (tmp_path / "mapping.csv").exists()


def test_what_was_flagged_goes_back_as_reports_of_the_right_patient(tmp_path, capsys):
    cohort = write_cohort(tmp_path / "cohort", 2, seed=5, size=300)
    studies, _ = read_cohort(cohort / "test.csv", cohort, labelled=False)
    (tmp_path / "hospital").mkdir()
    for study, number in zip(studies, ("1.2.7", "1.2.8")):
        for view, path in zip(VIEWS, study.frames):
            file = tmp_path / f"hospital/{study.index}_{view}.dcm"
            save(file, read_frame(path)[:, ::-1] if view.endswith("B") else read_frame(path), f"H{study.index}", view, study=number)
            dataset = pydicom.dcmread(file)
            dataset.SeriesInstanceUID = "1.2.9"
            if view.endswith("B"):  # filmed from the right
                dataset.PositionerPrimaryAngle = -90
            dataset.save_as(file)
    for name, seed in (("new", 0), ("other", 3)):  # the other way round
        import_dicom(tmp_path / "hospital", tmp_path / name, tmp_path / f"{name}.csv", seed=seed)
    assert main(f"predict --csv {tmp_path}/new/test.csv --images {tmp_path}/new --out {tmp_path}/read/output.csv --threshold 0.02".split()) == 0
    words = f"export-dicom {tmp_path}/read {tmp_path}/hospital --out {tmp_path}/reports --key".split()
    assert main([*words, f"{tmp_path}/other.csv"]) == 1 and not (tmp_path / "reports").exists()
    assert "is not what" in capsys.readouterr().err
    assert main([*words, f"{tmp_path}/new.csv"]) == 0
    key = pd.read_csv(tmp_path / "new.csv", dtype=str).set_index(["Index", "view"])
    places = pd.read_csv(tmp_path / "read/positions.csv", dtype={"Index": str})
    for index, rows in places.groupby("Index"):
        report = highdicom.sr.srread(tmp_path / f"reports/{index}.dcm")
        assert report.PatientID == key.loc[(index, "LI-A"), "patient"]
        groups = report.content.get_planar_roi_measurement_groups()
        assert len(groups) == len(rows)
        for group, row in zip(groups, rows.itertuples()):
            x, y = group.roi.value[0] - 0.5
            across = 299 - row.x if row.view.endswith("B") else row.x
            assert abs(x - across) < 0.01 and abs(y - row.y) < 0.01
    first = places["Index"].iloc[0]  # another patient's name in one of a study's films leaves out that study alone
    views = places.loc[places["Index"] == first, "view"].unique()
    assert len(views) > 1 and places["Index"].nunique() == 2
    film = tmp_path / "hospital" / key.loc[(first, views[0]), "file"]
    kept, dataset = film.read_bytes(), pydicom.dcmread(film)
    dataset.PatientID = "H9999"
    dataset.save_as(film)
    shutil.rmtree(tmp_path / "reports")
    assert main([*words, f"{tmp_path}/new.csv"]) == 3
    assert f"no report of {first}: its files have several PatientID" in capsys.readouterr().err
    assert [path.stem for path in (tmp_path / "reports").iterdir()] == [index for index in places["Index"].unique() if index != first]
    film.write_bytes(kept)
    os.utime(tmp_path / "new/images/0001LI-A.png")
    shutil.rmtree(tmp_path / "reports")
    assert main([*words, f"{tmp_path}/new.csv"]) == 1
    assert "predict again" in capsys.readouterr().err
