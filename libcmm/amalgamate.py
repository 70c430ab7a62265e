"""Make one C file and one header of libcmm, for programs that compile it themselves: ``python amalgamate.py FOLDER``.

FOLDER gets ``cmm.c`` and ``cmm.h``. They are the library that CMake builds, with every instruction set of the target
and to the same bits, from the same lists: the sources are those of CMakeLists.txt, the kernels those of kernels.inc.

Three things that CMake does file by file are done inside of the one file. A kernel's instruction set is turned on by
a pragma around it and not by flags. What two files define for themselves, a function or a type of the same name, is
renamed while each of them passes, and each file's macros are undefined after it. And contraction (-ffp-contract) is
off by pragma; what no pragma takes back, -ffast-math, stops the compiler as it does in CMake's build.
"""

import re
import sys
from collections import Counter
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent
INCLUDE, SOURCE, TEMPLATES = LIBRARY / "include", LIBRARY / "src", LIBRARY.parent / "cmake"

# Headers of src/ that each file needs for itself: for the instruction set that is on, for its own list of types, for
# names that are its own. All others there are for every file, and stand once.
OF_EACH_FILE = ("activation.h", "blas_kernel.h", "for_each_type.h")
ARCHITECTURES = {
    "x86_64": "!defined(CMM_NO_X86_64)",
    "aarch64": "defined(__aarch64__)",
    "wasm32": "defined(__wasm32__)",
}

HEAD = """\
/* libcmm {version} in one file, made by libcmm/amalgamate.py: do not edit it.
 * SPDX-License-Identifier: Apache-2.0
 *
 *     cc -std=c11 -O3 -c cmm.c
 *     cc program.c cmm.o -lm -ldl -pthread
 *
 * On Windows without -ldl and -pthread; anywhere, too, with -DCMM_NO_THREADS, for WebAssembly and small systems: then
 * no thread is started and no library loaded. GCC for Windows leaves AVX out, unless it is given
 * -Wa,-muse-unaligned-vector-move -DCMM_UNALIGNED_VECTOR_MOVE: it does not align vectors on the stack there.
 *
 * It has every instruction set of the target and asks the CPU at run time: -march is not needed. GCC or Clang. */
"""

# Why there are no instruction sets of x86-64, where that is so.
NO_X86_64 = """\
#if !defined(__x86_64__)
#define CMM_NO_X86_64 "it is for x86_64 CPUs"
#elif defined(_WIN32) && !defined(__clang__) && !defined(CMM_UNALIGNED_VECTOR_MOVE)
#define CMM_NO_X86_64 "GCC for Windows needs -Wa,-muse-unaligned-vector-move -DCMM_UNALIGNED_VECTOR_MOVE"
#endif
"""

# Before everything, so that all functions are compiled alike. The diagnostic: of the headers' small functions no file
# uses all.
ARITHMETIC = """\
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-math-errno", "no-trapping-math")
#else
#error "cmm.c needs GCC or Clang: it turns instruction sets on by their pragmas"
#endif
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC visibility push(hidden)
"""

BUILD = """\
const char *cmm_build(void)
{
#if defined(__clang__)
    return "Clang " CMM_TEXT(__clang_major__) "." CMM_TEXT(__clang_minor__) "." CMM_TEXT(__clang_patchlevel__)
#else
    return "GCC " CMM_TEXT(__GNUC__) "." CMM_TEXT(__GNUC_MINOR__) "." CMM_TEXT(__GNUC_PATCHLEVEL__)
#endif
        ": cmm.c"
#if defined(CMM_NO_THREADS)
        " -DCMM_NO_THREADS"
#endif
        ;
}
"""

COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
GUARD = re.compile(r"^#ifndef (\w+)\n#define \1$", re.MULTILINE)

PUSH = """
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("{target}"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("{target}")
#endif
"""
POP = """
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
"""
END = "#pragma GCC visibility pop\n"
STATIC = """
#ifndef CMM_STATIC
#define CMM_STATIC /* a part of the program: nothing is imported from a DLL */
#endif
"""


def version() -> str:
    """Return the version, which is written down in cmm.h."""
    return ".".join(
        re.findall(r"^#define CMM_VERSION_\w+ (\d+)$", (INCLUDE / "cmm.h").read_text("utf-8"), re.MULTILINE)
    )


def lists_of_types() -> dict[str, list[str]]:
    """Return the names of the types of every list of types.h."""
    text = COMMENT.sub("", (SOURCE / "types.h").read_text("utf-8")).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for name, lines in re.findall(r"^#define (CMM_\w*TYPES)\(TYPE\)(.*)$", text, re.MULTILINE):
        found[name] = re.findall(r"\bTYPE\((\w+),", lines)
        for other in re.findall(r"\b(CMM_\w*TYPES)\(TYPE\)", lines):
            found[name] += found[other]
    return found


class Whole:
    """What the files have in common while they are put together."""

    def __init__(self) -> None:
        self.types = lists_of_types()
        self.shared: dict[Path, str] = {}  # headers for every file, in the order in which they need each other
        self.started: set[Path] = set()  # of those
        self.system: dict[str, None] = {}  # lines that include what is not ours, in order
        self.commented: set[Path] = set()  # files whose comments have been taken over

    def read(self, path: Path) -> str:
        """Return a file's text, with its comments the first time."""
        text = path.read_text("utf-8")
        if path in self.commented:
            text = re.sub(r"\n\s*(?=\n)", "", COMMENT.sub("", text))
        self.commented.add(path)
        return text


class Unit:
    """One file that CMake compiles, with what it includes; ``condition`` says where it is compiled at all."""

    def __init__(self, whole: Whole, name: str, text: str, folder: Path = SOURCE, condition: str = "") -> None:
        self.whole, self.name, self.condition = whole, name, condition
        self.included: set[Path] = set()
        self.body, self.list = Path(), ""  # CMM_BODY and CMM_LIST
        self.text = "".join(line + "\n" for line in self.expand(text, folder, of_type=False))

    def include(self, name: str, folder: Path, of_type: bool) -> list[str]:
        """Return the lines of a header of ours, none where they stand elsewhere."""
        path = next(path for path in (folder / name, SOURCE / name, INCLUDE / name) if path.exists()).resolve()
        if path.parent == INCLUDE:
            return []
        if path.parent == SOURCE and path.suffix != ".c" and path.name not in OF_EACH_FILE:
            if path not in self.whole.started:
                self.whole.started.add(path)
                self.whole.shared[path] = Unit(self.whole, path.name, self.whole.read(path)).text
            return []
        text = self.whole.read(path)
        if path in self.included and GUARD.search(text):
            return []
        self.included.add(path)
        if path.name != "for_each_type.h":
            return self.expand(text, path.parent, of_type)
        lines = self.expand(text.partition("\n#define CMM_TYPE ")[0], SOURCE, of_type)
        for number in range(len(self.whole.types[self.list])):
            lines.append(f"#define CMM_TYPE CMM_PICK(CMM_{number})")
            lines += self.expand(self.whole.read(self.body), self.body.parent, of_type=True)
            lines.append("#undef CMM_TYPE")
        return lines

    def expand(self, text: str, folder: Path, of_type: bool) -> list[str]:
        """Return the lines of a text, with our headers in their places; of_type: as a body, with CMM_TYPE defined.

        Guards of headers, and what depends on CMM_TYPE, are decided here; all other conditions stay.
        """
        lines: list[str] = []
        conditions: list[bool | None] = []  # whether a decided one holds, None for those that stay
        found = GUARD.search(text)
        guard = found[1] if found else None
        for line in text.splitlines():
            directive = re.match(r"# *(\w+) *(.*?) *(?:/\*.*)?$", line)
            word, rest = directive.groups() if directive else ("", "")
            if word in ("if", "ifdef", "ifndef"):
                decided = (word == "ifdef") == of_type if rest == "CMM_TYPE" else True if rest == guard else None
                conditions.append(decided)
                if decided is not None:
                    continue
            elif word in ("else", "endif") and conditions[-1] is not None:
                outer = conditions.pop()
                if word == "else":
                    conditions.append(not outer)
                continue
            elif word == "endif":
                conditions.pop()
            if False in conditions:
                continue
            if word == "define" and rest.startswith("CMM_LIST "):
                self.list = rest.split()[1]
            if word == "define" and rest.startswith("CMM_BODY "):
                self.body = SOURCE / rest.split()[1].strip('"')
            elif word == "define" and rest in (guard, "_GNU_SOURCE"):
                pass
            elif word == "include" and rest.startswith('"'):
                lines += self.include(rest.strip('"'), folder, of_type)
            elif word == "include" and None not in conditions:
                system = f"#include {rest}\n"
                self.whole.system[f"#if {self.condition}\n{system}#endif\n" if self.condition else system] = None
            elif word == "include":
                lines += ["#pragma GCC visibility push(default)", line, "#pragma GCC visibility pop"]
            else:
                lines.append(line)
        return lines

    def own_names(self) -> set[str]:
        """Return the functions, values and types that the file defines for itself alone.

        A name that a macro ends with a type stands for those of all types. Some words too many do no harm: a word is
        renamed wherever it stands in the file.
        """
        text = COMMENT.sub("", self.text).replace("\\\n", " ")
        types = {name for names in self.whole.types.values() for name in names}
        types.update(re.findall(r"\bTYPE\((\w+),", text))  # of a list of its own
        affixes = ["", *re.findall(r"\(\w##(_\w+)\)", text)]
        text = re.sub(r"\b[A-Z][A-Z0-9_]*\((\w+)\)", r"\1@", text)  # NAME(run)
        text = re.sub(r"\b(\w+)_##\w+", r"\1@", text)  # kernel_##type
        names = re.findall(r"\b(?:static|INLINE)\b[^;{}()=\[]*?([\w@]+)\s*[\[(=;]", text)
        names += re.findall(r"\btypedef\b[^;{(]*?([\w@]+)(?:;|\((?!\*))", text)
        names += re.findall(r"\}\s*(?!break\b|continue\b|return\b)([\w@]+)\s*[;\[=]", text)
        names += re.findall(r"\b(?:struct|union|enum)\s+([\w@]+)\s*\{", text)
        for members in re.findall(r"\benum\b[^;{]*\{([^}]*)\}", text):
            names += [member.split()[0] for member in members.split(",") if member.split()]
        found = set()
        for name in names:
            if name.endswith("@"):
                found |= {f"{name[:-1]}{affix}_{of}" for affix in affixes for of in types}
            elif re.match(r"[A-Za-z]", name):
                found.add(name)
        return found

    def renamed(self, ambiguous: set[str]) -> str:
        """Return the text: what other files define as well is renamed, and no macro is left after it."""
        prefix = re.sub(r"\W", "_", self.name)
        names = sorted(self.own_names() & ambiguous)
        members = {word for text in self.whole.shared.values() for word in re.findall(r"\w+", COMMENT.sub("", text))}
        text = self.text
        for name in members.intersection(names):  # the preprocessor would rename .name and ->name, too
            text = re.sub(rf"(?<![.\w])(?<!->){name}\b", f"{prefix}_{name}", text)
            names.remove(name)
        macros = dict.fromkeys(re.findall(r"^# *define (\w+)", text, re.MULTILINE))
        rename = "".join(f"#define {name} {prefix}_{name}\n" for name in names)
        forget = "".join(f"#undef {name}\n" for name in [*macros, *names])
        return f"\n/* ---- {self.name} ---- */\n{rename}{text}{forget}"


class Kernels:
    """The list of kernels (kernels.inc), and the files that CMake makes or takes for it."""

    def __init__(self, whole: Whole) -> None:
        self.table: list[str] = []  # the lines of kernel_table.inc
        self.any: list[Unit] = []  # kernels for every CPU
        self.of_isa: dict[
            str, list[tuple[Unit, Unit]]
        ] = {}  # an instruction set's kernels, and what stands in for each
        self.isas: dict[str, tuple[str, str]] = {}  # architecture and flags
        kernel, stub = ((TEMPLATES / name).read_text("utf-8") for name in ("kernel.c.in", "stub.c.in"))
        for line in re.findall(r"^CMM_\w+\(.*\)$", (SOURCE / "kernels.inc").read_text("utf-8"), re.MULTILINE):
            macro, first, second, third = re.fullmatch(r"(\w+)\((\w+), (\w+), *(.*)\)", line).groups()
            if macro == "CMM_ISA":
                self.isas[first] = second, third
                self.of_isa[first] = []
            elif macro == "CMM_KERNEL":
                self.table.append(f"CMM_KERNEL({first}, {second})")
                path = SOURCE / third
                self.any.append(Unit(whole, third, whole.read(path), path.parent))
            elif macro == "CMM_EVERY_ISA":
                for isa, (architecture, _) in self.isas.items():
                    for algorithm in third.split():
                        name = isa if first == "act" else f"{algorithm}_{isa}"
                        self.table.append(f"CMM_KERNEL({first}, {name})")
                        values = {"isa": isa, "folder": second, "algorithm": algorithm, "op": first, "name": name}
                        values |= {"OP": first.upper(), "absent": f"it is for {architecture} CPUs"}
                        values |= (
                            {"level": "", "list": "ONE"}
                            if first == "act"
                            else {"level": "native", "list": "CMM_SAME_TYPES" if first == "backward" else "CMM_TYPES"}
                        )
                        condition = ARCHITECTURES.get(architecture, "")
                        if architecture == "x86_64":
                            values["absent"] = '" CMM_NO_X86_64 "'
                        self.of_isa[isa].append(
                            (
                                Unit(whole, f"{second}/{name}", fill(kernel, values), condition=condition),
                                Unit(whole, f"{second}/{name}, a stub", fill(stub, values)),
                            )
                        )


def fill(template: str, values: dict[str, str]) -> str:
    """Return a template of CMake's with its values."""
    return re.sub(r"@(\w+)@", lambda name: values[name[1]], COMMENT.sub("", template, count=1))


def source(whole: Whole) -> str:
    """Return the text of cmm.c."""
    kernels = Kernels(whole)
    listed = re.search(r"add_library\(cmm_objects OBJECT ([^)]*)\)", (LIBRARY / "CMakeLists.txt").read_text("utf-8"))[
        1
    ]
    units = []
    for name in listed.split():
        text = whole.read(LIBRARY / name)
        text = text.replace('#include "kernel_table.inc"', "\n".join(kernels.table))
        units.append(Unit(whole, name.removeprefix("src/"), text))
    every = [*units, *kernels.any, *(unit for pairs in kernels.of_isa.values() for pair in pairs for unit in pair)]
    count = Counter(name for unit in every for name in unit.own_names())
    ambiguous = {name for name, files in count.items() if files > 1}

    parts = [
        HEAD.format(version=version()),
        "#ifndef _GNU_SOURCE\n#define _GNU_SOURCE\n#endif\n",
        NO_X86_64,
        '#include "cmm.h"\n',
    ]
    parts += [*whole.system, ARITHMETIC, COMMENT.sub("", (SOURCE / "arithmetic.h").read_text("utf-8"))]
    parts += [f"\n/* ---- {path.name} ---- */\n{text}" for path, text in whole.shared.items()]
    parts += [unit.renamed(ambiguous) for unit in (*units, *kernels.any)]
    for isa, pairs in kernels.of_isa.items():
        architecture, flags = kernels.isas[isa]
        text = "".join(unit.renamed(ambiguous) for unit, _ in pairs)
        if flags:
            target = ",".join(flag.removeprefix("-m") for flag in flags.split())
            text = PUSH.format(target=target) + text + POP
        if architecture != "any":
            stubs = "".join(stub.renamed(ambiguous) for _, stub in pairs)
            text = f"\n#if {ARCHITECTURES[architecture]}\n{text}\n#else\n{stubs}\n#endif\n"
        parts.append(text)
    return "".join([*parts, "\n", BUILD, END])


def header() -> str:
    """Return the text of cmm.h, with cmm_blas.h in its place."""
    main, blas = ((INCLUDE / name).read_text("utf-8") for name in ("cmm.h", "cmm_blas.h"))
    return main.replace('#include "cmm_blas.h"\n', blas.replace('#include "cmm.h"\n\n', "")).replace(
        "#define CMM_H\n", "#define CMM_H\n" + STATIC
    )


def main(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cmm.c").write_text(re.sub(r"\n{3,}", "\n\n", source(Whole())), "utf-8")
    (folder / "cmm.h").write_text(header(), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
