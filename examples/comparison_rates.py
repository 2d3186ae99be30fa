"""Learning rates that a comparison of methods tries: the best one of a row, and a table of all of them."""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from examples.comparison_written import Table
from examples.preset import Column, Result

# Results by the label of a row and by learning rate.
Tries = Mapping[str, Mapping[float, Result]]


def best_rate(tried: Mapping[float, Result]) -> float:
    """The learning rate of the best mAP, the first of equally good ones."""
    return max(tried, key=lambda rate: headline_map(tried[rate]))


def headline_map(result: Result) -> float:
    """The mAP of the descriptor that is scored first."""
    return result["descriptors"][result["headline"]]["mAP"]


def table_of_tries(tries: Tries, rule: str) -> tuple[Table, dict[str, list[Result]]]:
    """The table of the mAP at every rate, and the one result of each row that it is made of.

    Args:
        tries: with the same rates for every row.
        rule: by which identities and with which seed the rates were scored.
    """
    rates = list(next(iter(tries.values())))
    columns = {f"mAP at {rate:g}": _map_at(rate) for rate in rates}
    chosen = {"chosen": Column(lambda run: run["chosen"], digits=_digits(rates))}
    results = {
        label: [
            {
                "headline": tried[rates[0]]["headline"],
                "maps": {rate: headline_map(result) for rate, result in tried.items()},
                "chosen": best_rate(tried),
            }
        ]
        for label, tried in tries.items()
    }
    return Table("methods-tries", "learning rates tried", rule, {**columns, **chosen}), results


def _map_at(rate: float) -> Column:
    return Column(lambda run: 100 * run["maps"][rate])


def _digits(rates: Iterable[float]) -> int:
    """Digits after the point that no rate has more of."""
    return max(len(f"{Decimal(str(rate)):f}".partition(".")[2]) for rate in rates)
