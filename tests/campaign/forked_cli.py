"""The process of `forks.py`: reads orders as JSON lines, runs each in a fork that has everything imported.

An order's "fault" is what befalls the fork. Moments are counted by Python's audit events of what writes below a folder:
opening for writing, mkdir, rename, remove, rmdir, and syncs.

    {"kind": "kill", "at": n}            SIGKILL before event n
    {"kind": "seconds", "at": s}         SIGKILL after s seconds
    {"kind": "bytes", "at": n}           killed (SIGXFSZ) inside of the write that would make a file longer than n
    {"kind": "full", "at": n}            the same write fails, as on a full disk
    {"kind": "errno", "at": n, "errno"}  event n and all after it fail so
    {"kind": "remove", "at": n, "path"}  the folder is removed before event n
    {"kind": "read-only", "at": n, "path"}  no process may write there from event n on
    {"kind": "clock", "at": n, "by": s}  the clock jumps by s seconds before event n
"""

import ctypes
import importlib
import json
import os
import pkgutil
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_LATE = ("transformers.models.llama.modeling_llama", "pyarrow.parquet", "lxml.html", "pypdfium2", "gguf")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HELD = (1 << 1) | (1 << 2) | (1 << 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


class Moments:
    """Counts what writes below some folders, and lets the fault happen at its moment."""

    def __init__(self, folders, fault):
        self.folders = tuple(os.path.realpath(folder) for folder in folders)
        self.fault, self.count, self.busy = fault or {}, 0, False
        sys.addaudithook(self.look)
        sync = os.fsync

        def counted_sync(descriptor):
            self.moment(f"/proc/self/fd/{descriptor}")
            sync(descriptor)

        os.fsync = counted_sync

    def look(self, event, arguments):
        if event in _EVENTS or (event == "open" and (arguments[2] or 0) & _WRITES):
            self.moment(arguments[0])

    def moment(self, path):
        if self.busy or not isinstance(path, (str, bytes, os.PathLike)):
            return
        self.busy = True
        try:
            place = os.path.realpath(os.fsdecode(path))
            if place.startswith(self.folders):
                self.count += 1
                self.strike()
        finally:
            self.busy = False

    def strike(self):
        kind, at = self.fault.get("kind"), self.fault.get("at")
        if kind == "kill" and self.count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "errno" and self.count >= at:
            number = self.fault["errno"]
            raise OSError(number, os.strerror(number))
        elif kind == "remove" and self.count == at:
            shutil.rmtree(self.fault["path"], ignore_errors=True)
        elif kind == "read-only" and self.count == at:
            forbid_writing(self.fault["path"])
        elif kind == "clock" and self.count == at:
            now, by = time.time, self.fault["by"]
            time.time = lambda: now() + by


def forbid_writing(path):
    """Take the right to write, also from root."""
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(0o555)

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    library, header, data = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), (Data * 2)()
    assert library.capget(ctypes.byref(header), data) == 0
    data[0].effective &= ~_HELD
    data[0].permitted &= ~_HELD
    assert library.capset(ctypes.byref(header), data) == 0


def limit(order):
    fault = order.get("fault") or {}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if fault.get("kind") in ("bytes", "full"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["at"], resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault["kind"] == "bytes" else signal.SIG_IGN)
    if order.get("memory"):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + order["memory"], resource.RLIM_INFINITY))


def run(order, out, err, moments_out):
    """In the fork: the command line as its entry point does it; never returns."""
    code = 70
    try:
        os.setsid()
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
            os.dup2(descriptor, number)
        os.environ.update(order.get("environment") or {})
        os.chdir(order.get("folder") or "/")
        moments = Moments(order["watch"], order.get("fault")) if order.get("watch") else None
        limit(order)
        sys.argv = ["lengthen", *order["arguments"]]
        from lengthen import cli

        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if order.get("watch") and moments is not None:
        moments.busy = True
        os.write(moments_out, str(moments.count).encode())
    os._exit(code)


def run_fork(order):
    """Run an order to its end; what it writes is read from pipes, which no limit of files meets."""
    pipes = [os.pipe() for _ in range(3)]
    pid = os.fork()
    if pid == 0:
        run(order, *(write for _, write in pipes))
    for _, write in pipes:
        os.close(write)
    said = [b""] * len(pipes)

    def read(index):
        with os.fdopen(pipes[index][0], "rb") as pipe:
            said[index] = pipe.read()

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(pipes))]
    for reader in readers:
        reader.start()
    ended = follow(pid, order)
    for reader in readers:
        reader.join()
    out, err, moments = (each.decode(errors="replace") for each in said)
    return {**ended, "out": out, "err": err, "moments": int(moments or 0)}


def follow(pid, order):
    """Wait for the fork; kill it when its time is over."""
    fault, began = order.get("fault") or {}, time.monotonic()
    seconds = fault["at"] if fault.get("kind") == "seconds" else order["timeout"]
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.start()
    _, status, usage = os.wait4(pid, 0)
    timer.cancel()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - began,
        "late": time.monotonic() - began >= order["timeout"],
        "memory": usage.ru_maxrss * 1024,
    }


def import_all():
    """All of lengthen but the servers, and what it imports late."""
    import lengthen

    names = [module.name for module in pkgutil.walk_packages(lengthen.__path__, "lengthen.")]
    names = [name for name in names if ".ui." not in name and "serving" not in name and "__main__" not in name]
    for name in (*names, *_LATE):
        with suppress(ImportError):  # of an extra
            importlib.import_module(name)


def main():
    import_all()
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in orders:
        print(json.dumps(run_fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
