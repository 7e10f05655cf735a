"""The command line.

    app.py            the commands and their options; main, the entry point
    options.py        options that several commands share
    errors.py         a failure as one line and an exit code
    embed.py          bertfast embed
    input_texts.py    its input: lines, JSON Lines, CSV
    output_files.py   its output: .npy and JSON Lines, resumable
    part_file.py      OUT.part: one writer, no links
    run_file.py       OUT.run.json: what the rows were computed from
    embed_run.py      the facts in it
    generate.py       bertfast generate
    standard_streams.py  which may be closed
    token_printer.py  its output: tokens printed as they are generated
    demo.py, info.py, convert.py
    info_model.py     the rows of bertfast info --model

Only bertfast.__main__ and the console script import this package. app.py, options.py and errors.py import neither torch nor
transformers, so that --help answers at once; each command imports its module when it runs.
"""

from bertfast.cli.app import main  # where console scripts of earlier installs look for it

__all__ = ["main"]
