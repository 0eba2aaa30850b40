"""The Metal kernels under the rules of address spaces, as clang knows them from OpenCL.

Metal's compiler is built on clang and takes these rules from it, but runs on a Mac only. Here each kernel,
and each instance of a template, becomes one of C++ for OpenCL. bfloat is left out: there is no such type.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from course_lib.kernels.catalog.case import ROOT
from course_lib.kernels.lab.metal import translate
from course_lib.kernels.lab.text import closing, masked

CLANG = shutil.which("clang")
PRELUDE = Path(__file__).with_name("metal_for_clang.h")
SOURCES = sorted((ROOT / "kernels_metal").glob("*.metal"))
KERNEL = re.compile(r"(?:template\s*<([^;{}]*?)>\s*)?(?:\bkernel|\[\[kernel\]\])\s+void\s+(\w+)\s*\(")


def opencl(source: str) -> str:
    """Each kernel, and each instance of a template, as a kernel of OpenCL; lines are not kept."""
    instances = [k.instance for k in translate(source, "kernel.metal").kernels if k.instance]
    code = re.sub(r"//[^\n]*|#include.*|using namespace metal;", "", source)
    for macro in re.findall(r"^#define (\w+)\(", code, re.M):
        code = re.sub(rf"^{macro}\([^)]*\)", "", code, flags=re.M)
    code = re.sub(r"#define (?:\\\n|[^\n])*|template \[\[host_name[^;]*;", "", code)
    out, at = "", 0
    for found in KERNEL.finditer(code):
        end = closing(code, found.end() - 1)
        start = code.index("{", end)
        stop = closing(code, start)
        parameters = re.sub(r"\[\[[^\]]*\]\]", "", code[found.end() : end])
        # A kernel of OpenCL takes no references: a pointer, and a reference to what it points to.
        values = re.findall(r"constant (\w+)& (\w+)", parameters)
        parameters = re.sub(r"(constant \w+)& (\w+)", r"\1* p_\2", parameters)
        body = "".join(f"constant {t}& {n} = *p_{n}; " for t, n in values) + code[start + 1 : stop]
        out += code[at : found.start()]
        at = stop + 1
        names = [p.split() for p in found.group(1).split(",")] if found.group(1) else []
        made = [i for i in instances if i.startswith(f"{found.group(2)}<")] if names else [""]
        for number, instance in enumerate(i for i in made if "bfloat" not in i):
            given = instance[:-1].split("<")[1].split(",") if instance else []
            head = "".join(
                f"using {name} = {value};"
                if kind == "typename"
                else f"constant constexpr {kind} {name} = {value};"
                for (kind, name), value in zip(names, given, strict=True)
            )
            kernel = f"__kernel void {found.group(2)}_{number}({parameters}) {{ {body} }}"
            out += f"namespace n_{found.group(2)}_{number} {{ {head}\n{kernel}\n}}\n"
    return out + code[at:]


def errors(source: str, folder: Path) -> list[str]:
    assert CLANG
    file = folder / "kernel.cl"
    file.write_text(f'#include "{PRELUDE}"\n{opencl(source)}')
    command = [CLANG, "-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "-target", "spir64", "-fsyntax-only"]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    return re.findall(r"error: .*", done.stderr) or ([done.stderr] if done.returncode else [])


needs_clang = pytest.mark.skipif(CLANG is None, reason="clang is not installed here")


@needs_clang
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_address_spaces_fit(path: Path, tmp_path: Path) -> None:
    assert errors(path.read_text(), tmp_path) == []


@needs_clang
@pytest.mark.parametrize(
    ("change", "into", "says"),
    [
        ("threadgroup Shared<D, G>* shared", "device Shared<D, G>* shared", "no matching function"),
        ("device O* out, device float* lse", "device O* out, constant float* lse", "read-only"),
        ("&shared, lane", "shared, lane", "no matching function"),
    ],
)
def test_clang_finds_what_does_not_fit(change: str, into: str, says: str, tmp_path: Path) -> None:
    source = (ROOT / "kernels_metal/paged_attention.metal").read_text()
    assert change in source
    assert any(says in error for error in errors(source.replace(change, into), tmp_path))


def test_every_kernel_reaches_clang() -> None:
    for path in SOURCES:
        kernels = [k for k in translate(path.read_text(), path.name).kernels if "bfloat" not in k.instance]
        assert masked(opencl(path.read_text())).count("__kernel void") == len(kernels)
