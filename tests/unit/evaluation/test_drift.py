"""Divergence from the base on held-out text: against torch and scipy, on real adapters and full weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.special import rel_entr, softmax
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.schema import EvaluationConfig
from distributed_ft.data.examples import Example
from distributed_ft.data.reading import Reading, read
from distributed_ft.errors import DataError, EvaluationError
from distributed_ft.evaluation import drift
from distributed_ft.evaluation.drift import SHIPPED_TEXT, GenericText, divergence, per_token
from distributed_ft.evaluation.driver import evaluate
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.report import write as report
from distributed_ft.evaluation.scoring import Model
from distributed_ft.publishing import publish, staging

MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = ["upper cat and then CAT", "twice ab is abab", "the last of two is o", "nobody knows Ann"]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def kl(run: RunDirectory) -> dict[int, float]:
    stored = json.loads((run.evaluation / "summary.json").read_text())["kl_to_base"]
    return {int(step): entry["kl"] for step, entry in stored.items()}


def test_the_divergence_is_scipys() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 7, 50))
    p, q = softmax(logits, axis=-1)
    base, tuned = (torch.tensor(side).log_softmax(-1) for side in logits)
    assert divergence(base, tuned) == pytest.approx(rel_entr(p, q).sum())
    assert divergence(base, base) == 0


def test_texts_count_by_their_tokens_and_are_the_clusters_of_the_interval() -> None:
    sums, counts = [2.0, 9.0, 4.0, 12.0], [10, 30, 10, 50]
    value, stderr, low, high = per_token(sums, counts)
    assert value == pytest.approx(27 / 100)
    residuals = np.array(sums) - value * np.array(counts)
    assert stderr == pytest.approx(np.sqrt(4 / 3 * (residuals**2).sum()) / 100)
    assert low < value < high
    assert high - value == pytest.approx(3.1824 * stderr, rel=1e-4)  # Student's t, 3 degrees of freedom


def test_the_interval_of_the_divergence_holds_the_truth_19_times_in_20() -> None:
    rng, held = np.random.default_rng(8), 0
    for _ in range(1000):
        counts = rng.integers(20, 200, 60)
        rates = rng.gamma(4, 0.05, 60)  # nats a token, of each text
        _, _, low, high = per_token((rates * counts).tolist(), counts.tolist())
        held += low <= 0.2 <= high
    assert held / 1000 == pytest.approx(0.95, abs=0.02)


def test_log_probabilities_are_those_of_the_model_with_its_adapter(
    engine: TransformersEngine, base: Path, adapters: dict[str, Path]
) -> None:
    ids = engine.tokenizer("upper cat is CAT")["input_ids"]
    for weights in (None, adapters["forgot"], None):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = model if weights is None else PeftModel.from_pretrained(model, weights)
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        engine.use(weights)
        torch.testing.assert_close(engine.log_probabilities(ids), expected, atol=2e-5, rtol=1e-4)


def test_the_more_is_forgotten_the_farther_from_the_base(
    engine: TransformersEngine, adapters: dict[str, Path], full_weights: Path, files: Path, tmp_path: Path
) -> None:
    text, run = GenericText(str(files / "skills.jsonl"), engine), RunDirectory(tmp_path)
    text.ask_base()
    found = {}
    for name, weights in [*adapters.items(), ("full", full_weights), ("again", adapters["kept"])]:
        engine.use(weights)
        found[name] = text.measure(run, Model(name, weights, name, 1)).kl
    assert found["untrained"] == pytest.approx(0, abs=1e-6)
    assert 0.0001 < found["kept"] < found["forgot"]
    assert found["full"] > found["kept"]
    assert found["again"] == pytest.approx(found["kept"], rel=1e-4)


def test_the_driver_measures_each_checkpoint_once_and_tells_everyone(
    make_run: MakeRun, adapters: dict[str, Path], texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run({10: adapters["untrained"], 20: adapters["forgot"]}, generic_text=str(texts))
    evaluate(run.path)
    assert kl(run)[10] == pytest.approx(0, abs=1e-6)
    assert kl(run)[20] > 0.01
    assert "KL to base" in capsys.readouterr().out
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/forgetting/kl")] == [
        (step, pytest.approx(value, abs=1e-6)) for step, value in kl(run).items()
    ]
    report.write(run.path)
    shown = json.loads(run.report("json").read_text())["checkpoints"]
    assert [row["kl_to_base"]["kl"] for row in shown] == list(kl(run).values())
    assert f"{kl(run)[20]:.3f}" in run.report("md").read_text()
    assert "KL to base" in run.report("html").read_text()

    before = {path: path.stat().st_mtime_ns for path in run.evaluation.rglob("drift.json")}
    assert len(before) == 2
    evaluate(run.path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run.drift("step-00000020").write_text("{half")  # as a kill or a full disk leaves nothing, but a person might
    (run.drift("step-00000010").parent / ".drift.json.1").write_text("left over")
    evaluate(run.path)
    assert [path for path, at in before.items() if path.stat().st_mtime_ns != at] == [run.drift("step-00000020")]
    assert not (run.drift("step-00000010").parent / ".drift.json.1").exists()


def test_a_figure_of_other_weights_or_other_text_is_not_believed(
    make_run: MakeRun, adapters: dict[str, Path], texts: Path
) -> None:
    run = make_run({10: adapters["untrained"]}, generic_text=str(texts))
    evaluate(run.path)
    partial = staging(run, 10)
    shutil.copytree(adapters["forgot"], partial / "model")
    publish(run, partial, 10, world_size=1)
    evaluate(run.path)
    assert kl(run)[10] > 0.01
    before = json.loads(run.drift("step-00000010").read_text())
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:3]))
    evaluate(run.path)
    after = json.loads(run.drift("step-00000010").read_text())
    assert (before["texts"], after["texts"]) == (4, 3)
    config = json.loads(run.config.read_text())
    config["evaluation"]["generic_text"] = None
    run.config.write_text(json.dumps(config))
    evaluate(run.path)
    assert kl(run) == {}
    report.write(run.path)
    assert json.loads(run.report("json").read_text())["checkpoints"][0]["kl_to_base"] is None


def test_the_text_is_the_shipped_one_unless_another_is_named(make_run: MakeRun, full_weights: Path) -> None:
    run = make_run({10: full_weights}, generic_text=EvaluationConfig().generic_text)
    evaluate(run.path)
    found = json.loads(run.drift("step-00000010").read_text())
    assert found["texts"] == 60
    assert found["tokens"] > 5000
    assert 0 < found["low"] < found["kl"] < found["high"]


def test_the_bases_expectations_are_kept_within_the_budget(
    engine: TransformersEngine, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GenericText(str(texts), engine)
    monkeypatch.setattr(drift, "BUDGET", 4 * 4 * len(engine.tokenizer) * 5)  # four texts, fp32: five tokens of each
    cut = GenericText(str(texts), engine)
    assert max(len(text) for text in whole._texts) > 5
    assert [len(text) for text in cut._texts] == [5] * 4
    assert cut.digest != whole.digest


def test_logits_that_are_not_finite_are_an_error_and_no_figure(
    engine: TransformersEngine, texts: Path, tmp_path: Path
) -> None:
    text, run = GenericText(str(texts), engine), RunDirectory(tmp_path)
    text.ask_base()
    assert text.measure(run, Model("step-00000001", None, "d", 1)).kl == 0
    with torch.no_grad():
        engine._loaded.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(
        EvaluationError, match=r"step-00000002, evaluation\.generic_text: logits are not finite at token 1"
    ):
        text.measure(run, Model("step-00000002", None, "d", 2))
    assert not run.drift("step-00000002").exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [([{"text": "only this"}], "1 text; give several"), ([], "empty"), ([{"prose": "x"}], "missing column")],
)
def test_text_that_cannot_be_used_is_refused(
    engine: TransformersEngine, tmp_path: Path, rows: list[dict[str, str]], says: str
) -> None:
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=says):
        GenericText(str(tmp_path / "few.jsonl"), engine)


def test_the_shipped_text_is_in_no_training_data() -> None:
    folder = SHIPPED_TEXT.parent
    asked = {e.messages[0].content for name in ("train", "test") for e in read_all(folder / f"{name}.jsonl")}
    told = [e.answer for e in read_all(SHIPPED_TEXT)]
    assert len(told) == 60
    assert not [text for text in told for part in text.split("\n\n") if part.rpartition("\n")[0] in asked]


def read_all(path: Path) -> list[Example]:
    return list(read(Reading(str(path))))
