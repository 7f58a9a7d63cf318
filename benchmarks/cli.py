"""`orion-bench`: one command in front of the benchmark programs."""

from __future__ import annotations

import argparse

from benchmarks import null_engine, rows, session

PROGRAMS = {
    "rows": (rows.main, "run one row against the driver that the process finds, and print it as JSON"),
    "session": (session.main, "run the rows natively and over each transport, and write the table of fractions"),
    "null-engine": (null_engine.main, "what Orion itself costs, beside the machine's bare floors (needs gcc)"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="orion-bench", description="Measures Orion.")
    programs = parser.add_subparsers(dest="program", required=True, metavar="PROGRAM")
    for name, (_, text) in PROGRAMS.items():
        # The programs have their own options and --help.
        programs.add_parser(name, help=text, add_help=False)
    chosen, rest = parser.parse_known_args(argv)
    return PROGRAMS[chosen.program][0](rest)
