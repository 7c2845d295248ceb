"""The token ceiling: one failure lowers it, and the next failure is long in coming."""

import pytest
from batchery.batchers.job import Job
from batchery.batchers.planning.token_ceiling import TokenCeiling, batch_tokens
from hypothesis import given, settings
from hypothesis import strategies as st


def job(length: int | None) -> Job:
    return Job("id", "task", (), {}, None, 0.0, length=length)


def drop_to(memory: int, ceiling: TokenCeiling, tokens: int, count: int) -> int:
    """Run a batch as the engine does, in halves where it fails, and return how many runs did not fit."""
    if tokens <= memory or count == 1:
        ceiling.succeeded(tokens)
        return 0
    ceiling.failed(tokens, count)
    return 1 + sum(drop_to(memory, ceiling, tokens // 2, count // 2) for _ in range(2))


def test_there_is_no_ceiling_before_anything_failed() -> None:
    ceiling = TokenCeiling()
    ceiling.succeeded(5000)
    assert ceiling.limit is None


def test_a_failure_lowers_it_to_what_is_known_to_fit() -> None:
    ceiling = TokenCeiling()
    ceiling.succeeded(6000)
    ceiling.failed(8000, 16)
    assert ceiling.limit == 6000


def test_a_failure_halves_the_failed_batch_if_little_is_known_to_fit() -> None:
    ceiling = TokenCeiling()
    ceiling.succeeded(10)
    ceiling.failed(8000, 16)
    assert ceiling.limit == 4000


def test_a_size_that_fitted_once_and_fails_now_is_above_the_ceiling() -> None:
    ceiling = TokenCeiling()
    ceiling.succeeded(8000)
    ceiling.failed(8000, 16)
    assert ceiling.limit == 7000


def test_a_job_that_fails_alone_says_nothing_about_others() -> None:
    ceiling = TokenCeiling()
    ceiling.failed(8000, 1)
    assert ceiling.limit is None


@given(st.integers(2, 100_000), st.integers(2, 64))
def test_every_failure_lowers_it_below_what_failed_and_never_to_nothing(tokens: int, count: int) -> None:
    ceiling = TokenCeiling()
    for fitting in (tokens * 3, tokens // 3):
        ceiling.succeeded(fitting)
        ceiling.failed(tokens, count)
        assert ceiling.limit is not None
        assert tokens // 2 <= ceiling.limit < tokens


# A batch at the ceiling must not fail again and again, because every failure costs a batch.
@settings(max_examples=25, deadline=None)
@given(st.integers(900, 15_000))
def test_after_one_batch_that_failed_hardly_any_other_fails(memory: int) -> None:
    ceiling = TokenCeiling()
    drop_to(memory, ceiling, 16_000, 64)
    failed = 0
    for _ in range(5000):
        assert ceiling.limit is not None
        failed += drop_to(memory, ceiling, min(16_000, ceiling.limit), 32) > 0
    assert failed <= 20


def test_it_rises_again_when_memory_has_become_free() -> None:
    ceiling = TokenCeiling()
    ceiling.failed(16_000, 64)
    assert ceiling.limit == 8000
    for _ in range(1000):
        ceiling.succeeded(ceiling.limit)
    assert ceiling.limit > 16_000


def test_batches_far_below_it_do_not_raise_it() -> None:
    ceiling = TokenCeiling()
    ceiling.failed(16_000, 64)
    for _ in range(1000):
        ceiling.succeeded(4000)
    assert ceiling.limit == 8000


@pytest.mark.parametrize(("lengths", "tokens"), [([3, 5], 10), ([None, None, None], 3), ([0, 0], 0), ([], 0)])
def test_it_counts_padded_tokens_or_jobs_without_a_length(lengths: list[int | None], tokens: int) -> None:
    assert batch_tokens([*map(job, lengths)]) == tokens
