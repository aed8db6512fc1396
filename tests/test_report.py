"""The report page in a real browser: no error, no request, switches and links that work, and the figures of scores.json."""

import json
import os
import re
import shutil
import time

import pandas as pd
import pytest

from coding_vessels.cli import main
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import read_cohort

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    cohort = folder / "cohort"
    assert main(f"simulate {cohort} --patients 10 --seed 5 --size 400".split()) == 0
    (cohort / "images/1002LI-A.jpg").write_bytes(b"<html>")
    (folder / "patients.csv").write_text("Index,age,hypertension,earlier_sah,population\n1001,75,yes,yes,finland\n1003,40,no,no,europe\n")
    assert main(f"predict --csv {cohort}/test.csv --images {cohort} --out {folder}/output.csv --threshold 0.1 --report {folder}/report.html --truth {cohort}/groundtruth.csv --patients {folder}/patients.csv".split()) == 3
    kept = [line for line in (cohort / "groundtruth.csv").read_text().splitlines() if not line.startswith("1002,")]
    (cohort / "groundtruth.csv").write_text("\n".join(kept))
    assert main(f"evaluate --truth {cohort}/groundtruth.csv --output {folder}/output.csv --out {folder}/scores".split()) == 0
    return folder


@pytest.fixture
def page(folder):
    if BROWSER is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.trouble, page.requests = [], []
        page.on("console", lambda message: page.trouble.append(message.text))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url) if not request.url.startswith("data:") else None)
        page.goto((folder / "report.html").as_uri())
        yield page
        assert page.trouble == [] and set(page.requests) == {(folder / "report.html").as_uri()}
        browser.close()


def test_figures_are_those_of_scores_json(folder, page):
    record = json.loads((folder / "scores/scores.json").read_text())
    shown = page.eval_on_selector_all("#figures [data-value]", "cells => cells.map(cell => cell.dataset.value)")
    assert shown == [str(row["score"]) for row in record["figures"].values()]
    written = page.eval_on_selector_all("#figures tbody tr", "rows => rows.map(row => row.innerText.split('\\t'))")
    assert [row[0] for row in written] == list(record["figures"])
    assert [row[1] for row in written] == ["–" if row["score"] is None else f"{row['score']:.3f}" for row in record["figures"].values()]
    assert "1002" in page.inner_text("#patients ul")


def test_links_lead_to_a_patient_and_back(page):
    shows = lambda place, hidden: (page.locator(place).wait_for(state="visible"), page.locator(hidden).wait_for(state="hidden"))
    assert page.locator("section.patient:visible").count() == 0
    page.locator("#patients tbody tr").nth(1).locator("a").click()
    shows("#patient-2", "#overview")
    assert page.locator("section.patient:visible").count() == 1
    page.locator("#patient-2 .after").click()
    shows("#patient-3", "#patient-2")
    page.go_back()
    shows("#patient-2", "#patient-3")
    page.get_by_text("All patients").locator("visible=true").click()
    shows("#overview", "#patient-2")
    page.locator("#patients tbody a").first.click()
    shows("#patient-1", "#overview")
    page.keyboard.press("Escape")
    shows("#overview", "#patient-1")


def test_attention_is_switched_on_and_off(page):
    page.locator("#patients tbody a").first.click()
    patient = page.locator("#patient-1")
    patient.wait_for(state="visible")
    assert patient.locator(".layer:visible").count() == 0
    choice = patient.locator("input[type=radio]").nth(1)
    choice.focus()
    page.keyboard.press("Space")  # by keyboard
    layers = patient.locator(".layer:visible")
    assert layers.count() in (2, 4) and patient.locator(".peak:not(.sac):visible").count() == layers.count()
    assert {layers.nth(i).get_attribute("data-location") for i in range(layers.count())} == {choice.get_attribute("value")}
    frame, layer = layers.first.locator("xpath=..").bounding_box(), layers.first.bounding_box()
    assert layer["x"] >= frame["x"] - 1 and layer["width"] <= frame["width"] + 1
    patient.locator("input[type=radio]").first.check()
    assert patient.locator(".layer:visible").count() == 0


def wait_for(page, expression):
    """Wait until an expression holds; the page's security policy forbids the browser to do it."""
    end = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.05)


def viewer(page):
    """Open the first patient's first frame by the keyboard, as a dialog with both planes."""
    page.locator("#patients tbody a").first.click()
    page.locator("#patient-1 button.frame").first.focus()
    page.keyboard.press("Enter")
    page.locator("#viewer").wait_for(state="visible")
    return page.locator("#viewer")


def test_viewer_shows_both_planes_and_the_next_injection(page):
    dialog = viewer(page)
    assert "Not a medical device" in dialog.inner_text()
    names = dialog.locator(".pane b").all_inner_texts()
    assert [name[:4] for name in names] == ["LI-A", "LI-B"]
    page.keyboard.press("ArrowRight")
    assert [name[:4] for name in dialog.locator(".pane b").all_inner_texts()] == ["LV-A", "LV-B"]
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.locator("#patient-1").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    """The list, a patient and the viewer, by the rules for accessible pages that axe-core knows."""
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page).response["violations"]
    dialog = viewer(page)
    page.keyboard.press("l")
    found += Axe().run(page).response["violations"]
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    found += Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def test_viewer_zooms_pans_and_resets(page):
    viewer(page)
    style = "getComputedStyle(document.querySelector('.pane .stage')).transform"
    whole = page.evaluate(style)
    page.keyboard.press("+")
    page.keyboard.press("+")
    larger = page.evaluate(style)
    assert float(larger[7:].split(",")[0]) == pytest.approx(1.44, abs=0.01)
    box = page.locator(".pane").first.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 120)
    page.mouse.up()
    moved = [float(after) - float(before) for after, before in zip(page.evaluate(style)[7:-1].split(","), larger[7:-1].split(","))]
    assert moved[4:] == pytest.approx([30, 20], abs=1)
    page.mouse.wheel(0, -100)
    assert float(page.evaluate(style)[7:].split(",")[0]) == pytest.approx(1.44 * 1.2, abs=0.01)
    page.keyboard.press("0")
    assert page.evaluate(style) == whole


def test_viewer_changes_window_level_and_inverts(page):
    viewer(page)
    slope = lambda: float(page.locator("#window feFuncR").get_attribute("slope") or 1)
    page.locator("#width").fill("64")
    assert slope() == pytest.approx(4)
    page.keyboard.press("Tab")
    page.locator(".pane").first.focus()
    page.keyboard.press("i")
    assert slope() == pytest.approx(-4)
    page.keyboard.press("0")
    assert slope() == pytest.approx(1) and not page.locator("#invert").is_checked()


def test_reader_measures_and_sets_the_scale(page, folder):
    """A line by mouse and by keyboard, in pixels and millimetres; a scale of one's own, kept and exported as `predict` reads it."""
    page.locator("#patients tbody a").first.click()
    figure = page.locator("#patient-1 figure:has(.own)").first
    view, index = figure.get_attribute("data-view"), page.locator("#patient-1").get_attribute("data-index")
    figure.locator("button.frame").click()
    pane = page.locator(".pane").nth("AB".index(view[-1]))
    page.keyboard.press("l")
    box, measured = pane.bounding_box(), lambda: page.locator("#measured").inner_text()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 280)
    page.mouse.up()
    length = 100 / pane.locator(".stage").bounding_box()["width"] * 400
    assert measured().startswith(f"{view}: ") and float(measured().split()[1]) == pytest.approx(length, abs=0.1)
    page.locator("#known").fill("5000")
    page.keyboard.press("Enter")
    assert "0.01 to 10 mm" in page.locator("#refused").inner_text() and "your scale" not in measured()
    page.locator("#known").fill("12,0")
    page.locator(".pane").nth(1 - "AB".index(view[-1])).focus()  # the line that is read out counts, not where one is
    page.locator("#calibrate").click()
    assert measured().endswith("pixels, 12.0 mm (your scale)") and not page.locator("#refused").inner_text()
    page.keyboard.press("ArrowRight")
    pane.focus()
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    assert float(measured().split()[1]) > length and page.locator("#viewer-title").inner_text() == f"{index} {view[:2]}"
    page.reload()
    own = figure.locator(".own").first
    sizes = [float(own.get_attribute(f"data-{name}")) * 12 / length for name in ("length", "width")]
    assert own.inner_text().strip().startswith(f"; {sizes[0]:.1f} x {sizes[1]:.1f} mm")
    with page.expect_download() as download:
        page.locator("#scales").click()
    first = pd.read_csv(folder / "cohort/scales.csv", dtype={"Index": str}).set_index(["Index", "view"])
    table = pd.read_csv(download.value.path(), dtype={"Index": str}).set_index(["Index", "view"])
    assert table.loc[(index, view), "source"] == "a line of 12 mm on the frame"
    assert table.loc[(index, view), "mm"] == pytest.approx(12 / length, rel=1e-3)
    others = table.drop((index, view))
    assert len(others) > 60 and (others.mm == first.mm[others.index]).all() and (others.source == "the simulated machine").all()
    shutil.copy(folder / "cohort/scales.csv", folder / "kept.csv")
    shutil.copy(download.value.path(), folder / "cohort/scales.csv")
    studies, _ = read_cohort(folder / "cohort/test.csv", folder / "cohort", labelled=False, partial=True)
    shutil.move(folder / "kept.csv", folder / "cohort/scales.csv")
    own = next(study.scales[view] for study in studies if study.index == index)
    assert own == (table.loc[(index, view), "mm"], "a line of 12 mm on the frame")
    own = figure.locator(".own").first
    figure.locator("button.frame").click()
    page.keyboard.press("l")
    pane.focus()
    page.keyboard.press("ArrowRight")
    page.locator("#known").fill("")
    page.locator("#calibrate").click()  # without a number: the scale is taken back
    assert not own.inner_text() and page.locator("#scales").is_hidden()


def test_outline_and_size_of_a_finding(page, folder):
    page.locator("#list tr:not([data-flagged='0']) a").first.click()
    page.locator("section.patient:visible .attention input[value='*']").check()
    outline = page.locator("section.patient:visible svg.sac:visible").first
    corners = [tuple(map(float, corner.split(","))) for corner in outline.locator("polygon").get_attribute("points").split()]
    assert len(corners) > 4 and all(0 <= value <= 100 for corner in corners for value in corner)
    figure = outline.locator("xpath=ancestor::figure")
    rows = pd.read_csv(folder / "positions.csv", dtype={"Index": str}).set_index(["Index", "location", "view"])
    index = page.locator("section.patient:visible").get_attribute("data-index")
    row = rows.loc[(index, outline.get_attribute("data-location"), figure.get_attribute("data-view"))]
    assert f"about {row.length} x {row.width} pixels" in figure.locator("figcaption").inner_text()
    across = [max(axis) - min(axis) for axis in zip(*corners)]
    assert max(across) / 100 * 400 <= row.length * 1.3 + 4


def test_runs_are_scrolled(page, folder, tmp_path):
    """Whole runs that `import-dicom --films` keeps: the frame that was read is marked, keys and the slider lead to the others."""
    assert main(f"simulate {tmp_path}/hospital --patients 1 --seed 3 --size 256 --film 6".split()) == 0
    assert main(f"import-dicom {tmp_path}/hospital/dicom --out {tmp_path}/cohort --key {tmp_path}/key.csv --films".split()) == 0
    words = f"predict --csv {tmp_path}/cohort/test.csv --images {tmp_path}/cohort --out {tmp_path}/output.csv --report {tmp_path}/page.html"
    assert main(words.split()) == 0
    assert len(list((tmp_path / "page_files").iterdir())) == 8 * 6
    key = pd.read_csv(tmp_path / "key.csv", dtype=str).set_index("view")
    other = page.context.browser.new_page()
    for file in ("page.html", "single.html"):
        other.goto((tmp_path / file).as_uri())
        other.locator("#patients tbody a").first.click()
        other.locator("#patient-1 button.frame").first.click()
        told = other.locator(".roll output").all_inner_texts()
        assert told == [f"{key.frame[view]} of 6, the one that was read" for view in ("LI-A", "LI-B")]
        shown = lambda: other.locator(".pane img").first.get_attribute("src")
        read = shown()
        assert read == other.locator("#patient-1 .frame img").first.get_attribute("src")
        other.keyboard.press("." if key.frame["LI-A"] != "6" else ",")
        assert shown() != read and "read" not in other.locator(".roll output").first.inner_text()
        assert other.locator(".pane").first.locator(".peak:visible").count() == 0  # marks belong to the frame that was read
        assert "elsewhere" in other.locator(".pane").first.get_attribute("class")
        other.keyboard.press("ArrowRight")
        assert "elsewhere" not in other.locator(".pane").first.get_attribute("class")  # another injection begins at its own
        other.keyboard.press("ArrowLeft")
        other.locator(".film").first.fill(key.frame["LI-A"])
        assert shown() == read
        wait_for(other, "document.querySelector('.pane img').naturalWidth > 0")
        if file == "page.html":
            assert main([*words.replace("page.html", "single.html").split(), "--single-file", "--overwrite"]) == 0
    other.close()
    assert not (tmp_path / "page_files").exists()  # of the page that was replaced
    (tmp_path / "cohort/films/0001LI-A.tif").unlink()  # other runs: not the prediction that was finished
    assert main([*words.replace("page.html", "single.html").split(), "--single-file", "--resume"]) == 1
    (tmp_path / "cohort/films/0001LI-B.tif").write_bytes(b"broken")
    assert main([*words.split(), "--overwrite"]) == 0
    assert "is not a readable TIFF file" in (tmp_path / "page.html").read_text() and len(list((tmp_path / "page_files").iterdir())) == 6 * 6 + 2


def test_list_sorts_filters_and_searches(page):
    risks = "[...document.querySelectorAll('#list tr')].map(row => Number(row.cells[2].dataset.key))"
    assert page.evaluate(risks) == sorted(page.evaluate(risks), reverse=True)
    head = page.get_by_role("button", name="Probability of an aneurysm")
    head.click()
    assert page.evaluate(risks) == sorted(page.evaluate(risks))
    page.locator("#filters input[value=flagged]").check()
    flagged = page.locator("#list tr:visible")
    assert 0 < flagged.count() == page.locator("#list tr:not([data-flagged='0'])").count()
    page.locator("#filters input[value=flagged]").uncheck()
    page.locator("#search").fill("1007")
    assert page.locator("#list tr:visible").count() == 1
    assert page.locator("#count").inner_text() == "1 of 9 patients"


def test_urgency_is_that_of_triage(page, folder):
    """Histories give the list a column that sorts, and the patient the points of each score, as in the list of `triage`."""
    assert main(f"triage {folder} --patients {folder}/patients.csv --out {folder}/triage.csv --overwrite".split()) == 3
    order = pd.read_csv(folder / "triage.csv", dtype=str).dropna(subset="urgency")
    page.get_by_role("button", name="Urgency").click()
    shown = page.evaluate("[...document.querySelectorAll('#list tr')].map(row => [row.dataset.index, Number(row.cells[4].dataset.key)])")
    values = [value for _, value in shown]
    assert values == sorted(values, reverse=True) and [index for index, value in shown if value] == order.Index.drop_duplicates().tolist()
    assert values[: sum(value > 0 for value in values)] == pytest.approx(order.groupby("Index", sort=False).urgency.first().astype(float).tolist(), abs=1e-3)
    page.locator(f"#list tr[data-index='{order.Index.iloc[0]}'] a").click()
    scores = page.locator("section.patient:visible table.risk").inner_text()
    assert order.PHASES.iloc[0] in scores and order["PHASES points"].iloc[0] in scores and "no advice" in page.locator("section.patient:visible").inner_text()


def test_keys_lead_through_the_list(page):
    page.keyboard.press("n")  # the next flagged one
    first = page.evaluate("location.hash")
    page.keyboard.press("j")
    assert page.evaluate("location.hash") != first
    page.keyboard.press("k")
    assert page.evaluate("location.hash") == first
    press = "for (const key of 'jjkk') document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    page.evaluate(press)  # faster than the browser tells of a new address
    assert page.evaluate("location.hash") == first


def test_probabilities_are_never_rounded_to_certainty():
    from coding_vessels.report import chance

    assert [chance(p) for p in (0.9996, 0.42, 0.0004)] == [">0.999", "0.420", "<0.001"]


def test_reader_decides_and_exports(page, folder, capsys):
    page.locator("#list tr:not([data-flagged='0']) a").first.click()
    patient = page.locator("section.patient:visible")
    index = patient.get_attribute("data-index")
    place = patient.locator(".decision b").first.inner_text()
    patient.get_by_label("reject").first.check()
    patient.locator(".reader select").select_option("BA")
    patient.get_by_role("button", name="add", exact=True).click()
    patient.locator(".note").fill('a bend, "not" a sac')
    page.reload()
    patient = page.locator("section.patient:visible")
    assert patient.get_by_label("reject").first.is_checked() and patient.locator(".added").inner_text().startswith("BA")
    page.evaluate("location.hash = ''")
    with page.expect_download() as download:
        page.locator("#export").click()
    lines = download.value.path().read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "Index,location,decision,note"
    assert {f'"{index}","{place}","rejected",""', f'"{index}","BA","added",""', f'"{index}","","","a bend, ""not"" a sac"'} == set(lines[1:])
    words = ["evaluate", "--truth", folder / "cohort/groundtruth.csv", "--output", folder / "output.csv", "--readers", download.value.path()]
    assert main([str(word) for word in words]) == 0
    assert "rejected 1, added 1; Cohen's kappa" in capsys.readouterr().out


def test_page_speaks_korean(page):
    page.locator("#language").select_option("ko")
    assert page.locator("html").get_attribute("lang") == "ko"
    english = page.evaluate("[...document.querySelectorAll('#patients [data-t]')].filter(part => !KO[part.dataset.t]).map(part => part.dataset.t)")
    assert english == [] and "환자" in page.locator("#patients").inner_text()
    assert page.locator("#home").inner_text() == "환자 9명의 뇌혈관 조영"
    said = lambda text: page.evaluate("text => t(text)", text)
    assert said("looks like a carotid from the side, not like LI-A") == "LI-A보다 경동맥 측면 영상처럼 보임"
    assert said("nearly empty; not read") == "거의 빈 영상; 판독하지 않음"
    assert said("small, 200 x 100 pixels") == "작은 영상, 200 x 100 화소" and said("nothing of ours") == "nothing of ours"


def test_phone_and_paper(page):
    page.locator("#patients tbody a").first.click()
    page.locator("#patient-1").wait_for(state="visible")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.emulate_media(media="print")
    assert not page.locator("#patient-1 nav").is_visible() and page.locator("header .notice").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="null")
    page.set_viewport_size({"width": 1200, "height": 900})
    few = page.locator("#list tr:is([data-flagged='1'], [data-flagged='2'])").first.get_attribute("data-patient")
    page.evaluate(f"location.hash = '{few}'")
    page.locator(f"#{few} table.risk").wait_for(state="visible")
    sheets = lambda: len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4", prefer_css_page_size=True)))
    assert sheets() == 1  # with its clinical scores
    for _ in range(8):  # and with the scores of more findings
        page.evaluate(f"const last = document.querySelector('#{few} table.risk tbody tr:last-child'); last.after(last.cloneNode(true))")
        assert sheets() == 1


def test_frames_of_many_patients_lie_beside_the_page(page, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("coding_vessels.cli.MOST_IN_ONE_FILE", 5)
    words = f"predict --csv {folder}/cohort/test.csv --images {folder}/cohort --out {tmp_path}/output.csv --threshold 0.1 --report {tmp_path}/a page.html"
    words = [word.replace("~", " ") for word in words.replace("a page", "a~page").split()]
    assert main(words) == 3 and f"{tmp_path}/a page_files/" in capsys.readouterr().out
    pictures = sorted(path.name for path in (tmp_path / "a page_files").iterdir())
    assert len(pictures) == 9 * 8 and (tmp_path / "a page.html").stat().st_size < 0.4e6
    other, requests, trouble = page.context.browser.new_page(), [], []
    other.on("request", lambda request: requests.append(request.url) if not request.url.startswith("data:") else None)
    other.on("console", lambda message: trouble.append(message.text))
    other.goto((tmp_path / "a page.html").as_uri())
    assert requests == [(tmp_path / "a page.html").as_uri()]  # nothing is loaded that nobody looks at
    other.locator("#patients tbody a").first.click()
    other.locator("#patient-1 .frame img").first.wait_for(state="visible")
    widths = "[...document.querySelectorAll('#patient-1 .frame > img:first-child')].map(img => img.naturalWidth)"
    wait_for(other, f"{widths}.every(width => width === 400)")  # as filmed
    assert {url.rsplit("/", 1)[0] for url in requests[1:]} == {(tmp_path / "a page_files").as_uri()}
    assert trouble == []
    assert not other.locator("#lost").is_visible()
    other.close()
    (tmp_path / "a page_files").rename(tmp_path / "elsewhere")
    other = page.context.browser.new_page()
    other.goto((tmp_path / "a page.html").as_uri() + "#patient-1")
    other.get_by_text("keep both together").wait_for(state="visible")
    other.close()
    (tmp_path / "elsewhere").rename(tmp_path / "a page_files")
    (tmp_path / "a page_files/mine.txt").write_text("x")
    assert main([*words, "--overwrite", "--single-file"]) == 3  # what lay beside is not needed any more
    assert [path.name for path in (tmp_path / "a page_files").iterdir()] == ["mine.txt"]
    assert (tmp_path / "a page.html").stat().st_size > 0.4e6
    (tmp_path / "a page_files/mine.txt").unlink()
    monkeypatch.setattr("coding_vessels.cli.MOST_IN_ONE_FILE", 5)
    assert main([*words, "--overwrite"]) == main([*words, "--overwrite", "--single-file"]) == 3
    assert not (tmp_path / "a page_files").exists()  # empty now
    capsys.readouterr()
    assert main(["predict", *words[1:7], "--overwrite", "--single-file"]) == 1
    assert "--single-file is for the page" in capsys.readouterr().err


def test_all_that_the_list_shows_is_printed(page):
    page.locator("#search").fill("100")
    assert page.locator("section.patient").count() == 0
    whole = page.pdf(format="A4")
    page.locator("#search").fill("1008")  # nothing flagged, so no clinical scores
    assert len(page.pdf(format="A4")) < len(whole) / 3
    assert page.locator("section.patient").count() == 0
    page.locator("#patients tbody a:visible").first.click()
    assert page.locator("section.patient").count() == 1
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) == 1  # a patient, a sheet
    assert page.locator("section.patient").count() == 1


def test_many_patients(page, tmp_path):
    """The page's ten patients over and over: its size, and how long it takes to open and to turn to a patient (pytest -s shows it)."""
    from functools import partial

    from coding_vessels.engines import load_engine
    from coding_vessels.prediction import predict_studies
    from coding_vessels.report import in_file, in_page, page_of, write_report

    cohort, engine = write_cohort(tmp_path / "cohort", 10, seed=6, size=720), load_engine()
    studies = read_cohort(cohort / "test.csv", cohort, labelled=False)[0]
    (tmp_path / "report_files").mkdir()
    for patients, keep in ((100, in_page), (1127, partial(in_file, tmp_path / "report_files", "report_files"))):
        pages = []
        predict_studies(engine, studies, visit=lambda reading: pages.append(page_of(reading, keep=keep)))
        path = write_report(tmp_path / "report.html", [pages[i % 10] | {"index": str(1000 + i)} for i in range(patients)], "many", {}, ["Not a medical device."])
        assert path.stat().st_size < 30e6
        began, other = time.perf_counter(), page.context.browser.new_page()
        other.goto(path.as_uri())
        opened = time.perf_counter()
        other.evaluate("location.hash = '#patient-51'")
        other.locator("#patient-51 .frame img").first.wait_for(state="visible")
        turned, nodes = time.perf_counter(), other.evaluate("document.querySelectorAll('*').length")
        print(f"\n{patients} patients: {path.stat().st_size / 1e6:.0f} MB, opened in {opened - began:.1f} s, turned to a patient in {turned - opened:.1f} s")
        assert other.locator("section.patient").count() == 1 and nodes < 1000 + 20 * patients
        other.close()
