"""The host's memory: what is too much for it is refused while a run can still say so.

Linux grants every request and, when memory is gone, ends the process with signal 9: no message, nothing saved. So a run
on the CPU may have what it has and what is available now, and no more. Then torch raises, and [`sasr.out_of_memory`]
says with which settings the same run goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Below it the system struggles already: page tables, other processes' next requests.
_RESERVE = 0.02
# The limits, soft and hard, as they were; None while nothing is bounded.
_before: tuple[int, int] | None = None
# What this process had and could have, in bytes, at the last steps. The largest counts: another run beside it takes
# gigabytes in its backward pass and gives them back.
_rooms: deque[int] = deque(maxlen=20)


def available(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that this process may still get before something is ended for them: of the machine, swap included, and of
    its control group (a container's limit). `None` where the system does not tell."""
    try:
        machine = _numbers(proc / "meminfo")
        free = machine["MemAvailable"] + machine.get("SwapFree", 0)
        rooms: list[int | None] = [1024 * free - int(_RESERVE * 1024 * machine["MemTotal"])]
        groups = [line.split(":", 2)[1:] for line in (proc / "self/cgroup").read_text().splitlines()]
    except (OSError, KeyError, ValueError):
        return None
    for controllers, path in groups:
        if controllers in ("", "memory"):
            group = cgroups / controllers / path.strip().lstrip("/")
            # Seen from inside a container the path may be the host's; the mounted root is then the container's group.
            above = [group, *group.parents]
            rooms += [_room(place, controllers) for place in above[: above.index(cgroups) + 1]]
    return max(0, min(room for room in rooms if room is not None))


@contextmanager
def bounded(device: Any) -> Iterator[None]:
    """Refuse, in what runs here, memory that the host does not have. Nothing for work on an accelerator, whose driver
    maps more than it uses, and where the system knows no such limit."""
    global _before
    on_host = str(device).partition(":")[0] == "cpu"
    if resource is not None and on_host and _before is None and available() is not None:
        _before = resource.getrlimit(resource.RLIMIT_DATA)
    renew()
    try:
        yield
    finally:
        release()


def renew() -> None:
    """Look at how much memory there is, and set the bound accordingly, if there is one."""
    if _before is None:
        return
    with suppress(OSError, KeyError, ValueError):
        free = available()
        if free is not None:
            _rooms.append(1024 * _numbers(_PROC / "self/status")["VmData"] + free)
            known = [limit for limit in _before if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min([max(_rooms), *known]), _before[1]))


def release() -> None:
    """Lift the bound: what has failed is to be saved."""
    global _before
    if _before is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _before)
        _before = None
        _rooms.clear()


def _room(group: Path, controllers: str) -> int | None:
    """Bytes that a control group has left, files that can be dropped included; `None` without a limit."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
    try:
        limit, used = ((group / name).read_text().strip() for name in names)
        if limit == "max":
            return None
        held = _numbers(group / "memory.stat")
    except (OSError, ValueError):
        return None
    prefix = "total_" if controllers else ""
    return int(limit) - int(used) + held.get(f"{prefix}inactive_file", 0) + held.get(f"{prefix}active_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name: 12 kB` or `name 12` of a file of the system."""
    found = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0].rstrip(":")] = int(words[1])
    return found
