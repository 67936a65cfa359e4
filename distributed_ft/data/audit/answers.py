"""Answers that are no answers: empty, far too short, cut off, placeholders, refusals."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distributed_ft.data.audit.formats import Forms, closed_set, is_prose
from distributed_ft.data.audit.forms import FENCE, LIST, NUMBERED, TAGS
from distributed_ft.data.audit.rows import LEAST, Codes, Indices, Rows, Table, joined, matching
from distributed_ft.data.examples import TEXT, Example
from distributed_ft.data.findings import Finding

# What people and programs leave where an answer should be; anywhere in an answer.
_PLACEHOLDER = re.compile(
    r"\blorem ipsum\b"
    r"|\[\s*(?:insert|your|add|put|fill|replace|enter|todo|tbd|placeholder|answer|response)\b[^\]\n]{0,60}\]"
    # A tag that is closed, or that SQL or code stands in, holds an answer: <answer>42</answer>.
    r"|<\s*(?P<tag>insert|your|add|fill in|enter|todo|placeholder|answer|response)\b(?! into\b)[^>\n]{0,60}>"
    r"(?!(?s:.*)</\s*(?P=tag)\b)"
    # Not LaTeX: \mathbb{{R}}, x^{{2}}.
    r"|(?<![\w\\}^])\{\{[^}\n]{0,60}\}\}"
    r"|\b(?:answer|response|text|content) goes here\b|\bplaceholder (?:text|answer|response)\b"
    r"|^.{0,40}\b(?:to be|will be) (?:filled in|written|completed|added) (?:later|soon|here)\b.{0,9}\Z",
    re.IGNORECASE,
)
_UNDONE = re.compile(r"^\W*(?:TODO|FIXME|TBD|TBA|XXX+)\b|^(?:TODO|FIXME)\b", re.MULTILINE)  # in capitals only
# As the whole answer; a label may be called so. Signs that mean something are an answer: an emoji, +, <.
_NOTHING = re.compile(
    r"[\s.?*_…–—-]*"
    r"|\W*(?:n/?\s?a|none|null|nil|nan|undefined|not available|no answer|no response|unknown|answer|response|test|foo"
    r"|bar|asdf\w*|placeholder|todo|tbd|tba|empty|missing|error|\[(?:deleted|removed)\])\W*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(  # anywhere
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    # An AI researcher, an AI company; a language model for this or that.
    r"(?! (?!(?:i|language|model|assistant|system|chatbot|program|my|developed|trained|created|designed)\b)\w)"
    r"|\bi(?:(?:'|’)?m| am) (?:(?:just |only )?an ai\b|not comfortable (?:answering|discussing|with|providing)\b)"
    r"|\bi must decline\b|\bas a chatbot\b"
    r"|\bi (?:do not|don(?:'|’)t) have personal (?:opinions|feelings|beliefs|experiences|preferences)\b"
    r"|\bmy (?:(?:knowledge|training) cut-?off\b"
    r"|training data (?:only|goes|ends|includes|does|is limited|was last)\b)"
    r"|\b(?:against|violates?) (?:my|openai(?:'|’)s|the(?= (?:content|usage|safety)))(?: content| usage| safety)?"
    r" (?:programming|guidelines|policy|policies)\b",
    re.IGNORECASE,
)
_REFUSES = re.compile(  # at the beginning
    r"\W*(?:(?:(?:i(?:'|’)m|i am) (?:very |really |so )?sorry|sorry|apologies|i apologi[sz]e|unfortunately)"
    r"\W{1,3}(?:but )?i(?:(?:'|’)m| am)? (?:can(?:no|'|’)?t|can not|could(?: no|n'|n’)t|won(?:'|’)t|will not"
    r"|unable|not able|do(?: no|n'|n’)t feel)\b"
    r"|i(?:(?:'|’)m| am)? (?:can(?:no|'|’)t|can not|won(?:'|’)t|will not|unable to|not able to)"
    r" (?:assist|help|fulfill|comply|provide|answer|do that|discuss|generate|create|engage|support)\b)",
    re.IGNORECASE,
)
# Of RE2: one of these is in every answer that one of the above matches, and in few others. İ and ı are i to `re`.
_WORDS = (
    r"lorem ipsum|goes here|placeholder|\{\{"
    r"|[\[<][^A-Za-z]*(?:insert|your|add|put|fill|replace|enter|todo|tbd|placeholder|answer|response)"
    r"|(?:to|will) be (?:filled in|written|completed|added) (?:later|soon|here)"
    r"|an? (?:ai|artificial|(?:large )?language model)|as a chatbot|my (?:knowledge|training) (?:cut|data)"
    r"|(?:against|violates?) (?:my|openai.s|the) (?:programming|guidelines|polic|usage|content|safety)"
    r"|i must decline|not comfortable|have personal"
    r"|\A\W*(?:i(?: |['’]m )|sorry|apolog|unfortunately)"
).replace("i", "[iİı]")
_WORTH_A_LOOK = rf"\A(?s:.){{0,24}}\z|TODO|FIXME|TB[DA]|XXX|(?i:{_WORDS})"
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+\Z|\S+@\S+\.\w+\Z")
_SENTENCE = 30  # characters: shorter answers need not be sentences
_LONG = 80  # characters: where answers have fewer, short ones are usual
_ODD, _ODD_OF_PART = 0.15, 0.35  # of a file, of one kind of request: what more of them do is usual

STRONG, WEAK, REFUSAL = 1, 2, 3

_MESSAGES = {
    "answer.empty": "the answer is empty: the model learns to say nothing; write it, or remove the row",
    "answer.empty.question": "nothing stands before the answer, so it answers nothing; write the question, or remove "
    "the row",
    "answer.short": "the answer has less than a fifth of the usual length and is far from all others; complete it, or "
    "remove the row",
    "answer.truncated": "the answer stops in the middle, where nearly all others end properly; the model learns to "
    "stop there; complete it, or remove the row",
    "answer.placeholder": "what stands there is a placeholder, not an answer; the model would learn to write it; write "
    "the answer, or remove the row",
    "answer.placeholder.refusal": "the answer refuses, or speaks of itself as an AI; remove the row, or waive this if "
    "it is what you want to teach",
}


@dataclass(frozen=True, slots=True)
class Answers:
    """Of each answer of a chunk."""

    placeholder: Codes  # 0, STRONG, WEAK or REFUSAL
    open_end: Codes  # 1: ends as no sentence does
    empty: Codes  # 1: no answer, 2: no question


def look(rows: Rows) -> Answers:
    placeholder = np.zeros(len(rows.answers), np.int32)
    for row in rows.answering(_WORTH_A_LOOK):
        if rows.examples[row].messages[-1].trained:
            placeholder[row] = _placeholder(rows.answers[row])
    several = [len(e.messages) > 3 for e in rows.examples]  # there may be earlier answers
    earlier = [(row, text) for row, more in enumerate(several) if more for text in _earlier(rows.examples[row])]
    for place in matching([text for _, text in earlier], _WORTH_A_LOOK):
        row, text = earlier[place]
        if not placeholder[row] and (kind := _placeholder(text)) != WEAK:
            placeholder[row] = kind
    empty = [
        0 if not (more or _is_blank(answer) or _is_blank(prompt)) else _empty(e, prompt)
        for e, prompt, answer, more in zip(rows.examples, rows.prompts, rows.answers, several, strict=True)
    ]
    ends = [_open_end(answer) for answer in rows.answers]
    return Answers(placeholder, np.array(ends, np.int32), np.array(empty, np.int32))


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _empty(example: Example, prompt: str) -> int:
    """1: something that is learned is empty; calls of tools are something. 2: no question."""
    learned = (m for m in example.messages if m.trained and m.role in ("assistant", TEXT))
    if any(_is_blank(m.content) and '"tool_calls"' not in m.extras for m in learned):
        return 1
    return 2 if _is_blank(prompt) and example.messages[0].role != TEXT else 0


def _earlier(example: Example) -> Iterator[str]:
    """The answers before the last one that are learned."""
    return (m.content for m in example.messages[:-1] if m.role == "assistant" and m.trained)


def _placeholder(answer: str) -> int:
    if len(answer) <= 24 and not _is_blank(answer) and _NOTHING.fullmatch(answer):
        return STRONG if re.search(r"todo|tbd|placeholder", answer, re.IGNORECASE) else WEAK
    if "```" not in answer and (_PLACEHOLDER.search(answer) or _UNDONE.search(answer)):
        return STRONG
    return REFUSAL if _REFUSES.match(answer) or _REFUSAL.search(answer) else 0


def _open_end(answer: str) -> bool:
    tail = answer[-80:].rstrip()
    return bool(tail) and (tail[-1].isalnum() or tail[-1] in ",;:([{<–—-_") and not _ADDRESS.search(tail)


def judge(table: Table, looked: Sequence[Answers], forms: Forms) -> list[Finding]:
    placeholder = joined([a.placeholder for a in looked], np.int32)
    open_end = joined([a.open_end for a in looked], np.int32) == 1
    empty = joined([a.empty for a in looked], np.int32)
    short, cut = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    weak = np.flatnonzero(placeholder == WEAK)
    for _, rows in table.parts:
        short.append(_short(table, forms, rows[placeholder[rows] == 0]))
        labels = closed_set(table.answers[rows])
        if labels is not None:  # a label that is called "none" or "unknown"
            weak = np.setdiff1d(weak, rows[np.isin(table.answers[rows], labels)])
    cut += [*_cut(table, forms, open_end), _unclosed(forms)]
    too_short = np.concatenate(short)
    too_short = too_short if len(too_short) <= _ODD * table.size else too_short[:0]
    found = {
        "answer.empty": np.flatnonzero(empty == 1),
        "answer.empty.question": np.flatnonzero(empty == 2),
        "answer.short": too_short,
        "answer.truncated": np.concatenate(cut),
        "answer.placeholder": np.concatenate([np.flatnonzero(placeholder == STRONG), weak]),
        "answer.placeholder.refusal": np.flatnonzero(placeholder == REFUSAL),
    }
    return [finding for name, rows in found.items() for finding in table.finding(name, rows, _MESSAGES[name])]


def _short(table: Table, forms: Forms, rows: Indices) -> Indices:
    """Outliers below, by the logarithm of the length: five times shorter than the median, and four deviations."""
    rows = rows[table.answer_lengths[rows] > 0]
    if len(rows) < LEAST:
        return rows[:0]
    lengths = table.answer_lengths[rows]
    median = np.median(lengths)
    if median < _LONG:
        return rows[:0]
    logs = np.log(lengths)
    deviation = max(1.4826 * float(np.median(np.abs(logs - np.log(median)))), 0.25)
    low = (lengths < 0.2 * median) & (logs < np.log(median) - 4 * deviation)
    return rows[low] if low.mean() <= _ODD_OF_PART else rows[:0]


def _cut(table: Table, forms: Forms, open_end: npt.NDArray[np.bool_]) -> list[Indices]:
    """Prose and lists that end within a sentence, where those of their form end properly."""
    found: list[Indices] = []
    for names in ([n for n in forms.names if is_prose(n)], [LIST, NUMBERED]):
        everything = np.arange(table.size)
        mine = forms.rows_of(everything, names) & (table.answer_lengths >= _SENTENCE)
        if mine.sum() < LEAST or open_end[mine].mean() > _ODD:
            continue
        for _, rows in table.parts:  # not where it is usual for one kind of request
            rows = rows[mine[rows]]
            if len(rows) and open_end[rows].mean() <= _ODD_OF_PART:
                found.append(rows[open_end[rows]])
    return found


def _unclosed(forms: Forms) -> Indices:
    """JSON, fences and tags that are never closed."""
    names = [n for n in forms.names if n.startswith("JSON") or FENCE in n or n == TAGS]
    everything = np.arange(len(forms.codes))
    return everything[forms.cut & forms.rows_of(everything, names)]
