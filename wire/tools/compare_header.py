"""Compares the spec and our CUDA types with an installed cuda.h: `python -m wire.tools.compare_header [INCLUDE_DIR]`.

Prints one line for each difference and exits 1 when there is one, 2 when no header is found. Needs gcc.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from wire.spec.api import load

INCLUDE = Path(__file__).resolve().parent.parent / "include"
SPELLINGS = {"unsigned": "unsigned int", "CUdevice_v1": "CUdevice", "CUdeviceptr_v2": "CUdeviceptr"}


def _preprocess(include: Path, defines: list[str]) -> str:
    source = "#include <cuda.h>\n#include <cudaProfiler.h>\n"
    command = ["gcc", "-E", "-P", "-x", "c", f"-I{include}", *[f"-D{define}" for define in defines], "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def _types(prototype: str) -> list[str]:
    """The parameter types alone, spelt one way; parameter names differ between releases of the header."""
    if prototype.strip() in ("", "void"):
        return []
    types = []
    for item in prototype.split(","):
        words = re.sub(r"\s*\[\w*\]", "*", item) if "[" in item else item
        match = re.match(r"^(.*?[\s*])\w+(\*?)$", words.strip())
        text = (match[1] + match[2]) if match else words
        text = re.sub(r"\s*\*\s*", "*", text).strip()
        types.append(" ".join(SPELLINGS.get(word, word) for word in text.split()))
    return [re.sub(r"unsigned int (?=int|char|short|long)", "unsigned ", text) for text in types]


def header_prototypes(include: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for defines in ([], ["__CUDA_API_VERSION_INTERNAL"], ["CUDA_API_PER_THREAD_DEFAULT_STREAM"]):
        for name, text in re.findall(r"CUresult\s+(cu[A-Z]\w*)\s*\(([^;{]*?)\)\s*;", _preprocess(include, defines)):
            found.setdefault(name, _types(re.sub(r"\s+", " ", text)))
    return found


def header_versions(include: Path) -> set[tuple[str, int, bool]]:
    """(base name, version, per-thread) of every PFN_ type in the *Typedefs.h headers."""
    found = set()
    for path in include.glob("cuda*Typedefs.h"):
        for name, version, suffix in re.findall(r"\*PFN_(\w+?)_v(\d+)(_pt[sd][zs])?\)", path.read_text()):
            found.add((name, int(version), bool(suffix)))
    return found


def compare_functions(include: Path) -> list[str]:
    out = []
    ours = {abi.symbol: [re.sub(r"\s*\*\s*", "*", p.c_type) for p in abi.parameters] for f in load() for abi in f.abis}
    theirs = header_prototypes(include)
    out += [f"{name}: not in the spec" for name in sorted(set(theirs) - set(ours))]
    for name in sorted(set(ours) & set(theirs)):
        if ours[name] != theirs[name]:
            out.append(f"{name}: spec {ours[name]}, header {theirs[name]}")
    versions = {(f.name, abi.version, abi.per_thread) for f in load() for abi in f.abis}
    for name, version, per_thread in sorted(header_versions(include) - versions):
        out.append(f"{name}: version {version}{' per-thread' if per_thread else ''} is not in the spec")
    return out


def compare_types(include: Path) -> list[str]:
    """Enumerators, structure sizes and member offsets, printed by the same program compiled against each header."""
    text = "".join((INCLUDE / name).read_text() for name in ("cuda_enums.h", "cuda_errors.h"))
    lines = [f'printf("{name} %lld\\n", (long long){name});' for name in re.findall(r"^\s+(CUD?A?_\w+) = ", text, re.M)]
    headers = ("cuda_types.h", "cuda_graph_types.h", "cuda_array_types.h")
    types = "".join((INCLUDE / name).read_text() for name in headers)
    for macro in re.findall(r"^#define (CU_\w+|CUDA_ARRAY3D_\w+) ", types, re.M):
        lines.append(f'printf("{macro} %lld\\n", (long long){macro});')
    for body, name in re.findall(r"^typedef (?:struct|union) \w+ \{(.*?)^\} (\w+);", types, re.M | re.S):
        if name == "CUeglFrame":
            continue  # cudaEGL.h needs EGL's own headers
        lines.append(f'printf("sizeof {name} %zu\\n", sizeof({name}));')
        flat = re.sub(r"^  (?:struct|union)[^;{]*\{.*?^  \} (\w+);", r"  int \1;", body, flags=re.M | re.S)
        for declaration in re.findall(r"^  [^{}/\n]*?;|^  [^{};/]*?;", flat, re.M):
            for member in re.findall(r"(\w+)(?:\[\w+\])?\s*[,;]", declaration):
                lines.append(f'printf("{name}.{member} %zu\\n", offsetof({name}, {member}));')
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for label, flags, first in (
            ("ours", [f"-I{INCLUDE}"], "cuda_types.h"),
            ("header", [f"-I{include}", "-D__CUDA_API_VERSION_INTERNAL"], "cuda.h"),
        ):
            source = f"#include <stddef.h>\n#include <stdio.h>\n#include <{first}>\n"
            source += "#include <cudaProfiler.h>\n" if label == "header" else ""
            program = Path(folder) / label
            program.with_suffix(".c").write_text(source + "int main(void) {" + "\n".join(lines) + "return 0; }\n")
            build = subprocess.run(
                ["gcc", "-w", *flags, "-o", program, program.with_suffix(".c")], capture_output=True, text=True
            )
            if build.returncode:
                errors = [line for line in build.stderr.splitlines() if "error:" in line]
                return [f"cannot compile the comparison against {label}: {line}" for line in errors[:20]]
            results.append(subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines())
    ours, theirs = results
    return [f"ours {a}, header {b.rsplit(' ', 1)[1]}" for a, b in zip(ours, theirs, strict=True) if a != b]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wire.tools.compare_header", description=__doc__)
    parser.add_argument("include", nargs="?", type=Path, default=Path("/usr/local/cuda/include"))
    include = parser.parse_args(argv).include
    if not (include / "cuda.h").exists():
        print(f"no cuda.h in {include}", file=sys.stderr)
        return 2
    differences = compare_functions(include) + compare_types(include)
    print("\n".join([*differences, f"{len(differences)} differences"]))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
