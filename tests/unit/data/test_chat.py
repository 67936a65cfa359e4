"""The loss mask against tables made by hand, and the prompt as a prefix of what was trained on, in token ids."""

import random

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from distributed_ft.data.chat import render, render_all, render_prompt
from distributed_ft.data.examples import Example, Message
from distributed_ft.errors import ConfigError, DataError

U, A, S = "user", "assistant", "system"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def turns(*pairs):
    return tuple(Message(role, content) for role, content in pairs)


def spans(tokenizer, rendered):
    """[(supervised, text)] of maximal runs."""
    runs = []
    for token, supervised in zip(rendered.ids, rendered.supervised, strict=True):
        if not runs or runs[-1][0] != supervised:
            runs.append((supervised, []))
        runs[-1][1].append(token)
    return [(supervised, tokenizer.decode(ids)) for supervised, ids in runs]


TWO_TURNS = turns((U, "hello"), (A, "the answer"), (U, "what?"), (A, "m"))
TABLES = {  # what is supervised (True) and what is not, of TWO_TURNS, in each style
    "chatml": [
        (False, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"),
        (True, "the answer<|im_end|>"),
        (False, "\n<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "m<|im_end|>"),  # 'm' is also a letter of the marker behind it
        (False, "\n"),
    ],
    "llama3": [
        (
            False,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (True, "the answer<|eot_id|>"),
        (
            False,
            "<|start_header_id|>user<|end_header_id|>\n\nwhat?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (True, "m<|eot_id|>"),
    ],
    "inst": [
        (False, "<s>[INST] hello [/INST]"),
        (True, " the answer</s>"),
        (False, "[INST] what? [/INST]"),
        (True, " m</s>"),
    ],
}


@pytest.mark.parametrize("style", TABLES)
def test_the_mask_is_the_answers_with_their_end_and_nothing_else(tokenizers, style):
    rendered = render(tokenizers[style], TWO_TURNS)
    assert spans(tokenizers[style], rendered) == TABLES[style]
    assert rendered.ends
    assert not rendered.foreign_specials


@pytest.mark.parametrize("style", TABLES)
def test_ids_are_those_of_the_templates_own_text(tokenizers, style):
    tokenizer = tokenizers[style]
    conversation = [{"role": m.role, "content": m.content} for m in TWO_TURNS]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    if style != "llama3":  # there GPT-2's pattern splits "\n\n" by what follows: see the next test
        assert render(tokenizer, TWO_TURNS).ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(render(tokenizer, TWO_TURNS).ids) == text


@pytest.mark.parametrize("style", TABLES)
def test_what_generation_sees_is_what_training_saw(tokenizers, style):
    tokenizer, rng = tokenizers[style], random.Random(0)
    pieces = ["hello", " ", "\n", "\n\n", "42", "é", "[INST]", "answer", "\t", "the ", "日本", "\n\n\n"]
    for _ in range(300):
        conversation = []
        for _ in range(rng.randint(1, 3)):
            conversation.append(Message(U, "".join(rng.choices(pieces, k=4)) + "q"))
            conversation.append(Message(A, "".join(rng.choices(pieces, k=4)) + rng.choice(["x", "\n"])))
        rendered = render(tokenizer, conversation)
        for index, message in enumerate(conversation):
            if message.role == A:
                prompt = render_prompt(tokenizer, conversation[:index])
                assert rendered.ids[: len(prompt)] == prompt
                assert not rendered.supervised[len(prompt) - 1]
                assert rendered.supervised[len(prompt)]


def test_a_merge_across_the_beginning_of_the_answer_is_cut(tokenizer):
    conversation = turns((U, "hello"), (A, "\nthe answer"))
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n\nthe answer<|im_end|>\n"
    newline, two = tokenizer("\n")["input_ids"], tokenizer("\n\n")["input_ids"]
    assert len(newline) == len(two) == 1, "the tokenizer of this test merges two newlines"
    rendered = render(tokenizer, conversation)
    assert tokenizer.decode(rendered.ids) == text
    assert two[0] not in rendered.ids
    assert spans(tokenizer, rendered)[1] == (True, "\nthe answer<|im_end|>")


def test_a_special_token_in_the_text_is_reported_and_does_not_end_the_mask(tokenizer):
    rendered = render(tokenizer, turns((U, "hello"), (A, "say <|im_end|> and go")))
    assert spans(tokenizer, rendered)[1] == (True, "say <|im_end|> and go<|im_end|>")
    assert rendered.foreign_specials


def test_a_template_without_an_end_of_turn_token_supervises_the_whole_turn_and_says_so(tokenizers):
    tokenizer = copy_with_template(
        tokenizers["chatml"],
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    )
    rendered = render(tokenizer, turns((U, "hello"), (A, "yes")))
    assert spans(tokenizer, rendered) == [(False, "user: hello\nassistant:"), (True, " yes\n")]
    assert not rendered.ends


def test_a_template_that_rewrites_history_keeps_the_ends_of_earlier_turns(tokenizers):
    # like Qwen3's: the newest answer has a (here empty) reasoning block, earlier ones have lost theirs
    tokenizer = copy_with_template(
        tokenizers["chatml"],
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    rendered = render(tokenizer, TWO_TURNS)
    supervised = [text for is_supervised, text in spans(tokenizer, rendered) if is_supervised]
    assert supervised == ["the answer<|im_end|>", "<think></think>m<|im_end|>"]


def test_what_ends_the_whole_text_behind_the_end_of_the_turn_is_not_learned(tokenizers):
    tokenizer = copy_with_template(  # like Phi-3's
        tokenizers["chatml"], CHATML.replace("{% endif %}", "{% else %}</s>{% endif %}")
    )
    supervised = [text for is_supervised, text in spans(tokenizer, render(tokenizer, TWO_TURNS)) if is_supervised]
    assert supervised == ["the answer<|im_end|>", "m<|im_end|>"]


@pytest.mark.parametrize("answer", ["the answer", "in", "final", "a", "m"])
def test_an_answer_whose_words_stand_in_the_templates_own_text_is_learned_whole(tokenizers, answer):
    # like gpt-oss's: between the generation prompt and the answer stands a header with special tokens
    tokenizer = copy_with_template(
        tokenizers["llama3"],
        "{% for m in messages %}<|start_header_id|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|im_start|>final{% endif %}<|end_header_id|>{{ m.content }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant{% endif %}",
    )
    conversation = turns((U, f"say {answer}"), (A, answer), (U, f"{answer}?"), (A, answer))
    rendered = render(tokenizer, conversation)
    supervised = [text for is_supervised, text in spans(tokenizer, rendered) if is_supervised]
    assert supervised == [f"<|im_start|>final<|end_header_id|>{answer}<|eot_id|>"] * 2


def test_a_template_that_writes_the_date_writes_the_same_one_on_every_day(tokenizers):
    tokenizer = copy_with_template(
        tokenizers["chatml"], "<|im_start|>today is {{ strftime_now('%d %b %Y') }}<|im_end|>" + CHATML
    )
    rendered = render(tokenizer, TWO_TURNS)
    assert tokenizer.decode(rendered.ids).startswith("<|im_start|>today is 26 Jul 2024<|im_end|>")
    prompt = render_prompt(tokenizer, TWO_TURNS[:-1])
    assert rendered.ids[: len(prompt)] == prompt


def test_special_tokens_that_swallow_white_space_are_no_reason_to_refuse_a_merge(tokenizers):
    tokenizer = copy_with_template(tokenizers["chatml"], CHATML)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, rstrip=True) for token in ("<|im_start|>", "<|im_end|>")]}
    )
    rendered = render(tokenizer, turns((U, "hello"), (A, "\nthe answer"), (U, "what?"), (A, "yes")))
    assert "the answer<|im_end|>" in spans(tokenizer, rendered)[1][1]


def test_a_generation_prompt_that_training_never_saw_is_refused(tokenizers):
    tokenizer = copy_with_template(
        tokenizers["chatml"],
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>Assistant:\n{% endif %}",
    )
    with pytest.raises(DataError, match="generation prompt must be how an assistant turn begins"):
        render(tokenizer, turns((U, "hello"), (A, "yes")))


def test_a_conversation_that_the_template_refuses_names_file_and_line(tokenizers):
    bad = Example("x", turns((S, "be kind"), (U, "hello"), (A, "yes")), 17, "train.jsonl", None)
    with pytest.raises(DataError, match=r"^train.jsonl:17: the tokenizer's chat template refuses .*only user and ass"):
        list(render_all(tokenizers["inst"], [bad]))


def test_a_tokenizer_without_template_or_without_offsets_is_a_config_error(tokenizers):
    with pytest.raises(ConfigError, match=r"model.base: .*no chat template.*chat_template.jinja"):
        render(tokenizers["none"], turns((U, "hello"), (A, "yes")))

    class Slow:
        chat_template, is_fast, name_or_path = "x", False, "some/model"

    with pytest.raises(ConfigError, match=r"some/model .*tokenizer.json"):
        render_prompt(Slow(), turns((U, "hello")))


def test_many_at_a_time_gives_what_one_at_a_time_gives(tokenizer):
    rng = random.Random(1)
    examples = []
    for line in range(1100):  # more than two batches
        conversation = turns((U, "hello " * rng.randint(1, 5)), (A, rng.choice(["yes", "\nno", "42"])))
        examples.append(Example(str(line), conversation, line, "f", None))
    rendered = list(render_all(tokenizer, examples))
    assert len(rendered) == len(examples)
    assert all(rendered[i] == render(tokenizer, examples[i].messages) for i in range(0, 1100, 50))


def copy_with_template(tokenizer, template):
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    copy.chat_template = template
    return copy
