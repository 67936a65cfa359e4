"""The GPUs that are planned for: what they hold, do and cost, as data (`assets/gpus.yaml`)."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from distributed_ft.config.document import read
from distributed_ft.errors import ConfigError

TABLE = Path(__file__).parents[1] / "assets" / "gpus.yaml"
GIB = 2**30
# What no tensor shows, GiB: the driver's context with torch's kernels, and the workspaces of matrix products; the
# channels of the collectives; and the share of the tensors' bytes that the allocator keeps in pieces of the wrong size.
CONTEXT, CHANNELS, IN_PIECES = 0.8, 0.6, 0.04


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Gpu:
    """One kind of GPU; for the units see the table."""

    name: str
    memory: float = Field(gt=0)
    bf16: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    link: float = Field(gt=0)
    network: float = Field(gt=0)
    host: float = Field(gt=0)
    achieved: float = Field(gt=0, le=1)
    price: float = Field(ge=0)


@dataclass(frozen=True)
class Cluster:
    """`nodes` x `per_node` GPUs of one kind."""

    kind: str
    gpu: Gpu
    per_node: int
    nodes: int

    @property
    def size(self) -> int:
        """All of them, and so all ranks."""
        return self.per_node * self.nodes

    def usable(self, num_bytes: int) -> float:
        """GiB that `num_bytes` of tensors take of a GPU's memory."""
        return num_bytes / GIB * (1 + IN_PIECES) + CONTEXT + (CHANNELS if self.size > 1 else 0)


def table(prices: Path | None = None) -> tuple[dict[str, Gpu], str]:
    """The known GPUs, and of when their prices are. `prices`: a file of the user's own, `h100: 2.1` in a line.

    Raises ConfigError for a file that is not such.
    """
    shipped = read(TABLE)[1].value
    gpus = TypeAdapter(dict[str, Gpu]).validate_python(shipped["gpus"])
    if prices is None:
        return gpus, str(shipped["prices_of"])
    own = read(prices)[1].value
    try:
        given = TypeAdapter(dict[str, float]).validate_python(own)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise ConfigError(f"{prices}: {where or 'the file'}: not a price; write lines such as `h100: 2.1`") from None
    for kind, price in given.items():
        if price < 0:
            raise ConfigError(f"{prices}: {kind}: {price} is no price; write USD for a GPU and hour")
        kind = _known(kind, gpus, str(prices))
        gpus[kind] = replace(gpus[kind], price=price)
    return gpus, f"{prices}; of others {shipped['prices_of']}"


def cluster(text: str, nodes: int, gpus: dict[str, Gpu]) -> Cluster:
    """`h100:8` on so many nodes. Raises ConfigError for a GPU that is not known, or a number that is none."""
    kind, colon, number = text.lower().partition(":")
    if colon and (not number.isdecimal() or int(number) < 1):
        raise ConfigError(f"--gpu: {text!r}: the number of GPUs of a node goes after the colon, for example h100:8")
    return Cluster(kind, gpus[_known(kind, gpus, "--gpu")], int(number or 1), nodes)


def _known(kind: str, gpus: dict[str, Gpu], where: str) -> str:
    if kind in gpus:
        return kind
    close = get_close_matches(kind, gpus, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? known are" if close else "known are"
    raise ConfigError(f"{where}: {kind!r}: {hint} {', '.join(gpus)}")
