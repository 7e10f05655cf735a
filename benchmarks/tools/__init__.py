"""Commands on top of the suite: the speed promises, and what the compiler makes of the Triton kernels.
Imports every folder but gpu; only the command line imports it."""
