"""What a model or a script might write to take over a page that shows it."""

from __future__ import annotations

MARK = "pwned"
"""Name of the variable of a page that the texts would set, and of the file they would load."""

TEXTS = (
    f"<script>window.{MARK}=1</script>",
    f"</script><script>window.{MARK}=1</script>",
    f"<img src={MARK}.png onerror=window.{MARK}=1>",
    f"<svg/onload=window.{MARK}=1>",
    f'" autofocus onfocus=window.{MARK}=1 x="',
    f"' onmouseover='window.{MARK}=1",
    f"</pre></style></title></textarea><iframe src={MARK}.html></iframe>",
    f'<a href="javascript:window.{MARK}=1">click</a>',
    f"--><body onload=window.{MARK}=1><!--",
    f"<link rel=stylesheet href={MARK}.css><style>*{{background:url({MARK}.png)}}</style>",
    f"<base href=//{MARK}/><meta http-equiv=refresh content=0;url={MARK}.html>",
    f"{{{{ ''.__class__ }}}}{{% raw %}}${{window.{MARK}=1}}",
    f"![x]({MARK}.png) [y](javascript:window.{MARK}=1)",
    f"<math><mtext></form><form><mglyph><style></math><img src={MARK} onerror=window.{MARK}=1>",
    f"]]><!--<script>window.{MARK}=1//--></script>",
    "\x1b[31mred\x1b[0m\x1b]8;;http://pwned/\x07link\x1b]8;;\x07 \x9b2J\x00\x7f",
    "abc\u202egnp.exe\u202c \u2066hidden\u2069 \u200b\u2028\ufeff\U000e0041",
)
HOSTILE = " ".join(TEXTS)
"""All of them in one line."""
