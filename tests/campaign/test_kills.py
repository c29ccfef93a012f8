"""Commands killed at seeded moments: the same command again ends with the same bytes, and nothing half is left."""

import json
import os
from collections import Counter

import pytest
from commands import COMMANDS, Disturbed
from mutations import generator_of

SEED = 22
KILLS = int(os.environ.get("LENGTHEN_KILLS", 100))  # of each command
SHORT = {"train": 2, "export": 1, "data tokenize": 1, "data qa": 1, "eval perplexity": 1}


def a_fault(generator, command):
    """Half of them between writes and inside of one, half at any time."""
    kind = generator.choice(["kill", "bytes", "seconds", "seconds"])
    if kind == "kill":
        return {"kind": kind, "at": generator.randint(1, command.moments)}
    if kind == "bytes":
        return {"kind": kind, "at": int(command.largest ** generator.uniform(0, 1))}
    return {"kind": kind, "at": generator.uniform(0.01, 1) * command.seconds}


def kill(command, count, seed):
    """All kills of a command; prints the figures, and fails with all that led to something wrong."""
    generator = generator_of(command.name, seed)
    failed, tried, killed = [], Counter(), Counter()
    for number in range(count):
        fault = a_fault(generator, command)
        command.clear()
        ended = command.start(fault)
        tried[fault["kind"]] += 1
        killed[fault["kind"]] += ended.code < 0
        wrong = command.halves()
        wrong += command.again()
        if wrong:
            failed.append({"number": number, **fault, "code": ended.code, "wrong": wrong})
    figures = {"command": command.name, "seed": seed, "tried": tried, "killed": killed, "moments": command.moments,
               "seconds": round(command.seconds, 2), "wrong": len(failed)}  # fmt: skip
    print(json.dumps(figures))
    assert not failed, json.dumps(failed, indent=1)[:6000]


@pytest.mark.parametrize("name", SHORT)
def test_killed_and_run_again(forks, arguments_of, tmp_path, name):
    kill(Disturbed(forks, arguments_of, name, tmp_path), SHORT[name], SEED)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_a_hundred_times(forks, arguments_of, tmp_path, name):
    kill(Disturbed(forks, arguments_of, name, tmp_path), KILLS, SEED + 1)
