"""The comparison with an installed cuda.h, where there is one; the parser of it everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wire.tools import compare_header

INSTALLED = next(
    (p for p in (Path("/usr/local/cuda/include"), Path("/usr/local/cuda-13.0/include")) if (p / "cuda.h").exists()),
    None,
)


@pytest.mark.parametrize(
    ("prototype", "types"),
    [
        ("void", []),
        ("CUcontext *pctx, unsigned flags, CUdevice_v1 dev", ["CUcontext*", "unsigned int", "CUdevice"]),
        ("const void *const image, unsigned short us, char luid[8]", ["const void*const", "unsigned short", "char*"]),
        ("unsigned long long *id", ["unsigned long long*"]),
    ],
)
def test_prototypes_are_read_as_types(prototype: str, types: list[str]) -> None:
    assert compare_header._types(prototype) == types


def test_without_a_header_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_header.main([str(tmp_path)]) == 2
    assert "no cuda.h" in capsys.readouterr().err


@pytest.mark.skipif(INSTALLED is None, reason="no cuda.h installed")
def test_spec_and_types_equal_the_installed_header() -> None:
    assert INSTALLED and compare_header.compare_functions(INSTALLED) + compare_header.compare_types(INSTALLED) == []


@pytest.mark.skipif(INSTALLED is None, reason="no cuda.h installed")
@pytest.mark.parametrize(
    ("file", "before", "after", "names"),
    [
        ("cuda_enums.h", "CU_LIMIT_MAX = 10", "CU_LIMIT_MAX = 11", "CU_LIMIT_MAX"),
        (
            "cuda_types.h",
            "size_t srcPitch, dstXInBytes, dstY;",
            "size_t dstXInBytes, srcPitch, dstY;",
            "CUDA_MEMCPY2D_v2",
        ),
        ("cuda_types.h", "#define CU_MEMHOSTALLOC_DEVICEMAP 0x2", "#define CU_MEMHOSTALLOC_DEVICEMAP 0x4", "DEVICEMAP"),
    ],
)
def test_a_wrong_value_or_offset_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str, names: str
) -> None:
    assert INSTALLED
    for header in compare_header.INCLUDE.glob("cuda_*.h"):
        shutil.copy(header, tmp_path)
    text = (tmp_path / file).read_text()
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after))
    monkeypatch.setattr(compare_header, "INCLUDE", tmp_path)
    assert any(names in line for line in compare_header.compare_types(INSTALLED))
