"""The way to a standing Dask scheduler: its address, its certificates, and whether it answers."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ovrs.errors import OptionError, told

if TYPE_CHECKING:
    from ovrs.options import RunOptions

CONNECT_SECONDS = 10.0
"""How long a scheduler may take to answer the first time."""
PROTOCOLS = ("tcp", "tls", "ucx", "ws", "wss", "inproc")
"""Dask's protocols."""
_ENCRYPTED = ("tls", "wss")
_SETTINGS = {"tls_ca": "ca-file", "tls_cert": "client.cert", "tls_key": "client.key"}
"""Options and Dask's own settings below `distributed.comm.tls` that stand in for them."""


def check_address(options: RunOptions) -> None:
    """Refuse what no scheduler can have as address, before anything waits for it.

    Raises:
        OptionError: Another protocol than Dask's, no host, no port, or certificates that are not where they are named.
    """
    address = str(options.scheduler)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise OptionError(f"run.scheduler {address!r} is no address: {error}; write tcp://host:8786") from error
    if parts.scheme not in PROTOCOLS or not parts.hostname or (port is None and parts.path.count("/") != 2):
        raise OptionError(
            f"run.scheduler {address!r} is no address of a scheduler; write tcp://host:8786 ({', '.join(PROTOCOLS)})"
        )
    encrypted = parts.scheme in _ENCRYPTED
    given = [f"run.{n}" for n in _SETTINGS if getattr(options, n) is not None]
    if given and not encrypted:
        raise OptionError(f"{', '.join(given)}: certificates need an address such as tls://host:8786, got {address}")
    absent = [
        f"run.{name} ({file or 'not set'})"
        for name, file in (_certificates(options) if encrypted else {}).items()
        if "\n" not in file and not Path(file).is_file()  # Dask's settings may hold a certificate itself
    ]
    if absent:
        raise OptionError(
            f"run.scheduler {address}: no certificate file for {', '.join(absent)}; name it, or set it in Dask's "
            "configuration (distributed.comm.tls)"
        )


def _certificates(options: RunOptions) -> dict[str, str]:
    """Files by option: what the options name, else what Dask's configuration names; empty where neither does."""
    import dask

    return {
        name: str(getattr(options, name) or dask.config.get(f"distributed.comm.tls.{setting}", None) or "")
        for name, setting in _SETTINGS.items()
    }


def security(options: RunOptions) -> Any:
    """Dask's `Security` for the certificates that the options or Dask's configuration name."""
    from distributed import Security

    if urlsplit(str(options.scheduler)).scheme not in _ENCRYPTED:
        return Security()
    found = _certificates(options)
    return Security(
        tls_ca_file=found["tls_ca"],
        tls_client_cert=found["tls_cert"],
        tls_client_key=found["tls_key"],
        require_encryption=True,
    )


def reach(options: RunOptions) -> None:
    """Connect to the scheduler that the options name and leave, before anything depends on it.

    Raises:
        OptionError: The address is malformed, certificates are missing (TLS), or no scheduler answers in time.
    """
    check_address(options)
    address = str(options.scheduler)
    try:
        with ThreadPoolExecutor(1) as apart:  # a thread of its own: the caller may have a loop running
            apart.submit(asyncio.run, _knock(options)).result()
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        # a server of another kind answers bytes that Dask takes for enormous lengths
        reason = "what answers there is something else" if isinstance(error, MemoryError) else told(error)
        raise OptionError(
            f"no Dask scheduler answers at {address}: {reason}. Start one with `dask scheduler` and `dask worker {address}`"
        ) from error


async def _knock(options: RunOptions) -> None:
    """Connect and leave: a client that cannot connect would stay half open and delay the end of the process."""
    from distributed.comm.core import connect

    address = str(options.scheduler)
    if not address.startswith("inproc:"):
        comm = await connect(address, timeout=CONNECT_SECONDS, **security(options).get_connection_args("client"))
        await comm.close()


def connected(options: RunOptions, cluster: Any = None) -> Any:
    """Return a client of `cluster`, or of the scheduler that the options name.

    Raises:
        OptionError: As `reach`.
    """
    from distributed import Client

    seconds = f"{CONNECT_SECONDS:.0f}s"
    if cluster is not None:
        return Client(cluster, timeout=seconds, set_as_default=False)
    reach(options)
    return Client(options.scheduler, timeout=seconds, set_as_default=False, security=security(options))


def wait_for(options: RunOptions, seconds: float) -> None:
    """Wait so long for the scheduler that the options name to answer again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            reach(options)
            return
        except OptionError:
            time.sleep(1)
