"""Everything that needs an NVIDIA GPU or models one: its subjects, the measurer in one process, the tile search, traces, the roofline.
Imports every folder but tools; only the command line imports it."""
