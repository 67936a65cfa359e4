"""Loading a run.yaml: what is refused, in which words, and what comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_ft.config.load import differences, load, load_resolved, resolved_json, with_evaluation
from distributed_ft.config.paths import ASSETS
from distributed_ft.config.schema import DataConfig, JsonFieldsTask, LoraMethod, ModelConfig, RunConfig, Source
from distributed_ft.config.tasks import NumericTask
from distributed_ft.errors import CheckpointError, ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
Write = Callable[[str], Path]
Problems = Callable[..., list[str]]

METRICS = (
    "exact_match, normalized_match, token_f1, numeric, regex, json_fields, multiple_choice, classification, bleu, "
    "rouge, perplexity, pass_at_k, instructions, refusal, judge, harness"
)
# What is appended to a good run.yaml of three lines -> the one line that is said about it.
WRONG_KEYS = {
    "method: {rnak: 8}": "run.yaml:4: method.rnak: unknown key; did you mean 'rank'?",
    "metod: {rank: 8}": "run.yaml:4: metod: unknown key; did you mean 'method'?",
    "lr: 1": "run.yaml:4: lr: unknown key; did you mean 'optim.lr'?",
    "optim: {learning_rate: 1}": "run.yaml:4: optim.learning_rate: unknown key; did you mean 'lr'?",
    "max_seq_length: 9": "run.yaml:4: max_seq_length: unknown key; did you mean 'data.seq_len'?",
    "checkpoint: {zzz: 1}": "run.yaml:4: checkpoint.zzz: unknown key; checkpoint has the keys every, keep, async",
    "optim: {lr:1e-4}": "run.yaml:4: optim.lr:1e-4: unknown key; write a space after the colon: lr: 1e-4",
    "optim:\n  lr: 1\n  lr: 2": "run.yaml:6: optim.lr: given twice, first on line 5; remove one of them",
    "method: {type: full, rank: 8}": (
        "run.yaml:4: method.rank: 8 belongs to type 'lora' or 'qlora', not to 'full'; "
        "remove it, or replace the whole section: 'method={type: full}'"
    ),
    "strategy: {dp_shard: 2}": (
        "run.yaml:4: strategy.dp_shard: 2 belongs to type 'fsdp'; add `type: fsdp` to strategy"
    ),
}
WRONG_VALUES = {
    "method: {rank: sixteen}": "run.yaml:4: method.rank: 'sixteen' is not a whole number",
    'method: {rank: "16"}': "run.yaml:4: method.rank: '16' is not a whole number; write it without quotes",
    "method: {rank: 8.0}": "run.yaml:4: method.rank: 8.0 is not a whole number; write 8",
    "method: {rank: true}": "run.yaml:4: method.rank: true is not a whole number",
    "method: {rank: 0}": "run.yaml:4: method.rank: 0 must be greater than 0",
    "method: {dropout: 1}": "run.yaml:4: method.dropout: 1 must be less than 1",
    "method: {target_modules: q_proj}": (
        "run.yaml:4: method.target_modules: 'q_proj' is neither all-linear nor a list of module names, "
        "for example [q_proj, v_proj]"
    ),
    "method: full": (
        "run.yaml:4: method: 'full' is not a section of keys; write `method: {type: …}`, or remove the line"
    ),
    "optim:": "run.yaml:4: optim: is empty; write `optim: {key: value}`, or remove the line",
    "optim: {lr: -1}": "run.yaml:4: optim.lr: -1 must be greater than 0",
    "optim: {lr: .inf}": "run.yaml:4: optim.lr: inf is not a finite number",
    "optim: {lr: 1e999}": "run.yaml:4: optim.lr: inf is not a finite number",
    "optim: {lr: }": "run.yaml:4: optim.lr: null is not a value for it; remove the line to have the default",
    "optim: {lr: fast}": "run.yaml:4: optim.lr: 'fast' is not a number",
    "optim: {betas: [0.9]}": "run.yaml:4: optim.betas: has 1 values, and needs more",
    "optim: {betas: [0.9, 0.9, 0.9]}": "run.yaml:4: optim.betas: has 3 values, and needs 2",
    "optim: {min_lr_ratio: 2}": "run.yaml:4: optim.min_lr_ratio: 2 must be at most 1",
    "optim: {name: adam}": "run.yaml:4: optim.name: 'adam' is not a choice; did you mean 'adamw'? choices: adamw, "
    "adamw_8bit, paged_adamw_8bit, sgd",
    "seed: -1": "run.yaml:4: seed: -1 must be at least 0",
    "seed: 4294967296": "run.yaml:4: seed: 4294967296 must be less than 4294967296",
    "preset: cod": (
        "run.yaml:4: preset: 'cod' is not a choice; did you mean 'code'? choices: style, domain, code, support"
    ),
    "tracking: tensorboard": "run.yaml:4: tracking: 'tensorboard' is not a list; write [tensorboard]",
    "tracking: [tensorbord]": (
        "run.yaml:4: tracking[0]: 'tensorbord' is not a choice; "
        "did you mean 'tensorboard'? choices: tensorboard, wandb, mlflow"
    ),
    "strategy: {type: fspd}": (
        "run.yaml:4: strategy.type: 'fspd' is not a choice; did you mean 'fsdp'? "
        "choices: ddp, fsdp, deepspeed, launcher"
    ),
    "strategy: {type: fsdp2}": (
        "run.yaml:4: strategy.type: 'fsdp2': it is called fsdp here (and is torch's FSDP2); "
        "write strategy: {type: fsdp}"
    ),
    "strategy: {type: deepspeed}": (
        "run.yaml:4: strategy.config: is missing; a JSON file of engine knobs, e.g. configs/deepspeed/zero3.json; "
        "relative to run.yaml."
    ),
    "method: {type: qlora, quantization: fp4}": (
        "run.yaml:4: method.quantization: 'fp4' is not a choice; did you mean 'nf4'? choices: nf4, int8"
    ),
    "evaluation: {tasks: [{name: t, path: test.jsonl, metric: f1}]}": (
        f"run.yaml:4: evaluation.tasks[0].metric: 'f1' is not a choice; choices: {METRICS}"
    ),
    "evaluation: {tasks: [{path: test.jsonl}]}": "run.yaml:4: evaluation.tasks[0].name: is missing",
    "evaluation: {general: [true]}": 'run.yaml:4: evaluation.general[0]: true is not text; write it in quotes: "true"',
    'name2: "\\ud800"': "run.yaml:4: name2: holds half a character (a lone surrogate)",
    "seed: !secret 3": "run.yaml:4: seed: the tag '!secret' means nothing here; write a plain value",
    "seed: &a [*a]": "run.yaml:4: seed[0]: an alias (*name) inside the value that it stands for",
    "? [a]\n: b": "run.yaml:4: the file: a key must be a word, not a list or a mapping",
}
DO_NOT_FIT = {
    "optim: {global_batch_size: 10}": (
        "run.yaml:4: optim.global_batch_size: 10 is not a multiple of micro_batch_size 4; make it 8 or 12"
    ),
    "optim: {global_batch_size: 3}": (
        "run.yaml:4: optim.global_batch_size: 3 is not a multiple of micro_batch_size 4; make it 4"
    ),
    "optim: {warmup_steps: 5, max_steps: 5}": (
        "run.yaml:4: optim.warmup_steps: 5 must be less than max_steps 5, or the peak rate is never reached"
    ),
    "method: {type: qlora, init: pissa}": (
        "run.yaml:4: method.init: 'pissa' takes the adapters' start out of the base, and quantised weights cannot hold "
        "the rest exactly: the saved adapter would answer otherwise than it was trained; write init: default, or type: "
        "lora"
    ),
    "method: {type: lora, lora_plus: 0.5}": "run.yaml:4: method.lora_plus: 0.5 must be at least 1",
    "method: {type: prefix, rank: 8}": (
        "run.yaml:4: method.rank: 8 belongs to type 'lora' or 'qlora', not to 'prefix'; remove it, or replace the "
        "whole section: 'method={type: prefix}'"
    ),
    "method: {type: dora}": (
        "run.yaml:4: method.type: 'dora': it is an option of LoRA here; write method: {type: lora, dora: true}"
    ),
    "strategy: {type: fsdp, dp_shard: 1, dp_replicate: 2}": (
        "run.yaml:4: strategy.dp_shard: 1 shards nothing; write strategy: {type: ddp}, or a dp_shard of 2 or more"
    ),
    "evaluation: {tasks: [{name: general, path: test.jsonl}]}": (
        "run.yaml:4: evaluation.tasks[0].name: 'general' is kept for the general suite; choose another name"
    ),
    "evaluation: {tasks: [{name: a, path: test.jsonl}, {name: a, path: test.jsonl}]}": (
        "run.yaml:4: evaluation.tasks[1].name: 'a' is taken by evaluation.tasks[0].name; choose another name"
    ),
    "evaluation: {general: [test.jsonl, base/../test.jsonl]}": (
        "run.yaml:4: evaluation.general[1]: 'base/../test.jsonl' would be scored as 'test', "
        "as evaluation.general[0] is; rename the file"
    ),
    "evaluation: {general: [gone.jsonl]}": "run.yaml:4: evaluation.general[0]: gone.jsonl: no such file",
    "evaluation: {tasks: [{name: a, path: tset.jsonl}]}": (
        "run.yaml:4: evaluation.tasks[0].path: tset.jsonl: no such file; did you mean test.jsonl?"
    ),
    "evaluation: {tasks: [{name: a, path: test.jsonl, metric: json_fields, schema: no.json}]}": (
        "run.yaml:4: evaluation.tasks[0].schema: no.json: no such file"
    ),
    f"evaluation: {{general: [{'y' * 300}]}}": f"run.yaml:4: evaluation.general[0]: {'y' * 300}: no such file",
    "evaluation: {general: [~nobody-here/x]}": "run.yaml:4: evaluation.general[0]: ~nobody-here/x: no such file",
    "runs_dir: /dev/null": "run.yaml:4: runs_dir: /dev/null: is a file, and must be a directory",
}


@pytest.mark.parametrize(("line", "said"), (WRONG_KEYS | WRONG_VALUES | DO_NOT_FIT).items())
def test_a_wrong_line_is_refused_with_its_place_its_value_and_the_remedy(
    problems: Problems, line: str, said: str
) -> None:
    assert problems(f"MINIMAL\n{line}\n") == [said]


OF_A_METRIC = {
    "tasks: [{name: t, path: test.jsonl, tolerance: 0.1}]": (
        "tasks[0].tolerance: 0.1 belongs to metric 'numeric'; add `metric: numeric` to evaluation.tasks[0]"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: bleu, tolerance: 0.1}]": (
        "tasks[0].tolerance: 0.1 belongs to metric 'numeric', not to 'bleu'; remove it, or correct the metric"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: numeric, tolerence: 0.1}]": (
        "tasks[0].tolerence: unknown key; did you mean 'tolerance'?"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: numeric, tolerance: -1}]": (
        "tasks[0].tolerance: -1 must be at least 0"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: perplexity, max_new_tokens: 8}]": (
        "tasks[0].max_new_tokens: 8 belongs to metric 'exact_match' or 'normalized_match' or 'token_f1', not to "
        "'perplexity'; remove it, or correct the metric"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: regex}]": (
        "tasks[0].pattern: is missing; a regular expression; its first group, or all of it, is taken."
    ),
    "tasks: [{name: t, path: test.jsonl, metric: numerik}]": (
        f"tasks[0].metric: 'numerik' is not a choice; did you mean 'numeric'? choices: {METRICS}"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: }]": f"tasks[0].metric: null is not a choice; choices: {METRICS}",
    "tasks: [test.jsonl]": ("tasks[0]: 'test.jsonl' is not a section of keys; write `- {name: …, path: …, metric: …}`"),
    "tasks: [{name: t, path: test.jsonl, metric: regex, pattern: '('}]": (
        "tasks[0].pattern: '(' is not a regular expression: missing ) at position 1; in YAML, quote it with "
        "single quotes"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: refusal, expected: refuse, patterns: [a, '[']}]": (
        "tasks[0].patterns[1]: '[' is not a regular expression: unterminated character set at position 1; in YAML, "
        "quote it with single quotes"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: refusal, expected: always}]": (
        "tasks[0].expected: 'always' is not a choice; choices: refuse, comply"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: multiple_choice, choices: [a, a]}]": (
        "tasks[0].choices: 'a' is given twice; remove one of them"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: multiple_choice, choices: a}]": (
        "tasks[0].choices: 'a' is not a list; write [a]"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: multiple_choice, choices: [a, b], choices_column: c}]": (
        "tasks[0].choices_column: is not looked into where `choices` are given; remove one of them"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: classification, labels: [a]}]": (
        "tasks[0].labels: has one value, and there is nothing to choose; give two or more"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: classification, labels: []}]": "tasks[0].labels: is empty",
    "tasks: [{name: t, path: test.jsonl, metric: bleu, tokenize: spm}]": (
        "tasks[0].tokenize: 'spm' is not a choice; choices: 13a, intl, char, zh, none"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: pass_at_k}]": (
        "tasks[0].metric: 'pass_at_k' runs what the model wrote, on this machine; allow that by "
        "evaluation.allow_code_execution: true"
    ),
    "allow_code_execution: true, tasks: [{name: t, path: test.jsonl, metric: pass_at_k, k: [1, 10], draws: 5, "
    "temperature: 1}]": "tasks[0].k: pass@10 needs as many draws, and there are 5; write draws: 10",
    "allow_code_execution: true, tasks: [{name: t, path: test.jsonl, metric: pass_at_k, k: [1], draws: 5}]": (
        "tasks[0].temperature: 0 makes all 5 draws the same; write a temperature such as 0.8"
    ),
    "allow_code_execution: true, tasks: [{name: t, path: test.jsonl, metric: pass_at_k, time_limit: 0}]": (
        "tasks[0].time_limit: 0 must be greater than 0"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: judge, url: 'http://x/v1', model: m, rubric: '{question}?'}]": (
        "tasks[0].rubric: shows the judge no answer; write {answer} where it shall stand"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: judge, url: 'http://x/v1', model: m, rubric: '{answer} {key}'}]": (
        "tasks[0].rubric: {key} stands for nothing; there are {question}, {answer} and {reference}"
    ),
    "tasks: [{name: t, path: test.jsonl, metric: judge, url: 'http://x/v1', model: m, rubric: '{answer}', "
    "scale: [5, 1]}]": "tasks[0].scale: 1 is not above 5; write the lowest mark first, as in [1, 10]",
    "tasks: [{name: t, path: test.jsonl, metric: judge, url: x, model: m, rubric: '{answer}'}]": (
        "tasks[0].url: 'x' is not an address; write it like http://localhost:8000/v1"
    ),
    "general: [{name: t, path: test.jsonl, metric: numerik}]": (
        f"general[0].metric: 'numerik' is not a choice; did you mean 'numeric'? choices: {METRICS}"
    ),
    "general: [{name: t, path: gone.jsonl, metric: numeric}]": "general[0].path: gone.jsonl: no such file",
    "general: [{name: t, path: test.jsonl, tolerance: 1}]": (
        "general[0].tolerance: 1 belongs to metric 'numeric'; add `metric: numeric` to evaluation.general[0]"
    ),
    "general: [test.jsonl, {name: test, path: more.jsonl}]": (
        "general[1].name: 'test' would be scored as 'test', as evaluation.general[0] is; choose another name"
    ),
}


@pytest.mark.parametrize(("keys", "said"), OF_A_METRIC.items())
def test_a_key_of_a_task_is_judged_by_its_metric(problems: Problems, keys: str, said: str) -> None:
    assert problems(f"MINIMAL\nevaluation: {{{keys}}}\n") == [f"run.yaml:4: evaluation.{said}"]


DATA = {
    "{train: gone.jsonl}": "data.train: gone.jsonl: no such file",
    "{train: [train.jsonl, {path: gone.jsonl}]}": "data.train[1].path: gone.jsonl: no such file",
    "{train: base}": (
        "data.train: base: a directory without data files (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, "
        ".feather, .ipc); name a data file in it"
    ),
    "{train: data/trian.jsonl}": "data.train: data/trian.jsonl: no such file",
    "{train: base/trian}": "data.train: base/trian: no such file",
    "{train: [{path: more.jsonl, split: dev}]}": (
        "data.train[0].path: more.jsonl: split 'dev' of a single file; name the file of that split, and leave out split"
    ),
    "{train: [{path: more.jsonl, columns: {promt: q}}]}": (
        "data.train[0].columns.promt: 'promt' is not a choice; did you mean 'prompt'? choices: prompt, completion, "
        "system, context, messages, text, id, category"
    ),
    "{train: []}": "data.train: is empty",
    "{train: {path: train.jsonl}}": (
        "data.train: a mapping is neither a path nor a list of paths, for example [train.jsonl, general.jsonl]"
    ),
    "{train: [train.jsonl, 3]}": "data.train[1]: 3 is neither a path nor {path: …, weight: …}",
    "{train: [{path: train.jsonl, weight: 0}]}": "data.train[0].weight: 0 must be greater than 0",
    "{train: [{path: train.jsonl, wieght: 1}]}": "data.train[0].wieght: unknown key; did you mean 'weight'?",
    "{train: [{path: train.jsonl, weight: 1}, more.jsonl]}": (
        "data.train[1]: has no weight, but other files have; give every file one ({path: …, weight: …}), or none"
    ),
    "{train: train.jsonl, validation: 1.5}": "data.validation: 1.5 must be less than 1",
    "{train: train.jsonl, validation: [a]}": (
        "data.validation: a list is neither a path, a fraction such as 0.1, nor {path: …, columns: …}"
    ),
    "{train: train.jsonl, packing: yes}": "data.packing: 'yes' is neither true nor false",
    "{train: train.jsonl, seq_len: 4}": "data.seq_len: 4 must be at least 8",
    "{}": "data.train: is missing; training data: a path, or a list of paths or {path, weight}.",
}


@pytest.mark.parametrize(("data", "said"), DATA.items())
def test_wrong_data_is_refused(problems: Problems, data: str, said: str) -> None:
    assert problems(f"name: x\nmodel: {{base: ./base}}\ndata: {data}\n") == [f"run.yaml:3: {said}"]


CHOICES = {
    "{early_stop: {}, tasks: []}": (
        "evaluation.early_stop: goes by the accuracy on evaluation.tasks, and there are none; name a task, or remove it"
    ),
    "{early_stop: 3}": "evaluation.early_stop: 3 is not a section of keys; write `early_stop: {key: value}`, or remove "
    "the line",
    "{early_stop: {patience: 0}, tasks: [{name: t, path: more.jsonl}]}": (
        "evaluation.early_stop.patience: 0 must be greater than 0"
    ),
    "{early_stop: {patince: 2}, tasks: [{name: t, path: more.jsonl}]}": (
        "evaluation.early_stop.patince: unknown key; did you mean 'patience'?"
    ),
    "{few_shot: auto, tasks: [{name: t, path: more.jsonl}]}": (
        "evaluation.few_shot: auto is a choice, made on validation rows, and task 't' has none (made on the rows that "
        "it is judged by, it would flatter the prompt); give evaluation.tasks[0].validation, or one number"
    ),
    "{few_shot: [4, 2], tasks: [{name: t, path: more.jsonl}]}": (
        "evaluation.few_shot: [2, 4] is a choice, made on validation rows, and task 't' has none (made on the rows "
        "that it is judged by, it would flatter the prompt); give evaluation.tasks[0].validation, or one number"
    ),
    "{adapter_strength: [0.5]}": (
        "evaluation.adapter_strength: weighs accuracy on evaluation.tasks against forgetting, and there are none; name "
        "a task, or remove it"
    ),
    "{adapter_strength: [1.5]}": "evaluation.adapter_strength[0]: 1.5 must be less than 1",
    "{engine: {type: endpoint, url: http://x/v1, model: m, checkpoint_model: mine}}": (
        "evaluation.engine.checkpoint_model: 'mine' is not a name of each checkpoint; write {step} where its number "
        "stands, or {name} for step-00000500 (and {run} for the name of the run)"
    ),
    "{few_shot: []}": "evaluation.few_shot: is empty; write a number of examples, auto, or [2, 4, 8]",
    "{few_shot: [0, 2]}": "evaluation.few_shot[0]: 0 must be greater than 0",
    "{few_shot: all}": "evaluation.few_shot: 'all' is not a choice; choices: auto",
    "{few_shot: 2.5}": (
        "evaluation.few_shot: 2.5 is neither a number of examples, auto, nor a list of numbers such as [2, 4, 8]"
    ),
    "{tasks: [{name: t, path: more.jsonl, validation: 1.5}]}": (
        "evaluation.tasks[0].validation: 1.5 must be less than 1"
    ),
    "{tasks: [{name: t, path: more.jsonl, validation: mroe.jsonl}]}": (
        "evaluation.tasks[0].validation: mroe.jsonl: no such file; did you mean more.jsonl?"
    ),
    "{tasks: [{name: t, path: more.jsonl, validation: {path: mroe.jsonl}}]}": (
        "evaluation.tasks[0].validation.path: mroe.jsonl: no such file; did you mean more.jsonl?"
    ),
    "{tasks: [{name: t, path: more.jsonl, validation: [more.jsonl]}]}": (
        "evaluation.tasks[0].validation: a list is neither a path, a fraction such as 0.3, nor {path: …, columns: …}"
    ),
}


@pytest.mark.parametrize(("evaluation", "said"), CHOICES.items())
def test_choices_without_what_they_are_made_by_are_refused(problems: Problems, evaluation: str, said: str) -> None:
    text = f"name: x\nmodel: {{base: ./base}}\ndata: {{train: train.jsonl}}\nevaluation: {evaluation}\n"
    assert problems(text) == [f"run.yaml:4: {said}"]


@pytest.mark.parametrize(
    ("method", "what"), [("{type: full}", "method.type: full"), ("{type: lora, dora: true}", "method.dora: true")]
)
def test_the_strength_of_what_is_no_plain_lora_is_refused(problems: Problems, method: str, what: str) -> None:
    head = f"name: x\nmodel: {{base: ./base}}\nmethod: {method}\ndata: {{train: train.jsonl}}\n"
    text = f"{head}evaluation: {{adapter_strength: [0.5], tasks: [{{name: t, path: more.jsonl}}]}}\n"
    assert problems(text) == [
        f"run.yaml:5: evaluation.adapter_strength: cannot be used with {what}: only LoRA's difference to the base can "
        "be scaled (lora and qlora, without dora); remove it"
    ]


def test_validation_rows_are_read_like_the_task_and_found_beside_run_yaml(run_yaml: Write, folder: Path) -> None:
    task = "{name: t, path: more.jsonl, columns: {prompt: q, completion: a}, validation: train.jsonl}"
    config = load(
        run_yaml(f"name: x\nmodel: {{base: a/b}}\ndata: {{train: train.jsonl}}\nevaluation: {{tasks: [{task}]}}")
    )
    (found,) = config.config.evaluation.tasks
    assert found.on_validation is not None
    assert found.on_validation.path == str(folder / "train.jsonl")
    assert found.on_validation.columns == {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(("few_shot", "shots"), [("4", (4,)), ("0", (0,)), ("[4]", (4,)), ("[8, 2, 2]", (2, 8))])
def test_numbers_of_examples_are_tried_in_order(run_yaml: Write, few_shot: str, shots: tuple[int, ...]) -> None:
    task = "{name: t, path: more.jsonl, validation: 0.5}"
    head = "name: x\nmodel: {base: a/b}\ndata: {train: train.jsonl}\n"
    text = f"{head}evaluation: {{few_shot: {few_shot}, tasks: [{task}]}}"
    assert load(run_yaml(text)).config.evaluation.shots == shots


BASES = {
    "./gone": "gone: no such directory",
    "./bsae": "bsae: no such directory; did you mean base?",
    "./train.jsonl": "train.jsonl: is a file; give the directory it is in",
    "a/b/c": "a/b/c: no such directory",
    "./empty": (
        "empty: lacks config.json and tokenizer files (tokenizer.json) and weights (*.safetensors); "
        "save a model there with save_pretrained"
    ),
    "adapter": (
        "adapter: lacks config.json and tokenizer files (tokenizer.json); it holds an adapter; give the base model"
    ),
}


@pytest.mark.parametrize(("base", "said"), BASES.items())
def test_a_base_that_looks_like_a_path_must_be_a_model_directory(
    folder: Path, problems: Problems, base: str, said: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_text("")
    text = f"name: x\ndata: {{train: train.jsonl}}\nmodel: {{base: {base}}}\n"
    assert problems(text) == [f"run.yaml:3: model.base: {said}"]


def test_a_base_that_is_no_path_stays_a_hub_id(run_yaml: Write) -> None:
    path = run_yaml("name: x\nmodel: {base: meta-llama/Llama-3.1-8B}\ndata: {train: train.jsonl}")
    assert load(path).config.model.base == "meta-llama/Llama-3.1-8B"


def test_a_misspelt_directory_is_not_looked_for_on_the_hub(problems: Problems) -> None:
    text = "name: x\nmodel: {base: bsae}\ndata: {train: train.jsonl}\n"
    assert problems(text) == ["run.yaml:2: model.base: bsae: no such directory; did you mean base?"]


FILES = {
    b"": "is empty; `name`, `model.base` and `data.train` are required",
    b"# only a comment\n": "is empty; `name`, `model.base` and `data.train` are required",
    b"\n- a\n": "2: holds a list, not `key: value` lines; start with `name: my-run`",
    b"hello": "1: holds a single value, not `key: value` lines; start with `name: my-run`",
    b"name: x\nmodel: {base: [}\n": "not valid YAML",
    b"name: x\nmodel:\n\tbase: y\n": "indent with spaces, not tabs",
    b"name: a: b\n": "1: not valid YAML: mapping values are not allowed here",
    b"name: x\nmodel: \xff\xfe\n": "2: not UTF-8: byte 0xff; save the file as UTF-8 text",
    b"name: x\x01\n": "not valid YAML: unacceptable character #x0001",
    b"a: 1\n---\nb: 2\n": "expected a single document",
}


@pytest.mark.parametrize(("raw", "said"), FILES.items())
def test_a_file_that_is_no_mapping_gets_one_message(folder: Path, raw: bytes, said: str) -> None:
    (folder / "run.yaml").write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(folder / "run.yaml")
    message = str(caught.value)
    assert message.startswith(f"{folder / 'run.yaml'}:")
    assert said in message
    assert len(message.splitlines()) == 1


def test_a_file_or_directory_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load(folder / "none.yaml")
    with pytest.raises(ConfigError, match=r"is a directory; give the run\.yaml in it"):
        load(folder)


def test_every_problem_is_said_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = """\
model: {base: ./gone, dtype: fp64}
method: {rnak: 8, rank: 0}
data: {train: [gone.jsonl, {path: train.jsonl, weight: x}]}
optim: {global_batch_size: 10}
evaluation:
  tasks: [{name: general, metric: f1}]
"""
    assert problems(text, "nonsense", "optim.lr=-1") == [
        "'nonsense': an override is key=value, for example optim.lr=1e-4",
        "run.yaml: name: is missing; the run directory is runs_dir/name.",
        "optim.lr: -1 must be greater than 0",
        "run.yaml:1: model.dtype: 'fp64' is not a choice; choices: bf16, fp32",
        "run.yaml:1: model.base: gone: no such directory",
        "run.yaml:2: method.rank: 0 must be greater than 0",
        "run.yaml:2: method.rnak: unknown key; did you mean 'rank'?",
        "run.yaml:3: data.train[1].weight: 'x' is not a number",
        "run.yaml:3: data.train[0]: gone.jsonl: no such file",
        "run.yaml:4: optim.global_batch_size: 10 is not a multiple of micro_batch_size 4; make it 8 or 12",
        f"run.yaml:6: evaluation.tasks[0].metric: 'f1' is not a choice; choices: {METRICS}",
        "run.yaml:6: evaluation.tasks[0].name: 'general' is kept for the general suite; choose another name",
    ]


def test_a_name_too_long_for_a_directory_is_refused(problems: Problems) -> None:
    assert problems("MINIMAL\n", f"name={'y' * 201}") == [
        "name: has 201 characters, and at most 200 make a directory name"
    ]


def test_nothing_is_said_about_a_default_that_stands_for_a_wrong_value(problems: Problems) -> None:
    # 16, the default of global_batch_size, is no multiple of 5 either; but it is not what the user wrote.
    assert problems("MINIMAL\noptim: {global_batch_size: x, micro_batch_size: 5}\n") == [
        "run.yaml:4: optim.global_batch_size: 'x' is not a whole number"
    ]


# --- what comes out ------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_file_and_runs_dir_to_the_working_directory(
    folder: Path, run_yaml: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """\
name: x
model: {base: base}
data: {train: [train.jsonl, {path: ./more.jsonl}], validation: test.jsonl}
evaluation:
  tasks: [{name: t, path: test.jsonl, metric: json_fields, schema: answer.schema.json}]
  general: [shipped, more.jsonl, {name: maths, path: more.jsonl, metric: numeric}]
"""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded = load(run_yaml(text))
    config = loaded.config
    assert loaded.text == text
    assert config.model.base == str(folder / "base")
    assert config.data.train == (str(folder / "train.jsonl"), Source(path=str(folder / "more.jsonl")))
    assert config.data.validation == str(folder / "test.jsonl")
    assert config.evaluation.tasks[0].path == str(folder / "test.jsonl")
    task = config.evaluation.tasks[0]
    assert isinstance(task, JsonFieldsTask)
    assert task.json_schema == str(folder / "answer.schema.json")
    *paths, suite = config.evaluation.general
    assert paths == ["shipped", str(folder / "more.jsonl")]
    assert suite == NumericTask(name="maths", path=str(folder / "more.jsonl"), metric="numeric")
    assert config.runs_dir == str(elsewhere / "runs")


def test_shipped_names_the_embedded_files(run_yaml: Write) -> None:
    config = load(run_yaml("name: x\nmodel: {base: ./base}\ndata: {train: shipped:tickets/train.jsonl}")).config
    assert config.data.train == str(ASSETS / "tickets" / "train.jsonl")


def test_a_section_with_keys_and_no_type_has_the_default_type(run_yaml: Write) -> None:
    assert load(run_yaml("MINIMAL\nmethod: {rank: 8}\n")).config.method == LoraMethod(rank=8)


def test_an_alias_is_the_value_it_stands_for(run_yaml: Write) -> None:
    config = load(run_yaml("MINIMAL\nseed: &n 7\ncheckpoint: {every: *n}\n")).config
    assert (config.seed, config.checkpoint.every) == (7, 7)


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - {CONFIGS / "cluster.yaml"}), ids=lambda p: p.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load(path).config.name


def test_the_resolved_config_is_read_back_as_it_was(folder: Path, run_yaml: Write) -> None:
    config = load(run_yaml("MINIMAL\noptim: {max_grad_norm: null, betas: [0.8, 0.9]}\n")).config
    text = resolved_json(config)
    (folder / "config.json").write_text(text)
    assert '"max_steps": null' in text
    assert load_resolved(folder / "config.json") == config


@pytest.mark.parametrize("content", ["", "[]", '{"name": "x"}', "{half"])
def test_a_damaged_config_json_is_a_checkpoint_error_that_names_it(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: not the config of a run"):
        load_resolved(folder / "config.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_resolved(folder / "gone.json")


def _config(**keys: object) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "model": ModelConfig(base="b"), "data": DataConfig(train="t"), **keys}
    )


def test_two_configs_differ_in_the_fields_that_are_named() -> None:
    a = _config(optim={"lr": 1e-4})
    b = _config(optim={"lr": 2e-4, "max_steps": 5}, strategy={"type": "fsdp"})
    assert differences(a, b) == [
        'strategy.type: "ddp" in the run directory, "fsdp" now',
        "optim.lr: 0.0001 in the run directory, 0.0002 now",
        "optim.max_steps: null in the run directory, 5 now",
        "strategy.dp_shard: nothing in the run directory, null now",
        "strategy.dp_replicate: nothing in the run directory, 1 now",
        "strategy.cpu_offload: nothing in the run directory, false now",
        "strategy.reshard_after_forward: nothing in the run directory, true now",
    ]


def test_how_a_run_is_judged_does_not_make_it_another() -> None:
    judged = {
        "few_shot": 0,
        "general": (),
        "select": {"forgetting_budget": 0.2},
        "tasks": ({"name": "t", "path": "t"},),
    }
    assert differences(_config(), _config(evaluation=judged)) == []
    assert differences(_config(), _config(evaluation={"validation_every": 5})) == [
        "evaluation.validation_every: null in the run directory, 5 now"
    ]


def test_a_run_directory_may_be_judged_by_other_settings(
    folder: Path, run_yaml: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(run_yaml("MINIMAL\n")).config
    path = folder / "config.json"
    path.write_text(resolved_json(config))
    (folder / "train.jsonl").unlink()  # of no concern here
    monkeypatch.chdir(folder)
    (folder / "mine.jsonl").write_text("{}\n")
    changed = with_evaluation(path, ["evaluation.general=[shipped, mine.jsonl]", "evaluation.few_shot=2"])
    assert changed.evaluation.general == ("shipped", str(folder / "mine.jsonl"))
    assert changed.evaluation.few_shot == 2
    assert changed.model_copy(update={"evaluation": config.evaluation}) == config
    assert RunConfig.model_validate_json(resolved_json(changed)) == changed


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim.lr=1e-3", r"^optim\.lr: belongs to the training"),
        ("evaluation.validation_every=5", "belongs to the training"),
        ("evaluation={few_shot: 2}", "belongs to the training"),
        ("evaluation.few_shots=2", r"^evaluation\.few_shots: unknown key; did you mean 'few_shot'\?"),
        ("evaluation.few_shot=-1", r"^evaluation\.few_shot: -1 must be"),
        ("evaluation.general=[gone.jsonl]", r"^evaluation\.general\[0\]: .*gone\.jsonl: no such file"),
        ("few_shot", "an override is key=value"),
    ],
)
def test_a_wrong_setting_of_the_evaluation_is_refused(folder: Path, run_yaml: Write, setting: str, says: str) -> None:
    path = folder / "config.json"
    path.write_text(resolved_json(load(run_yaml("MINIMAL\n")).config))
    with pytest.raises(ConfigError, match=says):
        with_evaluation(path, [setting])


def test_a_run_directory_may_move() -> None:
    assert differences(_config(runs_dir="/a"), _config(runs_dir="/b")) == []
    assert differences(_config(), _config()) == []
