"""Which process holds something, and whether it is known to be gone."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Any

_TOKEN = [0, ""]


def me() -> dict[str, Any]:
    """Describe this process: host, number, time of start, kernel and process namespace, and a word that no other process has."""
    if _TOKEN[0] != os.getpid():  # forked
        _TOKEN[:] = [os.getpid(), uuid.uuid4().hex]
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "start": _start(pid), "system": _system(), "token": _TOKEN[1]}


def is_gone(owner: Any) -> bool:
    """Whether a process on this very system has ended. False for others: nobody can tell."""
    if not isinstance(owner, dict) or not owner.get("system") or owner["system"] != _system():
        return False
    pid = owner.get("pid")
    return type(pid) is int and _start(pid) != owner.get("start")


def shown(owner: Any) -> str:
    """`process 17 on host`."""
    known = owner if isinstance(owner, dict) else {}
    return f"process {known.get('pid', '?')} on {known.get('host', '?')}"


def _system() -> str:
    """Return a word for the running kernel and the space of process numbers; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When a process started, in ticks of the kernel; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
