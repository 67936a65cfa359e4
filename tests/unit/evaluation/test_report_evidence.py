"""What the report believes, what it says is missing, and with which remedy."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from support.report_runs import HEALTHY, TICKET, Models, make_run, read, task_rows, write_scores

from distributed_ft.artifacts import RunDirectory, step_name, write_json
from distributed_ft.config.load import with_evaluation
from distributed_ft.errors import CheckpointError
from distributed_ft.evaluation.report import write as report
from distributed_ft.publishing import publish, staging


@pytest.mark.parametrize(
    ("models", "what"),
    [
        ({step_name(100): (0.9, 0.95)}, "The base model's scores"),
        ({"base": (0.1, 0.95), "few-shot": (0.2, None)}, "Checkpoints"),
        ({"base": (0.1, None), "few-shot": (0.2, None), step_name(300): (0.9, None)}, "Scores on the general suite"),
        ({"base": (0.1, 0.95), step_name(300): (0.9, 0.95)}, "The few-shot prompt's scores"),
        ({**HEALTHY, step_name(250): (None, None)}, "Scores of step 250"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_invented(tmp_path: Path, models: Models, what: str) -> None:
    if "base" not in models:
        models = {name: (task, None) for name, (task, _) in models.items()}
    run = make_run(tmp_path, models)
    report.write(run.path)
    assert what in {missing["what"] for missing in read(run)["missing"]}
    assert what in run.report("md").read_text()
    assert what.replace("'", "&#39;") in run.report("html").read_text()


def test_an_evaluation_killed_before_its_end_selects_nothing_but_shows_its_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    report.write(run.path)
    finished = read(run)
    (run.evaluation / "summary.json").unlink()
    report.write(run.path)
    found = read(run)
    assert (found["verdict"], found["best_step"]) == ("not_enough_evidence", None)
    assert "did not finish" in found["headline"]
    assert found["checkpoints"][2]["forgetting"] == finished["checkpoints"][2]["forgetting"]
    assert "The selected checkpoint (evaluation/summary.json)" in {missing["what"] for missing in found["missing"]}


def test_an_empty_run_directory_gets_a_report_of_what_is_to_be_done(tmp_path: Path) -> None:
    report.write(tmp_path)
    found = read(RunDirectory(tmp_path))
    assert found["verdict"] == "not_enough_evidence"
    assert {m["remedy"] for m in found["missing"]} == {f"dft train {tmp_path}", f"dft eval {tmp_path}"}


def test_a_run_without_validation_or_general_suite_says_which_key_adds_it(tmp_path: Path) -> None:
    models = {"base": (0.1, None), step_name(300): (0.9, None)}
    run = make_run(tmp_path, models, validation=False, evaluation={"general": [], "few_shot": 0})
    report.write(run.path)
    remedies = " ".join(missing["remedy"] for missing in read(run)["missing"])
    assert "data.validation" in remedies
    assert f"dft eval {run.path} 'evaluation.general=[shipped]'" in remedies
    assert f"dft eval {run.path} evaluation.few_shot=4" in remedies
    assert read(run)["verdict"] == "not_enough_evidence"
    assert "what it forgot was not measured" in read(run)["headline"]


def test_the_settings_that_remedies_name_are_accepted(tmp_path: Path) -> None:
    run = make_run(tmp_path, {step_name(300): (None, None)}, evaluation={"tasks": [], "general": [], "few_shot": 0})
    (tmp_path / "FILE").write_text("")
    report.write(run.path)
    remedies = [shlex.split(missing["remedy"]) for missing in read(run)["missing"]]
    settings = [word for remedy in remedies if remedy[:2] == ["dft", "eval"] for word in remedy[3:]]
    assert len(settings) == 3
    config = with_evaluation(run.config, [setting.replace("FILE", str(tmp_path / "FILE")) for setting in settings])
    assert (config.evaluation.general, config.evaluation.few_shot) == (("shipped",), 4)
    assert config.evaluation.tasks[0].name == "NAME"


@pytest.mark.parametrize("n", [2, 3, 6])
def test_six_rows_are_not_enough_evidence_whatever_they_say(tmp_path: Path, n: int) -> None:
    for prompt, tuned in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0)):
        models = {"base": (prompt, 0.95), "few-shot": (prompt, None), step_name(300): (tuned, 0.95)}
        run = make_run(tmp_path / f"{prompt} {tuned}", models, n=n, steps=2)
        report.write(run.path)
        assert read(run)["verdict"] == "not_enough_evidence"
        assert f"on the same {n} items, too few to tell" in run.report("md").read_text()


def test_two_suites_count_the_same_in_the_table_and_in_the_drop(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.1, 1.0), "few-shot": (0.2, None), step_name(300): (0.9, 1.0)})
    for model, share in (("base", 1.0), (step_name(300), 0.2)):
        write_scores(run, model, "own", "general", task_rows(share, 20, TICKET))
    report.write(run.path)
    found = read(run)
    scores = found["general"]
    assert found["forgetting"]["mean_drop"] == pytest.approx(scores["base"]["score"] - scores["tuned"]["score"])
    assert found["forgetting"]["mean_drop"] == pytest.approx(0.4)
    bounds = [-scores["versus_base"]["high"], -scores["versus_base"]["low"]]
    assert [found["forgetting"]["drop_low"], found["forgetting"]["drop_high"]] == pytest.approx(bounds)
    assert found["best_step"] is None


def test_forgetting_is_that_of_the_samples_not_of_an_old_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.1, 0.95), "few-shot": (0.2, None), step_name(300): (0.9, 0.2)})
    old = dict.fromkeys(("rate", "low", "high", "of_known", "mean_drop", "drop_low", "drop_high"), 0.0)
    selection = {"best_step": 300, "reason": "old"}
    write_json(run.evaluation / "summary.json", {"selection": selection, "forgetting": {"300": {**old, "n": 24}}})
    report.write(run.path)
    assert read(run)["forgetting"]["mean_drop"] == pytest.approx(0.75)
    assert (read(run)["verdict"], read(run)["best_step"]) == ("do_not_ship", None)


def test_guesses_of_a_suite_with_choices_are_not_called_knowledge(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.1, 0.5), step_name(300): (0.9, 0.0)})
    report.write(run.path)
    plain = read(run)["forgetting"]["rate"]
    for model in ("base", step_name(300)):
        path = run.results(model, "general") / "result.json"
        write_json(path, {**json.loads(path.read_text()), "chance": 0.25})
    report.write(run.path)
    assert plain == pytest.approx(0.5)
    known = (0.5 - 0.25) / 0.75  # of all items, guesses aside: no more can be forgotten
    assert known < (0.5 - 0.25) / 0.75**2
    assert read(run)["forgetting"]["rate"] == pytest.approx(known)


def test_scores_of_a_checkpoint_that_was_trained_anew_are_not_shown_as_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    partial = staging(run, 300)
    (partial / "model").mkdir()
    (partial / "model" / "adapter.bin").write_bytes(b"other weights")
    publish(run, partial, 300, 2)
    report.write(run.path)
    found = read(run)
    assert found["checkpoints"][2]["task"] is found["checkpoints"][2]["forgetting"] is None
    assert found["best_step"] is None
    assert [missing["what"] for missing in found["missing"]] == ["Scores of step 300"]
    assert found["verdict"] == "not_enough_evidence"


@pytest.mark.parametrize("damage", ["damaged", "removed"])
def test_a_best_checkpoint_whose_files_are_gone_is_not_shipped(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path, {"base": (0.02, 0.95), "few-shot": (0.31, None), step_name(300): (0.94, 0.95)})
    if damage == "removed":
        shutil.rmtree(run.checkpoints / step_name(300))
    else:
        (run.checkpoints / step_name(300) / "adapter.bin").write_bytes(b"cut")
    report.write(run.path)
    found = read(run)
    assert (found["verdict"], found["best_step"]) == ("not_enough_evidence", None)
    assert f"its files are {damage}" in found["headline"]


def test_a_general_suite_alone_is_enough_to_tell_what_was_forgotten(tmp_path: Path) -> None:
    models = {"base": (None, 0.95), step_name(100): (None, 0.95), step_name(300): (None, 0.2)}
    run = make_run(tmp_path, models, evaluation={"tasks": []})
    report.write(run.path)
    found = read(run)
    assert found["forgetting"]["mean_drop"] == pytest.approx(0.75)
    assert found["forgetting"]["catastrophic"] is True
    assert found["verdict"] == "not_enough_evidence"
    assert "Forgotten: general items right before" in run.report("html").read_text()


def test_a_prompt_that_cannot_be_is_explained_and_not_asked_for_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.02, 0.95), step_name(300): (0.94, 0.95)})
    report.write(run.path)
    assert read(run)["verdict"] == "not_enough_evidence"  # it was asked for, and can be had
    path = run.evaluation / "summary.json"
    reason = "5 examples do not fit into the model's 64 tokens"
    none = {"few_shot": {"tickets": {"requested": 5, "used": 0, "reason": reason}}}
    write_json(path, {**json.loads(path.read_text()), **none})
    report.write(run.path)
    assert {"what": "The few-shot prompt's scores", "remedy": reason} in read(run)["missing"]
    assert reason in read(run)["reasons"][1]["text"]
    assert read(run)["verdict"] == "ship"


def test_answers_that_are_cut_off_are_diagnosed_with_the_command_that_helps(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"base": (0.0, 0.95), "few-shot": (0.0, None), step_name(300): (0.0, 0.95)})
    path = run.evaluation / "summary.json"
    cut_off = {"tickets": {"references": 150, "of": 200, "longest": 40, "max_new_tokens": 8}}
    write_json(path, {**json.loads(path.read_text()), "cut_off": cut_off})
    report.write(run.path)
    found = read(run)["diagnosis"][0]
    assert found["id"] == "answers_cut_off"
    assert found["evidence"] == "tickets: 150 of 200 references need up to 40 tokens, max_new_tokens is 8."
    assert found["remedies"] == [f"dft eval {run.path} 'evaluation.tasks[0].max_new_tokens=41'"]
    assert "Right answers are cut off" in run.report("html").read_text()


def test_a_checkpoint_removed_after_its_evaluation_stays_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    kept = run.checkpoints / step_name(300)
    for checkpoint in run.all_checkpoints():
        if checkpoint.path != kept:
            (checkpoint.path / "manifest.json").unlink()
            (checkpoint.path / "adapter.bin").unlink()
            checkpoint.path.rmdir()
    (kept / "adapter.bin").write_bytes(b"cut")
    report.write(run.path)
    assert [row["files"] for row in read(run)["checkpoints"]] == ["removed", "removed", "damaged"]


def test_several_tasks_are_shown_and_judged_by_their_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path, HEALTHY)
    for model, rate in (("base", 0.1), ("few-shot", 0.2), (step_name(300), 0.5)):
        write_scores(run, model, "intents", "task", task_rows(rate, 100, TICKET))
    report.write(run.path)
    found = read(run)
    assert found["tasks"].keys() == {"tickets", "intents"}
    assert found["task"]["tuned"]["score"] == pytest.approx((0.94 + 0.5) / 2)
    assert found["task"]["versus_base"]["mean"] == pytest.approx((0.92 + 0.4) / 2)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run directory"):
        report.write(tmp_path / "nowhere")
    run = make_run(tmp_path, HEALTHY)
    (run.results("base", "tickets") / "result.json").write_text('{"schema": 1}')
    with pytest.raises(CheckpointError, match=r"result\.json"):
        report.write(run.path)
    assert not run.report("html").exists()
