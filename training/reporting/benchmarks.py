"""Tables of benchmarks' records: rows of text, the first of them the head."""

from functools import partial
from statistics import median
from typing import Any

from training.reporting.answers import Records
from training.reporting.blocks import Rows
from training.scaling import ZERO_PARTS, zero_bytes


def loader_rows(records: Records) -> Rows:
    """Per contender: images per second and ratio to the baseline, on each data set."""
    heads = [f"{r['name']} to {r['settings']['size']} px, prefetch {r['settings']['prefetch']}" for r in records]
    names = list(dict.fromkeys(name for record in records for name in record["summary"]))
    return [["images/s (÷ plain)", *heads]] + [[name, *(_rate(r, name) for r in records)] for name in names]


def loader_note(records: Records) -> str:
    """What a reader must know to read the table of loaders."""
    rounds = sorted({f"{r['settings']['rounds']} rounds of {r['settings']['seconds']:g} s" for r in records})
    return (
        f"Medians over {', '.join(rounds)}, all contenders in turn in one process; in brackets the ratio to the "
        "plain DataLoader of the same round with its smallest and largest value. At commit "
        f"{', '.join(sorted({r['provenance']['commit'][:12] for r in records}))}, on "
        f"{'; '.join(sorted({_where(r) for r in records}))}."
    )


def _where(record: dict[str, Any]) -> str:
    return f"{record['provenance']['hardware']}, {record['settings']['threads']} threads"


def _rate(record: dict[str, Any], name: str) -> str:
    row = record["summary"].get(name)
    if row is None:
        return "–"
    ratio = row["ratio"]
    return f"{row['images_per_s']['median']:,.0f} ({ratio['median']:.2f}, {ratio['min']:.2f}–{ratio['max']:.2f})"


def stem_rows(records: Records) -> Rows:
    """Per stem and channel set: time over that of an ordinary network on this set, and the kernel's part in it."""
    kinds = list(next(iter(records[0]["parts"].values())))
    rows = [["time ÷ plain", "channels", *kinds, "kernel alone, % of a forward pass"]]
    for record in records:
        first = next(iter(record["parts"].values()))[kinds[0]]["summary"]
        for name in (name for name in first if name != record["baseline"]):
            for chosen, parts in record["parts"].items():
                times = [_time(parts[kind]["summary"][name]["ratio"]) for kind in kinds]
                percent = record["kernels"][chosen]["percent"].get(name)
                rows.append([f"{name} {record['name']}", chosen, *times, _percent(percent)])
    return rows


def _time(speed: dict[str, float]) -> str:
    return f"{1 / speed['median']:.2f} ({1 / speed['max']:.2f}–{1 / speed['min']:.2f})"


def _percent(percent: dict[str, float] | None) -> str:
    """Nothing for a stem whose kernel is a weight as it stands."""
    return f"{percent['median']:.2f} ({percent['min']:.2f}–{percent['max']:.2f})" if percent else "–"


def stem_note(records: Records) -> str:
    """What a reader must know to read the table of stems."""
    return (
        "Median with smallest and largest value over rounds in which all took turns in one process, by the time "
        "of an ordinary network on the same channels. A kernel is made once for a batch, and told by the time of "
        f"that network's forward pass: {'; '.join(_setting(record) for record in records)}."
    )


def network_rows(records: Records) -> Rows:
    """Per network: its time over that of the first."""
    rows = [["time ÷ " + records[0]["baseline"], *records[0]["parts"]]]
    for record in records:
        kinds = record["parts"].values()
        for name in next(iter(kinds))["summary"]:
            rows.append([name, *(_time(part["summary"][name]["ratio"]) for part in kinds)])
    return rows


def network_note(records: Records) -> str:
    """What a reader must know to read the table of networks' speed."""
    return (
        "Median with smallest and largest value over rounds in which all took turns in one process: "
        f"{'; '.join(_setting(record) for record in records)}."
    )


def _setting(record: dict[str, Any]) -> str:
    settings, made = record["settings"], record["provenance"]
    clock = " of the processor's time" if settings.get("clock") == "processor" else ""
    return (
        f"{record['name']} at {settings['size']} px, {settings['batch_size']} images, {record['precision']}, "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s{clock} on {made['hardware']}, "
        f"{settings['threads']} threads, at commit {made['commit'][:12]}"
    )


def train_rows(records: Records) -> Rows:
    """Per loop: its speed over that of the plain one; per world of ranks, that of a rank over one by itself."""
    rows = [
        ["", "images/s of a rank", "÷ plain loop", "÷ one rank, alone", "÷ ranks, each for itself", "of the peak"]
    ]
    for record in records:
        step, name = record["step"], record["name"]
        for loop, row in step["summary"].items():
            used = step["utilisation"][loop]
            cells = [_median(row), _speed(row), "–", "–", f"{used:.3f}" if used else "–"]
            rows.append([f"{name}, {loop}, {record['settings']['clock']} time", *cells])
        for clock, against in record["scaling"]["summary"].items() if record["scaling"] else ():
            alone, beside = against.values()
            for world, row in alone.items():
                cells = [_median(row), "–", _speed(row), _speed(beside[world]), "–"]
                rows.append([f"{name}, {_world(record, world)}, {clock} time", *cells])
    return rows


def _world(record: dict[str, Any], name: str) -> str:
    """With its number of ranks in words."""
    count = f"{record['scaling']['ranks']} ranks"
    return name.replace("as many ranks", count) if "as many" in name else name.replace("ranks", count)


def _median(row: dict[str, Any]) -> str:
    return f"{row['images_per_s']['median']:.1f}"


def _speed(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    return f"{ratio['median']:.3f} ({ratio['min']:.3f}–{ratio['max']:.3f})"


def train_note(records: Records) -> str:
    """What a reader must know to read the table of training steps."""
    measured = "; ".join(_setting(record) for record in records)
    reduced = [_reduced(record) for record in records if record["scaling"]]
    note = (
        "Medians, and in brackets smallest and largest value, over rounds in which all took turns; ratios are "
        f"taken within a round: {measured}. Ranks have a thread each. The processor's time stands still while "
        "others have it, and while a rank waits for another."
    )
    return " ".join([note, *reduced])


def _reduced(record: dict[str, Any]) -> str:
    """How long an all-reduce took."""
    rows = record["scaling"]["all_reduce"]
    told = [f"{row['bytes']:,} bytes {1e3 * median(row['seconds']):,.2f} ms" for row in rows]
    return f"All-reduces among {record['scaling']['ranks']} ranks, median: {', '.join(told)}."


def zero_rows(records: Records) -> Rows:
    """Per stage: what the rank that holds most was counted to hold, beside the formula; and the formula beyond."""
    more = (8, 64, 512)
    head = ["MB, counted / formula", *ZERO_PARTS, "together"]
    rows = [[*head, *(f"{ranks} ranks, formula" for ranks in more)]]
    for record in records:
        for stage, held in record["measured"].items():
            formula = partial(zero_bytes, record["parameters"], stage=int(stage))
            here = formula(ranks=record["settings"]["ranks"])
            counted = {part: max(rank[part] for rank in held) for part in ZERO_PARTS}
            cells = [_megabytes(counted[part], getattr(here, part)) for part in ZERO_PARTS]
            cells.append(_megabytes(sum(counted.values()), here.total))
            cells += [f"{formula(ranks=ranks).total / 1e6:.1f}" for ranks in more]
            rows.append([f"{record['name']}, stage {stage}, {record['settings']['ranks']} ranks", *cells])
    return rows


def _megabytes(counted: int, formula: int) -> str:
    return f"{counted / 1e6:.1f} / {formula / 1e6:.1f}"


def zero_note(records: Records) -> str:
    """What a reader must know to read the table of memory."""
    return (
        "Bytes of tensors on the rank that holds most; of gradients the most at any time of a backward pass. "
        "Momentum is 4 bytes for each parameter, and so are DeepSpeed's own float32 weights from stage 1 on. "
        f"Counted on {'; '.join(_made(record) for record in records)}."
    )


def _made(record: dict[str, Any]) -> str:
    made = record["provenance"]
    return f"{made['hardware']}, at commit {made['commit'][:12]}"


def sweep_speed_rows(records: Records) -> Rows:
    """Per network: time of one sweep over that of evaluations and of its parts, and what dominates."""
    heads = {
        "evaluations": "one sweep ÷ an evaluation of each set",
        "parts": "one sweep ÷ (one decoding + all forward passes)",
        "forward": "one forward pass ÷ decoding",
    }
    rows = [["time", *heads.values()]]
    for record in records:
        cells = [record["ratios"][kind] for kind in heads]
        rows.append([record["name"], *(f"{c['median']:.2f} ({c['min']:.2f}–{c['max']:.2f})" for c in cells)])
    return rows


def sweep_speed_note(records: Records) -> str:
    """What a reader must know to read the table of sweeps."""
    settings, sets = records[0]["settings"], len(records[0]["sets"])
    clocks = {"wall": "time on the wall", "processor": "processor time, which other programs do not change"}
    return (
        f"{sets} channel sets, {settings['images']} images in batches of {settings['batch_size']}, "
        f"{records[0]['precision']}; {clocks[settings['clock']]}; medians over {settings['rounds']} rounds with "
        f"the smallest and largest value. Made on {'; '.join(dict.fromkeys(_made(record) for record in records))}."
    )


def scaling_rows(records: Records) -> Rows:
    """Per network card, size and batch: predicted efficiency on more and more GPUs, and what sets the pace."""
    counts = list(records[0]["rows"][0]["gpus"])
    head = ["network of a node", "px", "images on a GPU", "images/s of one GPU"]
    rows = [[*head, *(f"{count} GPUs" for count in counts)]]
    for record in records:
        for row in record["rows"]:
            cells = [f"{row['images']}", f"{row['images_per_s alone']:,.0f}"]
            rows.append([row["network"], str(row["size"]), *cells, *map(_predicted, row["gpus"].values())])
    return rows


def _predicted(cell: dict[str, Any]) -> str:
    told = f"{cell['efficiency']:.2f} {cell['limit']}"
    often = cell["efficiency, meeting in every step"]
    return told if often > cell["efficiency"] - 0.005 else f"{told} ({often:.2f})"


def scaling_note(records: Records) -> str:
    """What a reader must know to read the table of predictions."""
    return (
        "Predicted, not measured: speed of a GPU among all over that of one that nothing holds up, and which part "
        "of the machine sets the pace. In brackets what it would be if the ranks met in every step. "
        f"Made at commit {', '.join(sorted({r['provenance']['commit'][:12] for r in records}))}."
    )


def receptive_field_rows(records: Records) -> Rows:
    """Per network: sides of the smallest squares that hold parts of its effective receptive field."""
    networks = _measured_networks(records)
    shares = list(networks[0]["squares"])
    rows = [["network", "channels", "layers (D1)", "input", *(f"{share} % within" for share in shares)]]
    for network in networks:
        sides = [network["squares"][share]["side"] for share in shares]
        longest = max(network["size"])
        cells = [f"{side} px ({100 * side / longest:.0f} %)" for side in sides]
        rows.append([network["name"], network["channels"], str(network["depth"]), f"{longest} px", *cells])
    return rows


def receptive_field_note(records: Records) -> str:
    """What a reader must know to read the table of receptive fields."""
    networks = _measured_networks(records)
    counts = sorted({network["images"] for network in networks})
    trained = sorted({network["trained"]["commit"][:12] for network in networks})
    measured = sorted({record["provenance"]["commit"][:12] for record in records})
    splits = sorted({record["split"] for record in records})
    return (
        "Effective receptive field of the middle of the last feature map: squared gradients of its features by "
        f"each pixel, over {', '.join(map(str, counts))} {', '.join(splits)} images. Told is the side of the "
        "smallest square that holds a part of it, in brackets as part of the input's side. Trained at "
        f"commit {', '.join(trained)}, measured at {', '.join(measured)}."
    )


def _measured_networks(records: Records) -> Records:
    return [network for record in records for network in record["networks"]]
