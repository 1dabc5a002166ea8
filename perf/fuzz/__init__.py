"""Fuzzing of the readers of files and messages: do they refuse damaged input, or crash, hang, or fill the memory?

    python -m perf.fuzz [--target NAME ...] [--inputs N] [--jobs 1] [--seed 0] [--driver mutate] [--state FOLDER]
    python -m perf.fuzz --page [--state FOLDER]     # the page of the state folder, during a campaign or after it
    python -m perf.fuzz --replay TARGET FILE        # a stored input, with the traceback
    python -m perf.fuzz --tamper                    # tampered bundles, one kind at a time

Every input is a valid file with a few mutations. The mutations know the structure of the file: cards of a FITS header,
values of a JSON tree, fields of a protobuf message; others change single bytes anywhere. `targets` names the reader,
`mutations` damages the file, `child` runs a chunk of inputs under limits of memory and time, `campaign` starts the
children, notices children that die, and adds up. `page` writes ``perf/results/fuzz.json`` and ``fuzz.md``. With
`atheris` installed, inputs can also be chosen by the lines of the readers that they reach.
"""
