"""Adapters at less than their full strength: scored, weighed against what they forget, and exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.load import load_resolved
from distributed_ft.data.chat import render_prompt
from distributed_ft.data.examples import Message
from distributed_ft.errors import CheckpointError
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.engines import TransformersEngine, engine_of
from distributed_ft.evaluation.forgetting import Suite, forgetting
from distributed_ft.evaluation.report.write import write
from distributed_ft.evaluation.stats import interval, mean
from distributed_ft.evaluation.strength import Scaled, frontier, recommend
from distributed_ft.evaluation.task import Choose
from distributed_ft.export.write import export
from launcher.cli import main

MakeRun = Callable[..., RunDirectory]
ASK = (Message("user", "who is Ann?"),)


def scaled(strength: float, right: int, lost: int, of: int = 100) -> Scaled:
    """`right` of 100 items right on the task, `lost` of the general items that the base had right wrong."""
    suite = Suite([1.0] * of, [0.0] * lost + [1.0] * (of - lost), [None] * of)
    return Scaled(strength, {"task": [1.0] * right + [0.0] * (100 - right)}, forgetting([suite]))


@pytest.mark.parametrize(
    ("given", "recommended", "because"),
    [
        ([(0.25, 40, 0), (0.5, 70, 2), (1.0, 90, 4)], 1.0, "highest task accuracy, 0.900"),
        ([(0.25, 40, 0), (0.5, 70, 2), (1.0, 90, 30)], 0.5, "highest task accuracy, 0.700"),
        ([(0.25, 89, 0), (0.5, 90, 2), (1.0, 90, 4)], 0.25, "within noise of the highest, 0.900 at 1"),
        ([(0.25, 90, 0), (0.5, 90, 0), (1.0, 90, 0)], 1.0, "highest task accuracy"),
        ([(0.5, 70, 9), (1.0, 90, 30)], None, "the smallest mean drop is 0.090, at 0.5"),
        ([(0.25, 20, 0), (0.5, 30, 0), (1.0, 90, 30)], None, "up to 0.5, the forgetting budget of 0.05 is kept, but"),
    ],
)
def test_the_recommended_strength_is_the_most_accurate_in_the_budget_and_within_noise_forgets_least(
    given: list[tuple[float, int, int]], recommended: float | None, because: str
) -> None:
    found, reason = recommend([scaled(*each) for each in given], 0.05, 0.3)
    assert found == recommended
    assert because in reason


def test_the_frontier_begins_at_the_base() -> None:
    base = Scaled(0.0, {"task": [0.0] * 100}, None)
    made = frontier(5, base, [scaled(1.0, 90, 30), scaled(0.5, 70, 2)], 0.05)
    assert [(p.strength, p.accuracy, p.mean_drop, p.inside_budget) for p in made.points] == [
        (0.0, 0.0, 0.0, True),
        (0.5, 0.7, 0.02, True),
        (1.0, 0.9, 0.3, False),
    ]
    assert made.recommended == 0.5


def test_items_that_share_a_passage_count_as_one() -> None:
    """Ten right answers about one passage say less of others than ten that stand alone."""
    passages = [f"p{i // 10}" for i in range(2000)]
    before = [0.0] * 2000
    after = [1.0] * 10 + [0.0] * 1990
    made = [Scaled(s, {"task": t}, None, {"task": passages}) for s, t in ((0.5, before), (1.0, after))]
    alone = [Scaled(s.strength, s.tasks, None) for s in made]
    base = Scaled(0.0, {"task": before}, None)
    (_, _, clustered), (_, _, single) = (frontier(5, base, each, 0.05).points for each in (made, alone))
    assert clustered.high > single.high + 0.01
    found = interval(mean(after, passages))
    assert (clustered.low, clustered.high) == pytest.approx(found)


def nats_by_hand(base: Path, adapter: Path, strength: float, tokenizer: PreTrainedTokenizerFast) -> float:
    """Log-likelihood of Ann's row when every weight is moved from the base by so much of what the adapter adds."""
    before = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    after = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    after = after.merge_and_unload()
    with torch.no_grad():
        for first, second in zip(before.parameters(), after.parameters(), strict=True):
            first.lerp_(second, strength)
        prompt, answer = render_prompt(tokenizer, ASK), tokenizer.encode("Ann", add_special_tokens=False)
        shares = before.eval()(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(shares[torch.arange(len(answer)), torch.tensor(answer)].sum())


def test_a_scaled_adapter_is_that_much_of_its_difference_to_the_base(
    engine: TransformersEngine, base: Path, adapters: dict[str, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    found = {}
    for strength in (1.0, 0.5, 0.25, 0.3, 1.0):
        engine.use(adapters["kept"], strength)
        found[strength] = engine.answer([Choose("a", ASK, ("Ann",))])[0].nats[0]
        assert found[strength] == pytest.approx(
            nats_by_hand(base, adapters["kept"], strength, tokenizer), rel=1e-3, abs=1e-3
        )
    assert len({round(nats, 3) for nats in found.values()}) == 4


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("dora", "is a DoRA adapter"),
        ("modules", r"holds whole trained modules \(norm\)"),
        ("full", "is a whole model, not an adapter"),
    ],
)
def test_what_is_no_plain_lora_cannot_be_scaled(
    engine: TransformersEngine, base: Path, full_weights: Path, tmp_path: Path, kind: str, says: str
) -> None:
    if kind != "full":
        changes = {"dora": {"use_dora": True}, "modules": {"modules_to_save": ["norm"]}}[kind]
        model = LlamaForCausalLM.from_pretrained(base)
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], **changes)).save_pretrained(tmp_path)
    weights = full_weights if kind == "full" else tmp_path
    with pytest.raises(CheckpointError, match=f"{says}.*its strength cannot be changed"):
        engine.use(weights, 0.5)
    engine.use(weights)


def test_the_driver_scores_the_selected_adapter_at_each_strength(
    make_run: MakeRun, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["forgot"]}, adapter_strength=[0.75, 0.5])
    evaluate(run.path)
    summary = json.loads((run.evaluation / "summary.json").read_text())
    found = summary["strength"]
    assert found["step"] == summary["selection"]["best_step"] or summary["selection"]["best_step"] is None
    assert [point["strength"] for point in found["points"]] == [0.0, 0.5, 0.75, 1.0]
    names = {path.name for path in run.evaluation.glob("step-*")}
    assert names == {"step-00000010", "step-00000020"} | {f"step-000000{found['step']}@0.{c}" for c in ("50", "75")}
    for point, name in zip(found["points"][1:3], ("0.50", "0.75"), strict=True):
        results = [r for r in run.task_results() if r.model.endswith(f"@{name}") and r.kind == "task"]
        assert point["accuracy"] == pytest.approx(results[0].score)
    assert "step 10 at" in (told := capsys.readouterr()).out or "step 20 at" in told.out
    digests = {r.model_digest for r in run.task_results() if r.task == "people"}
    assert len(digests) == 5  # base (also few-shot), two checkpoints, two strengths

    evaluate(run.path)
    assert json.loads((run.evaluation / "summary.json").read_text()) == summary
    assert "stored before" in capsys.readouterr().err


def logits(model: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([prompt])).logits
    return found


def peft_at(base: Path, adapter: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)


def test_an_exported_adapter_and_a_merged_model_have_the_logits_of_the_scaled_one(
    make_run: MakeRun,
    adapters: dict[str, Path],
    base: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    engine: TransformersEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run({10: adapters["kept"]}, adapter_strength=[0.5])
    run.run_yaml.write_text("")
    asked = ["export", str(run.path), "--checkpoint", "10"]
    prompt = render_prompt(tokenizer, ASK)
    assert main([*asked, "--out", str(tmp_path / "half"), "--scale", "0.5"]) == 0
    assert "wrote an adapter into" in (said := capsys.readouterr().out)
    assert "step-00000010 at strength 0.5" in said
    engine.use(adapters["kept"], 0.5)
    expected = logits(engine._loaded, prompt)
    torch.testing.assert_close(logits(peft_at(base, tmp_path / "half"), prompt), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(logits(peft_at(base, adapters["kept"]), prompt), expected, atol=1e-2)

    assert main([*asked, "--out", str(tmp_path / "whole")]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (adapters["kept"] / name).read_bytes()

    assert main([*asked, "--out", str(tmp_path / "merged"), "--scale", "0.5", "--merge"]) == 0
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged, prompt), expected, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template

    capsys.readouterr()
    refused = {
        "--out is there": ["--out", str(tmp_path / "half")],
        "recommends no strength for step 10": ["--out", str(tmp_path / "x"), "--scale", "recommended"],
        "'much' is neither a number": ["--out", str(tmp_path / "x"), "--scale", "much"],
        "'-1' is neither a number": ["--out", str(tmp_path / "x"), "--scale=-1"],
    }
    for says, more in refused.items():
        assert main([*asked, *more]) == 2
        assert says.removeprefix("--out ") in capsys.readouterr().err
    assert main(["export", str(run.path), "--out", str(tmp_path / "x"), "--checkpoint", "11"]) == 2
    assert "no checkpoint 11 (there are: 10)" in capsys.readouterr().err
    assert main(["export", str(run.path), "--out", str(tmp_path / "x")]) == 2
    assert "has no BEST checkpoint" in capsys.readouterr().err
    evaluate(run.path)
    assert main([*asked, "--out", str(tmp_path / "best"), "--scale", "recommended"]) == 0
    recommended = json.loads((run.evaluation / "summary.json").read_text())["strength"]["recommended"]
    assert json.loads((tmp_path / "best" / "adapter_config.json").read_text())["lora_alpha"] == 16 * recommended
    assert {path.name for path in tmp_path.iterdir()} == {"run", "half", "whole", "merged", "best"}


def test_what_was_trained_over_a_quantised_base_is_merged_into_what_that_base_stands_for(
    make_run: MakeRun, adapters: dict[str, Path], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    run = make_run({10: adapters["kept"]})
    run.config.write_text(json.dumps({**json.loads(run.config.read_text()), "method": {"type": "qlora"}}))
    engine = engine_of(load_resolved(run.config), 4)
    engine.use(adapters["kept"], 0.5)
    prompt = render_prompt(tokenizer, ASK)
    expected = logits(engine._loaded, prompt)
    export(run.path, tmp_path / "merged", "10", "0.5", merge=True)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(logits(merged, prompt), expected, atol=1e-3, rtol=1e-3)


def test_whole_models_are_exported_as_they_are_and_not_scaled(
    make_run: MakeRun, full_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: full_weights})
    run.run_yaml.write_text("")
    asked = ["export", str(run.path), "--checkpoint", "10", "--out", str(tmp_path / "out")]
    for more, says in (("--scale=0.5", "its strength cannot be changed"), ("--merge", "there is nothing to merge")):
        assert main([*asked, more]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(asked) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (full_weights / "model.safetensors").read_bytes()


def test_the_report_shows_the_frontier(make_run: MakeRun, adapters: dict[str, Path]) -> None:
    run = make_run({20: adapters["forgot"]}, adapter_strength=[0.25, 0.5, 0.75], select={"forgetting_budget": 1.0})
    evaluate(run.path)
    strength = json.loads((run.evaluation / "summary.json").read_text())["strength"]
    written = write(run.path)
    assert json.loads(written.json.read_text())["strength"] == strength
    assert [row["step"] for row in json.loads(written.json.read_text())["checkpoints"]] == [20]
    markdown, html = written.markdown.read_text(), written.html.read_text()
    assert "## Strength of the adapter" in markdown
    assert "| 0, the base" in markdown
    assert html.count('class="plot wide"') == html.count('class="plot narrow"') == 2  # by checkpoint, by strength
    best = strength["recommended"]
    assert best is not None
    assert f"Recommended for step 20's adapter: {best:g} ({strength['reason']})." in markdown
    (run.evaluation / "summary.json").write_text(json.dumps({"strength": {"points": "none"}}))
    assert write(run.path).evidence.strength is None


def test_a_strength_that_validation_rows_recommend_is_judged_on_the_test_rows(
    make_run: MakeRun, adapters: dict[str, Path], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = {"name": "people", "path": str(files / "people.jsonl"), "metric": "json_fields", "max_new_tokens": 24}
    shutil.copytree(adapters["kept"], tmp_path / "fourfold")
    config = json.loads((tmp_path / "fourfold" / "adapter_config.json").read_text())
    (tmp_path / "fourfold" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16 * 4}))
    tasks = [{**people, "validation": 0.5}]
    run = make_run({20: tmp_path / "fourfold"}, tasks=tasks, adapter_strength=[0.05, 0.25])
    evaluate(run.path)
    found = json.loads((run.evaluation / "summary.json").read_text())["strength"]
    assert found["recommended"] == 0.25  # as it was trained
    judged = {r.model: r for r in run.task_results() if r.task == "people" and "@" in r.model}
    result = judged.pop("step-00000020@0.25")
    assert not judged  # 0.05 was not chosen
    (row,) = found["on_test"]
    assert (row["task"], row["score"], row["n"]) == ("people", result.score, result.n)
    assert f"at 0.25 on the {result.n} test rows of people: {result.score:.3f}" in capsys.readouterr().out
    written = write(run.path)
    for text in (written.markdown.read_text(), written.html.read_text()):
        assert "On the test rows, which no strength was chosen by, it scores people" in text
