"""Write what other languages know of libcmm: ``python libcmm/bindings/generate.py``.

Constants, structs and functions are those of libcmm/abi.txt, the activations those of libcmm/src/activations.inc. Of
a field or struct with two names the first counts, and libcmm_cuda is left out. C++ reads cmm.h itself and needs
nothing; Go does, too, and gets types of its own for what is chosen by a number.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBCMM = HERE.parent
MADE = "Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports."


@dataclass(frozen=True)
class Field:
    """A field of a struct: its name, and its type as abi.txt has it."""

    name: str
    type: str


@dataclass(frozen=True)
class Struct:
    """A struct, its size in bytes, its fields, and the offset of each."""

    name: str
    size: int
    fields: tuple[Field, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """A function: its name, the type of its result, those of its arguments."""

    name: str
    result: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Abi:
    """What abi.txt records, and which of the constants are activations."""

    constants: dict[str, int]
    structs: tuple[Struct, ...]
    functions: tuple[Function, ...]
    activations: tuple[str, ...]

    def group(self, prefix: str) -> dict[str, int]:
        """Constants that start so, by what follows."""
        return {name.removeprefix(prefix): value for name, value in self.constants.items() if name.startswith(prefix)}

    @property
    def activation(self) -> dict[str, int]:
        """The activations."""
        return {name: self.constants[f"CMM_{name}"] for name in self.activations}


def struct(name: str, size: str, words: str) -> Struct:
    """Read the line of a struct."""
    fields: dict[int, Field] = {}
    for field, offset, of in re.findall(r"(\w+)@(\d+):(\S+)", words):
        fields.setdefault(int(offset), Field(field, of))
    return Struct(name, int(size), tuple(fields.values()), tuple(fields))


def read() -> Abi:
    """Read abi.txt and the list of activations."""
    text = (LIBCMM / "abi.txt").read_text(encoding="utf-8")
    activations = (LIBCMM / "src/activations.inc").read_text(encoding="utf-8")
    structs = [struct(*found) for found in re.findall(r"^struct (\w+) (\d+): (.*)$", text, re.MULTILINE)]
    names = {one.name for one in structs}
    functions = re.findall(r"^function (\w+): (\S+) ?(.*)$", text, re.MULTILINE)
    return Abi(
        {name: int(value) for name, value in re.findall(r"^constant (?!CMM_CUDA)(\w+) (-?\d+)$", text, re.MULTILINE)},
        tuple(
            one
            for one in structs
            if not one.name.startswith("cmm_cuda") and f"{one.name}_info" not in names  # cmm_level is the older name
        ),
        tuple(Function(name, result, tuple(arguments.split())) for name, result, arguments in functions),
        tuple(re.findall(r"^    ACTIVATION\((\w+),", activations, re.MULTILINE)),
    )


def camel(name: str) -> str:
    """GELU_TANH as GeluTanh."""
    return "".join(word.capitalize() for word in name.split("_"))


def chars(kind: str) -> int:
    """How many there are in an array of char, 0 for another type."""
    found = re.fullmatch(r"char\[(\d+)\]", kind)
    return int(found[1]) if found else 0


def fills(function: Function, place: int) -> bool:
    """Return whether an argument is a struct that the function fills: the last, of those that fill one."""
    last = place == len(function.arguments) - 1 and function.arguments[place].startswith("cmm_")
    return last and re.search(r"_get$|_pack$|_pack_as$|_load$|_linked$", function.name) is not None


# ---- Rust ----------------------------------------------------------------------------------------------------------

RUST = {
    "uint32": "u32",
    "int32": "i32",
    "int64": "i64",
    "double": "f64",
    "void*": "*mut c_void",
    "char*": "*const c_char",
    "float*": "*const f32",
    "int32*": "*mut i32",
    "int64*": "*mut i64",
    "function*": 'Option<unsafe extern "C" fn()>',
}


def rust_type(kind: str) -> str:
    """Return a type of C in Rust."""
    if length := chars(kind):
        return f"[c_char; {length}]"
    return RUST.get(kind) or f"*const {kind.removesuffix('*')}"


def rust_argument(function: Function, place: int) -> str:
    """Return the type of an argument."""
    kind = rust_type(function.arguments[place])
    return kind.replace("*const cmm_", "*mut cmm_") if fills(function, place) else kind


def rust_enum(name: str, about: str, values: dict[str, int]) -> Iterator[str]:
    """Lines of an enum."""
    yield f"\n/// {about}"
    yield "#[repr(i32)]\n#[derive(Debug, Clone, Copy, PartialEq, Eq)]"
    yield f"pub enum {name} {{"
    yield from (f"    {camel(word)} = {value}," for word, value in values.items())
    yield "}"


def rust(abi: Abi) -> str:
    """Return the crate's module of what is exported."""
    lines = [f"//! {MADE} It is the C interface as it is;", "//! the crate's own types are safe.\n"]
    lines += [
        "#![allow(non_camel_case_types)]\n",
        "use std::ffi::{c_char, c_void};\nuse std::mem::{offset_of, size_of};\n",
    ]
    lines += [f"pub const {name}: i32 = {value};" for name, value in abi.constants.items()]
    lines += rust_enum("Activation", "The activation of a neuron.", abi.activation)
    lines += rust_enum("Tie", "Where a logit of exactly 0 goes.", abi.group("CMM_TIE_"))
    for one in abi.structs:
        lines += ["\n#[repr(C)]\n#[derive(Debug, Clone, Copy)]", f"pub struct {one.name} {{"]
        lines += [f"    pub {field.name}: {rust_type(field.type)}," for field in one.fields]
        lines += ["}\n", f"impl Default for {one.name} {{", "    /// All zero, but for the size."]
        lines += ["    fn default() -> Self {", "        // SAFETY: zero is a value of every field."]
        lines += ["        let mut new: Self = unsafe { std::mem::zeroed() };"]
        lines += ["        new.size = size_of::<Self>() as u32;", "        new", "    }", "}\n"]
        lines += [f"const _: () = assert!(size_of::<{one.name}>() == {one.size});"]
        lines += [
            f"const _: () = assert!(offset_of!({one.name}, {field.name}) == {offset});"
            for field, offset in zip(one.fields, one.offsets, strict=True)
        ]
    lines += ['\nextern "C" {']
    for function in abi.functions:
        arguments = ", ".join(f"a{k}: {rust_argument(function, k)}" for k in range(len(function.arguments)))
        lines += [f"    pub fn {function.name}({arguments}) -> {rust_type(function.result)};"]
    return "\n".join([*lines, "}", ""])


# ---- Go ------------------------------------------------------------------------------------------------------------


def go(abi: Abi) -> str:
    """Return the constants of the package, by what they are a choice of; gofmt aligns them so."""
    lines = [f"// {MADE}", "", "package cmm", "", "// Status is what a call reports.", "type Status int32", ""]

    def constants(of: str, values: dict[str, int]) -> Iterator[str]:
        width = max(map(len, values))
        yield from ("const (", *(f"\t{name:{width}} {of} = {value}" for name, value in values.items()), ")", "")

    status = {"OK": 0} | {f"Error{camel(name)}": value for name, value in abi.group("CMM_ERROR_").items()}
    lines += constants("Status", status)
    lines += ["// Activation is that of a neuron.", "type Activation int32", ""]
    lines += constants("Activation", {camel(name): value for name, value in abi.activation.items()})
    lines += ["// Tie is where a logit of exactly 0 goes.", "type Tie int32", ""]
    lines += constants("Tie", {f"Tie{camel(name)}": value for name, value in abi.group("CMM_TIE_").items()})
    lines += ["// MaxDepth is the largest depth of a layer."]
    lines += [f"const MaxDepth = {abi.constants['CMM_MAX_DEPTH']}", ""]
    return "\n".join(lines)


# ---- Fortran -------------------------------------------------------------------------------------------------------

FORTRAN = {"uint32": "integer(c_int32_t)", "int32": "integer(c_int32_t)", "int64": "integer(c_int64_t)"}
FORTRAN |= {"double": "real(c_double)", "function*": "type(c_funptr)"}


def wrapped(line: str) -> str:
    """Break a long line of Fortran at its commas."""
    lines = [line]
    while len(lines[-1]) > 118:
        at = lines[-1].rindex(", ", 0, 114) + 2
        lines[-1:] = [lines[-1][:at] + "&", " " * 12 + lines[-1][at:]]
    return "\n".join(lines)


def fortran(abi: Abi) -> str:
    """Return the module of what is exported. A pointer of C is a type(c_ptr), whatever it points to."""
    lines = [
        f"! {MADE}",
        "module cmm_abi",
        "    use, intrinsic :: iso_c_binding",
        "    implicit none",
        "    public",
        "",
    ]
    lines += [f"    integer(c_int32_t), parameter :: {name} = {value}" for name, value in abi.constants.items()]
    for one in abi.structs:
        lines += ["", f"    type, bind(C) :: {one.name}"]
        for field in one.fields:
            of = FORTRAN.get(field.type, "type(c_ptr)")
            if length := chars(field.type):
                lines += [f"        character(kind=c_char) :: {field.name}({length}) = c_null_char"]
            elif field.name == "size":
                lines += [f"        {of} :: size = {one.size}"]
            elif of.startswith("type"):
                lines += [f"        {of} :: {field.name} = {of[5:-1].replace('c_', 'c_null_')}"]
            else:
                lines += [f"        {of} :: {field.name} = 0"]
        lines += ["    end type"]
    lines += ["", "    interface"]
    for function in abi.functions:
        names = [f"a{k}" for k in range(len(function.arguments))]
        result = FORTRAN.get(function.result, "type(c_ptr)")
        lines += [wrapped(f"        {result} function {function.name}({', '.join(names)}) bind(C)")]
        lines += ["            import"]
        for name, kind in zip(names, function.arguments, strict=True):
            lines += [f"            {FORTRAN.get(kind, 'type(c_ptr)')}, value :: {name}"]
        lines += ["        end function"]
    return "\n".join([*lines, "    end interface", "end module", ""])


# ---- Java ----------------------------------------------------------------------------------------------------------


def java(abi: Abi) -> str:
    """Return constants, and where the fields of structs lie; functions are called by name."""
    lines = [f"// {MADE}", "package org.libcmm;", ""]
    lines += [
        "/** Constants, and the size of each struct with the offsets of its fields. */",
        "public interface Abi {",
    ]
    lines += [f"    int {name} = {value};" for name, value in abi.constants.items()]
    for one in abi.structs:
        lines += [
            "",
            f"    /** The struct {one.name}. */",
            f"    interface {one.name} {{",
            f"        int SIZEOF = {one.size};",
        ]
        lines += [
            f"        int {field.name} = {offset};" for field, offset in zip(one.fields, one.offsets, strict=True)
        ]
        lines += ["    }"]
    for name, about, values in (
        ("Activation", "That of a neuron.", abi.activation),
        ("Tie", "Where a logit of exactly 0 goes.", abi.group("CMM_TIE_")),
    ):
        lines += ["", f"    /** {about} */", f"    enum {name} {{"]
        lines += [",\n".join(f"        {word}({value})" for word, value in values.items()) + ";", ""]
        lines += ["        final int value;", "", f"        {name}(int value) {{", "            this.value = value;"]
        lines += ["        }", "    }"]
    return "\n".join([*lines, "}", ""])


JAVA_LAYOUT = {"uint32": "JAVA_INT", "int32": "JAVA_INT"}


def java_ffm(abi: Abi) -> str:
    """Return a handle for every function, as java.lang.foreign calls it; JNA finds them by name."""
    lines = [f"// {MADE}", "package org.libcmm;", ""]
    lines += [f"import static java.lang.foreign.ValueLayout.{kind};" for kind in ("JAVA_INT", "JAVA_LONG")]
    lines += ["", "import java.lang.foreign.FunctionDescriptor;", "import java.lang.foreign.Linker;"]
    lines += ["import java.lang.foreign.MemoryLayout;", "import java.lang.foreign.SymbolLookup;"]
    lines += ["import java.lang.invoke.MethodHandle;", ""]
    lines += ["/** Every function. A pointer is a number of 64 bits, as Java has it: long, and NULL is 0. */"]
    lines += ["public final class Functions {", "    static {", '        System.loadLibrary("cmm");', "    }", ""]
    for function in abi.functions:
        kinds = [JAVA_LAYOUT.get(kind, "JAVA_LONG") for kind in (function.result, *function.arguments)]
        lines += [f'    public static final MethodHandle {function.name} = find("{function.name}",']
        lines += [f"            {', '.join(kinds)});"]
    lines += ["", "    private Functions() {}", ""]
    lines += ["    private static MethodHandle find(String name, MemoryLayout result, MemoryLayout... arguments) {"]
    lines += ["        return Linker.nativeLinker()", "                .downcallHandle("]
    lines += ["                        SymbolLookup.loaderLookup().find(name).orElseThrow(),"]
    lines += ["                        FunctionDescriptor.of(result, arguments));", "    }", "}", ""]
    return "\n".join(lines)


# ---- JavaScript ----------------------------------------------------------------------------------------------------


def koffi(kind: str) -> str:
    """Return a type of C as koffi has it."""
    return "void *" if kind == "function*" else kind.replace("*", " *")


def javascript(abi: Abi) -> str:
    """Return constants, structs and functions for koffi."""
    lines = [f"// {MADE}", "'use strict';", "", "exports.constants = Object.freeze({"]
    lines += [f"  {name}: {value}," for name, value in abi.constants.items()]
    for name, values in (("activations", abi.activation), ("ties", abi.group("CMM_TIE_"))):
        lines += ["});", "", f"exports.{name} = Object.freeze({{"]
        lines += [f"  {word.lower()}: {value}," for word, value in values.items()]
    lines += ["});", "", "// The fields of each struct, and its size.", "exports.structs = {"]
    for one in abi.structs:
        lines += [f"  {one.name}: [{one.size}, {{"]
        lines += [f"    {field.name}: '{koffi(field.type)}'," for field in one.fields]
        lines += ["  }],"]
    lines += ["};", "", "// The result of each function, and its arguments.", "exports.functions = {"]
    for function in abi.functions:
        lines += [f"  {function.name}: ['{koffi(function.result)}', ["]
        for place, kind in enumerate(function.arguments):
            lines += [f"    '{'_Inout_ ' if fills(function, place) else ''}{koffi(kind)}',"]
        lines += ["  ]],"]
    return "\n".join([*lines, "};", ""])


# ---- C# ------------------------------------------------------------------------------------------------------------

CSHARP = {"uint32": "uint", "int32": "int", "int64": "long", "function*": "IntPtr"}
CSHARP |= {"char*": "byte*", "int32*": "int*", "int64*": "long*"}


def csharp(abi: Abi) -> str:
    """Return constants, structs and functions, with pointers as in C."""
    lines = [f"// {MADE}", "using System;", "using System.Runtime.InteropServices;", "", "namespace LibCmm", "{"]
    for name, about, values in (
        ("Activation", "That of a neuron.", abi.activation),
        ("Tie", "Where a logit of exactly 0 goes.", abi.group("CMM_TIE_")),
    ):
        lines += [f"    /// <summary>{about}</summary>", f"    public enum {name}", "    {"]
        lines += [*(f"        {camel(word)} = {value}," for word, value in values.items()), "    }", ""]
    for one in abi.structs:
        lines += ["    [StructLayout(LayoutKind.Sequential)]", f"    public unsafe struct {one.name}", "    {"]
        for field in one.fields:
            length = chars(field.type)
            kind = CSHARP.get(field.type, field.type)
            lines += [
                f"        public fixed byte {field.name}[{length}];"
                if length
                else f"        public {kind} {field.name};"
            ]
        lines += ["    }", ""]
    lines += ["    /// <summary>The C interface as it is.</summary>", "    public static unsafe class Abi", "    {"]
    lines += [f"        public const int {name} = {value};" for name, value in abi.constants.items()]
    lines += ["", "        static Abi()", "        {"]
    lines += [
        "            if (" + "\n                || ".join(f"sizeof({s.name}) != {s.size}" for s in abi.structs) + ")"
    ]
    lines += ['                throw new PlatformNotSupportedException("libcmm is for machines of 64 bits here");']
    lines += ["        }"]
    for function in abi.functions:
        arguments = ", ".join(f"{CSHARP.get(kind, kind)} a{k}" for k, kind in enumerate(function.arguments))
        result = CSHARP.get(function.result, function.result)
        lines += ["", '        [DllImport("cmm", CallingConvention = CallingConvention.Cdecl)]']
        lines += [f"        public static extern {result} {function.name}({arguments});"]
    return "\n".join([*lines, "    }", "}", ""])


# ---- the files -----------------------------------------------------------------------------------------------------

FILES: dict[str, Callable[[Abi], str]] = {
    "rust/src/abi.rs": rust,
    "go/abi.go": go,
    "fortran/cmm_abi.f90": fortran,
    "java/org/libcmm/Abi.java": java,
    "java/ffm/org/libcmm/Functions.java": java_ffm,
    "node/abi.js": javascript,
    "csharp/Abi.cs": csharp,
}


def main() -> None:
    """Write every file."""
    abi = read()
    for name, write in FILES.items():
        (HERE / name).write_text(write(abi), encoding="utf-8")


if __name__ == "__main__":
    main()
