"""Talking to the result of a run on the terminal, or through a pipe."""

import sys
from pathlib import Path

from distributed_ft.artifacts import Checkpoint, RunDirectory
from distributed_ft.config.load import load_resolved
from distributed_ft.data.examples import Message
from distributed_ft.errors import CheckpointError, ConfigError, EvaluationError
from distributed_ft.evaluation.checkpoints import at_step
from distributed_ft.evaluation.engines import TransformersEngine, engine_of
from distributed_ft.evaluation.task import Generate
from distributed_ft.model.load import quiet_libraries

MAX_NEW_TOKENS = 512


def chat(run_dir: Path, checkpoint: str = "best") -> None:
    """Answer each line of stdin on stdout until it ends; `/reset` forgets the conversation, `/adapters` lists what may
    answer, `/use NAME` lets another one answer, `/quit` or Ctrl-C leaves.

    Args:
        run_dir: a run directory.
        checkpoint: `best`, `latest`, `base`, or a step such as `500`.

    Raises:
        ConfigError: no such way to name a checkpoint, or the base cannot be read.
        CheckpointError: no such run or checkpoint, or it is damaged.
    """
    run = RunDirectory(run_dir)
    config = load_resolved(run.config)
    chosen = named_checkpoint(run, checkpoint)
    quiet_libraries()
    engine = engine_of(config, batch_size=1)
    engine.use(chosen.model if chosen else None)
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        name = chosen.name if chosen else "the base model"
        print(
            f"{run.name}, {name}. /reset starts over, /adapters lists what may answer, /use NAME changes to it, "
            "/quit leaves.",
            file=sys.stderr,
        )
    try:
        if at_terminal:
            _converse(engine, run, chosen.model if chosen else None)
        elif message := sys.stdin.read().strip():  # a pipe is one message, whatever its lines
            _turn(engine, (Message("user", message),))
    except KeyboardInterrupt:
        print()


def named_checkpoint(run: RunDirectory, name: str) -> Checkpoint | None:
    """The checkpoint that `best`, `latest` or a step means, None for `base`; see `chat` for what it raises."""
    if name == "base":
        return None
    if name == "best":
        best = run.pointer("BEST")
        if best is None:
            raise CheckpointError(
                f"{run.path} has no BEST checkpoint: it is not evaluated yet (dft eval {run.path}), or none kept the "
                "general skills; --checkpoint latest takes the newest"
            )
        return at_step(run, best.step)
    if name == "latest":
        newest = run.newest_complete()
        if newest is None:
            raise CheckpointError(f"{run.path}: no checkpoint yet; --checkpoint base talks to the base model")
        return newest
    if not name.isdecimal():
        raise ConfigError(f"--checkpoint: {name!r} is neither best, latest, base nor a step such as 500")
    return at_step(run, int(name))


def _converse(engine: TransformersEngine, run: RunDirectory, weights: Path | None) -> None:
    conversation: tuple[Message, ...] = ()
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/reset":
            conversation = ()
        elif line == "/adapters":
            print("\n".join(_answerers(run, weights)), flush=True)
        elif line.startswith("/use "):
            weights, conversation = _change(engine, run, line.removeprefix("/use ").strip(), weights), ()
        elif line:
            conversation = _turn(engine, (*conversation, Message("user", line)))


def _answerers(run: RunDirectory, weights: Path | None) -> list[str]:
    """What `/use` takes, a line each; a star marks the one that answers."""
    best = run.pointer("BEST")
    found: dict[str, tuple[Path | None, str]] = {"base": (None, "the base model")}
    for checkpoint in run.complete_checkpoints():
        note = f"{checkpoint.name}{' BEST' if best is not None and best.step == checkpoint.step else ''}"
        found[str(checkpoint.step)] = (checkpoint.model, note)
    lines = [f"{'*' if path == weights else ' '} {name}  {note}" for name, (path, note) in found.items()]
    if weights not in [path for path, _ in found.values()]:
        lines.append(f"* {weights}")
    return [*lines, "  or the directory of an adapter for this base"]


def _change(engine: TransformersEngine, run: RunDirectory, name: str, weights: Path | None) -> Path | None:
    """Let `name` answer; when it cannot, say why and leave `weights` in their place. Returns what answers now."""
    try:
        if Path(name).is_dir():
            wanted: Path | None = Path(name)
        else:
            checkpoint = named_checkpoint(run, name)
            wanted = checkpoint.model if checkpoint else None
        engine.use(wanted)
    except (CheckpointError, ConfigError) as error:
        print(str(error).replace("--checkpoint", "/use"), file=sys.stderr)
        engine.use(weights)
        return weights
    print(f"{wanted or 'the base model'} answers now; the conversation starts over.", file=sys.stderr)
    return wanted


def _turn(engine: TransformersEngine, conversation: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation with the model's answer, which is printed; when it has grown too long, only its last turn."""
    try:
        answer = engine.generate([Generate("this conversation", conversation, MAX_NEW_TOKENS)])[0]
    except EvaluationError as error:
        if len(conversation) == 1:
            raise
        print(f"{error}. Starting over with your last message.", file=sys.stderr)
        return _turn(engine, conversation[-1:])
    print(answer, flush=True)
    return (*conversation, Message("assistant", answer))
