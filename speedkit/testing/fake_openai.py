"""A scripted server that speaks the OpenAI chat protocol on the loopback interface.

In a test::

    with FakeOpenAI([too_many(retry_after=1), say("hello")]) as server:
        ...  # model "openai/fake", api_base server.url

Model ids, prices and limits mean nothing to it; token counts are a quarter of the characters.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast

__all__ = [
    "DROP_BODY",
    "EMPTY_CHOICES",
    "FENCE",
    "HANG",
    "MALFORMED",
    "NORMAL",
    "RESET",
    "SHORT_STREAM",
    "TRICKLE",
    "FakeOpenAI",
    "Request",
    "Script",
    "Step",
    "completion",
    "edit_script",
    "fail",
    "fault",
    "say",
    "stream_events",
    "too_many",
    "usage",
]

NORMAL = "normal"
RESET = "reset"
DROP_BODY = "drop_body"
SHORT_STREAM = "short_stream"
HANG = "hang"
TRICKLE = "trickle"
MALFORMED = "malformed"
EMPTY_CHOICES = "empty_choices"


@dataclass(frozen=True)
class Step:
    """One answer of the server.

    Attributes:
        text: content of the reply; None sends ``content: null``.
        fault: one of the module's fault names.
        latency_s: seconds before the first byte of the answer.
        error: code and message of an error body, used when ``status`` is not 200.
        usage: overrides fields of ``usage``; None leaves ``usage`` out.
        message: extra fields of the message, for example ``reasoning_content``.
        model: the served model id; that of the request when None.
        interval_s: seconds between bytes of a trickle.
    """

    text: str | None = "ok"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: str = NORMAL
    latency_s: float = 0.0
    finish_reason: str = "stop"
    error: tuple[str, str] = ("server_error", "scripted error")
    usage: Mapping[str, Any] | None = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    interval_s: float = 0.5


def say(text: str | None, **fields: Any) -> Step:
    """A normal reply; ``fields`` are those of :class:`Step`."""
    return Step(text=text, **fields)


def fail(status: int, message: str = "scripted error", code: str = "server_error") -> Step:
    """An error reply with the given HTTP status."""
    return Step(status=status, error=(code, message))


def too_many(retry_after: float | str | None = None) -> Step:
    """A 429, with a ``Retry-After`` header if one is given."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    error = ("rate_limit_exceeded", "slow down")
    return Step(status=429, headers=headers, error=error)


def fault(name: str, **fields: Any) -> Step:
    """A reply that goes wrong in the named way."""
    return Step(fault=name, **fields)


@dataclass(frozen=True)
class Request:
    """A request that arrived.

    Attributes:
        index: 0 for the first chat request.
        at_s: ``time.monotonic()`` of its arrival.
        headers: with lower-case names.
    """

    index: int
    at_s: float
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """All messages as one text."""
        return "\n\n".join(str(m.get("content", "")) for m in self.body.get("messages", ()))

    @property
    def system(self) -> str:
        """The content of the system messages."""
        roles = ("system", "developer")
        messages = self.body.get("messages", ())
        return "\n".join(str(m["content"]) for m in messages if m["role"] in roles)


Script = Sequence[Step | str] | Callable[[Request], Step | str]
"""Steps in order, the last one for ever after; or a function of the request."""


class FakeOpenAI:
    """A threaded server on 127.0.0.1; use it as a context manager.

    Attributes:
        requests: the chat requests so far, in order of arrival.
        max_in_flight: the most chat requests that were being answered at once.
        completed: how many answers were sent to the end.
    """

    def __init__(self, script: Script = ("ok",), *, port: int = 0, latency_s: float = 0.0) -> None:
        self.script = script
        self.latency_s = latency_s
        self.requests: list[Request] = []
        self.max_in_flight = 0
        self.completed = 0
        self.stopping = threading.Event()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.fake = self
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The ``api_base`` of this server."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def settings(self) -> dict[str, str]:
        """What a run needs to ask this server, as keys of its configuration."""
        return {"model": "openai/fake", "api_base": self.url}

    def start(self) -> FakeOpenAI:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End hanging answers and close the port."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FakeOpenAI:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def arrived(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> Request:
        """Record a request and count it as in flight."""
        with self._lock:
            lower = {name.lower(): value for name, value in headers.items()}
            request = Request(len(self.requests), time.monotonic(), lower, body)
            self.requests.append(request)
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        return request

    def departed(self, *, complete: bool) -> None:
        """Record that a request is no longer being answered."""
        with self._lock:
            self._in_flight -= 1
            self.completed += complete

    def step(self, request: Request) -> Step:
        """Return the scripted answer to a request."""
        if callable(self.script):
            answer = self.script(request)
        else:
            answer = self.script[min(request.index, len(self.script) - 1)]
        step = say(answer) if isinstance(answer, str) else answer
        return replace(step, latency_s=step.latency_s + self.latency_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    fake: FakeOpenAI

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def fake(self) -> FakeOpenAI:
        return cast(_Server, self.server).fake

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.rstrip("/").endswith("/models"):
            self._send_json({"object": "list", "data": [{"id": "fake", "object": "model"}]})
        else:
            self._send_json({"error": {"message": "no such page"}}, status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if not self.path.endswith("/chat/completions"):
            self._send_json({"error": {"message": "no such page"}}, status=404)
            return
        request = self.fake.arrived(dict(self.headers), body)
        complete = False
        try:
            complete = self._answer(self.fake.step(request), request)
        finally:
            self.close_connection = self.close_connection or not complete
            self.fake.departed(complete=complete)

    def _answer(self, step: Step, request: Request) -> bool:
        if self.fake.stopping.wait(step.latency_s):
            return False
        if step.status != 200:
            code, message = step.error
            error = {"message": message, "type": code, "code": code}
            self._send_json({"error": error}, status=step.status, headers=step.headers)
            return True
        if step.fault == RESET:
            return self._reset()
        if request.body.get("stream"):
            return self._stream(step, request)
        return self._whole(step, request)

    # --- one JSON body ------------------------------------------------------------------

    def _whole(self, step: Step, request: Request) -> bool:
        body = json.dumps(completion(step, request)).encode()
        if step.fault == MALFORMED:
            body = b'{"id": "x", "choices": [{"mess'
        self._head(step, {"Content-Length": str(len(body)), "Content-Type": "application/json"})
        if step.fault == HANG:
            return self._hang()
        if step.fault == TRICKLE:
            return self._trickle(body, step)
        if step.fault == DROP_BODY:
            self.wfile.write(body[: len(body) // 2])
            return self._reset()
        self.wfile.write(body)
        return True

    def _trickle(self, body: bytes, step: Step) -> bool:
        for i in range(len(body)):
            self.wfile.write(body[i : i + 1])
            self.wfile.flush()
            if self.fake.stopping.wait(step.interval_s):
                return False
        return True

    # --- server-sent events -------------------------------------------------------------

    def _stream(self, step: Step, request: Request) -> bool:
        self._head(step, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        events = stream_events(step, request)
        for i, event in enumerate(events):
            if i == len(events) // 2 and step.fault == DROP_BODY:
                return self._reset()
            if i == len(events) // 2 and step.fault == SHORT_STREAM:
                break
            if i == len(events) // 2 and step.fault == HANG:
                return self._hang()
            text = "{broken" if step.fault == MALFORMED else json.dumps(event)
            self._chunk(f"data: {text}\n\n")
            if step.fault == TRICKLE and self.fake.stopping.wait(step.interval_s):
                return False
        self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        return True

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    # --- shared -------------------------------------------------------------------------

    def _head(self, step: Step, headers: Mapping[str, str]) -> None:
        self.send_response(step.status)
        for name, value in {**headers, **step.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def _send_json(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(value).encode()
        length = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        self._head(Step(status=status, headers=headers or {}), length)
        self.wfile.write(body)

    def _hang(self) -> bool:
        self.fake.stopping.wait()
        return False

    def _reset(self) -> bool:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        return False


def completion(step: Step, request: Request) -> dict[str, Any]:
    """Return the body of a reply that is not streamed."""
    message = {"role": "assistant", "content": step.text, **step.message}
    choice = {"index": 0, "message": message, "finish_reason": step.finish_reason}
    body = _frame(step, request, "chat.completion")
    body["choices"] = [] if step.fault == EMPTY_CHOICES else [choice]
    if step.usage is not None:
        body["usage"] = usage(step, request)
    return body


def stream_events(step: Step, request: Request, pieces: int = 8) -> list[dict[str, Any]]:
    """Return the events of a streamed reply: the text in pieces, its end, the usage."""
    text = step.text or ""
    size = max(1, -(-len(text) // pieces))
    deltas: list[dict[str, Any]] = [{"role": "assistant", **step.message}]
    deltas += [{"content": text[i : i + size]} for i in range(0, len(text), size)]
    if step.fault == EMPTY_CHOICES:
        deltas = []
    events = []
    for delta in deltas:
        event = _frame(step, request, "chat.completion.chunk")
        event["choices"] = [{"index": 0, "delta": delta, "finish_reason": None}]
        events.append(event)
    if events:
        end = _frame(step, request, "chat.completion.chunk")
        end["choices"] = [{"index": 0, "delta": {}, "finish_reason": step.finish_reason}]
        events.append(end)
    if step.usage is not None:
        last = _frame(step, request, "chat.completion.chunk")
        events.append({**last, "choices": [], "usage": usage(step, request)})
    return events


def usage(step: Step, request: Request) -> dict[str, Any]:
    """Return token counts: a quarter of the characters, unless the step says otherwise."""
    prompt, reply = len(request.prompt) // 4 + 1, len(step.text or "") // 4 + 1
    counts = {"prompt_tokens": prompt, "completion_tokens": reply}
    return {**counts, "total_tokens": prompt + reply, **(step.usage or {})}


def _frame(step: Step, request: Request, kind: str) -> dict[str, Any]:
    model = step.model or request.body.get("model", "fake")
    return {"id": f"fake-{request.index}", "object": kind, "created": 1, "model": model}


# --- answers --------------------------------------------------------------------------------

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def edit_script(request: Request) -> str:
    """Answer with the longest code block of the prompt and one comment more."""
    blocks = FENCE.findall(request.prompt)
    code = max(blocks, key=len, default="pass\n")
    code += f"# try {request.index}\n"
    return f"Add a comment and change nothing else.\n\n```python\n{code}```\n"
