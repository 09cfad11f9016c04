"""One writer a remote store: an object beside it that names who writes, made only where there is none.

A process that is killed cannot remove it. Where its machine is this one and the process is gone, the next writer
here takes it over; on another machine nobody can tell, so a person says it: ``cspipe store unlock``.
"""

import json
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cspipe.store.errors import StoreError
from cspipe.store.remote_files import RemoteFolder


def lock_name(store: str) -> str:
    """Where the lock of a store lies; both are relative to the folder of the mirror."""
    folder, _, name = store.rpartition("/")
    return f"{folder}/.locks/{name}.lock".lstrip("/")


def _machine() -> str:
    """What tells this running system, or container, from every other one; a process number means something in it."""
    facts = [socket.gethostname()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(facts)


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the writer was a process of this machine that has ended."""
    if holder.get("machine") != _machine():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _holder(remote: RemoteFolder, name: str) -> dict[str, Any] | None:
    """Who holds a lock; what cannot be read is held by nobody known."""
    text = remote.read(name)
    if text is None:
        return None
    try:
        holder = json.loads(text)
    except ValueError:
        holder = None
    return holder if isinstance(holder, dict) else {}


def _refuse(remote: RemoteFolder, store: str, holder: dict[str, Any]) -> StoreError:
    """The error that says who writes, and what to do."""
    who = f"process {holder.get('process', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
    url = f"{remote.url}/{store}"
    return StoreError(
        f"{url} is being written by another writer ({who}): wait for it; if it was killed, run "
        f"cspipe store unlock {url}, then this command again"
    )


def take(remote: RemoteFolder, store: str) -> Callable[[], None]:
    """Take the lock of a store at once, or not at all.

    Args:
        remote: the folder of the stores.
        store: name of the store in it.

    Returns:
        What gives it back; it never fails, since what was written is there in any case.

    Raises:
        StoreError: another writer holds it, or the remote folder cannot be written to.
    """
    name = lock_name(store)
    former = _holder(remote, name)
    if former is not None and _is_gone(former):
        remote.delete([name])
    elif former is not None:
        raise _refuse(remote, store, former)
    mine = {
        "host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(), "token": uuid.uuid4().hex,
    }  # fmt: skip
    problem: StoreError | None = None
    try:
        remote.create(name, json.dumps(mine).encode())
    except StoreError as error:  # services tell in their own ways that it is there already: look who holds it
        problem = error
    holder = _holder(remote, name)
    if holder is None:
        raise problem or StoreError(f"{remote.url}/{name} was removed while it was made: run the same command again")
    if holder != mine:
        raise _refuse(remote, store, holder)

    def give_back() -> None:
        with suppress(StoreError):
            if _holder(remote, name) == mine:
                remote.delete([name])

    return give_back


def unlock(remote: RemoteFolder, store: str) -> dict[str, Any] | None:
    """Remove a lock whose writer is no more; returns what it said of the writer, None where there was none."""
    holder = _holder(remote, lock_name(store))
    if holder is not None:
        remote.delete([lock_name(store)])
    return holder
