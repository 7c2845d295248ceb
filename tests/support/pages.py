"""Runs what a document shows, as its reader would, in an empty folder.

`python -m tests.support.pages docs/batchers.md`

From top to bottom:

- `python` blocks run in one namespace. A `text` block right behind one is what it prints.
- A block whose first line is a comment with a file name (`# tasks.py`) becomes that file instead of being run.
- `console` blocks: each line that begins with `$` is a command, the lines below it are what it prints (`...` stands for
  anything). It is run if it is Python or Celery with a file of this page, or with `batchery`; of any other it is only
  checked that there is such a thing. A worker is waited for, and stopped where the next one starts or the page ends.
- `toml`, `yaml` and `ini` blocks are read. `python theirs` is another project's code: it is only compiled.

The broker is that of `CELERY_BROKER_URL`, which wins over what the page's apps say, or a new one.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.support.paths import ROOT
from tests.support.processes import finished, running, wait_for_worker
from tests.support.servers import valkey

_FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|toml))\n")

#: What a page may tell its reader to run though it is not run here.
ELSEWHERE = {"docker", "git", "kubectl", "openssl", "pip", "sudo", "systemctl", "valkey-cli", "valkey-server"}
LANGUAGES = {"python", "python theirs", "text", "console", "toml", "yaml", "ini", "aclfile", "dockerfile"}


class Block(NamedTuple):
    """A fenced block: what its fence says, its text, and the line on which that begins."""

    info: str
    text: str
    line: int


class Command(NamedTuple):
    """A line of a console block, and what it prints; nothing is said about the output where there is none."""

    words: list[str]
    env: dict[str, str]
    output: str


def blocks(page: str) -> list[Block]:
    """A page's fenced blocks, in order."""
    return [
        Block(match["info"].strip(), match["text"], page.count("\n", 0, match.start()) + 2)
        for match in _FENCE.finditer(page)
    ]


def commands(block: str) -> Iterator[Command]:
    """The commands of a console block, each with what it prints."""
    for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = re.sub(r"\\\n", " ", entry)
        line, _, output = lines.partition("\n")
        words = shlex.split(line.removesuffix(" &"), comments=True)
        env = {}
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, env[name] = words.pop(0).partition("=")
        yield Command(words, env, output)


def check_output(said: str, shown: str, where: str) -> None:
    """Raise an AssertionError unless a page shows what was printed; `...` stands for anything."""
    pattern = ".*".join(map(re.escape, shown.strip().split("...")))
    if not re.fullmatch(pattern, said.strip(), flags=re.DOTALL):
        raise AssertionError(f"{where}: the page shows\n{shown}\nbut it prints\n{said}")


class Page:
    """One page on its way through its blocks, in a folder of its own."""

    def __init__(self, path: Path, folder: Path, broker: str) -> None:
        self._path = path
        self._folder = folder
        self._broker = broker
        self._namespace: dict[str, Any] = {"__name__": "page"}
        self._workers = contextlib.ExitStack()

    def run(self) -> None:
        """Run all blocks; raise what the first one raises that does not work."""
        with self._workers:
            shown = blocks(self._path.read_text())
            for block, following in zip(shown, [*shown[1:], Block("", "", 0)], strict=True):
                self._run(block, following.text if following.info == "text" else None)

    def _run(self, block: Block, prints: str | None) -> None:
        where = f"{self._path.name}, line {block.line}"
        assert block.info in LANGUAGES, f"{where}: what is a block of {block.info!r}? Known are {LANGUAGES}."
        if file_name := _FILE_NAME.match(block.text):
            (self._folder / file_name[1]).write_text(block.text)
        if block.info.startswith("python"):
            flags = 0 if block.info == "python" else ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            # Moved to its own line, for tracebacks.
            code = compile("\n" * (block.line - 1) + block.text, str(self._path), "exec", flags)
            if block.info == "python" and not file_name:
                self._exec(code, prints, where)
        elif block.info == "console":
            for command in commands(block.text):
                self._command(command, where)
        elif block.info == "toml":
            tomllib.loads(block.text)
        elif block.info == "yaml":
            assert all(yaml.safe_load_all(block.text)), f"{where}: an empty document"
        elif block.info == "ini":
            # systemd repeats keys, which is no mistake there.
            configparser.RawConfigParser(strict=False).read_string(block.text)

    def _exec(self, code: Any, prints: str | None, where: str) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, self._namespace)
        if prints is not None:
            check_output(said.getvalue(), prints, where)

    def _command(self, command: Command, where: str) -> None:
        if not self._is_ours(command.words):
            check_exists(command.words, where)
        elif command.words[0] == "celery" and "worker" in command.words:
            self._workers.close()
            worker = self._workers.enter_context(running(command.words, folder=self._folder, env=command.env))
            named = command.words.index("-n") if "-n" in command.words else None
            node = [] if named is None else ["--node", command.words[named + 1]]
            wait_for_worker(self._broker, worker, *node)
        else:
            ran = finished(command.words, folder=self._folder, env=command.env)
            assert ran.returncode == 0, f"{where}: {command.words} left with {ran.returncode}:\n{ran.stdout}"
            if command.output.strip():
                check_output(ran.stdout, command.output, where)

    def _is_ours(self, words: Sequence[str]) -> bool:
        if words[0] == "celery":
            return "-A" in words and (self._folder / f"{words[words.index('-A') + 1]}.py").exists()
        if words[0] != "python":
            return False
        if words[1] == "-m":
            return words[2].startswith("batchery.")
        return words[1] == "-c" or (self._folder / words[1]).exists()


def check_exists(words: Sequence[str], where: str) -> None:
    """Raise an AssertionError for a command that no reader could run."""
    name = words[0]
    if name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[1] in targets, f"{where}: the Makefile has no target {words[1]}"
    elif name == "python":
        there = find_spec(words[2]) if words[1] == "-m" else (ROOT / words[1]).exists()
        assert there, f"{where}: {shlex.join(words)}: there is no {words[1:3]}"
    else:
        assert name in ELSEWHERE | {"celery"}, f"{where}: what is {name}?"


def main() -> int:
    """Run the page that the command line names."""
    path = Path(sys.argv[1]).resolve()
    with contextlib.ExitStack() as stack:
        broker = os.environ.get("CELERY_BROKER_URL") or stack.enter_context(valkey())
        os.environ.update(CELERY_BROKER_URL=broker, CELERY_RESULT_BACKEND=broker)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.chdir(folder))
        # As in the reader's own Python: the folder comes first, and this repository is not there.
        sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
        Page(path, folder, broker).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
