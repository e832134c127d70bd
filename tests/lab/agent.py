"""The lab's hand inside the guest: JSON lines over a virtio serial port. Standard library only, Linux only.

A request has an `id`, at most one of the verbs below, and its answers carry the same `id`; jobs run side by side.

    {"run": "shell line" or [argv], "timeout": s}       stdout and stderr as they come, then {"done": status}
    {"call": "module:function", "arguments": pickle}    the same, with {"says": pickle} from `tell`, {"value": pickle} or
                                                        {"raised": pickle}, from a forked child of the agent
    {"kill": id}                                        SIGKILL to that job and its descendants in the same session
    {"put": path, "octets": base64} {"get": path}       a file, whole
    {"preload": [modules]}                              import them here, so that calls find them imported

`{"done": -1, "timeout": true}` says that the time ran out and the job was killed. The channel's end ends the agent.
"""

import base64
import fcntl
import importlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PORT_NAME = "rustosd.lab"
_DIED_S = 2.0
"""How long a killed process may take to go; one that hangs in the kernel stays, and its job is over all the same."""

_tell_fd = -1


def tell(value: Any) -> None:
    """From inside a function that runs by `Guest.start`: send `value` to the host's `Call.next`, now."""
    _send_line(_tell_fd, {"says": pack(value)})


def pack(value: Any) -> str:
    """Anything picklable as text."""
    return base64.b64encode(pickle.dumps(value)).decode()


def unpack(text: str) -> Any:
    """What `pack` was given."""
    return pickle.loads(base64.b64decode(text))


def main() -> None:
    """Serve the port until the host closes it."""
    try:
        _Agent(_open_port()).serve()
    except BaseException:
        traceback.print_exc(file=open("/dev/console", "w"))     # noqa: SIM115 the last words before power goes
        raise


class _Job:
    def __init__(self, number: int, pid: int, pipes: dict[int, str], timeout: float) -> None:
        self.number, self.pid, self.pipes = number, pid, pipes
        self.pidfd = os.pidfd_open(pid)
        self.deadline = time.monotonic() + timeout
        self.killed = False
        self.rest = b""


class _Agent:
    def __init__(self, port: int) -> None:
        self.port = port
        self.jobs: dict[int, _Job] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(port, selectors.EVENT_READ, self.requests)
        self.buffer = b""
        self.open = True

    def serve(self) -> None:
        self.send({"ready": float(Path("/proc/uptime").read_text().split()[0])})
        while self.open:
            deadlines = [job.deadline for job in self.jobs.values()]
            pause = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self.selector.select(pause):
                if self.selector.get_map().get(key.fd) is key:      # else what came before it has ended its job
                    key.data()
            for job in [job for job in self.jobs.values() if job.deadline <= time.monotonic()]:
                self.expire(job)

    def send(self, message: dict) -> None:
        _send_line(self.port, message)

    def requests(self) -> None:
        octets = os.read(self.port, 1 << 16)
        self.open = bool(octets)
        *lines, self.buffer = (self.buffer + octets).split(b"\n")
        for line in lines:
            request = json.loads(line)
            try:
                self.request(request)
            except Exception:
                self.send({"id": request["id"], "failed": traceback.format_exc()})

    def request(self, request: dict) -> None:
        number = request["id"]
        if "run" in request:
            self.run(number, request)
        elif "call" in request:
            self.call(number, request)
        elif "kill" in request:
            if job := self.jobs.get(request["kill"]):
                _kill(job.pid)
        elif "put" in request:
            Path(request["put"]).write_bytes(base64.b64decode(request["octets"]))
            self.send({"id": number, "done": 0})
        elif "get" in request:
            octets = base64.b64encode(Path(request["get"]).read_bytes()).decode()
            self.send({"id": number, "done": 0, "octets": octets})
        else:
            for module in request["preload"]:
                importlib.import_module(module)
            self.send({"id": number, "done": 0})

    def run(self, number: int, request: dict) -> None:
        command = request["run"]
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else command
        out, err = os.pipe(), os.pipe()
        try:
            # Not waited for here: the pidfd tells, and `finish` reaps.
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out[1], stderr=err[1], start_new_session=True)
        except OSError as error:
            os.close(out[0])
            os.close(err[0])
            self.send({"id": number, "stderr": f"{argv[0]}: {error.strerror}\n", "done": 127})
            return
        finally:
            os.close(out[1])
            os.close(err[1])
        child.returncode = 0        # or its destructor would wait for it
        self.add(_Job(number, child.pid, {out[0]: "stdout", err[0]: "stderr"}, request["timeout"]))

    def call(self, number: int, request: dict) -> None:
        out, err, said = os.pipe(), os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(request, out[1], err[1], said[1])
        for fd in (out[1], err[1], said[1]):
            os.close(fd)
        self.add(_Job(number, pid, {out[0]: "stdout", err[0]: "stderr", said[0]: "said"}, request["timeout"]))

    def add(self, job: _Job) -> None:
        self.jobs[job.number] = job
        for fd in job.pipes:
            os.set_blocking(fd, False)
            self.selector.register(fd, selectors.EVENT_READ, lambda fd=fd: self.pipe(job, fd))
        self.selector.register(job.pidfd, selectors.EVENT_READ, lambda: self.finish(job))

    def pipe(self, job: _Job, fd: int) -> bool:
        """Pass on what the job wrote; false when there is no more for now."""
        try:
            octets = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        if not octets:
            self.selector.unregister(fd)
            os.close(fd)
            del job.pipes[fd]
            return False
        name = job.pipes[fd]
        if name != "said":
            self.send({"id": job.number, name: octets.decode(errors="surrogateescape")})
            return True
        *lines, job.rest = (job.rest + octets).split(b"\n")
        for line in lines:
            self.send({"id": job.number, **json.loads(line)})
        return True

    def finish(self, job: _Job) -> None:
        """The process is gone. What its children may still write to its pipes is nobody's."""
        _, status = os.waitpid(job.pid, 0)
        self.end(job, {"done": os.waitstatus_to_exitcode(status), "timeout": job.killed})

    def expire(self, job: _Job) -> None:
        if job.killed:
            hung = Path(f"/proc/{job.pid}/stack").read_text()
            self.end(job, {"done": -1, "timeout": True, "stderr": f"process {job.pid} hangs in the kernel:\n{hung}"})
            return
        job.killed = True
        job.deadline += _DIED_S
        _kill(job.pid)

    def end(self, job: _Job, message: dict) -> None:
        for fd in list(job.pipes):
            while fd in job.pipes and self.pipe(job, fd):
                pass
            if fd in job.pipes:
                self.selector.unregister(fd)
                os.close(fd)
        self.selector.unregister(job.pidfd)
        os.close(job.pidfd)
        del self.jobs[job.number]
        self.send({"id": job.number, **message})


def _child(request: dict, out: int, err: int, said: int) -> None:
    """The forked child of a call; never returns."""
    global _tell_fd
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        # 0 to 2 and the way to tell are all the child needs: what is left open would show up in tests for leaks.
        _tell_fd = fcntl.fcntl(said, fcntl.F_DUPFD_CLOEXEC, 100)
        os.closerange(3, 100)
        os.closerange(_tell_fd + 1, 4096)
        try:
            module, _, name = request["call"].partition(":")
            function = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            arguments, named = unpack(request["arguments"])
            answer = {"value": pack(function(*arguments, **named))}
        except BaseException as error:      # pytest's and the interpreter's own too: they belong to the caller
            answer = {"raised": _packed(error), "trace": traceback.format_exc()}
        _send_line(_tell_fd, answer)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _packed(error: BaseException) -> str | None:
    """The exception for the host, or None when it cannot travel."""
    try:
        text = pack(error)
        unpack(text)
    except Exception:
        return None
    return text


def _kill(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


def _send_line(fd: int, message: dict) -> None:
    octets = json.dumps(message).encode() + b"\n"
    while octets:
        octets = octets[os.write(fd, octets):]


def _open_port() -> int:
    """The serial port of our name; waits up to ten seconds for the kernel to find it."""
    for _ in range(100):
        for name in Path("/sys/class/virtio-ports").glob("*/name"):     # which a console has not
            if name.read_text().strip() == PORT_NAME:
                return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.1)
    raise FileNotFoundError(f"no virtio serial port is called {PORT_NAME}")
