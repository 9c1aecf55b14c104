"""The scripted server of speedkit.testing under its old name, and as a program for benchmarks.

::

    python -m tests.kit.fake_openai --port 8123 --latency 2 --edit
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from speedkit.testing.fake_openai import *  # noqa: F403
from speedkit.testing.fake_openai import FakeOpenAI, Request, Step, edit_script


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted, then say how much there was to do."""
    parser = argparse.ArgumentParser(description="a scripted OpenAI-compatible server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--reply", type=Path, nargs="+", help="files with the answers, in turn")
    answer.add_argument("--edit", action="store_true", help="answer with the prompt's own script")
    args = parser.parse_args(argv)
    texts = [path.read_text(encoding="utf-8") for path in args.reply or ()]

    def script(request: Request) -> Step | str:
        if args.edit:
            return edit_script(request)
        return texts[request.index % len(texts)] if texts else "ok"

    with FakeOpenAI(script, port=args.port, latency_s=args.latency) as server:
        print(server.url, flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
        print(f"{len(server.requests)} requests, {server.max_in_flight} at most at once")


if __name__ == "__main__":
    main()
