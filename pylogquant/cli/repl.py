"""`chat`: turns, commands, and what Ctrl-C and Ctrl-D mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylogquant.cli.engine import context_tokens, open_model
from pylogquant.cli.options import AnswerSettings, ModelSettings
from pylogquant.cli.output import bytes_text, print_error, print_note, shown
from pylogquant.cli.reader import LineReader, Reader
from pylogquant.errors import ContextFull, LogQuantError

if TYPE_CHECKING:
    from pylogquant.chat import Chat
    from pylogquant.model import Model


def chat(settings: ModelSettings, answers: AnswerSettings) -> None:
    """The whole command. Raises LogQuantError; without a terminal also for what a terminal only reports."""
    # Both ends: a prompt drawn into a file would spoil it.
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with open_model(settings) as model:
        n_ctx = context_tokens(settings.ctx, model.info().n_ctx_train, allow_long=settings.allow_long)
        conversation = model.chat(
            answers.system,
            n_ctx=n_ctx,
            kv=settings.kv,
            chunk=settings.chunk,
            allow_long=settings.allow_long,
            on_full=settings.on_full,
            sampling=answers.sampling,
            template=answers.template,
        )
        with conversation:
            reader: Reader = LineReader(sys.stdin.buffer)
            if interactive:
                from pylogquant.cli.reader import TerminalReader

                reader = TerminalReader([command.name for command in COMMANDS])
            if interactive and sys.stderr.isatty():
                print(banner(settings, model, conversation), file=sys.stderr)
            if interactive and answers.system:
                conversation.prepare()  # while the first message is being typed
            with Repl(conversation, answers, reader, interactive=interactive) as repl:
                repl.run()


def banner(settings: ModelSettings, model: Model, conversation: Chat) -> str:
    """Which model, which KV cache, what was changed of it and its bytes, which processor features: what really runs."""
    facts, running = model.info(), conversation.session.info()
    title = str(model.gguf.metadata.get("general.name", "no name in the file"))
    kv_bytes = running.kv_global_bytes + running.kv_sliding_bytes
    if facts.n_global_layers:
        cache = f"KV cache {settings.kv}: {bytes_text(kv_bytes)} for {running.n_ctx:,} tokens"
        cache += f" ({running.kv_bits:.3g} bits per value)"
    else:  # the type concerns layers that see the whole context
        cache = f"KV cache: {bytes_text(kv_bytes)}, f16; every layer slides over {facts.window:,} tokens, so that"
        cache += f" {settings.kv} concerns none"
    place = f"{facts.n_threads} threads, {running.cpu_level}"
    if facts.device != "cpu":
        place = f"{facts.device}, {facts.device_name}" + (f", and {place}" if facts.n_threads else "")
    return (
        f"{shown(settings.model)}: {shown(title)} ({facts.arch}, {facts.n_params / 1e6:,.0f} million weights in"
        f" {bytes_text(facts.weight_bytes)})\n"
        f"{cache}, {place}\n"
        "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves"
    )


class Repl:
    """Reads turns and commands until the input ends."""

    def __init__(self, conversation: Chat, answers: AnswerSettings, reader: Reader, *, interactive: bool) -> None:
        self.chat = conversation
        self.branches = {"main": conversation}
        self.branch = "main"
        self.answers = answers
        self.reader = reader
        self.interactive = interactive
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
            if not text.strip():
                continue
            try:
                self.take(text)
            except LogQuantError as error:
                if not self.interactive:  # a script must be able to tell
                    raise
                print_error(_advice(error))
            except KeyboardInterrupt:  # in the middle of a command
                if not self.interactive:
                    raise
                print_note("stopped; /exit or Ctrl-D leaves")

    def take(self, text: str) -> None:
        """One turn or one command."""
        if text.startswith("/") and not text.startswith("//"):
            name, _, argument = text.strip().partition(" ")
            for command in COMMANDS:
                if command.name == name:
                    command.action(self, argument.strip())
                    return
            print_error(f"unknown command {name}; /help lists them, and //text sends a message that starts with a /")
            return
        self.answer(text[1:] if text.startswith("//") else text)

    def answer(self, text: str) -> None:
        """Streams the answer to a message."""
        self.show(self.chat.stream(text, max_tokens=self.answers.max_tokens, stop=self.answers.stop))

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


@dataclass(frozen=True)
class Command:
    """One /command of the REPL."""

    name: str
    argument: str
    help: str
    action: Callable[[Repl, str], None]


def _advice(error: LogQuantError) -> str:
    if not isinstance(error, ContextFull):
        return str(error)
    return (
        f"{error} Nothing is lost: /save FILE keeps it, /reset starts over, a larger --ctx gives more room,"
        " --on-full drop goes on without the oldest"
    )


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
    if repl.answers.sampling.temperature == 0:
        print_note("at temperature 0 the answer is the same again")
    repl.show(repl.chat.regenerate(max_tokens=repl.answers.max_tokens, stop=repl.answers.stop))


def _edit(repl: Repl, argument: str) -> None:
    if not argument:
        print_error("/edit needs the text that takes the place of your last message")
        return
    repl.show(repl.chat.edit(argument, max_tokens=repl.answers.max_tokens, stop=repl.answers.stop))


def _undo(repl: Repl, argument: str) -> None:
    if argument and not (argument.isascii() and argument.isdigit()):
        print_error(f"/undo needs a number of turns, not {argument}")
        return
    text = repl.chat.undo(int(argument or 1))
    print_note(f"taken back, down to: {shown(text[:60])}{'...' if len(text) > 60 else ''}")


def _branch(repl: Repl, argument: str) -> None:
    if not argument:
        for name, conversation in repl.branches.items():
            mark = "*" if name == repl.branch else " "
            print(f"{mark} {shown(name)}  {len(conversation.messages)} messages")
    elif argument in repl.branches:
        print_error(f"there is a branch {shown(argument)} already; /switch {shown(argument)} goes there")
    else:
        repl.branches[argument] = repl.chat = repl.chat.fork()
        repl.branch = argument
        print_note(f"this conversation goes on as {shown(argument)}; /switch goes back")


def _switch(repl: Repl, argument: str) -> None:
    name = argument or "main"
    if name not in repl.branches:
        print_error(f"there is no branch {shown(name)}; /branch lists them")
        return
    repl.branch, repl.chat = name, repl.branches[name]
    print_note(f"on {shown(name)}, {len(repl.chat.messages)} messages")


def _save(repl: Repl, argument: str) -> None:
    if not argument:
        print_error("/save needs a file name")
        return
    if argument.endswith(_SESSION_SUFFIX):
        repl.chat.save_session(argument)
    else:
        repl.chat.save(argument)
    print_note(f"saved to {argument}")


def _load(repl: Repl, argument: str) -> None:
    if not argument:
        print_error("/load needs a file name")
        return
    repl.chat.load(argument)
    print_note(f"{len(repl.chat.messages)} messages loaded from {argument}")


def _exit(repl: Repl, argument: str) -> None:
    repl.done = True


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
