"""Sub-commands that parse their own arguments, by name: module with main(arguments) -> exit status, and help. They need neither typer nor
rich, which a GPU machine may lack."""

OWN_ARGUMENTS = {
    "gpu": ("benchmarks.gpu.command", "Check, time, trace or tune on an NVIDIA GPU; benchmarks/gpu.sh runs all parts."),
    "roofline": ("benchmarks.gpu.roofline", "Count how fast a BERT can be on a GPU."),
    "aot_table": ("benchmarks.tools.aot_table", "Compile every Triton kernel for GPUs that are not here; show registers and spills."),
}
