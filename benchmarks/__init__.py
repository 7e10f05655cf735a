"""What bertfast and its peers cost, on the machine at hand: `python -m benchmarks`.

Nothing is timed before its outputs agree with transformers in float32; everything is timed side by side in one run, and every
time is also a share of what the machine was measured to do in the same run.

    __main__.py    the command line
    workloads.py   what is computed                     seeded.py     its lengths and sentences
    models.py      with which weights
    subjects/      who computes it: one adapter a library
    worker.py      the process that one subject runs in  client.py     the other end of its pipe
    runner.py      a whole run                           settings.py   how it is made, what its file holds
    group.py       check, interleave, repeat             rounds.py     who is timed after whom, until when
    steps.py       each step of a generation             fresh.py      cold starts and memory: fresh processes
    checks.py      how far off is refused
    machine.py     what it runs on, who disturbs         peaks.py      what it could do at most (peaks.c)
    results.py     the JSON file                         stats.py      medians, spreads, ratios
    report.py  plots.py  compare.py  readme.py           tables, pictures, two files side by side, the README's table
"""
