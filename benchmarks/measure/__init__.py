"""How subjects are measured: worker processes, checks, interleaved rounds, steps, cold starts, and a whole run.
Imports suite, machine and subjects; report, gpu, tools and the command line may import it."""
