"""What the file of `accelerate launch` says, as it reaches a process: environment variables. Torch-free, pure.

accelerate turns its file into variables that its own `Accelerator` reads. We are not built on it, so here they become
claims about keys of run.yaml: where both speak they must agree, and `strategy: {type: launcher}` takes the launcher's
word. torchrun, srun and our own launcher say nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_ft.config.schema import (
    DdpStrategy,
    DeepspeedStrategy,
    FsdpStrategy,
    LauncherStrategy,
    RunConfig,
    SettledStrategy,
)
from distributed_ft.errors import ConfigError

_FLAGS = {"true": True, "1": True, "false": False, "0": False}
# Variable -> name in accelerate's file, values that ask for nothing, and what to do about any other.
_REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", ("no", "bf16"), "write bf16 or no"),
    "ACCELERATE_USE_MEGATRON_LM": ("use_megatron_lm", ("false",), "use MULTI_GPU, FSDP or DEEPSPEED"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", ("no",), "remove dynamo_config"),
    "FSDP_VERSION": ("fsdp_version", ("2",), "this is FSDP2: write fsdp_version: 2 (`accelerate to-fsdp2` converts)"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("fsdp_activation_checkpointing_offload", ("false",), "remove it"),
    "PARALLELISM_CONFIG_TP_SIZE": ("parallelism_config_tp_size", ("1",), "write 1"),
    "PARALLELISM_CONFIG_CP_SIZE": ("parallelism_config_cp_size", ("1",), "write 1"),
    "PARALLELISM_CONFIG_SP_SIZE": ("parallelism_config_sp_size", ("1",), "write 1"),
}
# Beside a DeepSpeed JSON accelerate's file can say these too: variable -> its name there, and the place in the JSON.
_IN_JSON: dict[str, tuple[str, tuple[str, ...]]] = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("zero_stage", ("zero_optimization", "stage")),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (
        "offload_optimizer_device",
        ("zero_optimization", "offload_optimizer", "device"),
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": (
        "offload_param_device",
        ("zero_optimization", "offload_param", "device"),
    ),
}


@dataclass(frozen=True)
class Claim:
    """One thing that accelerate's file says: that `key` of run.yaml is `value`; it stands there as `name`."""

    key: str
    value: Any
    name: str
    variable: str

    def against(self, ours: str) -> str:
        """The contradiction in words, both places named."""
        remedy = "make them agree, or write strategy: {type: launcher}" if self.about_strategy else "make them agree"
        theirs = f"{json.dumps(self.value)} in accelerate's file ({self.name}; {self.variable})"
        return f"{self.key}: {ours} in run.yaml, but {theirs}; {remedy}"

    @property
    def about_strategy(self) -> bool:
        """Whether `strategy: {type: launcher}` would leave it to the launcher."""
        return not self.key.startswith(("model.", "optim."))


@dataclass(frozen=True)
class Launched:
    """What the launcher says. strategy: what it chose; claims: about single keys, of the strategy and beside it."""

    strategy: SettledStrategy
    claims: tuple[Claim, ...]


def launched(environ: Mapping[str, str]) -> Launched | None:
    """The launcher's word, or None from one that says nothing of the strategy (torchrun, srun, ours, no launcher).

    Raises:
        ConfigError: it asks for what is not supported, or started one process where several were asked for.
    """
    if "ACCELERATE_MIXED_PRECISION" not in environ or "DFT_RENDEZVOUS" in environ:
        return None
    if "RANK" not in environ:
        if "MASTER_ADDR" in environ:
            raise ConfigError(
                "several processes were asked for, but accelerate started one: with --cpu, use_cpu or "
                "distributed_type: MULTI_CPU it leaves the others to MPI; use a file with distributed_type: MULTI_GPU "
                "or FSDP, which start them on CPUs too (configs/accelerate/)"
            )
        return None  # one process, and no word about how several would share
    refused = [*_refused(environ)]
    if refused:
        raise ConfigError("\n".join(refused))
    if _flag(environ, "ACCELERATE_USE_DEEPSPEED"):
        return _deepspeed(environ)
    if _flag(environ, "ACCELERATE_USE_FSDP"):
        return _fsdp(environ)
    claims = (Claim("strategy.type", "ddp", "distributed_type", "ACCELERATE_USE_FSDP and …_DEEPSPEED are not set"),)
    return Launched(DdpStrategy(), (*claims, *_training(environ)))


def settled(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """The config that this process trains by: with the launcher's strategy where it says `launcher`.

    Raises:
        ConfigError: the launcher says otherwise than run.yaml (both are named), or nothing where it should.
    """
    said = launched(environ)
    if said is None:
        if isinstance(config.strategy, LauncherStrategy):
            if "ACCELERATE_MIXED_PRECISION" in environ and "DFT_RENDEZVOUS" not in environ:
                raise ConfigError(
                    "strategy.type: launcher: accelerate started one process and names no strategy; give it a file "
                    "with distributed_type: MULTI_GPU, FSDP or DEEPSPEED (configs/accelerate/)"
                )
            raise ConfigError(
                "strategy.type: launcher: takes what the file of `accelerate launch` says, and this process was not "
                "started by it; start it so, or write strategy: {type: fsdp} (or ddp, deepspeed)"
            )
        return config
    if isinstance(config.strategy, LauncherStrategy):
        config = config.model_copy(update={"strategy": said.strategy})
    problems = [*_contradictions(config, said, int(environ.get("WORLD_SIZE", "1")))]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


# --- what it says --------------------------------------------------------------------------------------------------


def _refused(environ: Mapping[str, str]) -> Iterator[str]:
    for variable, (name, harmless, remedy) in _REFUSED.items():
        value = environ.get(variable)
        of_fsdp = variable.startswith("FSDP_") and not _flag(environ, "ACCELERATE_USE_FSDP")
        if value is not None and value.lower() not in harmless and not of_fsdp:
            yield f"{name}: {value} in accelerate's file ({variable}) is not supported here; {remedy}"


def _training(environ: Mapping[str, str]) -> Iterator[Claim]:
    """What it says beside the strategy. `no` and `false` are what it says where the file says nothing."""
    if environ["ACCELERATE_MIXED_PRECISION"] == "bf16":
        yield Claim("model.dtype", "bf16", "mixed_precision", "ACCELERATE_MIXED_PRECISION")
    if _flag(environ, "ACCELERATE_USE_FSDP") and _flag(environ, "FSDP_ACTIVATION_CHECKPOINTING"):
        name, variable = "fsdp_activation_checkpointing", "FSDP_ACTIVATION_CHECKPOINTING"
        yield Claim("model.gradient_checkpointing", "full", name, variable)
    if _flag(environ, "ACCELERATE_USE_DEEPSPEED"):
        accumulation, clipping = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING"
        if accumulation in environ:
            steps = _number(environ, accumulation, "gradient_accumulation_steps")
            yield Claim("optim.global_batch_size", steps, "gradient_accumulation_steps", accumulation)
        if clipping in environ:
            norm = _number(environ, clipping, "gradient_clipping")
            yield Claim("optim.max_grad_norm", norm, "gradient_clipping", clipping)


def _fsdp(environ: Mapping[str, str]) -> Launched:
    claims = [
        Claim("strategy.type", "fsdp", "distributed_type: FSDP", "ACCELERATE_USE_FSDP"),
        Claim(
            "strategy.reshard_after_forward",
            _flag(environ, "FSDP_RESHARD_AFTER_FORWARD", default=True),
            "fsdp_reshard_after_forward",
            "FSDP_RESHARD_AFTER_FORWARD",
        ),
        Claim(
            "strategy.cpu_offload",
            _flag(environ, "FSDP_OFFLOAD_PARAMS"),
            "fsdp_offload_params",
            "FSDP_OFFLOAD_PARAMS",
        ),
    ]
    if _flag(environ, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        for key in ("dp_replicate", "dp_shard"):
            name = f"parallelism_config_{key}_size"
            claims.append(Claim(f"strategy.{key}", _number(environ, name.upper(), name), name, name.upper()))
    chosen = {claim.key.removeprefix("strategy."): claim.value for claim in claims}
    return Launched(FsdpStrategy.model_validate(chosen), (*claims, *_training(environ)))


def _deepspeed(environ: Mapping[str, str]) -> Launched:
    claims = [Claim("strategy.type", "deepspeed", "distributed_type: DEEPSPEED", "ACCELERATE_USE_DEEPSPEED")]
    for variable, (name, place) in _IN_JSON.items():
        if variable in environ:
            value = environ[variable]
            claims.append(Claim(".".join(place), int(value) if value.isdecimal() else value, name, variable))
    file = environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if file:
        file = str(Path(file).absolute())
        claims.append(Claim("strategy.config", file, "deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE"))
    # Without a file the strategy is not whole; `_contradictions` says so where run.yaml leaves the choice to it.
    return Launched(DeepspeedStrategy.model_construct(type="deepspeed", config=file), (*claims, *_training(environ)))


def _flag(environ: Mapping[str, str], variable: str, default: bool = False) -> bool:
    text = environ.get(variable, str(default)).lower()
    if text not in _FLAGS:
        raise ConfigError(f"{variable}: {text!r} is neither true nor false; it comes from accelerate's file")
    return _FLAGS[text]


def _number(environ: Mapping[str, str], variable: str, name: str) -> float:
    try:
        number = float(environ[variable])
    except (KeyError, ValueError):
        value = environ.get(variable)
        raise ConfigError(f"{name}: {value!r} is not a number; it comes from accelerate's file ({variable})") from None
    return int(number) if number.is_integer() else number


# --- whether it agrees ---------------------------------------------------------------------------------------------


def _contradictions(config: RunConfig, said: Launched, world_size: int) -> Iterator[str]:
    strategy = config.strategy
    if strategy.type != said.strategy.type:  # then their other keys say nothing of one another
        yield said.claims[0].against(json.dumps(strategy.type))
    elif isinstance(strategy, DeepspeedStrategy) and not strategy.config:
        yield (
            "strategy.type: launcher: accelerate's file names no deepspeed_config_file; name one there, for example "
            "configs/deepspeed/zero2.json"
        )
        return
    for claim in said.claims[1:]:
        if claim.about_strategy and strategy.type != said.strategy.type:
            continue
        if claim.about_strategy and isinstance(strategy, DeepspeedStrategy):
            yield from _against_json(strategy.config, claim)
            continue
        ours = _ours(config, claim.key, world_size)
        if ours != claim.value:
            shown = json.dumps(ours)
            if claim.key == "optim.global_batch_size":
                whole, micro = config.optim.global_batch_size, config.optim.micro_batch_size
                shown = f"{whole} on {world_size} × micro_batch_size {micro}, which makes {ours} passes,"
            yield claim.against(shown)


def _ours(config: RunConfig, key: str, world_size: int) -> Any:
    """What run.yaml says of a key, as accelerate counts it."""
    optim, strategy = config.optim, config.strategy
    if key == "optim.global_batch_size":  # accelerate knows forward passes a step
        return -(-optim.global_batch_size // (optim.micro_batch_size * world_size))
    if key == "strategy.dp_shard" and isinstance(strategy, FsdpStrategy) and strategy.dp_shard is None:
        return world_size // strategy.dp_replicate
    section, field = key.split(".")
    return config.model_dump(mode="json")[section][field]


def _against_json(path: str, claim: Claim) -> Iterator[str]:
    """A claim about DeepSpeed's engine against the JSON that run.yaml names. Another file may say the same."""
    ours = _read(path)
    if claim.key == "strategy.config":
        theirs = _read(claim.value)
        different = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
        if different:
            yield claim.against(f"{json.dumps(path)} (which says otherwise of {', '.join(different)})")
        return
    value: Any = ours
    for step in claim.key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if (value or "none") != (claim.value or "none"):
        yield claim.against(f"{json.dumps(value)} in {path}, which is strategy.config")


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"strategy.config: {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"strategy.config: {path}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"strategy.config: {path}: must be an object, {{…}}")
    return found
