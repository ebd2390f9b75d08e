"""What the program relies on in the result of a cell. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, model_validator

from experiment.run.disk.damaged_files import FileRecord
from experiment.run.grid.data_facts import Count

Share = Annotated[float, Field(ge=0, le=1)]


class CellResult(BaseModel):
    """The part of result.json that the program relies on."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)

    format: int
    status: Literal["done", "failed", "infeasible"]
    files: dict[str, FileRecord]
    error: InstanceOf[str] | None = None  # the text of an error need not be valid Unicode
    parameters: Count | None = None
    flops: Count | None = None
    flops_unmasked: Count | None = None
    bytes_dense: Count | None = None
    bytes_values: Count | None = None
    bytes_sparse: Count | None = None
    bytes_file: Count | None = None
    epochs: Annotated[float, Field(ge=0)] | None = None  # fractional in mode lc
    loss: float | None = None
    metrics: Annotated[list[str], Field(min_length=1)] = ["top1", "top5"]
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["fraction", "value"] = "fraction"
    top1: Share | None = None
    top5: Share | None = None
    top1_before_retraining: Share | None = None
    tests: list[dict[str, float]] | None = None  # figures on each of several test sets
    seconds_compress: float | None = None
    seconds_retrain: float | None = None
    seconds_tune: float | None = None
    tuned: str | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> CellResult:
        found = {**(self.model_extra or {}), "top1": self.top1, "top5": self.top5}
        figures = [found.get(name) for name in self.metrics]
        figures += [test.get(self.metrics[0]) for test in self.tests or ()]
        if self.status == "done" and None in (self.parameters, self.flops, *figures[:1]):
            raise ValueError("a finished cell has counts and a figure of its primary metric")
        if not all(figure is None or isinstance(figure, int | float) for figure in figures):
            raise ValueError("metrics are numbers")
        return self
