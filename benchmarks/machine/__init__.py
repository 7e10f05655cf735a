"""The machine at hand: what it is, who else uses it, and its measured peaks.
Imports no other folder; every other folder may import it."""
