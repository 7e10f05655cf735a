"""What bertfast and other libraries cost on the machine at hand: `python -m benchmarks`.

No subject is timed before its outputs agree with transformers in float32; all are timed side by side in one run, and every time is
also a share of the machine's peaks, measured in the same run. A GPU run uses the same workloads, checks, rounds and result files.

    suite/      workloads, models, checks, statistics     machine/  its class, its other users, its peaks
    subjects/   an adapter per library                    measure/  workers, rounds, a whole run
    report/     result files, tables, pictures            gpu/      subjects and measurer of a GPU, tile search, roofline
    tools/      speed promises, compiled Triton kernels   results/  one committed file per machine class

Imports run one way: tools, gpu -> report -> measure -> subjects -> suite, machine. tests/benchmarks holds them to it.
"""
