"""The templates of well-known models: what is learned of a conversation, against texts marked by hand."""

import json
import random

import pytest
from support.chat_tokenizers import STYLES, TEMPLATES, tokenizer, with_template
from tokenizers import AddedToken
from transformers.utils.chat_template_utils import render_jinja_template

from distributed_ft.data.chat import render, render_all, render_prompt
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.template import Conversation, Template
from distributed_ft.errors import ConfigError, DataError

U, A, S, T = "user", "assistant", "system", "tool"
TWO_TURNS = (Message(U, "hello"), Message(A, "the answer"), Message(U, "what?"), Message(A, " é 日本😀 m"))
SYSTEM = (Message(S, "Be kind."), *TWO_TURNS)
QWEN = "<|im_start|>system\nBe kind.<|im_end|>\n"
CHATML = (
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n‹the answer<|im_end|>›\n"
    "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n‹ é 日本😀 m<|im_end|>›\n"
)
DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
MARKED = {  # the rendering of SYSTEM (of TWO_TURNS where a template has no system turn); ‹learned›
    "chatml": QWEN + CHATML,
    "chatml_markers": QWEN + CHATML,
    "qwen25": QWEN + CHATML,
    "qwen3": QWEN + CHATML.replace("‹ é", "‹<think>\n\n</think>\n\n é"),
    "llama3": f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{DATE}Be kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n‹the answer<|eot_id|>›"
    "<|start_header_id|>user<|end_header_id|>\n\nwhat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n‹é 日本😀 m<|eot_id|>›",
    "mistral": "<s> [INST] Be kind.\n\nhello [/INST]‹ the answer</s>› [INST] what? [/INST]‹  é 日本😀 m</s>›",
    "gemma": "<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n‹the answer<end_of_turn>›\n"
    "<start_of_turn>user\nwhat?<end_of_turn>\n<start_of_turn>model\n‹é 日本😀 m<end_of_turn>›\n",
    # its special tokens swallow the white space behind them
    "phi3": "<|system|>Be kind.<|end|><|user|>hello<|end|><|assistant|>‹the answer<|end|>›"
    "<|user|>what?<|end|><|assistant|>‹é 日本😀 m<|end|>›<|endoftext|>",
}
TOOLS = json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}])
CALL = json.dumps(
    {"tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"at": "Ulm"}}}]}
)
CALLING = (Message(U, "hello"), Message(A, "", extras=CALL), Message(T, "42"), Message(A, "yes"))
LEARNED_CALLS = {
    "qwen25": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"at": "Ulm"}}\n</tool_call><|im_end|>',
        "yes<|im_end|>",
    ],
    "llama3": ['{"name": "get_weather", "parameters": {"at": "Ulm"}}<|eot_id|>', "yes<|eot_id|>"],
}
# the last query is behind the call, so Qwen3 keeps its (empty) reasoning for the last turn only
LEARNED_CALLS["qwen3"] = [LEARNED_CALLS["qwen25"][0], "<think>\n\n</think>\n\nyes<|im_end|>"]


def conversation(name):
    return TWO_TURNS if name == "gemma" else SYSTEM


def marked(tok, rendered):
    """The text, what is learned of it in ‹›."""
    runs = []
    for token, learned in zip(rendered.ids, rendered.supervised, strict=True):
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)
    return "".join(f"‹{tok.decode(ids)}›" if learned else tok.decode(ids) for learned, ids in runs)


def learned(tok, rendered):
    return [piece.split("›")[0] for piece in marked(tok, rendered).split("‹")[1:]]


@pytest.mark.parametrize("name", STYLES)
def test_what_is_learned_are_the_answers_with_their_end(name):
    rendered = render(tokenizer(name), conversation(name))
    assert marked(tokenizer(name), rendered) == MARKED[name]
    assert rendered.ends
    assert not rendered.foreign_specials


@pytest.mark.parametrize("name", STYLES)
def test_the_last_answer_alone_or_those_of_weight_1_are_learned(name):
    tok, turns = tokenizer(name), conversation(name)
    both, full = learned(tok, render(tok, turns)), render(tok, turns)
    last = render(tok, turns, supervise="last")
    assert learned(tok, last) == both[1:]
    assert last.ids == full.ids
    weighted = [Message(m.role, m.content, trained=m.content != TWO_TURNS[3].content) for m in turns]
    assert learned(tok, render(tok, weighted)) == both[:1]
    nothing = render(tok, weighted, supervise="last")
    assert not any(nothing.supervised)
    assert nothing.ids == full.ids


@pytest.mark.parametrize("name", STYLES)
def test_generation_begins_with_what_training_saw_whatever_the_text(name):
    tok, rng = tokenizer(name), random.Random(0)
    pieces = [
        "hello",
        " ",
        "\n",
        "\n\n",
        "42",
        "é",
        "[INST]",
        "answer",
        "\t",
        "the ",
        "日本",
        "😀",
        "</s>",
        "<|im_end|>",
    ]
    for _ in range(60):
        turns = []
        for _ in range(rng.randint(1, 3)):
            turns += [
                Message(U, "".join(rng.choices(pieces, k=4)) + "q"),
                Message(A, "".join(rng.choices(pieces, k=4)) + "x"),
            ]
        rendered = render(tok, turns)
        for index in range(1, len(turns), 2):
            prompt = render_prompt(tok, turns[:index])
            assert rendered.ids[: len(prompt)] == prompt
            assert rendered.supervised[len(prompt)]
            assert not rendered.supervised[len(prompt) - 1]


@pytest.mark.parametrize("name", STYLES)
def test_the_quick_way_gives_what_the_exact_way_gives(name):
    tok, rng = tokenizer(name), random.Random(1)
    exact = with_template(STYLES[name], tok.chat_template)
    exact.add_tokens([AddedToken("zqz", single_word=True)])  # where it matches depends on what is beside it
    pieces = ["hello", " ", "\n", "42", "é", "answer", "the ", "😀", "</s>", "<|im_end|>", "<|end|>", "<end_of_turn>"]
    rows = []
    for line in range(150):
        turns = [
            Message(U if i % 2 == 0 else A, "".join(rng.choices(pieces, k=5)), rng.random() < 0.8) for i in range(4)
        ]
        rows.append(Example("", tuple(turns), line, "f", None))
    for supervise in ("all", "last"):
        assert list(render_all(tok, rows, supervise)) == list(render_all(exact, rows, supervise))


@pytest.mark.parametrize("name", LEARNED_CALLS)
def test_calls_of_tools_and_their_end_are_learned_and_tools_are_shown(name):
    tok = tokenizer(name)
    rendered = render(tok, CALLING, TOOLS)
    assert learned(tok, rendered) == LEARNED_CALLS[name]
    assert rendered.ends
    assert "get_weather" in marked(tok, rendered).split("‹")[0]
    prompt = render_prompt(tok, CALLING[:3], TOOLS)
    assert rendered.ids[: len(prompt)] == prompt


def test_the_end_of_a_call_is_learned_where_its_markers_are_special_tokens_and_the_text_has_an_end_of_its_own():
    style = STYLES["qwen25"]
    template = (
        (TEMPLATES / "qwen25.jinja")
        .read_text()
        .replace(
            "{%- if add_generation_prompt %}", "{%- if not add_generation_prompt %}{{- '<|endoftext|>' }}{%- else %}"
        )
    )
    tok = with_template(style, template)
    tok.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    assert learned(tok, render(tok, CALLING, TOOLS)) == LEARNED_CALLS["qwen25"]
    assert learned(tok, render(tok, CALLING[:2], TOOLS)) == LEARNED_CALLS["qwen25"][:1]


@pytest.mark.parametrize(
    ("turns", "tools", "message"),
    [
        (CALLING, "", 'does not write the call of "get_weather" in answer 1.*supports tool_calls'),
        (TWO_TURNS, TOOLS, "does not write the tool \"get_weather\".*remove 'tools'"),
        (
            (Message(U, "hello"), Message(A, "yes", extras='{"reasoning_content": "hm"}')),
            "",
            "does not write the reasoning",
        ),
    ],
)
def test_what_a_template_drops_is_refused(turns, tools, message):
    with pytest.raises(DataError, match=message):
        render(tokenizer("chatml"), turns, tools)


def test_reasoning_of_the_last_answer_is_learned_and_that_of_earlier_ones_is_dropped_as_the_model_does():
    tok = tokenizer("qwen3")
    turns = [Message(m.role, m.content, extras='{"reasoning_content": "hm"}' if m.role == A else "") for m in TWO_TURNS]
    assert learned(tok, render(tok, turns)) == [
        "the answer<|im_end|>",
        "<think>\nhm\n</think>\n\n é 日本😀 m<|im_end|>",
    ]


@pytest.mark.parametrize(("name", "reason"), [("gemma", "System role not supported")])
def test_a_template_without_a_system_turn_says_so(name, reason):
    with pytest.raises(DataError, match=reason):
        render(tokenizer(name), SYSTEM)


def test_a_template_whose_earlier_turns_change_can_learn_the_last_answer_only():
    # as newer ones of Mistral: the system message stands before the last question
    template = (
        (TEMPLATES / "mistral.jinja")
        .read_text()
        .strip()
        .replace("loop.first and", "loop.index0 >= loop.length - 2 and")
    )
    tok = with_template(STYLES["mistral"], template)
    with pytest.raises(DataError, match=r"before answer 2 differently .*data\.supervise: last"):
        render(tok, SYSTEM)
    rendered = render(tok, SYSTEM, supervise="last")
    assert learned(tok, rendered) == ["  é 日本😀 m</s>"]
    prompt = render_prompt(tok, SYSTEM[:-1])
    assert rendered.ids[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{% generation %}{{ c + '<|im_end|>' + '\\n' }}{% endgeneration %}", ["the answer<|im_end|>"]),  # and more
        ("{% generation %}{{ c }}{% endgeneration %}{{ '<|im_end|>\\n' }}", ["the answer<|im_end|>"]),  # and less
        ("{{ 'so ' }}{% generation %}{{ c + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}", [" the answer<|im_end|>"]),
        ("{{ c + '<|im_end|>\\n' }}", ["the answer<|im_end|>"]),  # no markers
    ],
)
def test_markers_narrow_what_is_learned_and_the_end_is_always_learned(written, expected):
    tok = marking(written)
    assert learned(tok, render(tok, TWO_TURNS[:2])) == expected


def test_markers_that_leave_an_answer_out_are_a_fault_unless_it_shall_not_be_learned():
    tok = marking(
        "{% if loop.last %}{% generation %}{{ c + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
        "{% else %}{{ c + '<|im_end|>\\n' }}{% endif %}"
    )
    with pytest.raises(DataError, match="markers leave out answer 1"):
        render(tok, TWO_TURNS)
    assert learned(tok, render(tok, TWO_TURNS, supervise="last")) == [" é 日本😀 m<|im_end|>"]


def marking(written):
    """ChatML that writes the assistant's content and its end so."""
    return with_template(
        STYLES["chatml"],
        "{% for m in messages %}{% set c = m.content %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}" + written + "{% else %}{{ c + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [("chatml", "hello<|im_end|>"), ("llama3", "<|begin_of_text|>hello<|eot_id|>"), ("mistral", "<s> hello</s>")],
)
def test_plain_text_is_learned_whole_between_the_tokenizers_own_ends_and_needs_no_template(name, text):
    tok = with_template(STYLES[name], None)
    rendered = render(tok, [Message(TEXT, "hello")])
    assert marked(tok, rendered) == f"‹{text}›"
    assert rendered.ends
    assert render(tok, [Message(TEXT, "a </s> <|im_end|> <|eot_id|>")]).foreign_specials
    with pytest.raises(ConfigError, match="no chat template"):
        render(tok, TWO_TURNS)


def test_text_and_conversations_may_stand_in_one_list():
    rows = [Example(str(i), TWO_TURNS if i % 3 else (Message(TEXT, "hello"),), i, "f", None) for i in range(9)]
    tok = tokenizer("chatml")
    assert list(render_all(tok, rows)) == [render(tok, row.messages) for row in rows]


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("open_turn", [False, True])
def test_a_conversation_of_texts_is_written_as_transformers_writes_it(name, open_turn):
    """Such conversations go past what transformers does for others."""
    template, turns = Template.of(tokenizer(name)), Conversation.of(conversation(name))
    assert turns.plain
    marked = name == "chatml_markers"
    [text], spans = render_jinja_template(
        conversations=[turns.turns],
        chat_template=template.source,
        add_generation_prompt=open_turn,
        return_assistant_tokens_mask=marked,
        **tokenizer(name).special_tokens_map,
    )
    assert template.write(turns, open_turn=open_turn) == text
    if not open_turn:
        assert template.write_marked(turns) == (text, spans[0] if marked else None)
