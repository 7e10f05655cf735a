"""What is computed, with which weights, when an answer counts as right, and the statistics of repeated timings.
Imports no other folder; every other folder may import it."""
