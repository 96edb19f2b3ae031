"""tools/codegen/ptx_to_cpp.py: what it does not know is an error; what it translates runs in the checks
(tools/check.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from ptx_to_cpp import translate

pytestmark = pytest.mark.python_only

KERNEL = """.version 9.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 more[];
.visible .entry twice(.param .u64 twice_param_0, .param .align 4 .b8 twice_param_1[12])
.maxntid 64, 2, 1
{{
    .reg .pred %p<2>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    .shared .align 4 .b8 own[20];
    ld.param.u64 %rd1, [twice_param_0];
    mov.u32 %r1, %tid.x;
    {instruction}
    @!%p1 bra $L__BB0_2;
$L__BB0_2:
    st.shared.u32 [more+4], %r1;
    ret;
}}
"""


def test_a_kernel() -> None:
    made = translate(KERNEL.format(instruction="setp.gt.u32 %p1, %r1, 7;"), "table")
    assert "p1_ = (bool)(((u32)r1_ > (u32)(s64)7));" in made
    assert "if (!p1_) { goto L__BB0_2_; }" in made
    assert "shared_at(self, (u32)(96u + (s32)4), 4)" in made  # 64, 20 bytes, aligned to 16
    assert '{"twice", twice, 128, 32, 20},' in made


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.fence.sync.aligned;",
        "add.ftz.f32 %r1, %r2, %r3;",
        "setp.sometimes.u32 %p1, %r1, %r2;",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%r1}, {%r2}, {%r3}, {%r1};",
        "mov.u32 %r1, %nobody;",
        "mov.u32 %r9, 1;",
    ],
)
def test_what_it_does_not_know(instruction: str) -> None:
    with pytest.raises(SystemExit, match=rf"^twice: cannot translate '{instruction[:-1].split(',')[0].split('{')[0]}"):
        translate(KERNEL.format(instruction=instruction), "table")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ptx_to_cpp

    (tmp_path / "a.ptx").write_text(KERNEL.format(instruction=""))
    monkeypatch.setattr("sys.argv", ["ptx_to_cpp.py", str(tmp_path / "a.ptx"), str(tmp_path / "a.cpp"), "table"])
    ptx_to_cpp.main()
    assert "const lq_ptx_kernel table[] = {" in (tmp_path / "a.cpp").read_text()
