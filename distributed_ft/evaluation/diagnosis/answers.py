"""What the answers show: cut off, without an end, learned by heart, in another format. Pure."""

import shlex

from distributed_ft.evaluation.diagnosis.data import copied
from distributed_ft.evaluation.diagnosis.finding import Finding, ramp
from distributed_ft.evaluation.report.evidence import Deviation, Evidence, TaskAnswers
from distributed_ft.evaluation.verdict import percent

MIN_WRONG = 10
"""Fewer wrong answers are no pattern."""
RAN_ON = 0.3
"""From this share of a task's answers on, answers without an end are a fault and no accident."""
MEMORISED, MEMORISED_ITEMS = 0.25, 0.2
"""Of the wrong answers, and of all, so many are an answer of a training row word for word, …"""
COMMON_ANSWERS = 0.05
"""… on a task where at most so many of the right answers are one too: labels are nothing to know by heart."""
DRIFTED = 0.5
"""Of the wrong answers, so many leave the format in the same way, …"""
DRIFTED_ITEMS = 0.2
"""… and that is so many of all the items."""
PLAIN_TEXT = 0.5
"""Share of training rows of plain text from which on a task asked in a chat template is asked in another frame."""


def cut_off(evidence: Evidence) -> Finding | None:
    if not evidence.cut_off:
        return None
    told = "; ".join(f"{task}: {cut}" for task, cut in evidence.cut_off.items())
    names = [task["name"] for task in evidence.config.get("evaluation", {}).get("tasks", [])]
    settings = [
        f"'evaluation.tasks[{names.index(task)}].max_new_tokens={cut.longest + 1}'"  # and the end of the turn
        for task, cut in evidence.cut_off.items()
        if task in names
    ]
    remedy = " ".join(["dft eval", shlex.quote(evidence.path), *settings])
    share = max(cut.references / cut.of for cut in evidence.cut_off.values())
    return Finding(
        "answers_cut_off",
        "problem",
        "Right answers are cut off, and scored 0",
        f"{told}.",
        (remedy,),
        ramp(share, 0, 0.5),
        {"share": share},
    )


def chat_template(evidence: Evidence) -> Finding | None:
    """Answers that do not end, a template that the audit found at fault, or rows that were learned in no template."""
    told: list[str] = []
    figures: dict[str, float] = {}
    confidence = 0.0
    faults = [f for f in _audited(evidence, "template") if not str(f["id"]).endswith(".special_tokens")]
    if faults:
        told.append(f"The data audit: {'; '.join(str(fault['message']) for fault in faults)}")
        figures["audit"] = len(faults)
        confidence = 0.9
    worst = max(evidence.answers, key=lambda a: a.ran_on / max(1, a.n), default=None)
    if worst and worst.ran_on >= max(MIN_WRONG, RAN_ON * worst.n) and worst.ran_on > 2 * worst.base_ran_on:
        share = worst.ran_on / worst.n
        told.append(
            f"Step {worst.step}, {worst.task}: {worst.ran_on} of {worst.n} answers do not end where they should "
            f"(base: {worst.base_ran_on}): they go on behind the right answer, or are far longer than any"
        )
        figures |= {"ran_on": worst.ran_on, "n": worst.n, "base_ran_on": worst.base_ran_on}
        confidence = max(confidence + 0.05 if confidence else 0.0, ramp(share, RAN_ON / 2, 2 * RAN_ON))
    plain = evidence.plain_text_rows
    if plain is not None and plain >= PLAIN_TEXT and _right_share(evidence) < 0.5 and evidence.answers:
        told.append(
            f"{percent(plain)} of the training rows are plain text, learned without the chat template that the tasks "
            "are asked in"
        )
        figures["plain_text"] = plain
        confidence = min(0.99, max(confidence, 0.8) + (0.05 if confidence else 0.0))
    if not told:
        return None
    return Finding(
        "chat_template",
        "problem",
        "Wrong chat template, or an end of turn that was not learned",
        ". ".join(text.removesuffix(".") for text in told) + ".",
        (
            "data.train: rows as conversations (messages, or prompt and completion), so that the base's chat template "
            "frames them, and its end of turn is learned",
            "model.base: a tokenizer whose chat_template closes an assistant turn with a token that generation_config."
            "json stops at; dft data preview shows what is learned",
        ),
        round(confidence, 2),
        figures,
    )


def memorisation(evidence: Evidence) -> Finding | None:
    """Held-out questions answered with what other rows were answered with in training."""
    found = [a for a in evidence.answers if a.training_known and _by_heart(a)]
    if not found:
        return None
    worst = max(found, key=lambda a: (a.step == evidence.judged_step, a.from_training / a.wrong))
    share = worst.from_training / worst.wrong
    repeated = copied(evidence)
    rows = f"; {percent(repeated)} of the training rows are copies of others" if repeated else ""
    drop = "data.train: each row once (dft data prepare removes the copies)"
    return Finding(
        "memorisation",
        "problem" if worst.step == evidence.judged_step else "warning",
        "Training answers were learned by heart",
        f"Step {worst.step}, {worst.task}: {worst.from_training} of {worst.wrong} wrong answers to held-out items are, "
        f"word for word, the answer of a training row; of the right answers {worst.references_in_training} of "
        f"{worst.n} are{rows}.",
        (
            *((drop,) if repeated else ()),
            "optim.epochs: fewer",
            "data.train: more, and more varied, rows",
            *(() if repeated else (drop,)),
        ),
        ramp(share + repeated / 2, MEMORISED, 0.9),
        {"from_training": worst.from_training, "wrong": worst.wrong, "n": worst.n, "copies": repeated,
         "references_in_training": worst.references_in_training},
    )  # fmt: skip


def _by_heart(answers: TaskAnswers) -> bool:
    enough = answers.wrong >= MIN_WRONG and answers.from_training >= MEMORISED * answers.wrong
    material = answers.from_training >= MEMORISED_ITEMS * answers.n
    return enough and material and answers.references_in_training <= COMMON_ANSWERS * answers.n


def format_drift(evidence: Evidence) -> Finding | None:
    """Wrong answers that leave the format of the references, most of them in the same way and at the same place."""
    found = [(a, a.deviation) for a in evidence.answers if a.deviation is not None and _drifted(a, a.deviation)]
    if not found:
        return None
    answers, way = max(found, key=lambda p: (p[0].step == evidence.judged_step, p[1].count / p[0].wrong))
    share = way.count / answers.wrong
    taught = way.in_training is not None and way.in_training >= 0.5
    told = (
        f"Step {answers.step}, {answers.task}: {way.count} of {answers.wrong} wrong answers leave the format of the "
        f"references in the same way, {percent(way.start)} into the answer (character {way.character + 1}): "
        f"“{way.found}” instead of “{way.expected}”"
    )
    if way.same_words:
        told += f"; {way.same_words} of them have every word right"
    if way.in_training is not None:
        told += f". So are {percent(way.in_training)} of the training answers" if taught else (
            ". The training answers are written as the references are"
        )  # fmt: skip
    data = "data.train: answers in the format of the held-out references, from that place on"
    judge = "evaluation.tasks[].metric: json_fields, if only the spelling of a JSON object differs"
    return Finding(
        "format_drift",
        "problem" if answers.step == evidence.judged_step else "warning",
        "The format of the answers drifts",
        f"{told}.",
        (data, judge) if taught else ("optim.epochs: fewer", "optim.lr: lower", data),
        ramp(share + (0.2 if taught else 0.0), DRIFTED - 0.1, 1.0),
        {"deviating": way.count, "wrong": answers.wrong, "n": answers.n, "start": way.start,
         "character": way.character, **({} if way.in_training is None else {"in_training": way.in_training})},
    )  # fmt: skip


def _drifted(answers: TaskAnswers, way: Deviation) -> bool:
    """What was taught this way, or has the right words in the wrong form; and what the base does not do as well."""
    often = way.count >= max(MIN_WRONG, DRIFTED * answers.wrong, DRIFTED_ITEMS * answers.n)
    taught = way.in_training is not None and way.in_training >= 0.5
    return often and 2 * way.in_base < way.count and (taught or way.same_words >= way.count / 2)


def _audited(evidence: Evidence, name: str) -> list[dict[str, object]]:
    """The audit's findings with this id, or one that refines it."""
    found = evidence.data.get("findings")
    rows = [f for f in found if isinstance(f, dict)] if isinstance(found, list) else []
    return [f for f in rows if str(f.get("id")) == name or str(f.get("id", "")).startswith(f"{name}.")]


def _right_share(evidence: Evidence) -> float:
    task = evidence.judged.task if evidence.judged else None
    return task.score if task else 0.0
