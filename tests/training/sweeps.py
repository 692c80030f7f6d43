"""Records of sweeps made up for tests, with all that an evaluation can write; every number follows from a seed."""

import base64
import random
from itertools import combinations
from typing import Any

import numpy as np

from training.evaluation.metrics import wilson

RGB_SETS = ["RGB", "RG", "RB", "GB", "R", "G", "B"]
BANDS = [str(400 + 50 * i) for i in range(6)]
BAND_SETS = ["+".join(chosen) for size in range(6, 0, -1) for chosen in combinations(BANDS, size)]


def encode(classes: list[int]) -> str:
    """Classes as records hold them: base64 of little-endian uint16."""
    return base64.b64encode(np.array(classes, "<u2").tobytes()).decode()


def made_up(
    name: str = "model", sets: list[str] = RGB_SETS, classes: int = 3, images: int = 24, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A record; `more` replaces what it would hold."""
    rng = random.Random(seed)
    labels = [i % classes for i in range(images)]
    predicted = {s: [y if rng.random() < 0.6 else rng.randrange(classes) for y in labels] for s in sets}
    scores = {s: _score(labels, predicted[s], rng) for s in sets}
    body = {"stem": "any-channel", "body": "resnet10", "vocabulary": "+".join(BANDS) if "+" in sets[0] else "RGB"}
    return {
        "format": 1,
        "kind": "sweep",
        "name": name,
        "split": "test",
        "images": images,
        "quarantined": 0,
        "fingerprint": {"train": "t", "test": "f"},
        "stand_ins": {},
        "scores": scores,
        "right": {s: _bits(labels, predicted[s]) for s in sets},
        "labels": encode(labels),
        "predicted": {s: encode(guess) for s, guess in predicted.items()},
        "reliability": {s: _bins(rng, images) for s in sets},
        "robustness": {
            "2x": {s: _score(labels, predicted[s], rng) for s in sets},
            "noisy R": {sets[0]: scores[sets[0]]},
        },
        "class_names": [f"class {chr(97 + i)}" for i in range(classes)],
        "trained_on": sets,
        "cost": {"stored_parameters": 12, "sets": {s: _cost(s) for s in sets}, "depth": {}},
        "seconds": {"train": 90.0 + seed, "sweep": 2.5},
        "precision": {"train": "bf16", "sweep": "fp32"},
        "trained": {"commit": "0123456789abcdef+changes", "hardware": "abacus"},
        "seed": seed,
        "recipe": {"name": "recipe", "seed": seed, "model": body, "schedule": {"epochs": 2, "teacher": None}},
        "history": [
            {"step": 2, "epoch": 0, "train/loss": 2.0 - 0.1 * seed},
            {"step": 4, "epoch": 1, "train/loss": 1.0, **{f"val/top1/{s}": 0.5 for s in sets}},
        ],
        "provenance": {
            "commit": "fedcba9876543210",
            "command": "python -m training.evaluate runs/a",
            "date": "2026-11-23T00:00:00+00:00",
            "hardware": "slide rule",
            "versions": {"torch": "2.12.1"},
        },
        **more,
    }


def without(record: dict[str, Any], *fields: str) -> dict[str, Any]:
    """A record from before some fields were written."""
    scores = {
        s: {k: v for k, v in row.items() if k not in ("macro", "ece")} for s, row in record["scores"].items()
    }
    return {key: value for key, value in record.items() if key not in fields} | {"scores": scores}


def _score(labels: list[int], guess: list[int], rng: random.Random) -> dict[str, Any]:
    n, top1 = len(labels), sum(a == b for a, b in zip(labels, guess, strict=True))
    low, high = wilson(top1, n)
    known = {"n": n, "top1": top1, "top5": n, "accuracy": top1 / n, "low": low, "high": high}
    return known | {"nll": rng.random(), "macro": rng.random(), "ece": rng.random()}


def _bits(labels: list[int], guess: list[int]) -> str:
    return np.packbits([a == b for a, b in zip(labels, guess, strict=True)]).tobytes().hex()


def _bins(rng: random.Random, images: int) -> dict[str, list[float]]:
    count = [0] * 15
    for _ in range(images):
        count[rng.randrange(15)] += 1
    return {
        "count": count,
        "confidence": [n * (i + 0.5) / 15 for i, n in enumerate(count)],
        "right": [rng.randint(0, n) for n in count],
    }


def _cost(channel_set: str) -> dict[str, int]:
    size = len(channel_set)
    return {"parameters": 1000 * size, "macs": 10**6 * size, "activations": 10**5, "kernel_macs": 10**4}
