"""Answers as nvidia-smi does, of what this container has: its options, formats, sentences and exit codes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TextIO

from orion_client import __version__, settings
from orion_client.control_client import ServerUnreachable
from orion_client.smi import box, query, report
from orion_client.smi.gather import Device, devices
from orion_client.text import printable

# As documented for nvidia-smi.
EXIT_INVALID, EXIT_NOT_FOUND, EXIT_NO_DRIVER = 2, 6, 9
_FAILED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)
_HELP = f"""NVIDIA System Management Interface, answered by Orion {__version__}

nvidia-smi [OPTION1 [ARG1]] [OPTION2 [ARG2]] ...

Shows the GPUs that programs in this container have, or would get, from a pool of remote GPUs. Memory is the quota of
the vGPU, utilisation is in parts of what it may have (docs/nvml.md).

    -h,   --help                Print usage information and exit.
          --version             Print version information and exit.

  LIST OPTIONS:
    -L,   --list-gpus           Display a list of GPUs connected to the system.

  SUMMARY OPTIONS: <no arguments>, a table of GPUs and processes.
    -i,   --id=                 Target specific GPUs: index, UUID or PCI bus id, several with commas.
    -f,   --filename=           Log to a specified file, rather than to stdout.
    -l,   --loop=               Probe until Ctrl+C at specified second interval.
    -lms, --loop-ms=            The same in milliseconds.

  QUERY OPTIONS:
    -q,   --query               Display GPU info.
    -x,   --xml-format          Produce XML output.
    -d,   --display=            Only: {", ".join(report.DISPLAYS)}.

  SELECTIVE QUERY OPTIONS (with --format=csv[,noheader][,nounits]):
          --query-gpu=          Information about GPUs; see --help-query-gpu.
          --query-compute-apps= Active compute processes; see --help-query-compute-apps.

  Anything that would change a GPU is refused: it belongs to its server. `orionctl` changes vGPUs.
"""
_FLAGS = {"-h": "help", "--help": "help", "--version": "version", "-L": "list", "--list-gpus": "list", "-q": "query",
          "--query": "query", "-x": "xml", "--xml-format": "xml", "--help-query-gpu": "help_gpu",
          "--help-query-compute-apps": "help_apps", "-u": "", "--unit": ""}  # fmt: skip
_VALUES = {"-i": "id", "--id": "id", "-f": "filename", "--filename": "filename", "-l": "loop", "--loop": "loop",
           "-lms": "loop_ms", "--loop-ms": "loop_ms", "-d": "display", "--display": "display",
           "--query-gpu": "query_gpu", "--query-compute-apps": "query_apps", "--format": "format"}  # fmt: skip
_OPTIONAL = {"loop": "5"}  # a value that may be left out
_OURS = {"-h", "--help", "--version"}  # orion-smi has these itself


class Ending(Exception):
    """What is printed and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Wish:
    """The command line, taken apart."""

    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)


def is_meant(arguments: list[str]) -> bool:
    """Whether orion-smi was called with an option that only nvidia-smi has."""
    names = {argument.partition("=")[0] for argument in arguments}
    return bool(names & ((_FLAGS.keys() | _VALUES.keys()) - _OURS))


def main() -> NoReturn:
    """Entry of the stand-in."""
    try:
        code = run(sys.argv[1:], devices, time.time)
    except Ending as ending:
        print(ending)
        code = ending.code
    except KeyboardInterrupt:
        code = 0
    except BrokenPipeError:
        # Whoever read has seen enough (`nvidia-smi | head -1`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: list[str], ask: Callable[[], list[Device]], clock: Callable[[], float]) -> int:
    """The exit code; `ask` gives the devices, `clock` Unix seconds. Ending for what cannot be answered."""
    wish = parse(arguments)
    told = _static(wish)
    if told is not None:
        print(told)
        return 0
    answer = _answer(wish)
    pause_s = _pause_s(wish)
    out: TextIO = sys.stdout
    if "filename" in wish.values:
        try:
            out = open(wish.values["filename"], "w", encoding="utf-8")
        except OSError as error:
            raise Ending(f"Unable to open {wish.values['filename']}: {error.strerror}", EXIT_INVALID) from None
    is_first = True
    while True:
        print("\n".join(answer(_ask(ask), clock(), is_first)), file=out, flush=True)
        if pause_s is None:
            return 0
        is_first = False
        time.sleep(pause_s)


def parse(arguments: list[str]) -> Wish:
    """`-i 0`, `-i=0`, `--id=0` and `--id 0` are the same."""
    wish = Wish()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, separator, value = argument.partition("=")
        if name in _FLAGS and not separator:
            wish.flags.add(_FLAGS[name])
        elif name in _VALUES:
            key = _VALUES[name]
            if not separator:
                has_value = bool(rest) and not rest[0].startswith("-")
                if not has_value and key not in _OPTIONAL:
                    raise _invalid(f"Option {name} needs a value.")
                value = rest.pop(0) if has_value else _OPTIONAL[key]
            wish.values[key] = value
        else:
            raise _invalid(f"Option {printable(argument)} is not recognized.")
    return wish


def _invalid(text: str) -> Ending:
    return Ending(
        f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n{text}\n", EXIT_INVALID
    )


def _static(wish: Wish) -> str | None:
    """What needs no server."""
    if "help" in wish.flags:
        return _HELP
    if "version" in wish.flags:
        return f"NVIDIA-SMI version  : Orion {__version__}"
    for flag, known in (("help_gpu", query.GPU_FIELDS), ("help_apps", query.APP_FIELDS)):
        if flag in wish.flags:
            lines = (f'"{f.name}"' + (f"\n    {f.about}" if f.about else "") for f in known.values())
            return "\n".join(["List of valid properties to query:", "", *lines])
    return None


Answer = Callable[[list[Device], float, bool], list[str]]


def _answer(wish: Wish) -> Answer:
    """How devices become lines: (devices, now, whether it is the first time)."""
    modes = [mode for mode in ("list", "query", "query_gpu", "query_apps") if mode in wish.flags | wish.values.keys()]
    if len(modes) > 1:
        raise _invalid("Only one of -L, -q, --query-gpu and --query-compute-apps can be used.")
    mode = modes[0] if modes else "box"
    ids = [word.strip() for word in wish.values["id"].split(",")] if "id" in wish.values else None
    if mode in ("query_gpu", "query_apps"):
        return _csv(wish, mode, ids)
    if "format" in wish.values:
        raise _invalid("--format belongs to --query-gpu or --query-compute-apps.")
    displays = _displays(wish)
    as_xml = "xml" in wish.flags
    if (as_xml or displays) and mode != "query":
        raise _invalid("-x and -d belong to -q.")

    def answer(all_devices: list[Device], now_s: float, _: bool) -> list[str]:
        chosen = _chosen(all_devices, ids)
        if mode == "list":
            return [f"GPU {d.index}: {printable(d.name)} (UUID: {d.uuid})" for d in chosen]
        if mode == "query":
            if as_xml:
                return [report.xml(chosen, len(all_devices), now_s, displays)]
            return report.text(chosen, len(all_devices), now_s, displays)
        return box.box(chosen, now_s)

    return answer


def _csv(wish: Wish, mode: str, ids: list[str] | None) -> Answer:
    words = [word.strip() for word in wish.values.get("format", "").split(",")]
    if "csv" not in words or not set(words) <= {"csv", "noheader", "nounits"}:
        raise Ending('"--format=" switch is missing or wrong. It is --format=csv[,noheader][,nounits].', EXIT_INVALID)
    apps = mode == "query_apps"
    try:
        wanted = query.fields(wish.values[mode], apps)
    except query.UnknownField as error:
        raise Ending(f'Field "{printable(str(error))}" is not a valid field to query.\n', EXIT_INVALID) from None

    def answer(all_devices: list[Device], now_s: float, is_first: bool) -> list[str]:
        rows = [query.Row(d, len(all_devices), now_s) for d in _chosen(all_devices, ids)]
        if apps:
            rows = [query.Row(r.device, r.count, now_s, p) for r in rows for p in r.device.processes]
        return query.lines(wanted, rows, header=is_first and "noheader" not in words, units="nounits" not in words)

    return answer


def _displays(wish: Wish) -> list[str]:
    words = [word.strip().upper() for word in wish.values.get("display", "").split(",") if word.strip()]
    for word in words:
        if word not in report.DISPLAYS:
            raise _invalid(f"-d {printable(word)}: it is {', '.join(report.DISPLAYS)}.")
    return words


def _chosen(all_devices: list[Device], ids: list[str] | None) -> list[Device]:
    if not all_devices:
        raise Ending("No devices were found", EXIT_NOT_FOUND)
    if ids is None:
        return all_devices
    found = [d for d in all_devices for word in ids if _is_called(d, word)]
    if len({d.index for d in found}) < len(ids):
        raise Ending("No devices were found", EXIT_NOT_FOUND)
    return sorted({d.index: d for d in found}.values(), key=lambda d: d.index)


def _is_called(device: Device, word: str) -> bool:
    bus = query.bus_id(device)
    # Four digits of the domain will do.
    return word in (str(device.index), device.uuid) or (bool(bus) and word.upper() in (bus, bus[4:]))


def _pause_s(wish: Wish) -> float | None:
    for key, unit_s in (("loop", 1.0), ("loop_ms", 0.001)):
        if key in wish.values:
            text = wish.values[key]
            if not text.isdecimal() or len(text) > 9 or int(text) == 0:
                raise _invalid(f"{printable(text)} is not an interval.")
            return int(text) * unit_s
    return None


def _ask(ask: Callable[[], list[Device]]) -> list[Device]:
    try:
        return ask()
    except settings.SettingError as error:
        print(f"orion: {error}", file=sys.stderr)
    except ServerUnreachable as error:
        print(f"orion: {error}; {error.hint}" if error.hint else f"orion: {error}", file=sys.stderr)
    raise Ending(_FAILED + "\n", EXIT_NO_DRIVER)


if __name__ == "__main__":
    main()
