"""Record 3: annealing that only proposes to join a city with one of its neighbours."""

import math
import os
import random
import time
from dataclasses import dataclass


@dataclass
class Hyperparameters:
    """Everything that a search may want to change."""

    cities_file: str = "data/cities.csv"
    num_iterations: int = 100
    moves: int = 1000  # proposals a step
    start_temperature: float = 0.02
    end_temperature: float = 0.003
    neighbours: int = 8
    val_loss_every: int = 25
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


def nearest(d: list[list[float]], count: int) -> list[list[int]]:
    """Return the nearest other cities of each."""
    return [sorted(range(len(d)), key=row.__getitem__)[1 : count + 1] for row in d]


def anneal(
    tour: list[int],
    place: list[int],
    near: list[list[int]],
    d: list[list[float]],
    heat: float,
    moves: int,
    rng: random.Random,
) -> None:
    """Propose reversals that make two neighbours adjacent; keep `place` the inverse of `tour`."""
    n, count = len(tour), len(near[0])
    for _ in range(moves):
        one = int(rng.random() * n)
        other = near[one][int(rng.random() * count)]
        if place[one] > place[other]:
            one, other = other, one
        i, j = place[one] + 1, place[other]
        first, after = tour[i], tour[(j + 1) % n]
        longer = d[one][other] + d[first][after] - d[one][first] - d[other][after]
        if first != other and (longer < 0 or rng.random() < math.exp(-longer / heat)):
            tour[i : j + 1] = tour[i : j + 1][::-1]
            for k in range(i, j + 1):
                place[tour[k]] = k


def main() -> None:
    """Search, validate and print."""
    args = Hyperparameters()
    rng = random.Random(args.seed)
    cities = read_cities(args.cities_file)

    train_time = 0.0  # seconds, without reading and validation
    started = time.perf_counter()
    d = distances(cities)
    tour = greedy_tour(d)
    place = [0] * len(tour)
    for k, city in enumerate(tour):
        place[city] = k
    near = nearest(d, args.neighbours)
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
        anneal(tour, place, near, d, temperature(args, step), args.moves, rng)


if __name__ == "__main__":
    main()
