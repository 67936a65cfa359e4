"""Log-likelihoods against a plain forward pass, one row at a time."""

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from distributed_ft.data.chat import render_prompt
from distributed_ft.data.examples import TEXT, Message
from distributed_ft.errors import EvaluationError
from distributed_ft.evaluation.engines import TransformersEngine
from distributed_ft.evaluation.likelihood import Continuation, continuation, windows
from distributed_ft.evaluation.task import Choose, Generate, Read

ASK = (Message("user", "upper cat"),)


def plain(base: Path, prompt: list[int], answer: list[int]) -> tuple[float, bool]:
    """By one forward pass of one row, all logits kept."""
    model = LlamaForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    of_answer = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
    return float(of_answer.sum()), logits.argmax(-1).tolist() == answer


def test_choices_have_the_likelihood_of_a_plain_forward_pass(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.use(None)
    choices = ("CAT", "DOG", "a much longer answer than the others")
    requests = [Choose("a", ASK, choices), Choose("b", (Message("user", "twice ab and some more words"),), choices[:2])]
    for request, response in zip(requests, engine.answer(requests), strict=True):
        prompt = render_prompt(tokenizer, request.messages)
        for place, choice in enumerate(request.choices):
            ids = tokenizer.encode(choice, add_special_tokens=False)
            nats, greedy = plain(base, prompt, ids)
            assert response.nats[place] == pytest.approx(nats, abs=1e-4)
            assert response.tokens[place] == len(ids)
            assert response.greedy[place] == greedy
    assert engine.answer(requests)[0].greedy == (True, False, False)  # the base knows this one


def test_kinds_of_request_may_be_mixed(engine: TransformersEngine) -> None:
    engine.use(None)
    requests = [
        Choose("a", ASK, ("CAT", "DOG")),
        Generate("b", ASK, 8),
        Read("c", "upper cat"),
        Choose("d", ASK, ("x",)),
    ]
    assert engine.answer(requests) == [engine.answer([request])[0] for request in requests]
    assert engine.answer(requests)[1].text == "CAT"


def test_a_plain_text_goes_on_without_a_template(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.use(None)
    [response] = engine.answer([Choose("a", (Message(TEXT, "user name"),), (" vip", " true"))])
    nats, _ = plain(base, tokenizer.encode("user name"), tokenizer.encode(" vip"))
    assert response.nats[0] == pytest.approx(nats, abs=1e-4)


def test_white_space_before_a_choice_is_the_choices(tokenizer: PreTrainedTokenizerFast) -> None:
    joined = continuation(tokenizer, tokenizer.encode("user "), "user ", "name")
    assert joined == Continuation(tokenizer.encode("user"), tokenizer.encode(" name"))


def test_a_choice_of_nothing_is_an_error(engine: TransformersEngine) -> None:
    engine.use(None)
    with pytest.raises(EvaluationError, match=r"'a'.*no tokens"):
        engine.answer([Choose("a", ASK, ("yes", ""))])


def test_a_text_longer_than_the_context_is_read_by_windows(
    engine: TransformersEngine, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.use(None)
    text = "user assistant name vip " * 120
    [response] = engine.answer([Read("t", text)])
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert engine.context is not None
    assert len(ids) > 2 * engine.context
    assert response.tokens == (len(ids),)
    whole = [plain(base, pair.prompt, pair.answer)[0] for pair in windows(ids, tokenizer.eos_token_id, engine.context)]
    assert response.nats[0] == pytest.approx(math.fsum(whole), rel=1e-4)


@pytest.mark.parametrize(("length", "most"), [(1, 4), (4, 4), (5, 4), (9, 4), (12, 5), (3, 1)])
def test_windows_judge_every_token_once_and_fit(length: int, most: int) -> None:
    found = windows(range(1, length + 1), 0, most)
    assert [token for pair in found for token in pair.answer] == list(range(1, length + 1))
    for pair in found:
        assert len(pair.prompt) + len(pair.answer) - 1 <= most
        assert pair.prompt[-1] == pair.answer[0] - 1


def test_draws_depend_on_item_and_draw_alone(engine: TransformersEngine) -> None:
    engine.use(None)
    many = [Generate(name, ASK, 6, draws=5, temperature=3.0) for name in ("a", "b")]
    both = engine.answer(many)
    assert both == [engine.answer([request])[0] for request in many]
    assert len(set(both[0].texts)) > 1
    assert both[0].texts != both[1].texts
    [cold] = engine.answer([Generate("a", ASK, 6, draws=2, temperature=0.001)])
    assert cold.texts == ("CAT", "CAT")


def test_an_answer_ends_before_a_stop_string(engine: TransformersEngine) -> None:
    engine.use(None)
    assert engine.generate([Generate("a", ASK, 8, stop=("T", "AT"))]) == ["C"]
