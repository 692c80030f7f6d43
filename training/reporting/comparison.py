"""What models did on the same images, side by side: paired differences, ratios, several seeds, unseen bands.

All from the records' `right`, which says for each channel set on which images a model's best guess was right.
"""

import json
import math
from collections.abc import Iterable

import numpy as np

from modeling.channels import ChannelSet, parse_names
from pipelines.errors import DataError
from training.config import Recipe
from training.evaluation.metrics import Z, mcnemar
from training.recipe_file import settings_that_matter, to_dict
from training.reporting.answers import (
    EXPERTS,
    Answers,
    Record,
    Records,
    all_sets,
    answers,
    check_same_images,
    is_expert,
)
from training.reporting.blocks import Rows

RESAMPLES = 2000
KINDS = ("sets trained on", "other sets of these bands", "sets with other bands", "those, by the nearest band")


def paired_rows(records: Records) -> Rows:
    """Per model: its accuracy less that of the first, on each channel set, and on average over these.

    Models that share no channel set with the first have no row.

    Raises:
        DataError: records of different images.
    """
    check_same_images(records)
    ours, others = records[0], with_experts(records[1:])
    sets, mine = list(ours["scores"]), answers(ours)
    rows = [[f"points above {ours['name']}", *sets, "mean"]]
    for name, theirs in others.items():
        common = [s for s in sets if s in theirs]
        if not common:
            continue
        cells = [_difference(theirs[s], mine[s]) if s in theirs else "–" for s in sets]
        mean = np.mean([theirs[s].astype(float) - mine[s] for s in common], axis=0)
        rows.append([name, *cells, f"{_points(mean.mean())} ± {100 * half_interval(mean):.1f}"])
    return rows


def paired_note(records: Records) -> str:
    """What a reader must know to read the table of differences."""
    return (
        f"Top-1 on the same {_images(records)}, in percentage points; in brackets the "
        "p-value of McNemar's exact test, not corrected for the number of comparisons. The last column is the "
        "mean over the sets that both take, with a 95 % interval from the spread over images. One training run "
        "each: what another seed would change comes on top."
    )


def ratio_rows(records: Records) -> Rows:
    """Per model that takes several sets: accuracy on each over that of the first network trained on it alone."""
    check_same_images(records)
    alone = [(r["trained_on"][0], answers(r)) for r in reversed(records) if len(r["trained_on"]) == 1]
    experts = {s: theirs[s] for s, theirs in alone if s in theirs}
    sets = [s for s in all_sets(records) if s in experts]
    rows = [["accuracy ÷ expert's", *sets]]
    for record in records:
        if len(record["trained_on"]) > 1:
            mine = answers(record)
            rows.append([record["name"], *(_ratio(mine[s], experts[s]) if s in mine else "–" for s in sets)])
    return rows


def ratio_note(records: Records) -> str:
    """What a reader must know to read the table of ratios."""
    return (
        "An expert is a network trained on that channel set alone. "
        f"n = {_images(records)}; 95 % intervals by {RESAMPLES} bootstrap samples of the images."
    )


def network_rows(records: Records) -> Rows:
    """Per network: accuracy on all channels, its ratio to the first's, depth, cost, and the loss it ends at.

    Raises:
        DataError: records of different images, or one without the first's channel set.
    """
    check_same_images(records)
    chosen = _first_set(records)
    first = answers(records[0])[chosen]
    head = ["network", "top-1 %", f"÷ {records[0]['name']}", "val %", "loss", "D0", "D1", "D2", "D3"]
    rows = [[*head, "parameters", "multiply-adds"]]
    for record in records:
        mine, score = answers(record)[chosen], record["scores"][chosen]
        cost, depth = record["cost"]["sets"][chosen], record["cost"]["depth"]
        rows.append(
            [
                record["name"],
                f"{100 * score['accuracy']:.1f} ({100 * score['low']:.1f}–{100 * score['high']:.1f})",
                "1" if record is records[0] else _ratio(mine, first),
                _val(record, chosen),
                _last_loss(record),
                *(str(depth[d]) for d in ("d0", "d1", "d2", "d3")),
                f"{cost['parameters'] / 1e6:.1f} M",
                f"{cost['macs'] / 1e6:.0f} M",
            ]
        )
    return rows


def _val(record: Record, chosen: str) -> str:
    """Accuracy on the validation list at the end of training: a second opinion, of other images."""
    found = [row[f"val/top1/{chosen}"] for row in record["history"] if f"val/top1/{chosen}" in row]
    return f"{100 * found[-1]:.1f}" if found else "–"


def _last_loss(record: Record) -> str:
    """What training minimised, over its last epoch: how well the network learned the images it was shown."""
    logged = [row for row in record["history"] if "train/loss" in row]
    if not logged or record["recipe"]["schedule"]["distill"]:  # a teacher's loss is no cross-entropy
        return "–"
    return f"{np.mean([row['train/loss'] for row in logged if row['epoch'] == logged[-1]['epoch']]):.2f}"


def network_note(records: Records) -> str:
    """What a reader must know to read the table of networks."""
    return (
        f"On {next(iter(records[0]['scores']))}, n = {_images(records)}, with 95 % Wilson intervals; ratios with "
        f"95 % intervals by {RESAMPLES} bootstrap samples of the images, which tell what other images would "
        "change, not what another seed would. Val: top-1 on the validation list at the end of training; loss: "
        "what training minimised, over its last epoch (– where a teacher makes it another). D0: blocks; D1: "
        "learned maps and products of activations on the longest path; D2: affine maps that nonlinearities "
        "separate; D3: distinct weights on that path. Trained on "
        f"{'; '.join(sorted({record['trained']['hardware'] for record in records}))}."
    )


def seed_rows(records: Records) -> Rows:
    """Per network, trained with one seed or several: accuracy on all channels, and its ratio to the first's.

    Runs on the same data whose recipes differ in the seed, and in nothing else that results depend on, are one
    network, called as the first.

    Raises:
        DataError: records of different images, one without the first's channel set, or two runs of one network
            with the same seed.
    """
    check_same_images(records)
    chosen = _first_set(records)
    networks: dict[str, list[Record]] = {}
    for record in records:
        networks.setdefault(_all_but_seed(record), []).append(record)
    groups = list(networks.values())
    first = _answers_by_seed(groups[0], chosen)
    rows = [["network", "seeds", "top-1 % of each", "mean", f"÷ {groups[0][0]['name']}"]]
    for group in groups:
        mine = _answers_by_seed(group, chosen)
        found = 100 * mine.mean(1)
        spread = f" ± {found.std(ddof=1):.1f}" if len(group) > 1 else ""
        rows.append(
            [
                group[0]["name"],
                str(len(group)),
                " ".join(f"{accuracy:.1f}" for accuracy in found),
                f"{found.mean():.1f}{spread}",
                "1" if group is groups[0] else _ratio(mine, first),
            ]
        )
    return rows


def seed_note(records: Records) -> str:
    """What a reader must know to read the table of seeds."""
    return (
        f"On {next(iter(records[0]['scores']))}, n = {_images(records)}; behind ± the standard deviation over "
        f"seeds. Ratios of means with 95 % intervals by {RESAMPLES} bootstrap samples of images and of seeds; of "
        "few seeds such an interval is rather too narrow."
    )


def _all_but_seed(record: Record) -> str:
    """What makes two records' networks the same. Settings newer than a recipe have their defaults in it."""
    settings = settings_that_matter(to_dict(Recipe())) | settings_that_matter(record["recipe"]) | {"seed": None}
    evaluated = [record.get("recalibrated_on", 0), record["stand_ins"]]
    return json.dumps([settings, record["fingerprint"], evaluated], sort_keys=True)


def _answers_by_seed(group: Records, chosen: str) -> np.ndarray:
    """Which images each run got right on a channel set, bool, (seeds, images)."""
    seeds = [record["seed"] for record in group]
    if len(set(seeds)) < len(seeds):
        names = ", ".join(record["name"] for record in group)
        raise DataError(f"{names}: of one recipe, and two have the same seed; seeds are {seeds}")
    return np.array([answers(record)[chosen] for record in group])


def band_rows(records: Records) -> Rows:
    """Per model: mean accuracy over the sets it was trained on, other sets of these bands, and sets of others.

    Models but the first come with their difference from it on these sets. Records of one model share a row.
    """
    check_same_images(records)
    rows: dict[str, dict[str, str]] = {}
    first: dict[str, tuple[list[str], np.ndarray]] = {}  # its sets of a kind, and how many it got right per image
    for record in records:
        model = model_of(record)
        for kind, sets in kinds_of_sets(record).items():
            mean = np.mean([answers(record)[s] for s in sets], axis=0)
            cell = f"{100 * mean.mean():.1f} ± {100 * half_interval(mean):.1f}"
            if model == model_of(records[0]):
                first[kind] = sets, mean
            elif kind in first and set(first[kind][0]) == set(sets):
                away = mean - first[kind][1]
                cell = f"{100 * mean.mean():.1f} ({_points(away.mean())} ± {100 * half_interval(away):.1f})"
            rows.setdefault(model, {})[kind] = cell
    head = ["mean top-1 %", *(f"{len(first[kind][0])} {kind}" if kind in first else kind for kind in KINDS)]
    return [head, *([name, *(row.get(kind, "–") for kind in KINDS)] for name, row in rows.items())]


def band_note(records: Records) -> str:
    """What a reader must know to read the table of bands."""
    return (
        f"Means over channel sets, on {_images(records)}, with 95 % intervals from the spread over images; in "
        f"brackets the difference from {records[0]['name']} on the same sets and images, in percentage points."
    )


def model_of(record: Record) -> str:
    """The name of a model, whatever it took unknown bands for."""
    return record["name"].removesuffix(", nearest")


def kinds_of_sets(record: Record) -> dict[str, list[str]]:
    """The channel sets of a record by what training knew of them, see `KINDS`."""
    known = parse_names(record["recipe"]["model"]["vocabulary"])
    trained, others, new, nearest = KINDS
    seen = {frozenset(ChannelSet.read(name, known)) for name in record["trained_on"]}
    found: dict[str, list[str]] = {}
    for name in record["scores"]:
        chosen = frozenset(ChannelSet.read(name, known))
        if chosen in seen:
            kind = trained
        elif chosen <= set(known):
            kind = others
        else:
            kind = nearest if record["stand_ins"] else new
        found.setdefault(kind, []).append(name)
    return found


def with_experts(records: Iterable[Record]) -> dict[str, Answers]:
    """Answers by model; plain networks, of which the first for each channel set counts, are one model."""
    found: dict[str, Answers] = {}
    for record in records:
        name = EXPERTS if is_expert(record) else record["name"]
        found[name] = answers(record) | found.get(name, {})
    return found


def half_interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, (N,) values, by the normal distribution."""
    return Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def ratio_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of mean(a) ÷ mean(b) over bootstrap samples; always the same ones.

    Args:
        a, b: (images,), or (seeds, images), of which seeds are drawn for each by itself, and images for both.
    """
    rng = np.random.default_rng(0)
    a, b = np.atleast_2d(a, b)

    def draw() -> tuple[float, float]:
        images = rng.integers(a.shape[1], size=a.shape[1])
        of_a, of_b = (rng.integers(len(seeds), size=len(seeds)) for seeds in (a, b))
        return a[of_a][:, images].mean(), b[of_b][:, images].mean()

    above, below = np.array([draw() for _ in range(RESAMPLES)]).T
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975]) if len(ratios) else (0.0, math.inf)
    return float(low), float(high)


def _first_set(records: Records) -> str:
    """The first record's first channel set, which stands for all channels; the others must have it too."""
    chosen = next(iter(records[0]["scores"]))
    for record in records:
        if chosen not in record["scores"]:
            raise DataError(f"the record of {record['name']} has no accuracy on {chosen}; evaluate it on that set")
    return chosen


def _images(records: Records) -> str:
    return f"{records[0]['images']} {records[0]['split']} images"


def _difference(a: np.ndarray, b: np.ndarray) -> str:
    return f"{_points(a.mean() - b.mean())} ({_p(mcnemar(a, b))})"


def _p(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def _points(part: float) -> str:
    return f"{100 * part:+.1f}".replace("-", "−")


def _ratio(a: np.ndarray, b: np.ndarray) -> str:
    low, high = ratio_interval(a, b)
    return f"{a.mean() / b.mean():.3f} ({low:.3f}–{high:.3f})" if b.any() else "–"
