"""What a checkpoint holds, who can load it, and going on from it in another world."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.ranks import run_ranks
from support.tiny import make_config, prepare_run, write_rows, zero
from support.training import StopAfter, open_here

from distributed_ft.artifacts import RunDirectory, read_json_lines, sha256_of
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import CheckpointError, Stopped
from distributed_ft.parallel.world import World
from distributed_ft.train import checkpoint
from distributed_ft.train.fit import fit

PROBE = torch.arange(3, 43)[None]
# What a user does, in a process that knows nothing of us; the arguments are (model, base or "", bits of the base,
# answer) and the probe.
PLAIN = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
probe = torch.load(sys.argv[2])
for model_dir, base, bits, answer in json.loads(sys.argv[1]):
    if base:
        from peft import PeftModel
        quantization = BitsAndBytesConfig(**bits) if bits else None
        base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=quantization)
        for module in base.modules():  # bitsandbytes' own switch: not its bf16 kernel, which rounds more than 1e-5
            if bits:
                module.support_avx512bf16_for_cpu = False
        model = PeftModel.from_pretrained(base, model_dir)
    else:
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        AutoTokenizer.from_pretrained(model_dir).apply_chat_template([{"role": "user", "content": "hi"}])
    torch.save(model.eval()(input_ids=probe).logits.detach(), answer)
assert not any(name.startswith("distributed_ft") for name in sys.modules)
"""
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes wants rows of at least 64 weights on a CPU
BITS: dict[str, dict[str, Any]] = {
    "qlora": {**NF4, "bnb_4bit_compute_dtype": "float32"},
    "qlora, int8": {"load_in_8bit": True},
}
LORA = {"type": "lora", "rank": 4, "alpha": 8}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # architecture, changes, method
    "lora": ("llama", {}, LORA),
    "lora, dora": ("qwen2", {}, {**LORA, "dora": True}),
    "lora, dora, pissa, rslora, lora+, neftune": (
        "llama",
        {},
        {**LORA, "dora": True, "init": "pissa", "rslora": True, "lora_plus": 8.0, "neftune_alpha": 5.0},
    ),
    "qlora": ("llama", WIDE, {**LORA, "type": "qlora"}),
    "qlora, int8": ("llama", WIDE, {**LORA, "type": "qlora", "quantization": "int8"}),
    "prefix": ("llama", {}, {"type": "prefix", "num_virtual_tokens": 4}),
    "prefix, qwen3": ("qwen3", {}, {"type": "prefix", "num_virtual_tokens": 4}),
    "prompt": ("qwen2", {"tie_word_embeddings": True}, {"type": "prompt", "num_virtual_tokens": 4}),
    "adapter": ("llama", {}, {"type": "adapter", "adapter": "houlsby", "reduction_factor": 4}),
    "full": ("qwen3", {"tie_word_embeddings": False}, {"type": "full"}),
    "full, tied, resized": ("qwen2", {"tie_word_embeddings": True, "vocab_size": 277}, {"type": "full"}),
    "lora, resized": ("llama", {"vocab_size": 277}, LORA),
    "full, tied": ("qwen2", {"tie_word_embeddings": True}, {"type": "full"}),
    "full, tied, in many files": ("qwen2", {"tie_word_embeddings": True}, {"type": "full"}),
    "full, over a bf16 base": ("llama", {"dtype": "bfloat16"}, {"type": "full"}),
}
SHARD_BYTES = {"full, tied, in many files": 20_000}


def train_and_probe(
    world: World, configs: dict[str, RunConfig], shard_bytes: dict[str, int]
) -> dict[str, torch.Tensor]:
    """Train each; the logits of the trainer's own model for PROBE."""
    logits = {}
    for case, config in configs.items():
        checkpoint.SHARD_BYTES = shard_bytes[case]
        run = open_here(world, config)
        fit(run)
        run.token_loss.eval()
        with torch.no_grad():  # through TokenLoss, because there FSDP gathers the weights
            seen: list[torch.Tensor] = []
            head = run.token_loss.model.get_output_embeddings()
            hook = head.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.float()))
            run.model(probe_batch())
            hook.remove()
        logits[case] = seen[0]
    return logits


def probe_batch() -> Any:
    from distributed_ft.data.batches import MicroBatch

    length = PROBE.shape[1]
    everywhere = torch.arange(length)
    boundaries = torch.tensor([0, length], dtype=torch.int32)
    return MicroBatch(PROBE, everywhere[None], boundaries, length, everywhere, torch.zeros(length, dtype=torch.int64))


STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "fsdp": {"type": "fsdp"},
    "hybrid": {"type": "fsdp", "dp_replicate": 2},
    **{f"zero{stage}": zero(stage) for stage in (1, 2, 3)},
}
# ranks that train, and worlds that go on from there in turn
MOVES = {"hybrid": (4, 4, 2, 4), **dict.fromkeys(("ddp", "fsdp", "zero1", "zero2", "zero3"), (2, 2, 1, 4))}
IN_CI_OR_MATRIX = [
    pytest.param(name, marks=() if name in ("fsdp", "zero3") else pytest.mark.matrix) for name in STRATEGIES
]
Trained = dict[str, tuple[RunDirectory, RunConfig, torch.Tensor]]


@pytest.fixture(scope="module", params=IN_CI_OR_MATRIX)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bases: Callable[..., Path]
) -> Trained:
    folder = tmp_path_factory.mktemp("checkpoints")
    rows = write_rows(folder / "rows.jsonl", 20)
    configs = {}
    for case, (architecture, changes, method) in CASES.items():
        if case == "qlora, int8" and request.param != "ddp":
            continue  # a cell that does not work
        configs[case] = make_config(
            bases(architecture, **changes),
            rows,
            folder / case,
            method=method,
            strategy=STRATEGIES[request.param],
            optim={"max_steps": 4, "lr": 1e-2, "global_batch_size": 4},
        )
        prepare_run(configs[case], MOVES[request.param][0])
    shard_bytes = {case: SHARD_BYTES.get(case, 2**31) for case in configs}
    logits = run_ranks(MOVES[request.param][0], train_and_probe, configs=configs, shard_bytes=shard_bytes)[0]
    return {case: (RunDirectory(Path(c.runs_dir) / "run"), c, logits[case]) for case, c in configs.items()}


def newest(run: RunDirectory) -> Any:
    found = run.newest_complete()
    assert found is not None
    assert found.step == 4
    return found


def test_model_directories_load_in_plain_transformers_and_peft_with_equal_logits(
    trained: Trained, tmp_path: Path
) -> None:
    torch.save(PROBE, tmp_path / "probe.pt")
    asked = []
    plain = {case: found for case, found in trained.items() if case != "adapter"}
    for case, (run, config, _) in plain.items():
        base = "" if config.method.type == "full" else config.model.base
        asked.append((str(newest(run).model), base, BITS.get(case), str(tmp_path / f"{case}.pt")))
    command = [sys.executable, "-c", PLAIN, json.dumps(asked), str(tmp_path / "probe.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr
    for case, (_, _, expected) in plain.items():
        got = torch.load(tmp_path / f"{case}.pt")[0, -PROBE.shape[1] :]  # prompt tuning answers for its own tokens too
        assert got.dtype == torch.float32, case
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda m, case=case: f"{case}: {m}")


def test_bottleneck_adapters_load_by_one_function_with_equal_logits(trained: Trained) -> None:
    from transformers import AutoModelForCausalLM

    from distributed_ft.model.methods import bottleneck

    run, config, expected = trained["adapter"]
    model = AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32).eval()
    before = model(input_ids=PROBE).logits
    bottleneck.load(model, newest(run).model)
    got = model(input_ids=PROBE).logits[0]
    assert (got - before).abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["lora", "qlora"])
def test_an_adapter_file_holds_exactly_what_peft_would_write_and_nothing_of_the_base(
    trained: Trained, case: str
) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    run, config, _ = trained[case]
    base = AutoModelForCausalLM.from_pretrained(config.model.base)
    expected = get_peft_model_state_dict(
        get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    )
    model = newest(run).model
    with safe_open(model / "adapter_model.safetensors", "pt") as file:
        assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == {  # noqa: SIM118
            key: tuple(value.shape) for key, value in expected.items()
        }
    assert {path.name for path in model.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    written = json.loads((model / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == config.model.base
    assert written["inference_mode"] is True


def test_weights_beyond_the_limit_are_split_into_files_with_an_index(trained: Trained) -> None:
    run, _, _ = trained["full, tied, in many files"]
    model = newest(run).model
    index = json.loads((model / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in model.glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted(set(index["weight_map"].values()))
    keys: dict[str, str] = {}
    size = 0
    for name in files:
        with safe_open(model / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                assert key not in keys
                keys[key] = name
                size += file.get_tensor(key).nbytes
    assert keys == index["weight_map"]
    assert size == index["metadata"]["total_size"]


def test_the_manifest_lists_every_file_with_its_size_and_sha256(trained: Trained) -> None:
    for run, _, _ in trained.values():
        found = newest(run)
        listed = {name: (e.size, e.sha256) for name, e in found.manifest().files.items()}
        there = {
            path.relative_to(found.path).as_posix(): (path.stat().st_size, sha256_of(path))
            for path in found.path.rglob("*")
            if path.is_file() and path.name != "manifest.json"
        }
        assert listed == there
        assert found.manifest().world_size in (2, 4)
        assert run.latest_file.read_text() == f"{found.name}\n"
        assert not list(run.checkpoints.glob(".*"))


def train_until(world: World, configs: dict[str, RunConfig], steps: int) -> None:
    for config in configs.values():
        run = open_here(world, config, StopAfter(steps))
        try:
            fit(run)
        except Stopped:
            assert run.state.step < run.total_steps


@pytest.mark.parametrize("strategy", IN_CI_OR_MATRIX)
def test_a_run_goes_on_in_a_world_of_another_size(tmp_path: Path, bases: Callable[..., Path], strategy: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    configs: dict[str, dict[str, RunConfig]] = {"moved": {}, "stayed": {}}
    for place, made in configs.items():
        for method in ("lora", "full", "qlora"):
            made[method] = make_config(
                bases("llama"),
                rows,
                tmp_path / f"{place} {method}",
                method={"type": method},
                strategy=STRATEGIES[strategy],
                optim={"max_steps": 12, "lr": 2e-3, "global_batch_size": 4, "weight_decay": 0.1},
            )
            prepare_run(made[method], MOVES[strategy][0])
    run_ranks(MOVES[strategy][0], train_until, configs=configs["stayed"], steps=100)
    for world_size in MOVES[strategy]:  # three steps each
        run_ranks(world_size, train_until, configs=configs["moved"], steps=3)
    for method in configs["moved"]:
        lines = [read_json_lines(tmp_path / f"{place} {method}" / "run" / "metrics.jsonl") for place in configs]
        assert [line["step"] for line in lines[0]] == list(range(1, 13)), method
        for moved, stayed in zip(*lines, strict=True):
            for exact in ("samples", "lr", "tokens", "epoch"):
                assert moved[exact] == stayed[exact], method
            for near in ("loss", "grad_norm"):
                assert moved[near] == pytest.approx(stayed[near], rel=1e-4), method
            if moved["step"] <= 6:  # resumed once, in a world of the same size
                assert (moved["loss"], moved["grad_norm"]) == (stayed["loss"], stayed["grad_norm"]), method


def test_a_stopped_run_of_any_method_goes_on_bit_for_bit(tmp_path: Path, bases: Callable[..., Path]) -> None:
    """Noise, dropout and the start of PiSSA included."""
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    chosen = {
        "lora, dora, pissa, rslora, lora+, neftune": "fsdp",
        "qlora, int8": "ddp",
        "prefix": "fsdp",
        "adapter": "ddp",
    }
    configs: dict[str, dict[str, RunConfig]] = {"stopped": {}, "stayed": {}}
    for place, made in configs.items():
        for case, strategy in chosen.items():
            architecture, changes, method = CASES[case]
            made[case] = make_config(
                bases(architecture, **changes),
                rows,
                tmp_path / f"{place} {case}",
                method={**method, "dropout": 0.1} if "rank" in method else method,
                strategy={"type": strategy},
                optim={"max_steps": 6, "lr": 2e-3, "global_batch_size": 4},
            )
            prepare_run(made[case], 2)
    run_ranks(2, train_until, configs=configs["stayed"], steps=100)
    for _ in range(2):
        run_ranks(2, train_until, configs=configs["stopped"], steps=3)
    for case in chosen:
        curves = [
            [{k: v for k, v in line.items() if k != "step_seconds"} for line in read_json_lines(path)]
            for path in (tmp_path / f"{place} {case}" / "run" / "metrics.jsonl" for place in configs)
        ]
        assert len(curves[0]) == 6, case
        assert curves[0] == curves[1], case
        run = RunDirectory(tmp_path / f"stopped {case}" / "run")
        counted = json.loads(run.environment.read_text())["parameters"]
        assert 0 < counted["trainable"] < counted["total"]
        assert counted["share"] == counted["trainable"] / counted["total"]


def test_pissa_without_its_start_is_not_resumed(tmp_path: Path, bases: Callable[..., Path]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    config = make_config(bases("llama"), rows, tmp_path, method={"init": "pissa"}, optim={"max_steps": 4})
    run = prepare_run(config)
    run_ranks(1, train_until, configs={"": config}, steps=2)
    run.adapter_start.unlink()
    with pytest.raises(AssertionError, match=r"CheckpointError: .*adapter_start\.safetensors: missing"):
        run_ranks(1, train_until, configs={"": config}, steps=2)


@pytest.mark.matrix
def test_zero_goes_on_in_another_stage(tmp_path: Path, bases: Callable[..., Path]) -> None:
    """Knobs are not the run's config: they may change between starts."""
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    knobs = tmp_path / "knobs.json"
    made = {}
    for place in ("moved", "stayed"):
        knobs.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
        strategy = {"type": "deepspeed", "config": str(knobs)}
        optim = {"max_steps": 9, "lr": 2e-3, "global_batch_size": 4}
        made[place] = make_config(bases("llama"), rows, tmp_path / place, strategy=strategy, optim=optim)
        prepare_run(made[place], 2)
    run_ranks(2, train_until, configs={"": made["stayed"]}, steps=100)
    for stage in (3, 1, 2):
        knobs.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        run_ranks(2, train_until, configs={"": made["moved"]}, steps=3)
    moved, stayed = (read_json_lines(tmp_path / place / "run" / "metrics.jsonl") for place in ("moved", "stayed"))
    assert [line["loss"] for line in moved] == pytest.approx([line["loss"] for line in stayed], rel=1e-5)


def keep_saving(world: World, config: RunConfig) -> list[str]:
    """Resume at 4 while 6 is damaged, save 5: it must not be 5 that goes."""
    run = open_here(world, config, StopAfter(1))
    assert run.state.step == 4
    with pytest.raises(Stopped):
        fit(run)
    return [c.name for c in run.directory.complete_checkpoints()]


def test_a_damaged_newer_checkpoint_does_not_push_out_a_good_one(tmp_path: Path, bases: Callable[..., Path]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    optim = {"max_steps": 6, "global_batch_size": 4}
    config = make_config(bases("llama"), rows, tmp_path, optim=optim, checkpoint={"every": 2, "keep": 2})
    run = prepare_run(config)
    run_ranks(1, train_until, configs={"": config}, steps=100)
    assert [c.name for c in run.complete_checkpoints()] == ["step-00000004", "step-00000006"]
    (run.checkpoints / "step-00000006" / "manifest.json").unlink()
    config_of_one = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1})})
    assert run_ranks(1, keep_saving, config=config_of_one)[0] == ["step-00000005"]


def test_latest_that_names_nothing_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.latest_file.write_text("step-00000004\n")
    with pytest.raises(CheckpointError, match=r"names 'step-00000004', but .* holds no checkpoint"):
        run.newest_complete()


@pytest.mark.parametrize("seed", [0, 20261122, 2**32 - 1])
def test_any_seed_that_the_schema_takes_can_be_used_and_ranks_and_steps_differ(seed: int) -> None:
    drawn = set()
    for rank in range(3):
        for step in (0, 1, 500):
            checkpoint.seed_rank(seed, step, World(rank, 3, rank, torch.device("cpu")))
            drawn.add(torch.initial_seed())
    assert len(drawn) == 9
