"""The search tree as a picture whose nodes are links to what is said of them."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

from markupsafe import Markup

from speedkit.analysis.report.facts import NodeFacts, RunFacts
from speedkit.analysis.report.outcomes import look
from speedkit.analysis.report.svg import Point, element, outline, picture
from speedkit.core.node import Node, Tree

SLOT, LEVEL, MARGIN = 54.0, 72.0, 34.0
"""Pixels between neighbours, between parent and child, and around the tree."""
SMALLEST, NORMAL, LARGEST = 9.0, 13.0, 24.0
"""Radius of a slow node, of one as fast as the start record, and of a very fast one."""


@dataclass(frozen=True)
class Layout:
    """Where the nodes of a tree stand.

    Attributes:
        depth: steps from node 0, by node.
        slot: place among the leaves, by node; parents stand in the middle of their children.
        leaves: number of leaves.
        deepest: largest depth.
    """

    depth: dict[int, int]
    slot: dict[int, float]
    leaves: int
    deepest: int


def layout(tree: Tree) -> Layout:
    """Return the layout of a tree of any depth."""
    depth: dict[int, int] = {}
    slot: dict[int, float] = {}
    order: list[int] = []
    stack = [tree.root.id] if len(tree) else []
    while stack:
        node = tree[stack.pop()]
        order.append(node.id)
        depth[node.id] = 0 if node.parent is None else depth[node.parent] + 1
        stack += [child.id for child in reversed(tree.children(node.id))]
    leaves = [i for i in order if tree.is_leaf(i)]
    slot.update({i: float(k) for k, i in enumerate(leaves)})
    for i in reversed(order):
        if children := [slot[child.id] for child in tree.children(i)]:
            slot[i] = (children[0] + children[-1]) / 2
    return Layout(depth, slot, len(leaves), max(depth.values(), default=0))


def radius(speedup: float | None) -> float:
    """Return the size of a node: its area grows with the speedup; None for no speedup."""
    if speedup is None:
        return SMALLEST + 2
    return min(LARGEST, max(SMALLEST, NORMAL * math.sqrt(speedup)))


def shape(name: str, r: float, **attributes: str) -> Markup:
    """Return a shape of about the area of a circle of radius ``r``, around (0, 0)."""
    if name in ("circle", "ring"):
        return element("circle", r=r, **attributes)
    return element("path", d=outline(_corners(name, r), closed=True), **attributes)


def _corners(name: str, r: float) -> list[Point]:
    if name == "cross":
        a, b = r * 0.4, r * 1.1
        cross = [(a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a)]
        return [*cross, *((-x, -y) for x, y in cross)]
    sides, turn, size = _POLYGONS[name]
    angles = [math.tau * (k / sides) + turn for k in range(sides)]
    return [(r * size * math.sin(a), -r * size * math.cos(a)) for a in angles]


_POLYGONS = {
    "diamond": (4, 0.0, 1.25),
    "square": (4, math.tau / 8, 1.25),
    "triangle": (3, 0.0, 1.45),
    "triangle_down": (3, math.tau / 2, 1.45),
    "hexagon": (6, 0.0, 1.12),
    "octagon": (8, math.tau / 16, 1.06),
}
"""Number of corners, turn in radians, and size beside a circle of the same radius."""


def draw(run: RunFacts) -> Markup:
    """Return the picture of the search tree of a run; the longer side lies across."""
    places = layout(run.tree)
    across = places.deepest * LEVEL > places.leaves * SLOT
    at = {i: _place(places, i, across) for i in places.depth}
    width = max((x for x, _ in at.values()), default=0) + MARGIN
    height = max((y for _, y in at.values()), default=0) + MARGIN + 6
    chain = _chain(run)
    edges = [
        _edge(at[parent], at[n.node.id], run.fact(parent), across, style)
        for n in run.nodes
        for parent, style in _parents(n.node, chain)
    ]
    nodes = [_node(n, at[n.node.id]) for n in run.nodes]
    title = f"Search tree of {len(run.nodes)} nodes; each is a link"
    style = "tree across" if across else "tree"
    return picture(width, height, title, *edges, *nodes, class_=style, role="group")


def _place(places: Layout, node_id: int, across: bool) -> Point:
    deep, wide = places.depth[node_id] * LEVEL, places.slot[node_id] * SLOT
    return (MARGIN + deep, MARGIN + wide) if across else (MARGIN + wide, MARGIN + deep)


def _chain(run: RunFacts) -> set[int]:
    """Return the best node and its ancestors."""
    if run.best is None:
        return set()
    best = run.best.node.id
    return {best, *(n.id for n in run.tree.ancestors(best))}


def _parents(node: Node, chain: Container[int]) -> Iterator[tuple[int, str]]:
    """Yield the parents of a node, the second before the first, with the style of the edge."""
    if node.other is not None:
        yield node.other, "edge other"
    if node.parent is not None:
        yield node.parent, "edge chain" if node.id in chain else "edge"


def _edge(one: Point, other: Point, parent: NodeFacts, across: bool, style: str) -> Markup:
    (x1, y1), (x2, y2) = one, other
    if across:
        a, b = ((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2)
    else:
        y1 += radius(parent.speedup) + 20 if _label(parent) else 0  # from below its number
        a, b = (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)
    points = " ".join(f"{x:.1f} {y:.1f}" for x, y in (a, b, other))
    return element("path", class_=style, d=f"M{x1:.1f} {y1:.1f}C{points}")


def _label(facts: NodeFacts) -> str:
    return f"{facts.fsr:+.2f}" if facts.node.id and facts.fsr is not None else ""


def _node(facts: NodeFacts, at: Point) -> Markup:
    seen = look(facts.outcome)
    r = radius(facts.speedup)
    label, number = _label(facts), str(facts.node.id)
    style = "id" if len(number) < 3 else "id long"
    parts = [
        element("circle", class_="hit", r=r + 4 if label else 26),
        shape(seen.shape, r, class_="shape"),
        element("text", number, class_=style, y=4, text_anchor="middle"),
    ]
    if label:
        parts.append(element("text", label, class_="fsr", y=r + 16, text_anchor="middle"))
    if facts.is_best:
        parts.append(element("text", "★", class_="star", x=r - 1, y=3 - r, text_anchor="middle"))
    return element(
        "a",
        element("title", facts.title),
        *parts,
        href=f"#{facts.key}",
        class_=f"node o-{seen.key}" + (" best" if facts.is_best else ""),
        transform=f"translate({at[0]:.1f} {at[1]:.1f})",
        aria_label=facts.title,
    )


def badge(outcome: str) -> Markup:
    """Return the shape of an outcome, small, for legends and tables."""
    seen = look(outcome)
    mark = shape(seen.shape, 6, class_="shape")
    return element(
        "svg",
        element("g", mark, transform="translate(9 9)"),
        class_=f"badge o-{seen.key}",
        viewBox="0 0 18 18",
        width=18,
        height=18,
        aria_hidden="true",
    )
