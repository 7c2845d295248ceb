"""Real texts of real lengths, which every machine has: the docstrings of the standard library."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from sysconfig import get_path

#: Modules with many docstrings that have been in the library for a long time. Their order and a fixed seed decide the
#: order of the texts.
MODULES = (
    "argparse ast asyncio.base_events asyncio.events asyncio.streams asyncio.tasks bdb calendar cmd codecs "
    "collections concurrent.futures._base configparser contextlib copy csv ctypes.util dataclasses datetime decimal "
    "difflib dis doctest email.message email.utils enum filecmp fileinput fractions ftplib functools getpass gettext "
    "glob gzip heapq html.parser http.client http.cookiejar imaplib importlib.abc inspect ipaddress json json.decoder "
    "logging logging.handlers lzma mailbox mimetypes multiprocessing.managers multiprocessing.pool netrc ntpath "
    "numbers optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint pydoc queue "
    "random re reprlib sched selectors shelve shlex shutil smtplib socket socketserver sqlite3.dbapi2 ssl statistics "
    "string subprocess symtable tarfile tempfile textwrap threading timeit tokenize trace traceback turtle types "
    "typing unittest.case unittest.mock urllib.parse urllib.request uuid warnings weakref webbrowser "
    "xml.dom.minidom xml.etree.ElementTree xml.sax.handler zipfile"
).split()


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def texts(count: int) -> list[str]:
    """Return `count` different docstrings, in a shuffled order that is the same for every run of one Python version."""
    found = list(_all_docstrings())
    if len(found) < count:
        raise ValueError(f"The standard library of this Python has only {len(found)} docstrings, not {count}.")
    random.Random(0).shuffle(found)
    return found[:count]


@cache
def _all_docstrings() -> tuple[str, ...]:
    return tuple(dict.fromkeys(docstring for module in MODULES for docstring in _docstrings(module)))


def _docstrings(module: str) -> Iterator[str]:
    path = Path(get_path("stdlib"), *module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.exists():  # this version of Python does not have the module
        return
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield docstring
