"""Control groups for programs: `programs/CLASS/NAME` below a place that is ours, in version 2 or in version 1's controllers.

cgroups(7). What is made is ours alone and is taken away again by `remove_all`, whoever comes to do it. Everything here blocks:
to move a process takes the kernel up to some milliseconds.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

Controller = Literal["cpu", "cpuset", "freezer"]
CONTROLLERS: Final[tuple[Controller, ...]] = ("cpu", "cpuset", "freezer")
PERIOD_US: Final = 100_000          # over which a quota counts, the kernel's default
_MOUNT: Final = Path("/sys/fs/cgroup")
_SETTLE_S: Final = 1.0
_ROUNDS: Final = 8
_LOOK_S: Final = 0.002
_DAEMON: Final = "daemon"
_PROGRAMS: Final = "programs"
_SHARES: Final = 1024               # version 1's share of weight 100
_LEAST_QUOTA_US: Final = 1000       # the kernel's


class Place(NamedTuple):
    """Where groups can be made, and with which controllers."""

    version: Literal[1, 2]
    homes: Mapping[Controller, Path]
    """The directory in which ours is made; in version 2 the same for all."""
    above_us: bool = False
    """Version 2: the daemon itself is in it, and steps aside into a group of its own, since only leaves hold processes."""

    @property
    def text(self) -> str:
        return f"cgroup v{self.version} ({', '.join(self.homes)})"


class NoGroups(Exception):
    """There can be none; the text says why and what would help."""


def find(wanted: str = "auto", *, own: str | None = None, mounts: str | None = None) -> Place:
    """Where this process may make groups. Raises NoGroups.

    `wanted`: "auto", "off", or a directory of version 2; `own` and `mounts`: /proc/self/cgroup and /proc/self/mountinfo.
    """
    if wanted == "off":
        raise NoGroups('switched off: cgroup = "off" under [scheduler]')
    if wanted != "auto":
        return _chosen(Path(wanted))
    here = _here(own, mounts)
    why = "no cgroup file system is mounted that can be written"
    if "" in here:
        try:
            return _second_version(here[""])
        except NoGroups as error:
            why = str(error)
    homes = {name: here[name] for name in CONTROLLERS if name in here}
    if "cpu" in homes and all(os.access(home, os.W_OK) for home in homes.values()):
        return Place(1, homes)
    raise NoGroups(why)


def _here(own: str | None = None, mounts: str | None = None) -> dict[str, Path]:
    """The groups a process is in, by controller of version 1, and "" for version 2; without those that cannot be reached."""
    found = {}
    ours = dict(_own(Path("/proc/self/cgroup").read_text() if own is None else own))
    for name, root, mount in _mounts(Path("/proc/self/mountinfo").read_text() if mounts is None else mounts):
        if name in ours and Path(ours[name]).is_relative_to(root):      # else only a part that we are not in is mounted
            found[name] = mount / Path(ours[name]).relative_to(root)
    return {name: path for name, path in found.items() if path.is_dir()}


def _mounts(text: str) -> Iterable[tuple[str, str, Path]]:
    """Controllers of version 1, and "" for version 2, with what of it is mounted where; read-only ones left out."""
    for line in text.splitlines():
        before, _, behind = line.partition(" - ")
        kind, _, options = behind.split(" ", 2)
        fields = before.split(" ")
        if "ro" in fields[5].split(","):
            continue
        names = {"cgroup2": [""], "cgroup": [name for name in options.split(",") if name in CONTROLLERS]}.get(kind, [])
        yield from ((name, fields[3], Path(fields[4])) for name in names)


def _own(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        yield from ((name, path) for name in names.split(","))


def _second_version(home: Path) -> Place:
    _check_controllers(home)
    if not os.access(home / "cgroup.subtree_control", os.W_OK):
        raise NoGroups(f"{home} is not ours to divide: be root, or have the service manager delegate it (Delegate=yes)")
    real_root = _is_real_root(home)
    if real_root or _is_delegated(home) or not Path("/run/systemd/system").exists():
        return Place(2, dict.fromkeys(CONTROLLERS, home), above_us=not real_root)
    raise NoGroups(f"systemd has not given us {home} to divide: start rustosd as a service, or by "
                   "systemd-run --scope -p Delegate=yes")


def _is_real_root(home: Path) -> bool:
    """The one group of version 2 that may be divided and hold processes."""
    return not (home / "cgroup.type").exists()


def _chosen(home: Path) -> Place:
    _check_controllers(home)
    return Place(2, dict.fromkeys(CONTROLLERS, home))


def _check_controllers(home: Path) -> None:
    try:
        there = (home / "cgroup.controllers").read_text().split()
    except OSError as error:
        raise NoGroups(f"{home} is no group of cgroup version 2: {error.strerror}; mkdir makes one") from None
    if "cpu" not in there:
        raise NoGroups(f"{home} has no cpu controller")


def _is_delegated(home: Path) -> bool:
    """As systemd marks it (its CGROUP_DELEGATION)."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(home, name) == b"1":
                return True
    return os.stat(home).st_uid not in (0, os.geteuid()) or (os.geteuid() != 0 and os.stat(home).st_uid == os.geteuid())


class Groups:
    """Those of one daemon. `name` is its own; every name below is a path such as `batch/1234`, and "" all programs."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self.roots = tuple(dict.fromkeys(home / name for home in place.homes.values()))
        """What `make_all` makes, and all of it that must go."""
        self.enabled: tuple[str, ...] = ()
        self.new: tuple[str, ...] = ()
        """Controllers of version 2 that are switched on for our sake, also in the group above ours."""
        self._programs = Path(_PROGRAMS if place.above_us else "")
        if place.version == 2:
            home = self.roots[0].parent
            there = (home / "cgroup.controllers").read_text().split()
            self.enabled = tuple(each for each in ("cpu", "cpuset") if each in there)
            before = (home / "cgroup.subtree_control").read_text().split()
            self.new = tuple(each for each in self.enabled if each not in before)

    def has(self, controller: Controller) -> bool:
        """Whether it can do what this controller does."""
        return controller in (self.place.homes if self.place.version == 1 else (*self.enabled, "freezer"))

    def make_all(self, daemon: int) -> None:
        """The first group. Raises OSError, having left what `remove_all` takes away."""
        for root in self.roots:
            root.mkdir(exist_ok=True)
        if self.place.above_us:
            (self.roots[0] / _DAEMON).mkdir(exist_ok=True)
            _write(self.roots[0] / _DAEMON / "cgroup.procs", daemon)
            _empty(self.roots[0].parent, self.roots[0] / _DAEMON)       # what it has started, too
        if self.place.version == 2:
            for directory in (self.roots[0].parent, self.roots[0]):
                self._enable(directory)
        self._begin(self._programs, divided=True)

    def make(self, name: str) -> None:
        """A program's group and its class's. Raises OSError."""
        self._begin(self._programs / Path(name).parent, divided=True)
        self._begin(self._programs / name, divided=False)

    def _begin(self, path: Path, *, divided: bool) -> None:
        for controller, root in self._directories():
            directory = root / path
            directory.mkdir(exist_ok=True)
            if self.place.version == 1 and controller == "cpuset":      # empty at first, and then nobody can be in it
                for file in ("cpuset.mems", "cpuset.cpus"):
                    if not (directory / file).read_text().strip():
                        _write(directory / file, (directory.parent / file).read_text().strip())
        if self.place.version == 2 and divided:
            self._enable(self.roots[0] / path)

    def _enable(self, directory: Path) -> None:
        for name in self.enabled:
            _write(directory / "cgroup.subtree_control", f"+{name}")

    def _directories(self) -> Iterable[tuple[Controller, Path]]:
        if self.place.version == 2:
            return [("cpu", self.roots[0])]
        return [(controller, home / self.name) for controller, home in self.place.homes.items()]

    def _of(self, controller: Controller, name: str) -> Path:
        return self.place.homes[controller] / self.name / self._programs / name

    def set_weight(self, name: str, weight: float) -> None:
        """Beside its siblings, of which one of weight 100 is usual."""
        file, value = ("cpu.weight", weight) if self.place.version == 2 else ("cpu.shares", weight * _SHARES / 100)
        least, most = (1, 10_000) if self.place.version == 2 else (2, 262_144)
        _write(self._of("cpu", name) / file, max(least, min(most, round(value))))

    def set_daemon_weight(self, weight: float) -> None:
        """Where the daemon has a group of its own."""
        if self.place.above_us:
            _write(self.roots[0] / _DAEMON / "cpu.weight", max(1, min(10_000, round(weight))))

    def set_idle(self, name: str) -> None:
        """Run it only where nobody else wants to; a kernel before 5.15 gives it the least weight."""
        try:
            _write(self._of("cpu", name) / "cpu.idle", 1)
        except FileNotFoundError:
            self.set_weight(name, 0)

    def set_quota(self, name: str, percent: float) -> None:
        """Of one processor, at most; 0: no limit."""
        quota = max(_LEAST_QUOTA_US, round(PERIOD_US * percent / 100)) if percent else 0
        if self.place.version == 2:
            _write(self._of("cpu", name) / "cpu.max", f"{quota or 'max'} {PERIOD_US}")
        else:
            _write(self._of("cpu", name) / "cpu.cfs_quota_us", quota or -1)

    def set_processors(self, name: str, processors: Iterable[int]) -> None:
        """Those it may use, whatever its processes ask for."""
        _write(self._of("cpuset", name) / "cpuset.cpus", ",".join(map(str, sorted(processors))))

    def allow_realtime(self, name: str) -> None:
        """Where the kernel gives out real-time by groups (CONFIG_RT_GROUP_SCHED), let one and those above it have of it."""
        file = "cpu.rt_runtime_us"
        path = self._of("cpu", name)
        if not (path / file).exists():
            return
        for directory in (path.parent, path):       # ours, and the class's
            if (directory / file).read_text().strip() != "0":
                continue
            most = int((directory.parent / file).read_text())
            if most < 0:
                most = int((directory.parent / "cpu.rt_period_us").read_text())
            while True:
                most = most * 4 // 5
                try:
                    _write(directory / file, most)
                    break
                except OSError as error:
                    if error.errno != errno.EINVAL or most < 10_000:        # others have been given of it already
                        raise

    def move(self, name: str, pid: int, *, realtime: bool = False) -> None:
        """A process into a group, with what it will start. `realtime`: its processor time is counted with its class.

        Raises OSError.
        """
        for controller, root in self._directories():
            path = Path(name).parent if realtime and self.place.version == 1 and controller == "cpu" else Path(name)
            _write(root / self._programs / path / "cgroup.procs", pid)

    def processes(self, name: str) -> list[int]:
        """Those in a group."""
        for controller in ("freezer", "cpuset"):        # of realtime programs in version 1, cpu knows the class only
            if controller in self.place.homes:
                with contextlib.suppress(OSError):
                    return [int(line) for line in (self._of(controller, name) / "cgroup.procs").read_text().split()]
        return []

    def directories(self, name: str) -> dict[Controller, Path]:
        """Those of a group."""
        return {controller: self._of(controller, name) for controller in self.place.homes}

    def freeze(self, name: str, wanted: bool) -> None:
        """Let a group run no further, or go on. Raises OSError.

        It is so when this returns; later than a second only for who waits inside the kernel, and runs no further behind that.
        """
        path = self._of("freezer", name)
        freeze(path, wanted)
        limit = time.monotonic() + _SETTLE_S
        while time.monotonic() < limit and not _is_frozen(path, wanted):
            time.sleep(_LOOK_S)

    def statistics(self, name: str) -> dict[str, int]:
        """What the kernel counts for a group: how often its quota held it up, and for how long, in microseconds."""
        try:
            lines = (self._of("cpu", name) / "cpu.stat").read_text().splitlines()
        except OSError:
            return {}
        counts = {key: int(value) for key, value in (line.split() for line in lines)}
        held_up_us = counts["throttled_usec"] if "throttled_usec" in counts else counts.get("throttled_time", 0) // 1000
        return {"periods": counts.get("nr_periods", 0), "throttled": counts.get("nr_throttled", 0), "throttled_us": held_up_us}

    def remove(self, name: str, homes: Mapping[Controller, Path]) -> None:
        """A group whose program has ended; what still lives in it goes to `homes`. Raises OSError (EBUSY)."""
        for controller, root in self._directories():
            directory = root / self._programs / name
            if directory.is_dir():
                _empty(directory, homes.get(controller), _refuge(root))
                _rmdir(directory)


def homes_of(pid: int, place: Place) -> dict[Controller, Path]:
    """Where a process is now, to go back to. Raises OSError."""
    here = _here(Path(f"/proc/{pid}/cgroup").read_text())
    keys: dict[Controller, str] = {name: "" if place.version == 2 else name for name in place.homes}
    return {name: here[key] for name, key in keys.items() if key in here}


def remove_all(roots: Iterable[Path], new: Iterable[str] = ()) -> None:
    """Take away all that is there of a daemon's groups, of one that lives or has died. Raises OSError.

    Who is in them goes to the group above. `new`: controllers that were switched on for them, in version 2.
    """
    for root in roots:
        if not root.is_dir():
            continue
        daemon = root / _DAEMON
        for directory in sorted((Path(each) for each, _, _ in os.walk(root)), key=lambda path: -len(path.parts)):
            if directory not in (root, daemon):
                _empty(directory, _refuge(root))
                _rmdir(directory)
        for name in new:
            for directory in (root, root.parent):
                with contextlib.suppress(OSError):      # another's groups need it
                    _write(directory / "cgroup.subtree_control", f"-{name}")
        for directory in (daemon, root):
            if directory.is_dir():
                _empty(directory, _undivided(root.parent))
                _rmdir(directory)


def _refuge(root: Path) -> Path:
    """Where those of a group can go that is taken away."""
    return root / _DAEMON if (root / _DAEMON).is_dir() else _undivided(root.parent)


def _undivided(directory: Path) -> Path:
    """The nearest group from here upwards that processes may be in."""
    while not _is_real_root(directory) and (directory / "cgroup.subtree_control").read_text().strip():
        directory = directory.parent
    return directory


def freeze(directory: Path, wanted: bool) -> None:
    """In either version. Raises OSError."""
    if (directory / "cgroup.freeze").exists():
        _write(directory / "cgroup.freeze", int(wanted))
    elif (directory / "freezer.state").exists():
        _write(directory / "freezer.state", "FROZEN" if wanted else "THAWED")


def _is_frozen(directory: Path, wanted: bool) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return (directory / "freezer.state").read_text().strip() == ("FROZEN" if wanted else "THAWED")
    return f"frozen {int(wanted)}" in (directory / "cgroup.events").read_text().splitlines()


def _empty(directory: Path, *homes: Path | None) -> None:
    """Who is in a group goes on, in the first of `homes` that is still there."""
    freeze(directory, False)
    home = next(each for each in homes if each is not None and each.is_dir())
    for _ in range(_ROUNDS):            # they may fork meanwhile
        there = (directory / "cgroup.procs").read_text().split()
        for line in there:
            with contextlib.suppress(ProcessLookupError):
                _write(home / "cgroup.procs", line)
        if not there:
            return


def _rmdir(directory: Path) -> None:
    """Once the last process in it has gone, which takes a moment longer than its end. Raises OSError."""
    limit = time.monotonic() + _SETTLE_S
    while True:
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > limit:
                raise
        time.sleep(_LOOK_S)


def _write(file: Path, value: object) -> None:
    """Raises OSError that names the file."""
    try:
        file.write_text(str(value))
    except OSError as error:
        raise OSError(error.errno, f"cannot write {value} to {file}: {error.strerror}") from None
