"""What asyncsafe costs, beside its rivals, in one run.

    pip install 'asyncsafe[benchmarks]'
    python -m benchmarks                       # everything, some minutes
    python -m benchmarks decorator imports     # some of it
    python -m benchmarks --quick --json FILE   # less exact; the values in pyperf's format

Each table is a module. The cases of a table take turns within short rounds, in several processes
(the layout of memory differs between them), and what is printed is the median over all rounds: a
busy machine slows all cases alike, so that the ratios can be trusted where nanoseconds can't.
"""
