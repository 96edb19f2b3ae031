"""Many conversations at once, as in a server: asyncio tasks talk to clients, and one thread steps for all of them.

    python examples/many_conversations.py                        # SmolLM2-135M, fetched once
    python examples/many_conversations.py model.gguf --tokens 200 --kv q8_0

Each conversation is a Conversation (messages and ids) and a session; all of them generate in one Batch, so that weights
are read once for all. A conversation whose client goes away is cancelled without affecting the others.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import AsyncGenerator

from pylogquant import Batch, Conversation, Model, Sampler, Session, TextStream
from pylogquant.batch import Generation
from pylogquant.templates import ChatTemplate
from pylogquant.text_stream import Piece

QUESTIONS = [
    ["What is the capital of France?", "And of Italy?"],
    ["Name three primary colors.", "Which of them is the sky's?"],
    ["How many days are in a week?"],
    ["Write a sentence about the sea."],
]


class Engine:
    """Steps the batch in a thread of its own, and passes every piece to the task that waits for it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.batch = Batch(model)
        self._loop = asyncio.get_running_loop()
        self._queues: dict[Generation, asyncio.Queue[Piece]] = {}  # only the event loop's thread uses it
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            if self.batch.wait(timeout=0.1):
                self._loop.call_soon_threadsafe(self._deliver, self.batch.step())

    def _deliver(self, pieces: list[tuple[Generation, Piece]]) -> None:
        for generation, piece in pieces:
            self._queues[generation].put_nowait(piece)

    async def answer(
        self, conversation: Conversation, session: Session, question: str, max_tokens: int
    ) -> AsyncGenerator[str, None]:
        """Yields the answer in pieces. A caller who leaves early cancels it; the conversation keeps it so far."""
        prompt = conversation.ask(question)
        text = TextStream(self.model.tokenizer, max_tokens=max_tokens, loop_guard=True)
        sampler = Sampler(self.model.answer_defaults().options)
        generation = self.batch.add(session, sampler, text, prompt.ids, checkpoint=True)
        queue = self._queues[generation] = asyncio.Queue()
        is_last = False
        try:
            while not is_last:
                piece = await queue.get()
                is_last = piece.finish is not None
                if piece.text:
                    yield piece.text
        finally:
            if not is_last:  # the caller has left
                generation.cancel()
                while (await queue.get()).finish is None:  # the batch uses the session until the last piece
                    pass
            del self._queues[generation]
            if text.ids:
                conversation.answer(prompt, text)
        if generation.error is not None:
            raise generation.error

    def close(self) -> None:
        self._closing = True
        self._thread.join()


async def talk(engine: Engine, questions: list[str], kv: str, max_tokens: int) -> Conversation:
    """One client, who asks one question after the other."""
    model = engine.model
    template = ChatTemplate.from_gguf(model.gguf, model.tokenizer)
    conversation = Conversation(model.tokenizer, template, model.answer_defaults().system)
    with model.session(n_ctx=2048, kv=kv, chunk=128) as session:
        for question in questions:
            async for _ in engine.answer(conversation, session, question, max_tokens):
                pass  # a server would send it to the client
    return conversation


async def serve(model: Model, kv: str, max_tokens: int) -> None:
    engine = Engine(model)
    started = time.perf_counter()
    try:
        found = await asyncio.gather(*(talk(engine, questions, kv, max_tokens) for questions in QUESTIONS))
    finally:
        engine.close()
    for conversation in found:
        print(*(f"{message['role']}: {message['content']}" for message in conversation.messages), sep="\n", end="\n\n")
    n_tokens = sum(len(conversation.ids) for conversation in found)
    print(f"{len(found)} conversations, {n_tokens} tokens in {time.perf_counter() - started:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a GGUF file with a chat template, or a name")
    parser.add_argument("--kv", default="logquant", help="KV cache type")
    parser.add_argument("--tokens", type=int, default=100, help="of an answer, at most")
    options = parser.parse_args()
    with Model(options.model) as model:
        asyncio.run(serve(model, options.kv, options.tokens))


if __name__ == "__main__":
    main()
