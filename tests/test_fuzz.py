"""Nobody's bytes crash the readers: frames, tables and folders made by chance are read or refused with our own errors.

FUZZ_CASES=20000 pytest -s tests/test_fuzz.py    # the slow run; CONTRIBUTING.md keeps its figures
"""

import io
import logging
import os
import resource
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coding_vessels.anatomy import COLUMNS, LABELS, VIEWS
from coding_vessels.evaluation import read_groups, read_labels
from coding_vessels.phantom import draw_phantom
from coding_vessels.studies import FrameError, read_cohort, read_frame

CASES = int(os.environ.get("FUZZ_CASES", 2000))


def seeds():
    """Return one file of each kind that a frame comes in."""
    frame = Image.fromarray(draw_phantom(0, 96).frames[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        (frame, "JPEG", {}), (frame.convert("RGB"), "JPEG", {"progressive": True}), (frame.convert("CMYK"), "JPEG", {}), (frame, "JPEG", {"exif": turned}),
        (frame, "PNG", {}), (frame.convert("RGBA"), "PNG", {}), (frame.convert("P"), "PNG", {}), (Image.fromarray(np.asarray(frame).astype(np.uint16) * 16), "PNG", {}),
    ]  # fmt: skip
    for picture, kind, options in kinds:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        yield stream.getvalue()


def dicom_seeds():
    """Return an X-ray angiography object of each kind: 8 and 12 bits, run-length encoded, JPEG inside."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, XRayAngiographicImageStorage

    frame = draw_phantom(0, 96).frames[0]
    for bits, packing in ((8, None), (12, None), (8, "rle"), (8, "jpeg")):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, XRayAngiographicImageStorage, "1.2.3"
        dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientID, dataset.SeriesDescription = XRayAngiographicImageStorage, "1.2.3", "7", "LICA"
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PositionerPrimaryAngle = 96, 96, 2, 1, 3
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (8 if bits == 8 else 16), bits, bits - 1, 0
        dataset.PhotometricInterpretation, dataset.WindowCenter, dataset.WindowWidth = "MONOCHROME2", 1 << bits - 1, 1 << bits
        dataset.PixelData = (np.stack([frame, frame]).astype(np.uint16) << bits - 8).astype(np.uint8 if bits == 8 else np.uint16).tobytes()
        if packing == "rle":
            dataset.compress(RLELossless)
        if packing == "jpeg":
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "JPEG")
            meta.TransferSyntaxUID, dataset.PixelData = JPEGBaseline8Bit, encapsulate([stream.getvalue()] * 2)
            dataset["PixelData"].VR = "OB"
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        yield stream.getvalue()


def first_frame(path):
    from coding_vessels.dicom import read_dicom, view_of

    dataset, frames = read_dicom(path)
    view_of(dataset)
    return frames[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read, originals", [(read_frame, seeds), (first_frame, dicom_seeds)], ids=["frames", "DICOM"])
def test_mutated_files_are_read_or_refused(tmp_path, read, originals):
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    rng, originals, outcomes, slowest, before = np.random.default_rng(0), list(originals()), Counter(), 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(CASES):
        data = bytearray(originals[case % len(originals)])
        head = min(len(data), 1200) if case % 3 == 0 else len(data)  # a third of the cases hits the headers only
        for place in rng.integers(0, head, rng.integers(1, 12)):
            data[place] = rng.integers(256)
        if case % 5 == 0:
            data = data[: rng.integers(len(data))]
        elif case % 7 == 0:
            start, stop = sorted(rng.integers(0, len(data), 2))
            data[start:start] = data[start:stop]
        (tmp_path / "frame").write_bytes(data)
        began = time.perf_counter()
        try:
            frame = read(tmp_path / "frame")
            assert frame.ndim == 2 and frame.dtype == np.uint8 and min(frame.shape) >= 16
            outcomes["read"] += 1
        except FrameError:
            outcomes["refused"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{CASES} mutated files: {dict(outcomes)}, slowest {slowest:.2f} s, memory grew by {grown:.0f} MiB")
    assert min(outcomes.values()) > CASES // 50 and grown < 1024


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for view in VIEWS:
        Image.new("L", (32, 32), 90).save(folder / f"1{view}.png")
    return folder


cells = st.one_of(st.sampled_from(["", "0", "1", "1.0", "nan", "x", "../1", "=1+1", "０"]), st.text(max_size=6))
tables = st.builds(
    lambda header, rows, separator, end: end.join(separator.join(row) for row in [header, *rows]),
    st.lists(st.one_of(st.sampled_from(COLUMNS), cells), min_size=1, max_size=26).map(lambda names: ["Index", *names]) | st.just(list(COLUMNS)),
    st.lists(st.lists(cells, max_size=26), max_size=5), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n", "\r"]),
)  # fmt: skip
anything = st.one_of(tables.map(str.encode), tables.map(lambda text: text.encode("utf-16")), st.binary(max_size=300))


@settings(max_examples=CASES // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(anything)
def test_tables_made_by_chance(images, data):
    path = images / "t.csv"
    path.write_bytes(data)
    for read in (lambda: read_cohort(path, images), lambda: read_cohort(path, images, labelled=False), lambda: read_labels(path), lambda: read_labels(path, truth=True), lambda: read_groups(path)):
        try:
            result = read()
        except (ValueError, OSError) as error:
            assert str(error).startswith(str(path)), error  # every message names the file
            continue
        if isinstance(result, tuple):
            assert all(study.labels is None or len(study.labels) == len(LABELS) for study in result[0])


@settings(max_examples=CASES // 20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40), max_size=8))
def test_folders_with_names_made_by_chance(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        try:
            (folder / f"{name}LI-A.png").touch()
        except OSError:
            pass  # the file system refuses the name
    (folder / "t.csv").write_text("Index\n1\n")
    studies, problems = read_cohort(folder / "t.csv", folder, labelled=False)
    assert studies == [] and len(problems) >= 1  # one line for a patient without any frame, one a view otherwise
