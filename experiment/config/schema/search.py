"""The block `experiments.search`: the highest compression within a loss of accuracy, in the place of keep ratios."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from experiment.config.schema.block import Block, Number, Whole


class Search(Block):
    """The smallest network of every method within a loss of validation accuracy, in the place of spacing."""

    accuracy_loss: Annotated[Number, Field(ge=0, lt=1)] = 0.005
    """The most of the reference network's validation top-1 that may be lost, a fraction."""
    samples: Annotated[Whole, Field(ge=1)] = 10
    """The most networks that are made for that, each compressed and retrained like any other."""
    smallest: Annotated[Number, Field(gt=0, lt=1)] = 1e-3
    """The smallest keep ratio that is tried, the first of all."""
