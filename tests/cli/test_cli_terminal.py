"""The command line as a process: a pseudo-terminal that tests type into and read from, signals, and pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from fake_hub import CONTENT, FakeHub, serving
from make_tiny_gguf import make_tiny

# Makes the pseudo-terminal the controlling one, so that Ctrl-C typed into it becomes a signal.
LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "pylogquant.cli", *sys.argv[1:]])
"""
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07)")
CTRL_C, CTRL_D, ENTER, ALT_ENTER, UP = "\x03", "\x04", "\r", "\x1b\r", "\x1b[A"
# The line editor brackets its work with these two (they switch bracketed paste), whatever it draws in between.
PROMPT, ACCEPTED = "[prompt]", "[accepted]"
MARKS = {"\x1b[?2004h": PROMPT, "\x1b[?2004l": ACCEPTED}
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")


class Terminal:
    """A command on a pseudo-terminal of 200 columns."""

    def __init__(self, *arguments: object, **variables: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self.raw = ""
        self.seen = 0  # how much of the plain text was waited for already

    @property
    def text(self) -> str:
        """Everything so far without escape sequences; PROMPT and ACCEPTED tell when the line editor is at work."""
        text = self.raw
        for sequence, mark in MARKS.items():
            text = text.replace(sequence, mark)
        return ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "")

    def read(self, seconds: float) -> bool:
        """Takes in what comes within that time; False at the end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            return False
        self.raw += data.decode("utf-8", errors="replace")
        return bool(data)

    def wait_for(self, words: str, seconds: float = 60) -> str:
        """Waits until these words come up behind what was waited for before; returns what came before them."""
        deadline = time.monotonic() + seconds
        while words not in self.text[self.seen :]:
            assert time.monotonic() < deadline, f"no {words!r} in {self.text[self.seen :]!r}"
            assert self.read(0.1), f"it ended without {words!r}: {self.text[self.seen :]!r}"
        at = self.text.index(words, self.seen)
        before = self.text[self.seen : at]
        self.seen = at + len(words)
        return before

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def settle(self) -> None:
        """Reads until nothing more comes: the prompt is there, and what was waited for before is forgotten."""
        n = -1
        while n < len(self.raw):
            n = len(self.raw)
            assert self.read(0.5), f"it ended: {self.text[-3000:]!r}"
        self.seen = len(self.text)

    def end(self) -> int:
        """Reads to the end; the exit status."""
        deadline = time.monotonic() + 60
        while self.read(0.1):
            assert time.monotonic() < deadline, f"it does not end: {self.text[-500:]!r}"
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("PYLOGQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)
    terminals: list[Terminal] = []

    def open_terminal(*arguments: object, **variables: str) -> Terminal:
        terminals.append(Terminal(*arguments, **variables))
        return terminals[-1]

    yield open_terminal
    for terminal in terminals:
        terminal.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("terminal") / "tiny.gguf")


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a long prompt or answer takes a minute: tests interrupt it."""
    path = tmp_path_factory.mktemp("terminal") / "slow.gguf"
    return make_tiny(path, n_layers=8, n_embd=512, n_ctx=65536, weight_type="Q8_0")


def contents(path: str, role: str) -> list[str]:
    messages = json.loads(Path(path).read_text())["messages"]
    return [message["content"] for message in messages if message["role"] == role]


def save(terminal: Terminal, name: str) -> None:
    terminal.type(f"/save {name}{ENTER}")
    terminal.wait_for(f"note: saved to {name}")
    terminal.wait_for(PROMPT)


def test_a_model_without_global_layers_says_so(start: Start, tmp_path: Path) -> None:
    terminal = start("chat", make_tiny(tmp_path / "m.gguf", "phi3", window=23), "--threads", 1)
    banner = terminal.wait_for(PROMPT)
    assert "KV cache: " in banner
    assert ", f16; every layer slides over 23 tokens, so that logquant concerns none, 1 threads" in banner


def test_the_banner_says_what_the_template_asks_for(start: Start, tmp_path: Path) -> None:
    source = "{{ messages[0].content }}{% if enable_thinking is defined %}x{% endif %}"
    asking = make_tiny(tmp_path / "asking.gguf", chat_template=source)
    what = "reads enable_thinking: --template-var enable_thinking=false"
    assert what in start("chat", asking).wait_for(PROMPT)
    assert what not in start("chat", asking, "--template-var", "enable_thinking=true").wait_for(PROMPT)


def test_a_pasted_colour_is_no_mouse(start: Start, model: Path) -> None:
    """Without brackets around it, as some terminals paste."""
    terminal = start("chat", model, "--max-tokens", 3, "--threads", 1)
    terminal.wait_for(PROMPT)
    terminal.type(f"\x1b[31mred{ENTER}")
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert contents("chat.json", "user") == ["red"]
    assert "Traceback" not in terminal.text


def test_a_conversation(start: Start, model: Path) -> None:
    terminal = start("chat", model, "--temp", 0, "--max-tokens", 8, "--threads", 1)
    banner = terminal.wait_for(PROMPT)
    assert "tiny llama (llama" in banner
    assert "KV cache logquant: " in banner
    assert re.search(r" for 512 tokens \([0-9.]+ bits per value\), 1 threads", banner)
    assert "KiB for" in banner
    terminal.type(f"hello{ENTER}")
    terminal.wait_for(PROMPT)
    terminal.type(f"one{ALT_ENTER}two{ENTER}")
    terminal.wait_for(PROMPT)
    terminal.type(f'"""{ENTER}three{ENTER}four{ENTER}"""{ENTER}')
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert contents("chat.json", "user") == ["hello", "one\ntwo", "three\nfour"]
    terminal.type(f"/load nowhere{ENTER}")
    terminal.wait_for("error: cannot read nowhere")
    terminal.type(f"/reset{ENTER}")
    terminal.wait_for("empty again")
    terminal.type(UP + UP + UP + ENTER)  # /save chat.json again
    terminal.wait_for("note: saved to chat.json")
    terminal.wait_for(PROMPT)
    assert contents("chat.json", "user") == []
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_history_outlives_the_session_and_is_private(start: Start, model: Path, tmp_path: Path) -> None:
    options = ("chat", model, "--temp", 0, "--max-tokens", 2)
    terminal = start(*options)
    terminal.wait_for(PROMPT)
    terminal.type(f"remember me{ENTER}")
    terminal.wait_for(PROMPT)
    terminal.type(f"/exit{ENTER}")
    assert terminal.end() == 0
    path = tmp_path / "state" / "pylogquant" / "history"
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    terminal = start(*options)
    terminal.wait_for(PROMPT)
    terminal.type(UP + UP + ENTER)
    save(terminal, "again.json")
    assert contents("again.json", "user") == ["remember me"]


def test_no_place_for_history_is_no_obstacle(start: Start, model: Path) -> None:
    terminal = start("chat", model, "--max-tokens", 2, XDG_STATE_HOME="/dev/null")
    terminal.wait_for("note: no history between sessions")
    terminal.wait_for(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt(start: Start, model: Path) -> None:
    terminal = start("chat", model, "--temp", 0, "--max-tokens", 2)
    terminal.wait_for(PROMPT)
    terminal.type(CTRL_C)
    terminal.wait_for("note: /exit or Ctrl-D leaves")
    terminal.wait_for(PROMPT)
    terminal.type("thrown away")
    terminal.wait_for("thrown away")
    terminal.type(CTRL_C)
    assert "note" not in terminal.wait_for(PROMPT)
    terminal.type(f"kept{ENTER}")
    save(terminal, "chat.json")
    assert contents("chat.json", "user") == ["kept"]
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def check_quiet(terminal: Terminal) -> None:
    """Nothing of what Python says about exceptions that nobody took care of."""
    for words in ("Traceback", "Exception ignored", "never awaited", "Unhandled exception", "Return value already"):
        assert words not in terminal.text, terminal.text[-3000:]


@pytest.mark.parametrize("gap_s", [0.0, 0.03])
def test_only_exit_and_ctrl_d_leave(start: Start, model: Path, gap_s: float) -> None:
    """Ctrl-C comes by programs and stuck keys: between prompts, before and after an answer, in commands."""
    terminal = start("chat", model, "--temp", 0, "--max-tokens", 3, "--threads", 1)
    terminal.wait_for("/help lists")  # the banner's end
    for _ in range(30):
        terminal.type(CTRL_C)
        terminal.read(gap_s)
    terminal.settle()
    terminal.type(f"kept{ENTER}")
    terminal.wait_for(ACCEPTED)
    terminal.settle()
    save(terminal, "first.json")
    assert contents("first.json", "user") == ["kept"]
    for i, line in enumerate(["hello", "/save a.json", "/load a.json", "/save a.session", "/load a.session", "/retry"]):
        for _ in range(3):
            terminal.type(f"{line}{ENTER}")
            terminal.read(i * 0.003)
            for _ in range(1 + i % 3):
                terminal.type(CTRL_C)
                terminal.read(gap_s)
            terminal.read(0.05)
    terminal.settle()
    save(terminal, "last.json")
    assert contents("last.json", "user")[0] == "kept"
    assert len(contents("last.json", "user")) == len(contents("last.json", "assistant"))
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    check_quiet(terminal)


def test_a_signal_at_the_prompt_is_a_ctrl_c(start: Start, model: Path) -> None:
    terminal = start("chat", model, "--max-tokens", 2)
    terminal.wait_for(PROMPT)
    terminal.wait_for(">")
    for _ in range(3):
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("note: /exit or Ctrl-D leaves")
        terminal.wait_for(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    check_quiet(terminal)


def test_ctrl_c_stops_an_answer_and_keeps_the_session(start: Start, slow_model: Path) -> None:
    terminal = start("chat", slow_model, "--temp", 0, "--ctx", 0, "--threads", 1)
    terminal.wait_for(PROMPT)
    terminal.type(f"hello{ENTER}")
    terminal.wait_for(ACCEPTED)
    while len(terminal.text) < terminal.seen + 10:
        assert terminal.read(10)
    terminal.type(CTRL_C)
    terminal.wait_for("[stopped]")
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert contents("chat.json", "user") == ["hello"]
    [answer] = contents("chat.json", "assistant")
    assert answer
    terminal.type(f"again{ENTER}")
    terminal.wait_for(ACCEPTED)
    while len(terminal.text) < terminal.seen + 10:
        assert terminal.read(10)
    terminal.type(CTRL_C)
    terminal.wait_for("[stopped]")
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert contents("chat.json", "user") == ["hello", "again"]
    assert contents("chat.json", "assistant")[0] == answer
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_ctrl_c_stops_a_long_prompt_as_if_never_asked(start: Start, slow_model: Path) -> None:
    Path("long.json").write_text(
        json.dumps(
            {
                "format": "pylogquant-chat",
                "version": 1,
                "messages": [{"role": "user", "content": "q " * 30_000}, {"role": "assistant", "content": "q"}],
            }
        )
    )
    terminal = start("chat", slow_model, "--temp", 0, "--ctx", 0, "--chunk", 16384, "--threads", 1)
    terminal.wait_for(PROMPT)
    terminal.type(f"/load long.json{ENTER}")
    terminal.wait_for("2 messages loaded")
    terminal.wait_for(PROMPT)
    terminal.type(f"hello{ENTER}")
    terminal.wait_for(ACCEPTED)
    time.sleep(2)
    sent = time.monotonic()
    terminal.type(CTRL_C)
    assert terminal.wait_for("[stopped]").strip("^C\n") == ""
    assert time.monotonic() - sent < 2
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert len(contents("chat.json", "user")) == 1
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_a_full_context_is_told_and_the_conversation_goes_on(start: Start, model: Path) -> None:
    terminal = start("chat", model, "--temp", 0, "--ctx", 64)
    terminal.wait_for(PROMPT)
    terminal.type(f"hello{ENTER}")
    terminal.wait_for("error: the context of 64 tokens is full")
    terminal.wait_for("/reset")
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert len(contents("chat.json", "assistant")) == 1
    terminal.type(f"/reset{ENTER}")
    terminal.wait_for(PROMPT)
    terminal.type(f"hello{ENTER}")
    terminal.wait_for("error: the context of 64 tokens is full")
    terminal.wait_for(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_run_says_once_that_a_model_can_chat(start: Start, model: Path, tmp_path: Path) -> None:
    asked = ("run", model, "-p", "hello", "-n", 2)
    terminal = start(*asked)
    assert terminal.end() == 0
    assert terminal.text.count("note: ") == terminal.text.count("run --chat") == 1
    base = make_tiny(tmp_path / "base.gguf", chat_template=None)
    for quiet in ((*asked, "--chat"), (*asked, "--json"), (*asked, "--special"), ("run", base, *asked[2:])):
        terminal = start(*quiet)
        assert terminal.end() == 0
        assert "note: " not in terminal.text, quiet


def test_control_characters_of_a_model_do_not_reach_the_terminal(start: Start, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "evil.gguf")
    data = path.read_bytes()
    at = data.index(b"tiny llama")
    path.write_bytes(data[:at] + b"\x1b]0;evil!\x07" + data[at + 10 :])
    for command in ("info", "chat"):
        terminal = start(command, path)
        terminal.wait_for("0;evil")
        if command == "chat":
            terminal.wait_for(PROMPT)
            terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert "\x1b]" not in terminal.raw


@pytest.mark.parametrize("no_colour", [False, True])
def test_progress_is_drawn_and_respects_no_color(no_colour: bool, start: Start) -> None:
    variables = {"NO_COLOR": "1"} if no_colour else {}
    content = CONTENT + bytes(64 << 20)
    with serving(FakeHub(files={"acme/m/m-Q4_0.gguf": content}, pause_s=0.5)) as fake:
        terminal = start("pull", "acme/m:Q4_0", HF_ENDPOINT=fake.endpoint, **variables)
        assert terminal.end() == 0
    assert "m-Q4_0.gguf" in terminal.text
    assert "MiB" in terminal.text
    assert bool(COLOUR.search(terminal.raw)) is not no_colour


def test_a_real_conversation(start: Start, smollm2_path: Path) -> None:
    terminal = start("chat", smollm2_path, "--temp", 0, "--system", "You answer questions about geography.")
    terminal.wait_for(PROMPT)
    terminal.type(f"What is the capital of France?{ENTER}")
    assert "Paris" in terminal.wait_for(PROMPT)
    terminal.type(f"Write a very long story about a fox.{ENTER}")
    terminal.wait_for(ACCEPTED)
    while len(terminal.text) < terminal.seen + 100:
        assert terminal.read(10)
    terminal.type(CTRL_C)
    terminal.wait_for("[stopped]")
    terminal.wait_for(PROMPT)
    terminal.type(f"Which city did you name?{ENTER}")
    terminal.wait_for(PROMPT)
    save(terminal, "chat.json")
    assert len(contents("chat.json", "user")) == len(contents("chat.json", "assistant")) == 3
    assert len(contents("chat.json", "assistant")[1]) > 50
    terminal.type(CTRL_D)
    assert terminal.end() == 0


# ---- without a terminal ----------------------------------------------------------------------------------------------


def spawn(
    *arguments: object, stdin: int = subprocess.DEVNULL, stdout: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pylogquant.cli", *map(str, arguments)],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=sys.prefix,  # -m looks here first, and the checkout's package folder holds no compiled core
    )


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    process = spawn("info", model)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


def in_a_shell(redirections: str, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of the command with a shell's redirections."""
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "pylogquant.cli"]
    found = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8", cwd=sys.prefix
    )
    return found.returncode, found.stdout, found.stderr


EVERY_OUTPUT = ["--version", "--help", "chat --help", "list", "info MODEL --json", "run MODEL -p hello -n 3", "doctor"]


@pytest.mark.parametrize(("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "is closed")])
@pytest.mark.parametrize("command", EVERY_OUTPUT)
def test_output_that_cannot_be_written_is_one_line(model: Path, command: str, redirection: str, reason: str) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    status, _, errors = in_a_shell(redirection, *command.replace("MODEL", str(model)).split())
    assert status == 1
    assert re.fullmatch(f"error: cannot write the output: .*{reason}\n", errors)


def test_standard_streams_that_are_closed(model: Path) -> None:
    run = ("run", model, "-n", 3, "--seed", 1)
    for command in (("run", model), ("chat", model, "--template", "chatml")):
        status, output, errors = in_a_shell("<&-", *command)
        assert (status, output) == (1, "")
        assert errors == "error: standard input is closed: there is nothing to read a prompt from\n"
    status, output, errors = in_a_shell("<&-", *run, "-p", "hello")
    assert (status, errors) == (0, "")
    for redirection in ("2>&-", "2>/dev/full"):  # nobody can be told, but the answer comes, and errors have a status
        assert in_a_shell(redirection, *run, "-p", "hello") == (0, output, "")
        assert in_a_shell(redirection, "rm", "nothing") == (1, "", "")
    assert in_a_shell("<&- >&- 2>&-", *run, "-p", "hello") == (1, "", "")


def test_ctrl_c_while_waiting_for_the_prompt(model: Path) -> None:
    process = spawn("run", model, stdin=subprocess.PIPE)
    wait_until_blocked(process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def test_ctrl_c_in_a_long_prompt(slow_model: Path) -> None:
    process = spawn("run", slow_model, "--ctx", 0, "--chunk", 16384, "--threads", 1, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("q " * 30_000)
    process.stdin.close()
    process.stdin = None
    time.sleep(3)
    assert process.poll() is None, "the prompt must take longer than this test"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
    assert time.monotonic() - sent < 2


def test_ctrl_c_in_an_answer(slow_model: Path) -> None:
    process = spawn("run", slow_model, "--ctx", 0, "--threads", 1, "-p", "hello", "--temp", 0)
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.read(1)
    assert first
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert rest.endswith("\n")
    assert process.stderr.read() == ""
    assert process.wait(60) == 130
    process.stdout.close()
    process.stderr.close()


def wait_until_blocked(process: subprocess.Popen[str]) -> None:
    """Until the process waits for its standard input: it has used no CPU time for a while."""
    import psutil

    probe = psutil.Process(process.pid)
    used, since = -1.0, time.monotonic()
    while time.monotonic() - since < 1.0:
        now = sum(probe.cpu_times()[:2])
        if now > used:
            used, since = now, time.monotonic()
        assert process.poll() is None
        time.sleep(0.05)
