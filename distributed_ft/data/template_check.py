"""What can be wrong with a chat template, proved on a few conversations of our own and told of the rows of a file.

A template that masks everything trains nothing while the loss looks healthy; one whose end of turn is not among the
tokens that generation stops at yields a model that never stops. Both are found here, before a GPU is touched.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_ft.data.chat import Rendered, render, render_prompt
from distributed_ft.data.examples import TEXT, Example, Message
from distributed_ft.data.findings import Finding, severity_of
from distributed_ft.data.template import TemplateFault
from distributed_ft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokenizer

_SAID = {  # of the findings about rows
    "template.mask_empty": "nothing of these rows is learned: every answer has weight 0, or the chat template drops "
    "it; remove them, or give an answer its weight back",
    "template.mask_full": "all of these rows is learned, questions as well; correct the tokenizer's chat_template",
    "template.stop_token": "an answer of these rows is closed by no special token, so the model does not learn to "
    "stop; use a tokenizer whose chat_template ends an assistant turn with one (`<|im_end|>`, `</s>`)",
    "template.special_tokens": "the text of these rows contains special tokens of the tokenizer, which the model takes "
    "for the ends of turns; remove them from the text",
}
_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Ulm"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def faults(example: Example, rendered: Rendered) -> Iterator[str]:
    """Ids of what is wrong with a row as it was rendered."""
    learned = sum(rendered.supervised)
    if not learned:
        yield "template.mask_empty"
    elif learned == len(rendered.ids) and example.messages[0].role != TEXT:
        yield "template.mask_full"
    if not rendered.ends:
        yield "template.stop_token"
    if rendered.foreign_specials:
        yield "template.special_tokens"


def told(fault: str, found: Mapping[str, Sequence[int]], total: int) -> list[Finding]:
    """The findings, one a file, on `total` rows of which those at the lines `found` (by file) have one of `faults`."""
    return [
        Finding(fault, _severity(fault), len(lines), lines, f"{len(lines):,} of {total:,} rows: {_SAID[fault]}", path)
        for path, lines in found.items()
    ]


def _severity(name: str) -> Any:
    return "warning" if name == "template.special_tokens" else severity_of(name, 1, 1)


# --- a proof by conversations --------------------------------------------------------------------------------------

_ASKED, _SAYS = "How far is Corvallis?", "Seventeen miles."
_PROBES: dict[str, tuple[Message, ...]] = {
    "one answer": (Message("user", _ASKED), Message("assistant", _SAYS)),
    "a system message": (Message("system", "Be brief."), Message("user", _ASKED), Message("assistant", _SAYS)),
    "two answers": (
        Message("user", _ASKED),
        Message("assistant", _SAYS),
        Message("user", "And Ελλάδα?"),
        Message("assistant", "Nine thousand."),
    ),
    "other scripts": (Message("user", "日本は？ 😀"), Message("assistant", "とても遠い。 é 😀")),
    "white space before the answer": (Message("user", _ASKED), Message("assistant", "  Seventeen miles.")),
}
_TOOL_PROBE = (
    Message("user", _ASKED),
    Message("assistant", "", extras=json.dumps({"tool_calls": [_CALL]})),
    Message("tool", "Sunny."),
    Message("assistant", _SAYS),
)


def prove(tokenizer: "Tokenizer", tools: bool = False) -> list[Finding]:
    """Findings on the tokenizer's chat template; none is proof that what is trained is what generation needs.

    Args:
        tokenizer: of the base; beside it, generation_config.json names the tokens that generation stops at.
        tools: some row of the data has tools, or calls them.
    """
    if not tokenizer.chat_template:
        return []  # rows of plain text need none; others are refused when they are rendered
    stops, found = stop_tokens(tokenizer), dict[str, Finding]()
    for name, messages in [*_PROBES.items(), *([("tools", _TOOL_PROBE)] if tools else [])]:
        try:
            rendered = render(tokenizer, messages, json.dumps([_TOOL]) if messages is _TOOL_PROBE else "")
            faults = list(_judged(tokenizer, messages, rendered, stops))
        except DataError as error:
            finding = error.finding if isinstance(error, TemplateFault) else "template.generation"
            if finding == "template.refused" and name not in ("one answer", "tools"):
                continue  # many templates have no system turn; rows that have one are refused themselves
            faults = [(finding, str(error))]
        for finding, message in faults:
            text = f"shown by a conversation of our own ({name}): {message}"
            found.setdefault(finding, Finding(finding, _severity(finding), 0, (), text))
    return list(found.values())


def stop_tokens(tokenizer: "Tokenizer") -> set[int]:
    """At which tokens a program that knows only the base's files stops: its `eos_token_id`s."""
    numbers = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        path = Path(tokenizer.name_or_path or ".") / name
        if tokenizer.name_or_path and path.is_file():
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            numbers |= set(named) if isinstance(named, list) else {named}
    return {number for number in numbers if number is not None}


def _judged(
    tokenizer: "Tokenizer", messages: Sequence[Message], rendered: Rendered, stops: set[int]
) -> Iterator[tuple[str, str]]:
    learned = _runs(rendered)
    said = [str(tokenizer.decode(ids)) for ids in learned]
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    missing = [i for i in answers if not any(_plain(messages[i].content) in _plain(text) for text in said)]
    if not learned or missing:
        yield "template.mask_empty", f"answer {missing[0]} is not learned; correct the tokenizer's chat_template"
    if all(rendered.supervised) or any(
        _plain(m.content) in _plain("".join(said)) for m in messages if m.role == "user"
    ):
        yield "template.mask_full", "the question is learned as well; correct the tokenizer's chat_template"
    if not rendered.ends:
        yield (
            "template.stop_token",
            "no special token closes an assistant turn, so the model does not learn to stop; use a tokenizer whose "
            "chat_template ends it with one (`<|im_end|>`, `</s>`)",
        )
    elif strangers := sorted({ids[-1] for ids in learned} - stops):
        names = " and ".join(map(repr, tokenizer.convert_ids_to_tokens(strangers)))
        known = " and ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(stops)))) or "none"
        yield (
            "template.stop_token",
            f"an assistant turn ends with {names}, but generation stops at {known} only, so programs that know no "
            "more than the model's files would go on writing; add its number to eos_token_id in generation_config.json",
        )
    for index in answers:
        prompt = render_prompt(tokenizer, messages[:index], json.dumps([_TOOL]) if messages is _TOOL_PROBE else "")
        if rendered.ids[: len(prompt)] != prompt:
            yield (
                "template.generation",
                f"the tokens of the prompt of answer {index} are not those that training shows before it; correct the "
                "tokenizer's chat_template",
            )


def _runs(rendered: Rendered) -> list[list[int]]:
    """The ids of each stretch of learned tokens."""
    runs: list[list[int]] = []
    before = False
    for token, learned in zip(rendered.ids, rendered.supervised, strict=True):
        if learned and not before:
            runs.append([])
        if learned:
            runs[-1].append(token)
        before = learned
    return runs


def _plain(text: str) -> str:
    return "".join(text.split())
