"""Turns PTX, which nvcc made of CUDA kernels, into C++ that runs them on the CPU, for tests.

    python3 tools/codegen/ptx_to_cpp.py kernels.ptx kernels.cpp TABLE

Each kernel becomes a function of one thread, and TABLE the name of the array that lists them. What an instruction means
is in native/tests/cuda_emulation/ptx.h, or an operator of C; threads are native/tests/cuda_emulation/emulation.h's. An
instruction that is not known is an error, never a guess. (PTX ISA 9.0.) Standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

C_TYPES = {
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64)},
    **{f"b{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
    "pred": "bool",
}
BITS = {"pred": 8, "f16": 16, "bf16": 16, "f32": 32, **{name: int(name[1:]) for name in C_TYPES if name != "pred"}}
SHARED_START = 64  # LQ_PTX_SHARED
LABEL = re.compile(r"^([\w$]+):(?!:)")
BINARY = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
ROUND_TO_WHOLE = {"rni": "rintf", "rzi": "truncf", "rmi": "floorf", "rpi": "ceilf"}
MMA = {
    "m16n8k16.row.col.f32.f16.f16.f32": "mma_f16",
    "m16n8k8.row.col.f32.f16.f16.f32": "mma_f16_8",
    "m16n8k16.row.col.f32.bf16.bf16.f32": "mma_bf16",
    "m16n8k16.row.col.s32.s8.s8.s32": "mma_s8",
    "m8n8k16.row.col.s32.s8.s8.s32": "mma_s8_8",
}


class Unknown(Exception):
    """Something in the PTX that this does not translate."""


@dataclass
class Kernel:
    """One entry, as it is read."""

    name: str
    parameters: dict[str, int] = field(default_factory=dict)  # index by name
    parameter_bytes: int = 0
    max_threads: int = 0
    shared: dict[str, int] = field(default_factory=dict)  # address by name
    shared_bytes: int = 0
    dynamic: set[str] = field(default_factory=set)  # names of what a launch adds
    local: set[str] = field(default_factory=set)
    registers: dict[str, str] = field(default_factory=dict)  # type by name
    lines: list[str] = field(default_factory=list)


def aligned(n: int, by: int) -> int:
    return (n + by - 1) // by * by


def c_name(name: str) -> str:
    return name.replace("%", "").replace("$", "") + "_"  # no name of ptx.h ends so


def statements(body: str) -> Iterator[str]:
    """A body's statements without their semicolons, labels, and the braces of scopes."""
    at = 0
    while at < len(body):
        if body[at].isspace():
            at += 1
        elif body[at] in "{}":
            yield body[at]
            at += 1
        elif found := LABEL.match(body[at : at + 200]):
            yield found.group(0)
            at += found.end()
        else:
            end = body.index(";", at)
            yield " ".join(body[at:end].split())
            at = end + 1


def operands(text: str) -> list[str]:
    """Split at the commas outside of braces and brackets."""
    out, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            out.append("")
        else:
            out[-1] += letter
    return [one.strip() for one in out]


def vector(operand: str) -> list[str]:
    return operands(operand[1:-1]) if operand.startswith("{") else [operand]


class Translator:
    """Of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    # ---- operands

    def storage(self, register: str) -> str:
        try:
            kind = self.kernel.registers[register]
        except KeyError:
            raise Unknown(f"register {register}") from None
        return "bool" if kind == "pred" else f"u{BITS[kind]}"

    def read(self, operand: str, kind: str) -> str:
        """An operand's value as a C expression of the type."""
        bits = self.bits(operand, BITS[kind])
        if kind == "f32":
            return f"f32({bits})"
        if kind in ("f16", "bf16"):
            return f"{kind}_value({bits})"
        return bits if kind == "pred" else f"({C_TYPES[kind]}){bits}"

    def bits(self, operand: str, n_bits: int) -> str:
        k = self.kernel
        if operand.startswith("%"):
            if operand in k.registers:
                return c_name(operand)
            special = re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.([xyz])", operand)
            if special is None:
                raise Unknown(operand)
            member = {"tid": "index", "ntid": "block_dim", "ctaid": "block", "nctaid": "grid"}[special.group(1)]
            return f"self->{member}.{special.group(2)}"
        if operand.startswith("!%"):
            return f"!{c_name(operand[1:])}"
        if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            return f"0x{found.group(1)}u"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            number = int(operand.rstrip("U"), 0)
            return f"(s64){number}" if number >= -(1 << 63) + 1 and number < 1 << 63 else f"{number % (1 << 64)}ull"
        if operand in k.shared:
            return f"{k.shared[operand]}u"
        if operand in k.dynamic:
            return f"{self.dynamic_start()}u"
        if operand in k.local:
            return f"(u64)(uintptr_t){c_name(operand)}"
        if operand in k.parameters:
            return f"(u64)(uintptr_t)parameters[{k.parameters[operand]}]"
        raise Unknown(f"operand {operand}")

    def dynamic_start(self) -> int:
        return SHARED_START + aligned(self.kernel.shared_bytes, 16)

    def write(self, register: str, kind: str, value: str) -> str:
        """A statement that sets a register to a value of the type; wider ones are filled as the type says."""
        if register == "_":
            return f"(void)({value});"
        storage = self.storage(register)
        if kind == "f32":
            value = f"b32({value})"
        elif kind not in ("pred", "f16", "bf16"):
            value = f"({C_TYPES[kind]})({value})"
        return f"{c_name(register)} = ({storage})({value});"

    def address(self, operand: str, space: str, n_bytes: int) -> str:
        found = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", operand)
        if found is None:
            raise Unknown(f"address {operand}")
        base, offset = found.group(1).strip(), int(found.group(2) or 0)
        if space == "shared":
            kind = 64 if self.kernel.registers.get(base, "b32") == "b64" else 32
            # 32-bit addresses may wrap on the way, as a negative offset does
            start = f"(u{kind})({self.bits(base, kind)} + (s{kind}){offset})"
            return f"shared_at(self, {start}, {n_bytes})"
        return f"(u64)({self.bits(base, 64)}) + (s64){offset}"

    # ---- instructions

    def instruction(self, text: str) -> str:
        """C of an instruction."""
        guard = ""
        if text.startswith("@"):
            predicate, text = text[1:].split(None, 1)
            guard = f"if ({'!' if predicate.startswith('!') else ''}{c_name(predicate.lstrip('!'))}) "
        name, _, rest = text.partition(" ")
        words = name.split(".")
        done = self.translate(words[0], words[1:], operands(rest) if rest else [])
        return f"{guard}{{ {done} }}" if guard else done

    def translate(self, op: str, words: list[str], args: list[str]) -> str:
        handler: Callable[[list[str], list[str]], str] | None = getattr(self, f"op_{op}", None)
        if handler is not None:
            return handler(words, args)
        if op in BINARY:
            return self.binary(op, words, args)
        raise Unknown(op)

    @staticmethod
    def only(words: list[str], *allowed: str) -> None:
        for word in words:
            if word not in allowed:
                raise Unknown(f".{word}")

    def binary(self, op: str, words: list[str], args: list[str]) -> str:
        kind = words[-1]
        if kind == "f32":
            self.only(words[:-1], "rn")
            value = f"{self.read(args[1], kind)} {BINARY[op]} {self.read(args[2], kind)}"
        elif op == "mul" and words[:-1] == ["wide"]:
            wide, product = self.wide_product(kind, args[1], args[2])
            return self.write(args[0], wide, product)
        else:
            self.only(words[:-1], *(["lo"] if op == "mul" else []))
            as_bits = "pred" if kind == "pred" else f"u{BITS[kind]}"
            value = f"{self.read(args[1], as_bits)} {BINARY[op]} {self.read(args[2], as_bits)}"
        return self.write(args[0], kind, value)

    def wide_product(self, kind: str, a: str, b: str) -> tuple[str, str]:
        """The type of twice as many bits, and the product in it."""
        if kind not in ("u16", "s16", "u32", "s32"):
            raise Unknown(f"wide .{kind}")
        wide = f"{kind[0]}{2 * BITS[kind]}"
        return wide, f"({wide}){self.read(a, kind)} * ({wide}){self.read(b, kind)}"

    def op_mad(self, words: list[str], args: list[str]) -> str:
        kind = words[-1]
        if words[:-1] == ["wide"]:
            wide, product = self.wide_product(kind, args[1], args[2])
            return self.write(args[0], wide, f"(u64)({product}) + (u64){self.read(args[3], wide)}")
        self.only(words[:-1], "lo")
        a, b, c = (self.read(one, f"u{BITS[kind]}") for one in args[1:4])
        return self.write(args[0], kind, f"{a} * {b} + {c}")

    def op_fma(self, words: list[str], args: list[str]) -> str:
        function = {"rn": "fmaf", "rm": "fma_down"}.get(words[0])
        if function is None or words[1:] != ["f32"]:
            raise Unknown(".".join(words))
        return self.write(args[0], "f32", f"{function}({', '.join(self.read(one, 'f32') for one in args[1:4])})")

    def op_div(self, words: list[str], args: list[str]) -> str:
        kind = words[-1]
        a, b = (self.read(one, kind) for one in args[1:3])
        if kind == "f32":
            self.only(words, "rn", "f32")
            return self.write(args[0], kind, f"{a} / {b}")
        self.only(words[:-1])
        return self.write(args[0], kind, f"quotient<{C_TYPES[kind]}>({a}, {b})")

    def op_rem(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        a, b = (self.read(one, kind) for one in args[1:3])
        return self.write(args[0], kind, f"remainder_of<{C_TYPES[kind]}>({a}, {b})")

    def op_min(self, words: list[str], args: list[str]) -> str:
        return self.extreme(words, args, "fminf", "<")

    def op_max(self, words: list[str], args: list[str]) -> str:
        return self.extreme(words, args, "fmaxf", ">")

    def extreme(self, words: list[str], args: list[str], of_floats: str, comparison: str) -> str:
        (kind,) = words
        a, b = (self.read(one, kind) for one in args[1:3])
        value = f"{of_floats}({a}, {b})" if kind == "f32" else f"{a} {comparison} {b} ? {a} : {b}"
        return self.write(args[0], kind, value)

    def op_neg(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        if kind == "f32":
            return self.write(args[0], kind, f"-{self.read(args[1], kind)}")
        return self.write(args[0], kind, f"0 - {self.read(args[1], 'u' + kind[1:])}")

    def op_abs(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        a = self.read(args[1], kind)
        if kind == "f32":
            return self.write(args[0], kind, f"fabsf({a})")
        return self.write(args[0], kind, f"{a} < 0 ? 0 - {self.read(args[1], 'u' + kind[1:])} : {a}")

    def op_copysign(self, words: list[str], args: list[str]) -> str:
        self.only(words, "f32")
        return self.write(args[0], "f32", f"copysignf({self.read(args[2], 'f32')}, {self.read(args[1], 'f32')})")

    def op_not(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        return self.write(args[0], kind, f"{'!' if kind == 'pred' else '~'}({self.read(args[1], kind)})")

    def op_shl(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        kind = f"u{BITS[kind]}"
        return self.write(args[0], kind, f"shift_left<{kind}>({self.read(args[1], kind)}, {self.read(args[2], 'u32')})")

    def op_shr(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        a, n = self.read(args[1], kind), self.read(args[2], "u32")
        return self.write(args[0], kind, f"shift_right<{C_TYPES[kind]}>({a}, {n})")

    def op_bfi(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        a, b = (self.read(one, kind) for one in args[1:3])
        start, length = (self.read(one, "u32") for one in args[3:5])
        return self.write(args[0], kind, f"bit_field_insert<{C_TYPES[kind]}>({a}, {b}, {start}, {length})")

    def op_prmt(self, words: list[str], args: list[str]) -> str:
        self.only(words, "b32")
        return self.write(args[0], "b32", f"permute({', '.join(self.read(one, 'u32') for one in args[1:4])})")

    def op_dp4a(self, words: list[str], args: list[str]) -> str:
        if words != ["s32", "s32"]:
            raise Unknown(".".join(words))
        return self.write(args[0], "b32", f"dot4_signed({', '.join(self.read(one, 'u32') for one in args[1:4])})")

    def op_rcp(self, words: list[str], args: list[str]) -> str:
        a = self.read(args[1], "f32")
        if words == ["approx", "ftz", "f32"]:
            return self.write(args[0], "f32", f"flushed(1.0f / flushed({a}))")
        if words == ["rn", "f32"]:
            return self.write(args[0], "f32", f"1.0f / {a}")
        raise Unknown(".".join(words))

    def op_sqrt(self, words: list[str], args: list[str]) -> str:
        if words != ["rn", "f32"]:
            raise Unknown(".".join(words))
        return self.write(args[0], "f32", f"sqrtf({self.read(args[1], 'f32')})")

    def op_ex2(self, words: list[str], args: list[str]) -> str:
        if words != ["approx", "ftz", "f32"]:
            raise Unknown(".".join(words))
        return self.write(args[0], "f32", f"flushed(exp2f(flushed({self.read(args[1], 'f32')})))")

    def op_cvt(self, words: list[str], args: list[str]) -> str:
        to, source = words[-2:]
        how, a = set(words[:-2]), self.read(args[1], source)
        floats = ("f32", "f16", "bf16")
        whole = next((function for word, function in ROUND_TO_WHOLE.items() if word in how), None)
        if source not in floats and to not in floats and not how:
            return self.write(args[0], to, a)
        if source not in floats and to == "f32" and how == {"rn"}:
            return self.write(args[0], to, f"(float){a}")
        if source == "f32" and to in C_TYPES and whole and len(how) == 1:
            return self.write(args[0], to, f"to_integer<{C_TYPES[to]}>({whole}({a}))")
        if source == to == "f32" and whole and len(how) == 1:
            return self.write(args[0], to, f"{whole}({a})")
        if source == to == "f32" and how == {"sat"}:
            return self.write(args[0], to, f"saturated({a})")
        if source == "f32" and to == "f16" and how == {"rn"}:
            return self.write(args[0], to, f"f16_bits({a})")
        if source in ("f16", "bf16") and to == "f32" and not how:
            return self.write(args[0], to, a)
        raise Unknown(".".join(words))

    def op_cvta(self, words: list[str], args: list[str]) -> str:
        if words in (["shared", "u64"], ["to", "shared", "u64"]):
            difference = "(u64)(uintptr_t)self->shared - LQ_PTX_SHARED"
            sign = "+" if words[0] == "shared" else "-"
            return self.write(args[0], "u64", f"{self.read(args[1], 'u64')} {sign} ({difference})")
        if words in (["to", "global", "u64"], ["global", "u64"], ["local", "u64"], ["to", "local", "u64"]):
            return self.write(args[0], "u64", self.read(args[1], "u64"))
        raise Unknown(".".join(words))

    def op_mov(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        to, source = vector(args[0]), vector(args[1])
        if args[0].startswith("{"):
            part = BITS[kind] // len(to)
            whole = self.read(source[0], f"u{BITS[kind]}")
            return " ".join(self.write(one, f"u{part}", f"{whole} >> {i * part}") for i, one in enumerate(to))
        if args[1].startswith("{"):
            part = BITS[kind] // len(source)
            wide = f"u{BITS[kind]}"
            halves = (f"({wide}){self.read(one, f'u{part}')} << {i * part}" for i, one in enumerate(source))
            return self.write(args[0], wide, " | ".join(halves))
        return self.write(args[0], kind, self.read(args[1], kind))

    def op_setp(self, words: list[str], args: list[str]) -> str:
        comparison, kind = words[0], words[-1]
        self.only(words[1:-1], "and", "or", "xor")
        a, b = (self.read(one, kind) for one in args[1:3])
        if kind == "f32" and comparison in ("nan", "num"):
            value = f"({a} != {a} || {b} != {b})"
            value = value if comparison == "nan" else f"!{value}"
        elif kind == "f32" and comparison == "ne":
            value = f"({a} < {b} || {a} > {b})"  # ordered: false where one is no number
        elif kind == "f32" and comparison[-1] == "u" and comparison[:-1] in COMPARE:
            opposite = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[comparison[:-1]]
            value = f"({a} != {b})" if comparison == "neu" else f"!({a} {COMPARE[opposite]} {b})"
            if comparison == "equ":
                value = f"!({a} < {b} || {a} > {b})"
        elif comparison in COMPARE:
            value = f"({a} {COMPARE[comparison]} {b})"
        elif comparison in UNSIGNED and kind[0] == "u":
            value = f"({a} {UNSIGNED[comparison]} {b})"
        else:
            raise Unknown(".".join(words))
        if len(words) == 3:
            value = f"{value} {BINARY[words[1]]} {self.read(args[3], 'pred')}"
        return self.write(args[0], "pred", value)

    def op_selp(self, words: list[str], args: list[str]) -> str:
        (kind,) = words
        a, b = (self.read(one, kind) for one in args[1:3])
        return self.write(args[0], kind, f"{self.read(args[3], 'pred')} ? {a} : {b}")

    def op_ld(self, words: list[str], args: list[str]) -> str:
        space, count, kind = self.access(words)
        n_bytes = BITS[kind] // 8
        address = self.address(args[1], space, count * n_bytes)
        load_type = C_TYPES.get(kind, f"u{BITS[kind]}")
        if count == 1:
            return self.write_bits(args[0], kind, f"load<{load_type}>({address})")
        loads = (
            self.write_bits(one, kind, f"load<{load_type}>(at + {i * n_bytes})")
            for i, one in enumerate(vector(args[0]))
        )
        # all of it before any of it is written: the address may be in one of the registers
        return f"{{ u64 at = whole({address}, {count * n_bytes}); {' '.join(loads)} }}"

    def write_bits(self, register: str, kind: str, loaded: str) -> str:
        return self.write(register, f"u{BITS[kind]}" if kind == "f32" else kind, loaded)

    def op_st(self, words: list[str], args: list[str]) -> str:
        space, count, kind = self.access(words)
        n_bytes, bits = BITS[kind] // 8, f"u{BITS[kind]}"
        address = self.address(args[0], space, count * n_bytes)
        stores = (
            f"store<{bits}>(at + {i * n_bytes}, ({bits}){self.bits(one, BITS[kind])});"
            for i, one in enumerate(vector(args[1]))
        )
        return f"{{ u64 at = whole({address}, {count * n_bytes}); {' '.join(stores)} }}"

    @staticmethod
    def access(words: list[str]) -> tuple[str, int, str]:
        """Space, numbers in the vector, type of a load's or store's words."""
        space, count = "generic", 1
        for word in words[:-1]:
            if word in ("global", "shared", "local", "param"):
                space = word
            elif word in ("v2", "v4"):
                count = int(word[1])
            elif word != "nc":
                raise Unknown(f".{word}")
        return space, count, words[-1]

    def op_atom(self, words: list[str], args: list[str]) -> str:
        if words != ["global", "or", "b64"]:
            raise Unknown(".".join(words))
        before = self.write(args[0], "b64", "before")
        store = f"store<u64>(at, before | {self.read(args[2], 'u64')});"
        return f"{{ u64 at = {self.address(args[1], 'global', 8)}, before = load<u64>(at); {store} {before} }}"

    def op_bar(self, words: list[str], args: list[str]) -> str:
        if words == ["sync"] and args == ["0"]:
            return "lq_emulated_sync_block();"
        if words == ["warp", "sync"]:
            return f"whole_warp({self.read(args[0], 'u32')}); lq_emulated_gather(0);"
        raise Unknown(".".join(words))

    def op_shfl(self, words: list[str], args: list[str]) -> str:
        to = args[0].split("|")[0]
        value, source, clamp, mask = (self.read(one, "u32") for one in args[1:5])
        if words == ["sync", "bfly", "b32"]:
            source = f"lane() ^ {source}"
        elif words != ["sync", "idx", "b32"]:
            raise Unknown(".".join(words))
        return self.write(to, "b32", f"shuffle({value}, {source}, {clamp}, {mask})")

    def op_mma(self, words: list[str], args: list[str]) -> str:
        function = MMA.get(".".join(words[2:]))
        if words[:2] != ["sync", "aligned"] or function is None:
            raise Unknown(".".join(words))
        d, a, b, c = (vector(one) for one in args)
        arrays = (
            f"u32 {name}[] = {{{', '.join(self.bits(one, 32) for one in each)}}};"
            for name, each in (("a_", a), ("b_", b), ("c_", c))
        )
        results = (self.write(one, "b32", f"d_[{i}]") for i, one in enumerate(d))
        return f"{{ {' '.join(arrays)} u32 d_[{len(d)}]; {function}(d_, a_, b_, c_); {' '.join(results)} }}"

    def op_bra(self, words: list[str], args: list[str]) -> str:
        self.only(words, "uni")
        return f"goto {c_name(args[0])};"

    def op_ret(self, words: list[str], args: list[str]) -> str:
        self.only(words + args)
        return "return;"


# ---- a file


def read_parameters(kernel: Kernel, text: str) -> None:
    for one in filter(None, operands(text)):
        found = re.fullmatch(r"\.param (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?", " ".join(one.split()))
        if found is None:
            raise Unknown(one)
        size = BITS[found.group(2)] // 8
        start = aligned(kernel.parameter_bytes, int(found.group(1) or size))
        kernel.parameters[found.group(3)] = len(kernel.parameters)
        kernel.parameter_bytes = start + size * int(found.group(4) or 1)


def declare(kernel: Kernel, text: str) -> str:
    """C of a declaration in a kernel."""
    if found := re.fullmatch(r"\.reg \.(\w+) (.+)", text):
        kind, names = found.group(1), []
        for one in operands(found.group(2)):
            if many := re.fullmatch(r"(.+)<(\d+)>", one):
                names += [f"{many.group(1)}{i}" for i in range(int(many.group(2)))]
            else:
                names.append(one)
        kernel.registers.update(dict.fromkeys(names, kind))
        storage = "bool" if kind == "pred" else f"u{BITS[kind]}"
        return f"[[maybe_unused]] {storage} {', '.join(map(c_name, names))};"
    if found := re.fullmatch(r"\.(shared|local) \.align (\d+) \.(\w+) ([\w$]+)(?:\[(\d+)\])?", text):
        space, align, kind, name, count = found.groups()
        size = BITS[kind] // 8 * int(count or 1)
        if space == "local":
            kernel.local.add(name)
            return f"alignas({align}) u8 {c_name(name)}[{size}];"
        start = aligned(kernel.shared_bytes, int(align))
        kernel.shared[name] = SHARED_START + start
        kernel.shared_bytes = start + size
        return ""
    raise Unknown(text)


ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")


def translate(text: str, table: str) -> str:
    """A C++ file of a PTX file."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    dynamic = set(re.findall(r"\.extern \.shared \.align \d+ \.b8 ([\w$]+)\[\];", text))
    out = ['#include "ptx.h"\n']
    rows = []
    for found in ENTRY.finditer(text):
        kernel = Kernel(found.group(1), dynamic=dynamic)
        read_parameters(kernel, found.group(2))
        if limit := re.search(r"\.maxntid (\d+)(?:, (\d+), (\d+))?", found.group(3)):
            kernel.max_threads = int(limit.group(1)) * int(limit.group(2) or 1) * int(limit.group(3) or 1)
        lines = list(statements(body_of(text, found.end())))
        translator = Translator(kernel)
        declared = {text: declare(kernel, text) for text in lines if text.startswith((".reg", ".shared", ".local"))}
        for line in lines:
            try:
                kernel.lines.append(statement(translator, declared, line))
            except Unknown as cause:
                sys.exit(f"{kernel.name}: cannot translate '{line}': {cause}")
        out.append(f"static void {kernel.name}(void *const *parameters) {{")
        out.append("[[maybe_unused]] const lq_emulated_thread *const self = lq_emulated_self;\n(void)parameters;")
        out += [*filter(None, kernel.lines), "}\n"]
        rows.append(
            f'{{"{kernel.name}", {kernel.name}, {kernel.max_threads}, {aligned(kernel.shared_bytes, 16)},'
            f" {kernel.parameter_bytes}}},"
        )
    out += [f"extern const lq_ptx_kernel {table}[];", f"const lq_ptx_kernel {table}[] = {{", *rows]
    out += ["{nullptr, nullptr, 0, 0, 0}};", ""]
    return "\n".join(out)


def body_of(text: str, start: int) -> str:
    """What is between an entry's braces."""
    depth, at = 1, start
    while depth:
        at = min(i for i in (text.find("{", at), text.find("}", at)) if i >= 0)
        depth += 1 if text[at] == "{" else -1
        at += 1
    return text[start : at - 1]


def statement(translator: Translator, declared: dict[str, str], line: str) -> str:
    if line in "{}":
        return line
    if line.endswith(":"):
        return f"{c_name(line[:-1])}:;"
    if line in declared:
        return declared[line]
    if line.startswith(".pragma"):
        return ""
    return translator.instruction(line)


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    Path(sys.argv[2]).write_text(translate(Path(sys.argv[1]).read_text(), sys.argv[3]), encoding="utf-8")


if __name__ == "__main__":
    main()
