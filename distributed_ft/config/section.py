"""What every part of `run.yaml` is made of: a section, and a file of rows. Torch-free."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
DataFormat = Literal["auto", "chat", "sharegpt", "alpaca", "pairs", "text", "columns"]

# What a column of a file may be named for: data.train[].columns
ColumnName = Literal["prompt", "completion", "system", "context", "messages", "text", "id", "category"]


class Section(BaseModel):
    """A part of `run.yaml`: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=False, serialize_by_alias=True
    )


class DataFile(Section):
    """One data file, `datasets` directory or hub id, and how its rows are read."""

    path: str = Field(
        min_length=1,
        description="Rows as JSONL, JSON, CSV, TSV, Parquet, Arrow (each also .gz, .bz2, .xz, .zst), a `datasets` "
        "directory or a hub id; relative to run.yaml, or `shipped:...`.",
    )
    format: DataFormat = Field("auto", description="What a row looks like; auto: told by its columns.")
    columns: dict[ColumnName, str] = Field(
        {},
        description="Names of columns in the file: {prompt: question, completion: answer}; also system, context, "
        "messages, text, id, category.",
    )
    split: str | None = Field(None, description="Of a `datasets` directory or hub id: which split; default: train.")
