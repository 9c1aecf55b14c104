"""Record 2: annealing that starts from a greedy tour, and therefore cold."""

import math
import os
import random
import time
from dataclasses import dataclass


@dataclass
class Hyperparameters:
    """Everything that a search may want to change."""

    cities_file: str = "data/cities.csv"
    num_iterations: int = 600
    moves: int = 1000  # proposals a step
    start_temperature: float = 0.02
    end_temperature: float = 0.003
    val_loss_every: int = 150
    seed: int = int(os.environ.get("SPEEDKIT_SEED", "0"))


def read_cities(path: str) -> list[tuple[float, float]]:
    """Return the places of the cities in the unit square."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split()[1:]
    return [(float(x), float(y)) for x, y in (line.split(",") for line in lines)]


def distances(cities: list[tuple[float, float]]) -> list[list[float]]:
    """Return the distance from each city to each."""
    return [[math.dist(a, b) for b in cities] for a in cities]


def validate(tour: list[int], cities: list[tuple[float, float]]) -> float:
    """Return the length of a round trip, divided by the root of the number of cities."""
    assert sorted(tour) == list(range(len(cities))), "a tour visits each city once"
    legs = zip(tour, tour[1:] + tour[:1], strict=True)
    length = sum(math.dist(cities[a], cities[b]) for a, b in legs)
    return length / math.sqrt(len(cities))


def greedy_tour(d: list[list[float]]) -> list[int]:
    """Return a tour that goes to the nearest city that is left, from city 0 on."""
    tour, left = [0], set(range(1, len(d)))
    while left:
        nearest = min(left, key=d[tour[-1]].__getitem__)
        left.remove(nearest)
        tour.append(nearest)
    return tour


def temperature(args: Hyperparameters, step: int) -> float:
    """Return the temperature of a step; it falls by the same factor at each."""
    ratio = args.end_temperature / args.start_temperature
    return args.start_temperature * ratio ** (step / args.num_iterations)


def anneal(
    tour: list[int], d: list[list[float]], heat: float, moves: int, rng: random.Random
) -> None:
    """Propose reversals of a part of the tour; take all that shorten it, and some that do not."""
    n = len(tour)
    for _ in range(moves):
        i, j = int(rng.random() * n), int(rng.random() * n)
        if i > j:
            i, j = j, i
        before, first, last, after = tour[i - 1], tour[i], tour[j], tour[(j + 1) % n]
        if i == j or before == last:
            continue
        longer = d[before][last] + d[first][after] - d[before][first] - d[last][after]
        if longer < 0 or rng.random() < math.exp(-longer / heat):
            tour[i : j + 1] = tour[i : j + 1][::-1]


def main() -> None:
    """Search, validate and print."""
    args = Hyperparameters()
    rng = random.Random(args.seed)
    cities = read_cities(args.cities_file)

    train_time = 0.0  # seconds, without reading and validation
    started = time.perf_counter()
    d = distances(cities)
    tour = greedy_tour(d)
    for step in range(args.num_iterations + 1):
        last_step = step == args.num_iterations
        if last_step or (step > 0 and step % args.val_loss_every == 0):
            train_time += time.perf_counter() - started
            val_loss = validate(tour, cities)
            print(
                f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} "
                f"train_time:{1000 * train_time:.0f}ms",
                flush=True,
            )
            started = time.perf_counter()
        if last_step:
            break
        anneal(tour, d, temperature(args, step), args.moves, rng)


if __name__ == "__main__":
    main()
