"""Full disks, folders that can't be written or are gone, clocks that jump, and two processes in one place."""

import errno
import json
import os
import subprocess
import threading
import time

import pytest
from commands import COMMANDS, Disturbed, mount
from forks import Forks
from mutations import generator_of

SEED = 22
MOMENTS = int(os.environ.get("LENGTHEN_MOMENTS", 20))  # of each kind and command
SHORT = {"train": 1, "export": 1, "data tokenize": 1, "data qa": 1, "eval perplexity": 1}
KINDS = ("no space", "full file", "read-only file system", "read-only folder", "removed folder", "clock")


def a_fault(generator, kind, command):
    at = {"at": generator.randint(1, command.moments)}
    return {
        "no space": {"kind": "errno", "errno": errno.ENOSPC, **at},
        "full file": {"kind": "full", "at": int(command.largest ** generator.uniform(0, 1))},
        "read-only file system": {"kind": "errno", "errno": errno.EROFS, **at},
        "read-only folder": {"kind": "read-only", "path": str(command.place), **at},
        "removed folder": {"kind": "remove", "path": str(command.place / "out"), **at},
        "clock": {"kind": "clock", "by": generator.choice([-1, 1]) * generator.choice([3600, 10**8]), **at},
    }[kind]  # fmt: skip


def disturb(command, kind, count, seed):
    generator = generator_of(command.name, kind, seed)
    failed, refused = [], 0
    for number in range(count):
        fault = a_fault(generator, kind, command)
        command.clear()
        ended = command.start(fault)
        refused += ended.code == 2
        is_right = ended.is_refusal or (ended.code == 0 and "Traceback" not in ended.err)
        wrong = [] if is_right else [f"{ended.code} {ended.err}"]
        wrong += command.halves()
        subprocess.run(["chmod", "-R", "u+w", command.place], check=True)
        command.remake()
        wrong += command.again()
        if wrong:
            failed.append({"number": number, **fault, "code": ended.code, "said": ended.err, "wrong": wrong})
    print(json.dumps({"command": command.name, "disturbed by": kind, "seed": seed, "moments": count, "refused": refused,
                      "wrong": len(failed)}))  # fmt: skip
    assert not failed, json.dumps(failed, indent=1)[:6000]


@pytest.mark.parametrize("name", SHORT)
def test_disturbed_and_run_again(forks, arguments_of, tmp_path, name):
    command = Disturbed(forks, arguments_of, name, tmp_path)
    for kind in KINDS[: 2 * SHORT[name]]:
        disturb(command, kind, 1, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_disturbed_at_many_moments(forks, arguments_of, tmp_path, name, kind):
    disturb(Disturbed(forks, arguments_of, name, tmp_path), kind, MOMENTS, SEED + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "export"])
def test_a_disk_that_fills_up(forks, arguments_of, tmp_path, name):
    """A file system of 8 MiB, of which some is taken already."""
    disk = tmp_path / "disk"
    if not mount(disk, 2**23):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        command = Disturbed(forks, arguments_of, name, disk)
        taken = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
        generator, refused = generator_of("disk", name, SEED), 0
        for _ in range(MOMENTS):
            command.clear()
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "ballast").write_bytes(bytes(free - int(taken * generator.uniform(0.02, 1.1))))
            ended = command.start()
            refused += ended.code == 2
            assert ended.is_refusal or ended.code == 0, ended.err
            assert command.halves() == []
            (disk / "ballast").unlink()
            assert command.again() == []
        print(json.dumps({"command": name, "full disks": MOMENTS, "seed": SEED, "refused": refused}))
        assert refused
    finally:
        subprocess.run(["umount", disk], check=True)


def race(command, forks, other, delay):
    """The same command twice, one `delay` seconds after the other."""
    command.clear()
    ended = {}
    threads = [
        threading.Thread(target=lambda: ended.update(first=command.start())),
        threading.Thread(target=lambda: (time.sleep(delay), ended.update(second=command.start(forks=other)))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = []
    for end in ended.values():
        reasons = ("by another process", "has content", "Directory not empty", "holds a run already")
        if end.code != 0 and not (end.is_refusal and any(reason in end.err for reason in reasons)):
            wrong.append(f"{end.code} {end.err}")
    if all(end.code for end in ended.values()):
        wrong.append("none of both came to its end")
    return sum(end.code != 0 for end in ended.values()), wrong + command.halves() + command.again()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name != "data qa"]
)  # which adds to its file, line by line
def test_two_processes_in_one_place(forks, arguments_of, tmp_path, name):
    command, generator, refused = Disturbed(forks, arguments_of, name, tmp_path), generator_of("two", name, SEED), 0
    said = tmp_path / "said"
    said.mkdir()
    with Forks(said) as other:
        for _ in range(MOMENTS):
            lost, wrong = race(command, forks, other, generator.uniform(0, command.seconds))
            refused += lost
            assert not wrong, wrong
    print(json.dumps({"command": name, "two at once": MOMENTS, "seed": SEED, "refused": refused}))


def test_a_run_that_is_trained_by_another_process(forks, arguments_of, tmp_path):
    from lengthen.locks import locked

    command = Disturbed(forks, arguments_of, "train", tmp_path)
    with locked(tmp_path / "work" / "out", ""):
        ended = command.start()
    assert ended.is_refusal
    assert "is being trained by another process; wait until it ends, or choose another" in ended.err
    assert command.again() == []
