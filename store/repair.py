"""Taking damaged chunks out of a store, so that the next extraction computes them, and only them, anew."""

from pathlib import Path

from cspipe.store.errors import StoreError
from cspipe.store.files import remove
from cspipe.store.lock import StoreLock
from cspipe.store.meta import read_group, write_group
from cspipe.store.verify import Problem, verify_store


def _chunk_parts(where: str) -> tuple[str, str, str] | None:
    """Split, array and chunk of a problem with an embedding chunk or its record, else None."""
    parts = Path(where).parts
    if len(parts) == 5 and parts[1] in ("embedding", "commit") and parts[2] == "c" and parts[3].isdigit():
        return parts[0], parts[1], parts[3]
    return None


def repair_store(path: Path | str) -> list[Problem]:
    """Remove damaged chunks with their commit records and declare their splits unfinished.

    What only a rerun can do is left to it: "run the same cspipe extract again" then computes what was
    removed. Row tables and descriptions cannot be repaired.

    Args:
        path: the Zarr group.

    Returns:
        What :func:`cspipe.store.verify.verify_store` still finds.

    Raises:
        StoreError: another process writes this store.
    """
    store = Path(path)
    lock = StoreLock(store)
    try:
        for problem in verify_store(store):
            found = _chunk_parts(problem.where)
            if found is None:
                continue
            split, _, chunk = found
            try:
                attributes = read_group(store / split)
            except StoreError:
                continue
            if attributes["complete"]:
                write_group(store / split, {**attributes, "complete": False})
            for array in ("commit", "embedding"):
                remove(store / split / array / "c" / chunk / "0")
    finally:
        lock.release()
    return verify_store(store)
