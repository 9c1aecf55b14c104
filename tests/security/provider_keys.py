"""Keys in the shapes of a dozen providers, made up at run time, and the forms they may take."""

from __future__ import annotations

import base64
import json
import random
import string
from urllib.parse import quote, quote_plus

WORD = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def made_up_keys(seed: int = 0) -> dict[str, str]:
    """Return keys by the variable that holds them; none stands in a file of the repository."""
    rng = random.Random(seed)

    def some(count: int, alphabet: str = WORD) -> str:
        return "".join(rng.choices(alphabet, k=count))

    return {
        "OPENAI_API_KEY": "sk" + "-proj-" + some(24) + "T3Blbk" + some(24),
        "ANTHROPIC_API_KEY": "sk" + "-ant-api03-" + some(40) + "-" + some(40) + "AA",
        "GEMINI_API_KEY": "AI" + "za" + some(35),
        "GROQ_API_KEY": "gsk" + "_" + some(52),
        "XAI_API_KEY": "xai" + "-" + some(80),
        "DEEPSEEK_API_KEY": "sk" + "-" + some(32, HEX),
        "OPENROUTER_API_KEY": "sk" + "-or-v1-" + some(64, HEX),
        "MISTRAL_API_KEY": some(32),
        "COHERE_API_KEY": some(40),
        "TOGETHERAI_API_KEY": some(64, HEX),
        "AZURE_API_KEY": some(32, HEX),
        "HF_TOKEN": "hf" + "_" + some(34),
        "AWS_SECRET_ACCESS_KEY": some(19) + "/" + some(9) + "+" + some(10),
        "DB_PASSWORD": f'{some(6)}"{some(4)}\\{some(6)}&é',
    }


def forms(key: str) -> dict[str, str]:
    """Return how a key may be written, by what that is."""
    code = key.encode()
    return {
        "raw": key,
        "base64": base64.b64encode(code).decode(),
        "base64 after one byte": base64.b64encode(b"." + code).decode(),
        "base64 after two bytes": base64.b64encode(b".." + code + b"\n").decode(),
        "base64 for addresses": base64.urlsafe_b64encode(code).decode(),
        "in an address": quote(key, safe=""),
        "in a form": quote_plus(key),
        "in JSON": json.dumps(key)[1:-1],
        "hexadecimal": code.hex(),
    }


def found_in(text: str | bytes, keys: dict[str, str]) -> list[str]:
    """Return which forms of which keys a text holds, at least but for their ends."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return [
        f"{name}, {form}"
        for name, key in keys.items()
        for form, spelling in forms(key).items()
        if (spelling[4:-4] if "base64" in form else spelling).encode() in data
    ]
