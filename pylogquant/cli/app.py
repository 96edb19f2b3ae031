"""Declares the commands and their options. Other modules implement them, and are loaded only when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pylogquant.cli import options as o
from pylogquant.cli.groups import grouped
from pylogquant.cli.output import EXIT_ERROR, guard, print_version

app = typer.Typer(
    name="pylogquant",
    help="Runs GGUF language models on this machine. 'pylogquant chat smollm2-135m' is a good start.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print_version()
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
@grouped
def chat(
    model: o.ModelArgument,
    *,
    answer: o.AnswerGroup,
    special: Annotated[
        bool, typer.Option("--special", help="Show control tokens that the model writes, such as [THINK].")
    ] = False,
    loop_guard: o.LoopGuardOption = True,
    session: o.SessionGroup,
    machine: o.MachineGroup,
    sampling: o.SamplingGroup,
) -> None:
    """Talk with a model. Without a terminal, each line of standard input is one turn."""
    with guard():
        from pylogquant.cli.repl import chat as run_chat

        settings = o.ModelSettings(model, machine, session)
        run_chat(settings, o.AnswerSettings(answer, sampling, special, loop_guard))


@app.command()
@grouped
def run(
    model: o.ModelArgument,
    *,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="Text to go on from; what is piped in follows it after a blank line. - is that alone.",
            show_default=False,
        ),
    ] = None,
    use_chat: Annotated[
        bool, typer.Option("--chat", help="Take the prompt as a user's message, through the chat template.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option(
            "--special",
            help="Show control tokens that the model writes, such as [THINK]; without --chat, those spelled out in the"
            " prompt, such as <|im_start|>, count too.",
        ),
    ] = False,
    as_json: o.JsonOption = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs", min=0, help="With --json: log-probabilities of each token and the N best.", show_default=False
        ),
    ] = None,
    answer: o.AnswerGroup,
    loop_guard: o.LoopGuardOption = False,
    session: o.SessionGroup,
    machine: o.MachineGroup,
    sampling: o.SamplingGroup,
) -> None:
    """Complete a text once, or with --chat answer a message; the prompt, or a text for it, may be piped in."""
    of_chats = (
        (answer.system, "--system"),
        (answer.template, "--template"),
        (answer.template_var, "--template-var"),
    )
    for given, name in of_chats:
        if given is not None and not use_chat:
            raise typer.BadParameter(f"{name} has an effect with --chat only")
    if logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs has an effect with --json only")
    with guard():
        from pylogquant.cli.oneshot import read_prompt
        from pylogquant.cli.oneshot import run as run_once

        text = read_prompt(prompt)
        if text is None:
            raise typer.BadParameter("no prompt: give -p TEXT, or pipe it in")
        run_once(
            o.ModelSettings(model, machine, session),
            o.AnswerSettings(answer, sampling, special, loop_guard),
            text,
            use_chat=use_chat,
            as_json=as_json,
            top=logprobs,
        )


@app.command()
@grouped
def info(
    model: o.ModelArgument,
    *,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            metavar="TYPE",
            help=f"KV cache type that the settings below change; its plan is shown beside the types'."
            f"  [default: {o.DEFAULT_KV}]",
            autocompletion=o.complete_kv,
            show_default=False,
        ),
    ] = None,
    changes: o.KvGroup,
    length: o.LengthGroup,
    chunk: o.ChunkOption = 512,
    template: Annotated[
        bool, typer.Option("--template", help="Print the file's chat template, whole, and nothing else.")
    ] = False,
    as_json: o.JsonOption = False,
    offline: o.OfflineOption = False,
) -> None:
    """Show what a model file holds and how much memory it would take, per KV cache type."""
    if kv is not None and changes.is_empty:
        raise typer.BadParameter("--kv has an effect together with --kv-k, --window and the like; all types are shown")
    planning = not changes.is_empty or length != o.LengthGroup() or chunk != 512
    if template and (planning or as_json):
        raise typer.BadParameter("--template prints the chat template alone; leave out --json and what plans depend on")
    with guard():
        from pylogquant.cli.engine import find
        from pylogquant.cli.inspect import info as show
        from pylogquant.cli.inspect import print_template

        if template:
            print_template(find(model, offline=offline))
            return

        extra = None if changes.is_empty else changes.of(kv or o.DEFAULT_KV)
        show(find(model, offline=offline), length=length, chunk=chunk, as_json=as_json, extra=extra)


@app.command("eval")
@grouped
def eval_command(
    model: o.ModelArgument,
    *,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text to measure on (of .jsonl files the question and answer fields); may be given several times."
            "  [default: two texts that come with Python, prose and code]",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[
        list[str] | None,
        typer.Option(
            "--kv",
            metavar="TYPE",
            help="KV cache type to measure, alone or with settings, as in logquant+window=64+overlay=q8_0; may be given"
            " several times.  [default: all]",
            autocompletion=o.complete_kv,
            show_default=False,
        ),
    ] = None,
    length: o.LengthGroup,
    prompt: Annotated[
        int, typer.Option("--prompt", min=1, help="First tokens of a text, which see each other in full precision.")
    ] = 512,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Score every so many positions.")] = 8,
    copies: Annotated[
        int,
        typer.Option(
            "--copies",
            min=0,
            help="Passages of each text that come again after 900 other tokens, as a test of finding them; 0 = none.",
        ),
    ] = 0,
    passkeys: Annotated[
        int,
        typer.Option("--passkeys", min=0, help="Numbers hidden in each text, one at a time, and asked for; 0 = none."),
    ] = 0,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Show the divergence in each quarter of the text.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw quality against bits, as .png, .svg or .pdf; needs matplotlib.",
            show_default=False,
        ),
    ] = None,
    machine: o.MachineGroup,
    as_json: o.JsonOption = False,
) -> None:
    """Measure what KV cache types cost on a model: divergence from f16, perplexity, bits, speed."""
    with guard():
        from pylogquant.cli.evaluate import Measures, evaluate
        from pylogquant.evaluate import SAMPLE_TEXTS

        settings = o.ModelSettings(model, machine, o.SessionGroup(length=length))
        evaluate(
            settings,
            text or SAMPLE_TEXTS,
            kv or (),
            Measures(prompt, stride, copies, passkeys, by_position, plot, as_json),
        )


@app.command()
@grouped
def spikes(
    model: o.ModelArgument,
    *,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text to read; may be given several times.  [default: two texts that come with Python]",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw it, as .png, .svg or .pdf; needs matplotlib.", show_default=False
        ),
    ] = None,
    length: o.LengthGroup,
    prompt: Annotated[int, typer.Option("--prompt", min=64, help="First tokens of a text, read at once.")] = 512,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Look at every so many queries.")] = 16,
    machine: o.MachineGroup,
    as_json: o.JsonOption = False,
) -> None:
    """Show where a model's attention spikes by age, and what keeping which tokens covers."""
    with guard():
        from pylogquant.cli.spikes import spikes as show
        from pylogquant.evaluate import SAMPLE_TEXTS

        settings = o.ModelSettings(model, machine, o.SessionGroup(length=length))
        show(settings, text or SAMPLE_TEXTS, prompt=prompt, stride=stride, plot=plot, as_json=as_json)


@app.command()
def bench(
    model: o.ModelArgument,
    kv: Annotated[
        list[str] | None,
        typer.Option(
            "--kv",
            metavar="TYPE",
            help="KV cache type to measure, alone or with settings, as in logquant+window=64; may be given several"
            " times.  [default: logquant, q4_0, q8_0, f16]",
            autocompletion=o.complete_kv,
            show_default=False,
        ),
    ] = None,
    depths: Annotated[
        str, typer.Option("--depths", metavar="TOKENS,...", help="Decode behind so many tokens each; '' = not at all.")
    ] = "0,4096",
    pp: Annotated[
        str, typer.Option("--pp", metavar="TOKENS,...", help="Evaluate prompts of so many tokens each; '' = none.")
    ] = "512,4096",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="SESSIONS,...",
            help="Decode with so many sessions in one step each, from an empty context; '' = not at all.",
        ),
    ] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measure everything so many times.")] = 5,
    decode: Annotated[int, typer.Option("--decode", min=1, help="Tokens decoded at each depth in each round.")] = 32,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw speed against depth, as .png, .svg or .pdf; needs matplotlib.",
            show_default=False,
        ),
    ] = None,
    threads: o.ThreadsOption = 0,
    as_json: o.JsonOption = False,
    offline: o.OfflineOption = False,
) -> None:
    """Measure tokens per second of prompts and of decoding on the CPU, and how near that is to what it can do."""
    with guard():
        from pylogquant.cli.bench import Works, numbers
        from pylogquant.cli.bench import bench as measure

        wanted = (numbers("--pp", pp), numbers("--depths", depths), numbers("--batch", batch))
        works = Works(*wanted, rounds, decode, plot, as_json)
        machine = o.MachineGroup(device="cpu", threads=threads, offline=offline)
        measure(o.ModelSettings(model, machine), kv or (), works)


@app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A built-in name, owner/repo:FILE.gguf, owner/repo:TAG such as owner/repo:Q4_K_M, or owner/repo: its"
            " only model, or the Q4_K_M one; owner/repo@REVISION likewise; or the address of its page or file on"
            " huggingface.co.",
        ),
    ],
    offline: o.OfflineOption = False,
) -> None:
    """Fetch a model into the cache and verify it; prints its path."""
    with guard():
        from pylogquant.cli import store

        store.pull(name, offline=offline)


@app.command("list")
def list_command(as_json: o.JsonOption = False) -> None:
    """List the built-in models and what was pulled."""
    with guard():
        from pylogquant.cli import store

        store.list_models(as_json=as_json)


@app.command()
def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that 'pylogquant list' shows.")],
) -> None:
    """Delete a model from the cache; files elsewhere are never touched."""
    with guard():
        from pylogquant.cli import store

        store.remove(name)


@app.command()
def build(
    cuda: Annotated[bool, typer.Option("--cuda", help="The CUDA backend, for NVIDIA GPUs; needs the CUDA toolkit.")],
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="native|NN,...",
            help="Compute capabilities to compile for, as in 75,86; native = those of the devices in this machine.",
        ),
    ] = "native",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Compilers at once; 0 = as many as cores.")] = 0,
) -> None:
    """Compile what is not part of the package, for this machine, and test it."""
    if not cuda:
        raise typer.BadParameter("there is nothing else to build: give --cuda")
    with guard():
        from pylogquant.cli.build import build_cuda

        build_cuda(arch, jobs)


@app.command()
def doctor() -> None:
    """Check the installation: version, compiled core, SIMD level, memory, GPUs, cache, dependencies."""
    with guard():
        from pylogquant.cli.doctor import doctor as check_all

        if check_all():
            raise typer.Exit(EXIT_ERROR)
