"""Readers of files and messages, fed with damaged ones by the million: do they refuse, crash, hang or fill the memory?

    python -m perf.fuzz [--target NAME ...] [--inputs N] [--jobs 1] [--seed 0] [--driver mutate] [--state FOLDER]
    python -m perf.fuzz --page [--state FOLDER]     # the page of what the state folder holds, while it runs or after
    python -m perf.fuzz --replay TARGET FILE        # one stored input, with the traceback
    python -m perf.fuzz --tamper                    # bundles tampered with, one kind at a time

Every input is a valid file with a few mutations that know its structure: cards of a FITS header, values of a JSON tree,
fields of a protobuf message, and single bytes anywhere. `targets` says which function reads it, `mutations` how it is
damaged, `child` runs a chunk of inputs under a limit of memory and time, `campaign` starts the children, notices those
that die and adds up; `page` writes ``perf/results/fuzz.json`` and ``fuzz.md``. With `atheris` installed, inputs can
also be chosen by which lines of the readers they reach.
"""
