"""Fuzzing: random files, arguments and sequences of operations, held against a property that must always hold.

    python -m tests.fuzz --minutes 2 --seed 0                from the root of the repository; every target
    python -m tests.fuzz --minutes 20 --target model_calls   one of them

A target is a module of tests/fuzz/targets with a hypothesis strategy of cases. A case prints as the code that makes it; `check()` returns
what happened in a few words ("accepted", "refused: ValueError"), and raises where the property does not hold. Cases run in a child process
with a limit of memory, so a crash and a hang are findings as well.

    case.py      Case and Target
    worker.py    the child process
    runner.py    rounds of cases within a time, shrinking, findings
    corpus.py    cases that every run begins with: interesting ones, and every past finding
    bounds.py    limits of processor time and memory
    folders.py   cases that are files of a model folder, given to a reader
    damage.py    strategies: damaged bytes
    json_damage.py  strategies: JSON of wrong types, damaged JSON
"""
