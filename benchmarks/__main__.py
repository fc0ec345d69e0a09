"""python -m benchmarks [--quick] [--json FILE] [NAME ...]"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import sys

GROUPS = (
    "decorator",
    "drivers",
    "django",
    "imports",
    "mysql",
    "on_the_loop",
    "million",
    "page",
    "postgres",
    "sqlalchemy",
    "sharing",
    "connections",
    "asgi",
    "wsgi",
)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write all values, in pyperf's format")
    options = parser.parse_args()
    for name in options.groups:
        if name not in GROUPS:
            parser.error(f"no group {name!r}; there are: {', '.join(GROUPS)}")
    if importlib.util.find_spec("pyperf") is None:
        parser.error("pyperf is not installed: pip install 'asyncsafe[benchmarks]'")
    for variable in ("ASYNCSAFE_MODE", "DJANGO_ALLOW_ASYNC_UNSAFE"):
        os.environ.pop(variable, None)

    print(f"{platform.python_implementation()} {platform.python_version()}, medians\n", flush=True)
    tables = []
    for name in options.groups or GROUPS:
        for table in importlib.import_module(f"benchmarks.{name}").measure(options.quick):
            tables.append(table)
            print(table, flush=True)
            print()
    if options.json:
        write(tables, options.json)
    missed = sum(not table.met for table in tables)
    print(f"{missed} tables with a target that FAILS" if missed else "Every target holds.")
    return 1 if missed else 0


def write(tables: list, path: str) -> None:
    """All values, for `python -m pyperf compare_to`."""
    import pyperf

    benchmarks = [
        pyperf.Benchmark([pyperf.Run(values, metadata={"name": f"{table.title}: {case}", **unit})])
        for table in tables
        for unit in [{"unit": "byte" if table.unit == "MB" else "second"}]
        for case, values in table.values.items()
    ]
    pyperf.BenchmarkSuite(benchmarks).dump(path, replace=True)


if __name__ == "__main__":
    sys.exit(main())
