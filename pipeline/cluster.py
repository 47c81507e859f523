"""Ray, connected: started on this machine for the time of a block, or a cluster that is joined and left running.

    with connected(None, setting="", num_cpus=4) as ray: ...
    with connected("10.0.0.1:6379", setting="stages.sample.") as ray: ...

``setting`` begins the names of the settings that messages speak of: ``stages.sample.engine``, ``stages.sample.ray.address``.

Limits: the driver runs on a machine of the cluster (``ray://`` is refused), and its nodes need the same version of this package. Ray
pickles what goes between its processes, and whoever reaches its ports can run code there: keep a cluster to yourself.
"""

import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from pipeline.files import InputError, RunError, plain

CONNECT_SECONDS: Final = 10.0


class Cluster(BaseModel):
    """Which Ray is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(default=None, description="of a cluster; left out, one is started on this machine")


@contextmanager
def connected(
    address: str | None,
    *,
    setting: str,
    num_cpus: int = 1,
    resources: Mapping[str, float] | None = None,
    memory: int = 128 << 20,
) -> Iterator[Any]:
    """The package ray, connected. Without an ``address`` it is started here, with so many CPUs and ``memory`` bytes for objects.

    A Ray that this process is connected to already is used, and left as it is. Raises InputError where the package is missing or the
    cluster cannot be reached, RunError where Ray does not start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise InputError(
            f"{setting}engine: ray needs the package {plain(error.name or 'ray')}; pip install 'stepdistill[ray]'"
        ) from None
    if in_use():
        yield ray
        return
    import logging

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        quiet |= {
            "address": "local",
            "num_cpus": num_cpus,
            "resources": dict(resources) if resources else None,
            "include_dashboard": False,
            "object_store_memory": memory,
        }
    else:
        _reachable(address, setting)
        quiet["address"] = address
    try:
        ray.init(**quiet)
    except (OSError, RuntimeError, ValueError) as error:
        problem = plain(str(error).strip().partition("\n")[0])
        if address is None:
            raise RunError(f"{setting}engine: Ray did not start on this machine: {problem}") from None
        raise InputError(
            f"{setting}ray.address: {plain(address)}: {problem}; give the address of a cluster that this machine "
            "belongs to, or leave it out to start Ray here"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def in_use() -> bool:
    """Whether this process is connected to a Ray already, by a notebook for instance."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def version() -> str:
    """The version of this package on this machine."""
    try:
        return metadata.version("stepdistill")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "of unknown version"


def check_version(expected: str, setting: str) -> None:
    """Raises InputError where the node that this runs on has another version of this package than the driver."""
    if version() != expected:
        node = plain(platform.node())
        raise InputError(
            f"{setting}engine: the node {node} has stepdistill {version()}, this machine {expected}; install the same"
        )


def own(error: Any) -> Exception | None:
    """The InputError or RunError that was raised on a node, out of Ray's error about it; None where it was another."""
    cause = getattr(error, "cause", None)
    return type(cause)(*cause.args) if isinstance(cause, InputError | RunError) else None


def _reachable(address: str, setting: str) -> None:
    """Raises InputError where nobody listens; Ray itself would try for minutes."""
    if address == "auto":
        return
    where = f"{setting}ray.address: {plain(address)}"
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise InputError(f"{where}: expected host:port of the cluster's head, or auto for the one on this machine")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{where}: nobody answers there ({plain(str(error))}); start Ray (`ray start --head`) or check the address"
        ) from None
