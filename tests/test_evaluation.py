"""What `evaluate` says of small cohorts, of guesses, and of a stranger's probabilities."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from coding_vessels.anatomy import LABELS, LOCATIONS
from coding_vessels.cli import main
from coding_vessels.evaluation import TRIVIAL, by_size, compare, describe, evaluate
from coding_vessels.statistics import delong_test


def cohort(patients, seed=0):
    rng = np.random.default_rng(seed)
    truth = pd.DataFrame((rng.random((patients, 22)) < 0.05).astype(int), [str(i) for i in range(1, patients + 1)], LABELS)
    truth["Aneurysm"] = truth[list(LOCATIONS)].max(axis=1)
    return truth, pd.DataFrame(rng.random(truth.shape), truth.index, LABELS)


@pytest.fixture
def files(tmp_path):
    truth, guess = cohort(60)
    flags = guess.assign(**(guess[list(LOCATIONS)] > 0.95).astype(int))
    for name, table in {"truth": truth, "output": flags, "probabilities": guess}.items():
        table.rename_axis("Index").to_csv(tmp_path / f"{name}.csv")
    return tmp_path


def evaluated(files, *words):
    return main(["evaluate", "--truth", str(files / "truth.csv"), "--output", str(files / "output.csv"), *words])


def test_probabilities_of_the_same_run_are_read(files, capsys):
    assert evaluated(files) == 0
    assert "mean average precision" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["other numbers", "a patient less", "a patient more"])
@pytest.mark.parametrize("named", [False, True])
def test_probabilities_of_another_run_are_refused(files, capsys, change, named):
    table = pd.read_csv(files / "probabilities.csv")
    if change == "other numbers":
        table["Aneurysm"] = table.Aneurysm.round(3)
    else:
        table = table[1:] if change == "a patient less" else pd.concat([table, table[:1].assign(Index=99)])
    table.to_csv(files / "probabilities.csv", index=False)
    assert evaluated(files, *(["--probabilities", str(files / "probabilities.csv")] if named else [])) == 1
    printed = capsys.readouterr()
    assert "probabilities.csv: " in printed.err and "output.csv" in printed.err and not printed.out


def test_probabilities_beside_the_compared_output_are_checked_too(files, capsys):
    (files / "other").mkdir()
    table = pd.read_csv(files / "output.csv")
    table.assign(Aneurysm=table.Aneurysm / 2).to_csv(files / "other/output.csv", index=False)
    pd.read_csv(files / "probabilities.csv").to_csv(files / "other/probabilities.csv", index=False)
    assert evaluated(files, "--compare", str(files / "other/output.csv")) == 1
    assert "other/probabilities.csv: Aneurysm of patient 1" in capsys.readouterr().err


def test_whoever_lacks_a_patient_is_named(files, capsys):
    """The file, not the predictions, if it is the groups or the output to compare with that lack one."""
    groups, output = pd.DataFrame({"Index": range(1, 60), "sex": "f"}), pd.read_csv(files / "output.csv")
    less = files / "other/less.csv"
    less.parent.mkdir()
    for option, table in (("--groups", groups), ("--compare", output[:-1])):
        table.to_csv(less, index=False)
        assert evaluated(files, option, str(less)) == 1
        assert f"patient 60: missing in {less}" in capsys.readouterr().err


def test_a_folder_called_truth_need_not_be_ours(files, capsys):
    """Another one is passed over; one of a simulated cohort that lacks a patient is told before anything is written."""
    (files / "truth").mkdir()
    (files / "truth/notes.json").write_text("{}")
    assert evaluated(files) == 0
    (files / "truth/7.json").write_text("{}")
    assert evaluated(files, "--out", str(files / "scores")) == 1 and not (files / "scores").exists()
    assert "truth/1.json is missing; restore it, or rename its folder" in capsys.readouterr().err


def test_three_of_three_leave_room_for_doubt():
    truth = pd.DataFrame(0, list("123456"), LABELS)
    truth.loc[list("123"), ["Aneurysm", "BA"]] = 1
    record = evaluate(truth, truth, truth.astype(float), repetitions=50)
    low, high = binomtest(3, 3).proportion_ci(method="wilson")
    for row in (record["figures"]["sensitivity"], record["figures"]["specificity"], record["locations"]["BA"]["sensitivity"]):
        assert (row["score"], row["high"]) == (1, 1) and row["low"] == pytest.approx(low)
    for name in ("AUROC", "location accuracy", "mean location AUROC", "pooled average precision", "sensitivity at 0.9 specificity"):
        assert record["figures"][name]["low"] < 1


def test_a_score_of_nothing_has_an_interval_though_its_draws_differ():
    truth, guess = cohort(60)
    row = evaluate(truth, guess, repetitions=20)["figures"]["sensitivity at 0.9 specificity"]
    assert (row["score"], row["low"]) == (0, 0) and 0 < row["high"] < 0.2


def test_a_perfect_ranking_is_better_than_a_constant():
    y = np.repeat([0, 1], 20)
    z, p = delong_test(y, y * 1.0, y * 0.0)
    assert np.isnan(z) and p < 0.001
    truth, _ = cohort(60)
    result = compare(truth, [truth.astype(float)], [truth * 0.0], repetitions=20)["DeLong"]
    assert result["z"] is None and result["p"] < 0.001


def test_guesses_do_not_beat_a_trivial_order():
    """They did, beyond their interval, in 40 of 40 cohorts."""
    beaten = 0
    for seed in range(40):
        truth, guess = cohort(150, seed)
        row = evaluate(truth, guess, guess, repetitions=30)["figures"]["mean average precision"]
        beaten += row["low"] > row[TRIVIAL]
    assert beaten <= 4


def test_calibration_error_has_no_interval_but_what_chance_gives():
    truth, guess = cohort(60)
    record = evaluate(truth, guess, repetitions=50)
    row, chance = record["figures"]["calibration error"], record["calibration error by chance"]
    assert row["low"] is None and row["high"] is None and 0 < chance["mean"] < chance["high"] < 1
    assert f"{chance['high']:.4f}" in describe(record)


def test_shares_by_size_have_intervals_over_patients():
    findings = pd.DataFrame({"Index": ["1", "1", "2", "3"], "location": list("abab"), "diameter_mm": 4.0,
                             "found": True, "distance": [0.01, 0.01, 0.2, 0.01], "sac": 0})
    row = by_size(findings).loc[pd.Interval(3, 5, closed="left")]
    low, _ = binomtest(3, 3).proportion_ci(method="wilson")                   # all found: as many trials as patients
    assert (row["aneurysms"], row["found"], row["found high"]) == (4, 1, 1) and row["found low"] == pytest.approx(low)
    assert row["placed"] == 0.75 and row["placed low"] < binomtest(3, 4).proportion_ci(method="wilson").low
