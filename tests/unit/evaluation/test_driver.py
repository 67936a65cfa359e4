import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distributed_ft.artifacts import RunDirectory
from distributed_ft.errors import CheckpointError, ConfigError, DataError
from distributed_ft.evaluation import driver, scoring
from distributed_ft.evaluation.__main__ import main
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.report.write import write
from distributed_ft.evaluation.summary import Summary, summarise
from distributed_ft.records import TaskResult

MakeRun = Callable[..., RunDirectory]


def results(run: RunDirectory) -> dict[tuple[str, str], TaskResult]:
    return {(r.model, r.task): r for r in run.task_results()}


def summary(run: RunDirectory) -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = json.loads((run.evaluation / "summary.json").read_text())
    return loaded


def times(run: RunDirectory) -> dict[str, int]:
    return {str(p.relative_to(run.evaluation)): p.stat().st_mtime_ns for p in run.evaluation.glob("*/*/*")}


def test_base_few_shot_and_checkpoints_are_scored_and_the_best_is_named(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["forgot"], 30: adapters["kept"]})
    evaluate(run.path)
    scored = results(run)
    steps = ("step-00000010", "step-00000020", "step-00000030")
    assert set(scored) == {(m, t) for m in ("base", *steps) for t in ("people", "skills")} | {("few-shot", "people")}
    assert [scored[m, "people"].score for m in ("base", *steps)] == [0, 0, 1, 1]
    assert [scored[m, "skills"].score for m in ("base", "step-00000010", "step-00000030")] == [1, 1, 1]
    assert scored["step-00000020", "skills"].score < 0.5
    assert scored["step-00000030", "people"].scores == {"field_accuracy": 1, "valid_json": 1, "schema_valid": 1}
    assert scored["base", "skills"].groups == {"last": 1, "twice": 1, "upper": 1}
    assert run.best_file.read_text() == "step-00000030\n"
    stored = summary(run)
    assert stored["selection"]["best_step"] == 30
    assert stored["forgetting"]["30"]["rate"] == 0
    lost = stored["forgetting"]["20"]
    assert lost["low"] <= lost["rate"] == lost["mean_drop"] <= lost["high"]
    assert lost["rate"] > 0.5
    assert set(lost["by_group"]) == {"last", "twice", "upper"}
    assert stored["paired"]["step-00000030"]["people"]["vs_base"]["value"] == 1
    assert set(stored["paired"]["step-00000030"]["people"]) == {"vs_base", "vs_few_shot"}
    shown = capsys.readouterr().out
    assert "step 30 BEST" in shown
    assert "1.000 ± 0.000" in shown


def test_samples_hold_what_was_sent_and_pair_up_by_content(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({10: adapters["kept"]})
    evaluate(run.path)
    base, few, tuned = (run.samples(m, "people") for m in ("base", "few-shot", "step-00000010"))
    assert [s.doc_hash for s in base] == [s.doc_hash for s in few] == [s.doc_hash for s in tuned]
    assert [s.id for s in tuned] == ["Ann", "Bob", "Cid", "Dee", "Eve", "Fay"]
    assert tuned[0].request == [{"role": "user", "content": "who is Ann?"}]
    assert tuned[0].response == tuned[0].reference == '{"name": "Ann", "vip": true}'
    assert (tuned[0].score, tuned[0].group) == (1, "vip")
    assert len(few[0].request) == 5  # two examples, then the request
    assert few[0].request[-1] == tuned[0].request[-1]


def test_results_carry_the_schema_and_the_samples_mean(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({10: adapters["forgot"]})
    evaluate(run.path)
    for (model, task), result in results(run).items():
        raw = json.loads((run.results(model, task) / "result.json").read_text())
        assert raw["schema"] == 1
        samples = run.samples(model, task)
        assert len(samples) == result.n
        assert sum(s.score for s in samples) / len(samples) == pytest.approx(result.score)


def test_what_is_scored_is_not_scored_again_unless_model_or_question_changed(
    make_run: MakeRun, adapters: dict[str, Path], files: Path
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["kept"]})
    evaluate(run.path)
    before = times(run)
    evaluate(run.path)
    assert times(run) == before

    (run.results("base", "skills") / "result.json").write_text("{half")
    (run.results("step-00000010", "skills") / "samples.jsonl").write_text("")
    evaluate(run.path)
    changed = {name for name, at in times(run).items() if at != before[name]}
    files_of = [f"{m}/skills/{f}" for m in ("base", "step-00000010") for f in ("result.json", "samples.jsonl")]
    assert changed == set(files_of)

    before = times(run)
    config = json.loads(run.config.read_text())
    config["evaluation"]["few_shot"] = 1
    run.config.write_text(json.dumps(config))
    evaluate(run.path)
    changed = {name for name, at in times(run).items() if at != before[name]}
    assert changed == {"few-shot/people/result.json", "few-shot/people/samples.jsonl"}

    before = times(run)
    config["evaluation"]["tasks"][0]["max_new_tokens"] = 12
    run.config.write_text(json.dumps(config))
    evaluate(run.path)
    changed = {name for name, at in times(run).items() if at != before[name]}
    assert changed == {name for name in before if "people" in name}


def test_scores_of_a_checkpoint_that_was_trained_anew_are_not_believed(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    from distributed_ft.publishing import publish, staging

    run = make_run({10: adapters["untrained"]})
    evaluate(run.path)
    assert results(run)["step-00000010", "people"].score == 0
    partial = staging(run, 10)
    shutil.copytree(adapters["kept"], partial / "model")
    publish(run, partial, 10, world_size=1)
    evaluate(run.path)
    assert results(run)["step-00000010", "people"].score == 1


def test_full_fine_tunes_are_scored_beside_the_base(make_run: MakeRun, full_weights: Path) -> None:
    run = make_run({10: full_weights}, few_shot=0)
    evaluate(run.path)
    scored = results(run)
    assert scored["step-00000010", "people"].score == 1
    assert scored["step-00000010", "skills"].score < scored["base", "skills"].score == 1
    assert ("few-shot", "people") not in scored


def test_best_names_nothing_when_none_is_inside_the_budget(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["forgot"]})
    run.best_file.write_text("step-00000010\n")
    evaluate(run.path)
    assert not run.best_file.exists()
    assert summary(run)["selection"]["best_step"] is None
    assert [value for _, value in scalars(run)["chosen/inside_budget"]] == [0]
    assert "BEST: none: no checkpoint is inside the forgetting budget" in capsys.readouterr().out


def test_chosen_checkpoints_only_are_scored_and_earlier_scores_still_count(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    run = make_run({10: adapters["kept"], 20: adapters["untrained"], 30: adapters["untrained"]})
    evaluate(run.path, "10")
    assert not (run.evaluation / "step-00000020").exists()
    evaluate(run.path, "latest")
    assert not (run.evaluation / "step-00000020").exists()
    assert (run.evaluation / "step-00000030").exists()
    assert run.best_file.read_text() == "step-00000010\n"
    assert set(summary(run)["forgetting"]) == {"10", "30"}


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [("newest", ConfigError, "neither all"), ("10,99", CheckpointError, r"no checkpoint of step 99 \(there are: 10\)")],
)
def test_checkpoints_that_are_not_there_are_refused(
    make_run: MakeRun, adapters: dict[str, Path], names: str, error: type[Exception], says: str
) -> None:
    run = make_run({10: adapters["kept"]})
    with pytest.raises(error, match=says):
        evaluate(run.path, names)
    assert not run.evaluation.exists()


def test_damaged_checkpoints_are_passed_over_and_told(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["kept"], 20: adapters["kept"]})
    weights = run.checkpoints / "step-00000020" / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    evaluate(run.path)
    assert not (run.evaluation / "step-00000020").exists()
    assert "step-00000020" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(run.path, "20")
    (run.checkpoints / "step-00000010" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        evaluate(run.path)


def test_a_run_without_checkpoints_has_its_base_scored(make_run: MakeRun) -> None:
    run = make_run({})
    evaluate(run.path)
    assert {model for model, _ in results(run)} == {"base", "few-shot"}
    assert summary(run)["selection"]["reason"] == "no checkpoint was scored"
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        evaluate(run.path, "latest")


def test_tasks_or_general_may_be_left_out(make_run: MakeRun, adapters: dict[str, Path], tmp_path: Path) -> None:
    run = make_run({10: adapters["kept"]}, general=[])
    evaluate(run.path)
    assert run.best_file.read_text() == "step-00000010\n"
    assert summary(run)["forgetting"] == {}
    config = json.loads(run.config.read_text())
    config["evaluation"] |= {"tasks": [], "general": [str(tmp_path / "none.jsonl")]}
    run.config.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        evaluate(run.path)


def scalars(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_score_once_at_its_step(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({10: adapters["forgot"], 20: adapters["kept"]})
    evaluate(run.path)
    evaluate(run.path)  # the second replaces what the first wrote
    logged = scalars(run)
    assert [step for step, _ in logged["eval/people/json_fields"]] == [0, 10, 20]
    assert logged["eval/people/json_fields"] == [(0, 0), (10, 1), (20, 1)]
    assert logged["eval/people/valid_json"][-1] == (20, 1)
    assert logged["eval/general/score"][0] == (0, 1)
    rates = dict(logged["eval/forgetting/rate"])
    assert rates[0] == rates[20] == 0 < rates[10]
    assert dict(logged["eval/forgetting/mean_drop"])[10] > 0
    chosen = {tag: values for tag, values in logged.items() if tag.startswith("chosen/")}
    assert chosen == {
        "chosen/task_accuracy": [(20, 1)],
        "chosen/inside_budget": [(20, 1)],
        "chosen/forgetting": [(20, 0)],
    }


def test_scores_of_other_checkpoints_stay_in_tensorboard_also_of_removed_ones(
    make_run: MakeRun, adapters: dict[str, Path]
) -> None:
    run = make_run({10: adapters["forgot"], 20: adapters["kept"], 30: adapters["kept"]})
    evaluate(run.path)
    shutil.rmtree(run.checkpoints / "step-00000010")
    evaluate(run.path, "latest")
    logged = scalars(run)
    assert logged["eval/people/json_fields"] == [(0, 0), (10, 1), (20, 1), (30, 1)]
    assert dict(logged["eval/forgetting/mean_drop"])[10] > 0
    assert set(summary(run)["forgetting"]) == {"20", "30"}  # what is gone cannot be chosen
    config = json.loads(run.config.read_text())
    config["evaluation"]["tasks"][0]["max_new_tokens"] = 23
    run.config.write_text(json.dumps(config))
    evaluate(run.path, "latest")  # another question: the old answers to it do not count
    assert scalars(run)["eval/people/json_fields"] == [(0, 0), (30, 1)]


def _removing(run: RunDirectory, removed: str, when: str) -> Callable[..., object]:
    """As `scoring.score`, but the checkpoint `removed` goes away, as by the trainer, when the model `when` is asked."""

    def score(*args: Any, **kwargs: Any) -> object:
        if args[2].name == when:
            shutil.rmtree(run.checkpoints / removed, ignore_errors=True)
        return scoring.score(*args, **kwargs)

    return score


@pytest.mark.parametrize("when", ["base", "step-00000020", "step-00000030"])
def test_a_checkpoint_that_is_removed_meanwhile_stops_nothing_and_is_never_best(
    make_run: MakeRun,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["kept"], 30: adapters["kept"]})
    monkeypatch.setattr(driver, "score", _removing(run, "step-00000020", when))
    evaluate(run.path)
    assert run.best_file.read_text() == "step-00000030\n"
    assert set(summary(run)["forgetting"]) == {"10", "30"}
    assert ("step-00000020: removed meanwhile" in capsys.readouterr().err) == (when == "base")


def test_one_removed_between_selection_and_pointer_is_not_best(
    make_run: MakeRun, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["kept"], 30: adapters["kept"]})

    def summarise_while_it_goes(*args: Any) -> Summary:
        found = summarise(*args)
        shutil.rmtree(run.checkpoints / "step-00000020", ignore_errors=True)
        return found

    monkeypatch.setattr(driver, "summarise", summarise_while_it_goes)
    evaluate(run.path)
    assert run.best_file.read_text() == "step-00000030\n"
    assert summary(run)["selection"]["best_step"] == 30


def test_a_checkpoint_whose_numbers_are_not_finite_is_named_and_the_others_are_judged(
    make_run: MakeRun, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(adapters["kept"], tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(file).items()}, file)
    run = make_run({10: tmp_path / "broken", 20: adapters["kept"]})
    assert main([str(run.path)]) == 2
    assert run.best_file.read_text() == "step-00000020\n"
    assert "eval/people/json_fields" in scalars(run)
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("dft: error: step-00000010, people, item 'Ann': logits are not finite")


def test_references_that_no_answer_can_reach_are_told(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["kept"]})
    evaluate(run.path)
    assert "references need" not in capsys.readouterr().err
    assert summary(run)["cut_off"] == {}
    longest = max(len(s.reference) for s in run.samples("base", "people"))
    config = json.loads(run.config.read_text())
    config["evaluation"]["tasks"][0]["max_new_tokens"] = 8
    run.config.write_text(json.dumps(config))
    evaluate(run.path)
    counts = summary(run)["cut_off"]["people"]
    assert 8 < counts["longest"] <= longest
    assert (counts["references"], counts["of"], counts["max_new_tokens"]) == (6, 6, 8)
    told = f"people: 6 of 6 references need up to {counts['longest']} tokens, max_new_tokens is 8"
    assert told in capsys.readouterr().err
    config["evaluation"]["tasks"][0]["max_new_tokens"] = counts["longest"]
    run.config.write_text(json.dumps(config))
    evaluate(run.path)  # just enough
    assert results(run)["step-00000010", "people"].score == 1
    assert summary(run)["cut_off"] == {}


def test_suites_count_the_same_in_the_mean_drop_that_selects(
    make_run: MakeRun, adapters: dict[str, Path], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["kept"]}, general=[str(files / f"{name}.jsonl") for name in ("skills", "practice")])
    evaluate(run.path)
    scored = results(run)
    drops = [scored["base", s].score - scored["step-00000010", s].score for s in ("skills", "practice")]
    assert drops[0] != drops[1]
    assert summary(run)["selection"]["candidates"][0]["mean_drop"] == pytest.approx(sum(drops) / 2)
    mean = sum(scored["step-00000010", s].score for s in ("skills", "practice")) / 2
    assert dict(scalars(run)["eval/general/score"])[10] == pytest.approx(mean)
    assert f"{mean:.3f} ± " in capsys.readouterr().out.splitlines()[4]


def test_without_the_tracker_there_is_no_tensorboard(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({10: adapters["kept"]})
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**config, "tracking": []}))
    evaluate(run.path)
    assert not run.tensorboard.exists()


def test_user_errors_are_one_message_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no-such-run")]) == 2
    assert "no-such-run" in capsys.readouterr().err


def test_empty_answers_are_scored_counted_and_told(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["kept"]}, few_shot=0)
    evaluate(run.path)
    for result in run.task_results():
        samples = run.samples(result.model, result.task)
        assert result.empty == sum(not sample.response.strip() for sample in samples) / len(samples)
    base = next(r for r in run.task_results() if (r.model, r.task) == ("base", "people"))
    assert base.empty > 0  # it was never asked of whom it knows nothing
    assert f", {100 * base.empty:.0f}% of the answers are empty" in capsys.readouterr().err


def test_answers_that_are_compared_with_no_reference_are_not_said_to_be_cut_off(make_run: MakeRun, files: Path) -> None:
    probe = {"name": "people", "path": str(files / "people.jsonl"), "metric": "refusal", "expected": "comply"}
    run = make_run({}, tasks=[{**probe, "max_new_tokens": 2}], general=[], few_shot=0)
    evaluate(run.path)
    assert summary(run)["cut_off"] == {}
    assert run.samples("base", "people")[0].answer in ("comply", "empty")


def test_a_task_that_becomes_a_general_suite_is_judged_as_one(
    make_run: MakeRun, adapters: dict[str, Path], files: Path
) -> None:
    """The rows are the same, and what was a gain of accuracy is a loss of skills now."""
    skills = {"name": "skills", "path": str(files / "skills.jsonl"), "metric": "exact_match", "max_new_tokens": 16}
    people = {"name": "people", "path": str(files / "people.jsonl"), "metric": "json_fields", "max_new_tokens": 24}
    run = make_run({20: adapters["forgot"]}, tasks=[people, skills], general=[])
    evaluate(run.path)
    assert run.best_file.read_text() == "step-00000020\n"
    config = json.loads(run.config.read_text())
    config["evaluation"] |= {"tasks": [people], "general": [skills]}
    run.config.write_text(json.dumps(config))
    evaluate(run.path)
    assert results(run)["step-00000020", "skills"].kind == "general"
    assert not run.best_file.exists()
    assert summary(run)["forgetting"]["20"]["rate"] > 0.5
    config["evaluation"]["tasks"][0]["name"] = "persons"  # the scores of `people` stay on disk
    run.config.write_text(json.dumps(config))
    evaluate(run.path)
    assert [task.name for task in write(run.path).evidence.tasks] == ["persons"]
