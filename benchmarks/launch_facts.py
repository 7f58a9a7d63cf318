"""What issuing work costs in the driver, and whether graphs or several threads would issue it faster.

    python3 -m benchmarks.launch_facts [--out FILE]    one JSON object; exit 1 when a counter lacks a launch

Runs natively (NVIDIA's or softgpu's libcuda; softgpu is a check of the path, never a GPU timing), and through Orion's
client, where the rows show what a program sees (`--only threads_4_own_stream`). The rows are measured
by a C program, compiled with gcc, so that they are the driver's costs and not Python's; --build PATH only compiles it,
--program PATH runs one that was compiled elsewhere. Times are nanoseconds for each launch or node: `issue_ns` until the
calls had returned, `total_ns` until the device had finished. `predictions` apply them to programs (launch_model).

| rows | what |
|---|---|
| launch_N, launch_buffer_N, launch_ex_N | N parameters: by pointers, by one packed buffer, by cuLaunchKernelEx |
| launch_3us, ..._4_streams, ..._unbroken | a kernel of 3 us; four streams in turn; more than the driver's queue takes |
| launch_8_word/event/batch_every_N | a marker (or an event record) behind each Nth launch |
| graph_N_updated_P | a chain of N kernels, of which P % get other parameters before each launch |
| graph_N_exec_update, graph_N_built | all parameters by cuGraphExecUpdate; a graph made and instantiated anew |
| threads_N_own_stream, own_context, one_stream | N threads that launch, and what they share |
| threads_N_handed_over | one thread decides and hands launches to N threads through queues, a stream each |
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.launch_model import predictions
from benchmarks.machine import describe

HERE = Path(__file__).resolve().parent
SOURCES = ("launch_facts.c", "launch_facts_threads.c")


def build(program: Path) -> None:
    sources = [str(HERE / "native" / name) for name in SOURCES]
    command = ["gcc", "-O2", "-std=gnu11", f"-I{HERE.parent / 'wire/include'}", *sources, "-o", str(program)]
    subprocess.run([*command, "-lpthread", "-ldl"], check=True)


def measure(program: Path, samples: int, only: str) -> dict[str, Any]:
    command = [str(program.resolve()), str(samples), only]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command[0]} ended with {done.returncode}")
    facts: dict[str, Any] = json.loads(done.stdout)
    predicted = [] if only else predictions(facts["rows"])
    return {"machine": describe("benchmarks.launch_facts"), **facts, "predictions": predicted}


def text_of(facts: dict[str, Any]) -> str:
    lines = [f"{facts['device']}, driver {facts['driver']}: ns for each launch, issued and finished"]
    for row in facts["rows"]:
        parts = [key for key in row if key.endswith("_ns") and key not in ("issue_ns", "total_ns")]
        more = [f"{key} {row[key]['median']:.0f}" for key in parts]
        issue, total = row["issue_ns"], row["total_ns"]
        lines.append(
            f"{row['name']:36} {issue['median']:8.0f} ({issue['p10']:.0f} to {issue['p90']:.0f}) "
            f"{total['median']:8.0f}  {' '.join(more)}{'' if row['whole'] else '  LAUNCHES ARE MISSING'}"
        )
    for row in facts["predictions"]:
        lines.append(
            f"{row['name']}: engine busy {row['engine_busy']:.0%}; engine us {row['engine_us']}, "
            f"step us {row['step_us']}: {row['best']}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there, and a summary to stdout")
    parser.add_argument("--samples", type=int, default=0, help="of each row (default 31; 3 on softgpu)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose names contain it; no predictions then")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--build", type=Path, metavar="PATH", help="compile the program there and stop")
    chosen.add_argument("--program", type=Path, metavar="PATH", help="run this one: no gcc is needed")
    arguments = parser.parse_args(argv)
    if arguments.build:
        build(arguments.build)
        return 0
    with tempfile.TemporaryDirectory(prefix="orion-launch-") as folder:
        program = arguments.program or Path(folder) / "launch_facts"
        if not arguments.program:
            build(program)
        facts = measure(program, arguments.samples, arguments.only)
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(text_of(facts))
    else:
        print(json.dumps(facts))
    return 0 if facts["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
