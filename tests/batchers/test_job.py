"""Batches: their tokens, and the reasons that closed them."""

from pathlib import Path
from typing import get_args

import pytest
from batchery.batchers.job import Batch, ClosedBy

from tests.support.planning import jobs_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "writing-a-model.md"


def test_a_batch_counts_its_tokens_with_and_without_padding() -> None:
    batch = Batch("task", jobs_of([3, 5]), "full")
    assert (batch.tokens, batch.padded_tokens) == (8, 10)
    assert (Batch("task", jobs_of([None]), "full").padded_tokens, Batch("task", [], "full").padded_tokens) == (0, 0)


@pytest.mark.parametrize("reason", get_args(ClosedBy))
def test_every_reason_is_explained_to_operators(reason: str) -> None:
    rows = [line.split("|")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert any(reason in cell.strip().split(", ") for cell in rows)
