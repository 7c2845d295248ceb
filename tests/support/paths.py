"""Where the repository is, and what its package is made of."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The top folders that install as the package `batchery`.
PACKAGE_FOLDERS = ["batchery", "configs", "batchers", "producer", "worker"]
