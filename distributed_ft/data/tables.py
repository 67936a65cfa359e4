"""Parquet and Arrow files, and data sets on the hub, as records with the number of each; streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_ft.config.data_files import Kind
from distributed_ft.data.files import Item
from distributed_ft.errors import DataError, brief

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1000  # made into Python values at a time


def table_items(path: Path, kind: Kind) -> Iterator[Item]:
    """The rows of a Parquet or Arrow file, counted from 1. Raises DataError when it cannot be read."""
    import pyarrow

    number = 0
    try:
        for batch in _parquet(path) if kind.format == "parquet" else _arrow(path):
            _refuse_twins(path, batch.schema.names)
            nested = [field.name for field in batch.schema if pyarrow.types.is_nested(field.type)]
            for start in range(0, batch.num_rows, _ROWS):
                for values in batch.slice(start, _ROWS).to_pylist():
                    number += 1
                    values.update({name: without_nulls(values[name]) for name in nested})
                    yield number, values
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        name = kind.format.capitalize()
        raise DataError(
            f"{path}: not a whole {name} file ({brief(error)}), {number} rows could be read; write or download it again"
        ) from None


def _refuse_twins(path: Path, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{path}: the column {twice!r} stands twice; rename one of them")


def _parquet(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(_ROWS)


def _arrow(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    """Of the file format (which Feather is too), or of the stream format (which `datasets` writes)."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)
        else:
            yield from pyarrow.ipc.open_stream(source)


def without_nulls(value: Any) -> Any:
    """What a row said, without the keys that Arrow adds to an object because another row has them."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def hub_items(name: str, split: str | None) -> Iterator[Item]:
    """The rows of a data set on the hub, streamed. Raises DataError without the library, the network or the split."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"{name}: no such file here, and the hub cannot be asked without the library datasets; "
            "check the path, or: pip install 'distributed_ft[hub]'"
        ) from None
    number = 0
    try:
        for values in load_dataset(name, split=split or "train", streaming=True):
            number += 1
            yield number, without_nulls(values)
    except Exception as error:  # of the library, of what it reads with, of the network: there is no common base
        raise DataError(
            f"{name}: no such file here, and as a data set of the hub it cannot be read "
            f"({type(error).__name__}: {brief(error)}); check the path, the split and the network, "
            "or clone the data set and name its folder"
        ) from None


def hub_revision(name: str) -> str:
    """The commit that a data set on the hub stands at now. Raises DataError when the hub does not tell."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # of the library, of the network: there is no common base
        raise DataError(
            f"{name}: no such file here, and the hub does not tell of such a data set "
            f"({type(error).__name__}: {brief(error)}); check the path and the network, or clone it and name its folder"
        ) from None
