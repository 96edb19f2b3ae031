"""`chat`: turns, commands, and what Ctrl-C and Ctrl-D mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pylogquant.cli.engine import open_model
from pylogquant.cli.interrupts import Interrupts
from pylogquant.cli.options import AnswerSettings, ModelSettings
from pylogquant.cli.output import bytes_text, print_error, print_note, shown
from pylogquant.cli.reader import LineReader, Reader
from pylogquant.errors import ArgumentError, ContextFull, LogQuantError

if TYPE_CHECKING:
    from pylogquant.chat import Chat
    from pylogquant.defaults import AnswerDefaults
    from pylogquant.model import Model


def chat(settings: ModelSettings, answers: AnswerSettings) -> None:
    """The whole command. Raises LogQuantError; on a terminal, errors of a turn are only printed."""
    # Both must be terminals: a prompt drawn into a file would spoil it.
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with open_model(settings) as model:
        options = settings.session.options(model.info().n_ctx_train)
        defaults = model.answer_defaults()
        if defaults.note:
            print_note(defaults.note)
        conversation = model.chat(answers.chat_options(options, defaults.options))
        with conversation, ExitStack() as stack:
            if not interactive:
                reader: Reader = LineReader(sys.stdin.buffer)
                stack.enter_context(Repl(conversation, answers, reader, None)).run()
                return
            from pylogquant.cli.reader import TerminalReader

            interrupts = stack.enter_context(Interrupts())
            reader = TerminalReader([command.name for command in COMMANDS], interrupts)
            if sys.stderr.isatty():
                print(banner(settings, model, conversation, defaults), file=sys.stderr)
            repl = stack.enter_context(Repl(conversation, answers, reader, interrupts))
            if conversation.system:
                repl.attempt(conversation.prepare)  # while the first message is being typed
            repl.run()


def banner(settings: ModelSettings, model: Model, conversation: Chat, defaults: AnswerDefaults) -> str:
    """What really runs, in a few lines: the model, the KV cache with its changes and bytes, the device, and how answers
    are sampled."""
    facts, running = model.info(), conversation.session.info()
    title, kv = str(model.gguf.metadata.get("general.name", "no name in the file")), settings.session.kv_options
    kv_bytes = running.kv_reserved_bytes
    if facts.n_global_layers:
        cache = f"KV cache {kv}: {bytes_text(kv_bytes)} for {running.n_ctx:,} tokens"
        cache += f" ({running.kv_bits:.3g} bits per value)"
    else:  # the type applies only to layers that see the whole context, and there are none
        cache = f"KV cache: {bytes_text(kv_bytes)}, f16; every layer slides over {facts.window:,} tokens, so that"
        cache += f" {kv} concerns none"
    place = f"{facts.n_threads} threads, {running.cpu_level}"
    if facts.device != "cpu":
        place = f"{facts.device}, {facts.device_name}" + (f", and {place}" if facts.n_threads else "")
    drawn = f"answers: {defaults.describe(conversation.sampler.options)}\n"
    if conversation.system and conversation.system == defaults.system:
        drawn += f'system message: "{defaults.system}" (from {defaults.source}; --system TEXT changes it)\n'
    asked = conversation.template.open_variables
    more = ""
    if asked:
        names = ", ".join(asked[:_SHOWN_VARIABLES]) + (" and more" if len(asked) > _SHOWN_VARIABLES else "")
        example = "enable_thinking=false" if "enable_thinking" in asked else f"{asked[0]}=VALUE"
        more = f"the chat template also reads {shown(names)}: --template-var {shown(example)} sets one\n"
    return (
        f"{shown(settings.model)}: {shown(title)} ({facts.arch}, {facts.n_params / 1e6:,.0f} million weights in"
        f" {bytes_text(facts.weight_bytes)})\n"
        f"{cache}, {place}\n"
        f"{drawn}{more}"
        "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves"
    )


class Repl:
    """Reads turns and commands until the input ends. interrupts: given on a terminal, where only /exit and Ctrl-D end
    it; None elsewhere, where any error and Ctrl-C end it, so that a script notices."""

    def __init__(
        self, conversation: Chat, answers: AnswerSettings, reader: Reader, interrupts: Interrupts | None
    ) -> None:
        self.chat = conversation
        self.branches = {"main": conversation}
        self.branch = "main"
        self.answers = answers
        self.reader = reader
        self.interrupts = interrupts
        self.interactive = interrupts is not None
        self.done = False

    def __enter__(self) -> Repl:
        return self

    def __exit__(self, *_: object) -> None:
        for conversation in self.branches.values():
            conversation.close()

    def run(self) -> None:
        while not self.done:
            try:
                text = self.reader.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print_note("/exit or Ctrl-D leaves")
                continue
            if text.strip():
                self.attempt(partial(self.take, text))

    def attempt(self, work: Callable[[], object]) -> None:
        """Does work that may fail or be interrupted; on a terminal, prints that it did and goes on."""
        try:
            with self._interruptible():
                work()
        except LogQuantError as error:
            if not self.interactive:
                raise
            print_error(_advice(error, drops=self.chat.session.n_limit > self.chat.session.n_ctx))
        except KeyboardInterrupt:  # in the middle of a command
            if not self.interactive:
                raise
            print_note("stopped; /exit or Ctrl-D leaves")

    def _interruptible(self) -> AbstractContextManager[None]:
        return nullcontext() if self.interrupts is None else self.interrupts.allowed()

    def take(self, text: str) -> None:
        """One turn or one command."""
        if text.startswith("/") and not text.startswith("//"):
            name, argument = (*text.strip().split(None, 1), "")[:2]
            for command in COMMANDS:
                if command.name == name:
                    command.action(self, argument.strip())
                    return
            raise ArgumentError(
                f"unknown command {name}; /help lists them, and //text sends a message that starts with a /"
            )
        self.answer(text[1:] if text.startswith("//") else text)

    def answer(self, text: str) -> None:
        """Streams the answer to a message."""
        self.show(self.chat.stream(text, max_tokens=self.answers.asked.max_tokens, stop=self.answers.stop))

    def show(self, pieces: Generator[str, None, None]) -> None:
        """Prints an answer as it comes; Ctrl-C ends it and keeps the session."""
        started = False
        try:
            with closing(pieces):
                for piece in pieces:
                    started = True
                    print(shown(piece) if self.interactive else piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            print("\n[stopped]" if started else "[stopped]", flush=True)
            return
        except ContextFull:
            if started:
                print(flush=True)
            raise
        print(flush=True)
        if self.chat.stats().last.finish == "loop":
            print_note(
                "the answer went round in circles and was ended here; /retry asks again, /undo forgets it,"
                " --no-loop-guard lets such answers go on"
            )


@dataclass(frozen=True)
class Command:
    """One /command of the REPL."""

    name: str
    argument: str
    help: str
    action: Callable[[Repl, str], None]


def _advice(error: LogQuantError, *, drops: bool) -> str:
    if not isinstance(error, ContextFull):
        return str(error)
    advice = f"{error} Nothing is lost: /save FILE keeps it, /reset starts over, a larger --ctx gives more room"
    return advice if drops else f"{advice}, and with --on-full drop the oldest tokens go instead"


def _help(repl: Repl, argument: str) -> None:
    for command in COMMANDS:
        print(f"  {f'{command.name} {command.argument}'.strip():<14} {command.help}")
    print('  Alt+Enter starts a new line; so does Enter between """ and """.')


def _reset(repl: Repl, argument: str) -> None:
    repl.chat.reset()
    print_note("the conversation is empty again")


def _system(repl: Repl, argument: str) -> None:
    if not argument:
        print(repl.chat.system or "(no system message)")
        return
    repl.chat.reset(system=argument)
    print_note("system message set; the conversation starts over")


def _stats(repl: Repl, argument: str) -> None:
    print(repl.chat.stats())


def _retry(repl: Repl, argument: str) -> None:
    pieces = repl.chat.regenerate(max_tokens=repl.answers.asked.max_tokens, stop=repl.answers.stop)
    if repl.chat.sampler.options.temperature == 0:
        print_note("at temperature 0 the answer is the same again")
    repl.show(pieces)


def _edit(repl: Repl, argument: str) -> None:
    if not argument:
        raise ArgumentError("/edit needs the text that takes the place of your last message")
    repl.show(repl.chat.edit(argument, max_tokens=repl.answers.asked.max_tokens, stop=repl.answers.stop))


def _undo(repl: Repl, argument: str) -> None:
    if argument and not (argument.isascii() and argument.isdigit() and len(argument) < 10):
        raise ArgumentError(f"/undo needs a number of turns, not {argument[:60]}")
    text = repl.chat.undo(int(argument or 1))
    print_note(f"taken back, down to: {shown(text[:60])}{'...' if len(text) > 60 else ''}")


def _branch(repl: Repl, argument: str) -> None:
    if not argument:
        for name, conversation in repl.branches.items():
            mark = "*" if name == repl.branch else " "
            print(f"{mark} {shown(name)}  {len(conversation.messages)} messages")
    elif argument in repl.branches:
        raise ArgumentError(f"there is a branch {argument} already; /switch {argument} goes there")
    else:
        before = repl.branch
        repl.branches[argument] = repl.chat = repl.chat.fork()
        repl.branch = argument
        print_note(f"this conversation goes on as {shown(argument)}; /switch {shown(before)} goes back")


def _switch(repl: Repl, argument: str) -> None:
    name = argument or "main"
    if name not in repl.branches:
        raise ArgumentError(f"there is no branch {name}; /branch lists them")
    repl.branch, repl.chat = name, repl.branches[name]
    print_note(f"on {shown(name)}, {len(repl.chat.messages)} messages")


def _at_home(path: str) -> str:
    """Expands ~ in a path, as no shell does it here. An invalid path stays as it is, to be refused later."""
    return path if "\0" in path else os.path.expanduser(path)


def _save(repl: Repl, argument: str) -> None:
    if not argument:
        raise ArgumentError("/save needs a file name")
    argument = _at_home(argument)
    if argument.endswith(_SESSION_SUFFIX):
        repl.chat.save_session(argument)
    else:
        repl.chat.save(argument)
    print_note(f"saved to {argument}")


def _load(repl: Repl, argument: str) -> None:
    if not argument:
        raise ArgumentError("/load needs a file name")
    argument = _at_home(argument)
    repl.chat.load(argument)
    print_note(f"{len(repl.chat.messages)} messages loaded from {argument}")


def _exit(repl: Repl, argument: str) -> None:
    repl.done = True


_SHOWN_VARIABLES = 8
_SESSION_SUFFIX = ".session"

COMMANDS = (
    Command("/help", "", "list the commands", _help),
    Command("/reset", "", "forget the conversation, keep the system message", _reset),
    Command("/system", "TEXT", "set the system message and start over; without TEXT show it", _system),
    Command("/stats", "", "speed, tokens and memory", _stats),
    Command("/retry", "", "another answer to your last message", _retry),
    Command("/edit", "TEXT", "ask TEXT instead of your last message", _edit),
    Command("/undo", "N", "forget the last N turns; 1 without N", _undo),
    Command("/branch", "NAME", "go on with a copy of the conversation; without NAME list them", _branch),
    Command("/switch", "NAME", "go to another branch; without NAME to main", _switch),
    Command("/save", "FILE", f"write the messages to a file; with its KV cache if it ends in {_SESSION_SUFFIX}", _save),
    Command("/load", "FILE", "go on from a saved conversation", _load),
    Command("/exit", "", "leave", _exit),
)
