"""Sound templates have no findings; each broken one has its own."""

import json

import pytest
from support.chat_tokenizers import STYLES, TEMPLATES, tokenizer, with_template

from distributed_ft.data.chat import Rendered, render_all
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.template_check import faults, prove, stop_tokens, told

CHATML = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8").strip()
PROMPT = "{{ '<|im_start|>assistant\\n' }}"
MASKS_ALL = CHATML.replace("{{ '<|im_start|>' + m", "{% generation %}{% endgeneration %}{{ '<|im_start|>' + m")
ASKS_ITSELF = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ messages[loop.index0 - 1].content + ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def names(findings):
    return [finding.id for finding in findings]


@pytest.mark.parametrize("name", sorted(set(STYLES) - {"phi3"}))
def test_sound_templates_have_no_findings(name):
    assert prove(tokenizer(name), tools=name in ("llama3", "qwen25", "qwen3")) == []


@pytest.mark.parametrize(
    ("template", "finding", "says"),
    [
        (MASKS_ALL, "template.mask_empty", "markers leave out answer 1"),
        (
            CHATML.replace("message['content']", "(message['content'] if message['role'] != 'assistant' else '')"),
            "template.mask_empty",
            "answer 1 is not learned",
        ),
        (ASKS_ITSELF, "template.mask_full", "the question is learned as well"),
        (CHATML.replace("<|im_end|>", "."), "template.stop_token", "no special token closes"),
        (
            CHATML.replace("<|im_end|>", "<|endoftext|>"),
            "template.stop_token",
            "ends with '<|endoftext|>', but generation stops at '<|im_end|>' only",
        ),
        (CHATML.replace(PROMPT, "{{ '<|im_start|>Assistant: ' }}"), "template.generation", "generation prompt must be"),
        ("{{ raise_exception('no') }}", "template.refused", "refuses this conversation"),
    ],
)
def test_each_broken_template_has_its_finding(template, finding, says):
    findings = prove(with_template(STYLES["chatml"], template))
    assert names(findings) == [finding]
    assert says in findings[0].message
    assert [f for f in findings if f.severity == "error"] == findings


def test_an_end_of_turn_that_the_base_names_for_generation_is_no_finding(tmp_path):
    tok = with_template(STYLES["phi3"], tokenizer("phi3").chat_template)
    [finding] = prove(tok)
    assert (finding.id, finding.severity) == ("template.stop_token", "error")
    tok.name_or_path = str(tmp_path)
    end, whole = tok.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [whole, end]}))
    assert stop_tokens(tok) == {end, whole}
    assert prove(tok) == []


def test_a_template_that_drops_tools_is_found_only_where_rows_have_some():
    assert names(prove(tokenizer("chatml"), tools=True)) == ["template.tools"]


def test_a_tokenizer_without_template_has_nothing_to_prove():
    assert prove(with_template(STYLES["chatml"], None)) == []


def test_the_findings_of_rows_name_their_lines():
    answer, said = Message("assistant", "yes"), Message("user", "hello")
    rows = [
        (said, answer),
        (said, Message("assistant", "yes", trained=False)),
        (said, Message("assistant", "say <|im_end|> now")),
        (said, Message("assistant", "no", trained=False)),
        (Message(TEXT, "hello"),),
    ]
    examples = [Example(str(i), row, i + 1, "train.jsonl", None) for i, row in enumerate(rows)]
    found: dict[str, list[int]] = {}
    for example, rendered in zip(examples, render_all(tokenizer("chatml"), examples), strict=True):
        for fault in faults(example, rendered):
            found.setdefault(fault, []).append(example.line)
    empty, specials = (f for fault in sorted(found) for f in told(fault, {"train.jsonl": found[fault]}, len(rows)))
    assert (empty.id, empty.severity, empty.count, empty.rows) == ("template.mask_empty", "error", 2, [2, 4])
    assert (specials.id, specials.severity, specials.rows) == ("template.special_tokens", "warning", [3])
    assert empty.path == "train.jsonl"
    assert empty.message.startswith("2 of 5 rows: nothing of these rows is learned")
    learned = Rendered([1] * 9, [True] * 9, ends=False)
    assert list(faults(examples[0], learned)) == ["template.mask_full", "template.stop_token"]
