"""Which answers are none: of all turns that are learned, and never one that says something in an unusual way."""

import pytest

from distributed_ft.data.audit import answers
from distributed_ft.data.audit.answers import REFUSAL, STRONG, WEAK
from distributed_ft.data.audit.rows import Rows
from distributed_ft.data.examples import TEXT, Example, Message

CALL = '{"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}'


def looked(*messages: Message) -> answers.Answers:
    return answers.look(Rows([Example("1", messages, 1, "train.jsonl", None)]))


def asked(answer: str) -> tuple[Message, Message]:
    return Message("user", "What is it?"), Message("assistant", answer)


@pytest.mark.parametrize(
    "answer",
    [
        "<think>Seven times six.</think>\n<answer>42</answer>",
        "<response>\n<p>Yes.</p>\n</response>",
        "x <insert into t values 1> y",
        r"The set is $\mathbb{{R}}$, and $x^{{2}}$ is in it.",
        "👍",
        "+",
        "<=",
        "As an AI researcher at the institute, she wrote of it.",
        "GPT-2 serves as a language model for this task.",
        "It is against the policy of this shop to take back opened goods.",
        "Split my training data first, then scale it.",
    ],
)
def test_an_answer_is_no_placeholder_and_no_refusal(answer: str) -> None:
    assert looked(*asked(answer)).placeholder[0] == 0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("<your answer here>", STRONG),
        ("So: <answer>", STRONG),
        ("Dear {{ name }}, thank you.", STRONG),
        ("...", WEAK),
        ("???", WEAK),
        ("—", WEAK),
        ("As an AI, I have no opinion on that.", REFUSAL),
        ("As an AI I have no opinion on that.", REFUSAL),
        ("As a large language model I know no lamps.", REFUSAL),
        ("As an AI language model developed by others, I cannot say.", REFUSAL),
        ("That violates OpenAI's usage policies.", REFUSAL),
        ("This is against the content policy.", REFUSAL),
        ("I must decline to answer that.", REFUSAL),
        ("I’m not comfortable discussing that.", REFUSAL),
        ("I don't have personal opinions.", REFUSAL),
        ("My training data only goes to 2023.", REFUSAL),
    ],
)
def test_an_answer_is_a_placeholder_or_a_refusal(answer: str, kind: int) -> None:
    assert looked(*asked(answer)).placeholder[0] == kind


def test_a_call_of_a_tool_is_an_answer() -> None:
    called = Message("user", "What is the weather?"), Message("assistant", "", extras=CALL)
    assert looked(*called).empty[0] == 0
    assert looked(*called, Message("tool", "Sunny."), Message("assistant", "")).empty[0] == 1


def test_every_turn_that_is_learned_is_looked_at_and_no_other() -> None:
    after = asked("It is a lamp.")
    assert looked(*asked(" "), *after).empty[0] == 1
    assert looked(*asked("TODO"), *after).placeholder[0] == STRONG
    assert looked(*asked("As an AI, I cannot say."), *after).placeholder[0] == REFUSAL
    assert looked(*asked("none"), *after).placeholder[0] == 0, "within a conversation it may be one"
    unlearned = Message("user", "And?"), Message("assistant", "", trained=False)
    assert looked(*unlearned, *after).empty[0] == 0
    assert looked(*after, *unlearned).empty[0] == 0
    assert looked(Message("user", "And?"), Message("assistant", "TODO", trained=False)).placeholder[0] == 0
    assert looked(Message(TEXT, " ")).empty[0] == 1
    assert looked(Message("user", " "), Message("assistant", "Yes, it is.")).empty[0] == 2
