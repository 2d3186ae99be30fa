"""Learning rates that a comparison of methods tries: the best rate of a row, and a table of all rates."""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from examples.comparison_table import headline_score
from examples.comparison_written import Table
from examples.preset import Column, Result

# Results by label of the row and by learning rate.
Tries = Mapping[str, Mapping[float, Result]]


def best_rate(tried: Mapping[float, Result]) -> float:
    """Return the learning rate of best mAP, the first among equals."""
    return max(tried, key=lambda rate: headline_score(tried[rate]))


def table_of_tries(tries: Tries, rule: str) -> tuple[Table, dict[str, list[Result]]]:
    """Return the table of the mAP at every rate, and the single result per row that fills it.

    Args:
        tries: results with the same rates for every row.
        rule: text that names the identities and the seed by which rates were scored.
    """
    rates = list(next(iter(tries.values())))
    columns = {f"mAP at {rate:g}": _map_at(rate) for rate in rates}
    chosen = {"chosen": Column(lambda run: run["chosen"], digits=_digits(rates))}
    results = {
        label: [
            {
                "headline": tried[rates[0]]["headline"],
                "maps": {rate: headline_score(result) for rate, result in tried.items()},
                "chosen": best_rate(tried),
            }
        ]
        for label, tried in tries.items()
    }
    return Table("methods-tries", "learning rates tried", rule, {**columns, **chosen}), results


def _map_at(rate: float) -> Column:
    return Column(lambda run: 100 * run["maps"][rate])


def _digits(rates: Iterable[float]) -> int:
    """Return the largest number of digits after the point of any rate."""
    return max(len(f"{Decimal(str(rate)):f}".partition(".")[2]) for rate in rates)
