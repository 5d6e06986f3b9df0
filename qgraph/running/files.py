"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from qgraph.errors import ModelError, UsageError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees either the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_writable(
    path: str | os.PathLike[str], *, source: str | None = None, inputs: Iterable[str | None] = ()
) -> None:
    """Raise, before any work is done, if `path` cannot be written, is the model itself or one of the other inputs."""
    target = Path(path)
    if _is_same(target, source):
        raise UsageError(f"output {target} is the input model itself: choose another file name with -o")
    if any(_is_same(target, given) for given in inputs):
        raise UsageError(f"output {target} is one of the inputs: choose another file name with -o")
    if target.is_dir():
        raise UsageError(f"output {target} is a folder: give a file name, for example -o {target / 'model.onnx'}")
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {target}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise ModelError(f"cannot write {target}: permission denied; choose another place with -o")


def check_outputs(
    outputs: Mapping[str, str | None], *, source: str | None = None, inputs: Iterable[str | None] = ()
) -> None:
    """Raise, before any work is done, unless every output of a command can be written to a file of its own.

    None of them may be the model, `source`, or one of the other `inputs`. `outputs` maps options to paths; None
    stands for an option that was not given.
    """
    seen, given = dict[Path, str](), tuple(inputs)
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(path, source=source, inputs=given)
        other = seen.setdefault(Path(path).resolve(), option)
        if other != option:
            raise UsageError(f"{option} and {other} both name {path}: give each a file of its own")


def _is_same(target: Path, given: str | None) -> bool:
    return given is not None and target.exists() and Path(given).exists() and os.path.samefile(target, given)


def flush(path: Path) -> None:
    """Force the content of a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
