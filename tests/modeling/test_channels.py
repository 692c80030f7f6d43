from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling.channels import ChannelSet, parse_names

RGB = ("R", "G", "B")


def test_enumeration_order_and_count():
    assert [str(chosen) for chosen in ChannelSet.all_of(RGB)] == ["RGB", "RG", "RB", "GB", "R", "G", "B"]
    assert len(set(ChannelSet.all_of(tuple("abcdef")))) == 2**6 - 1


@given(st.lists(st.sampled_from(["R", "G", "B", "nir", "swir"]), min_size=1, unique=True))
def test_printing_and_parsing_are_inverse(names):
    vocabulary = ("R", "G", "B", "nir", "swir")
    chosen = ChannelSet(tuple(names))
    assert ChannelSet.parse(str(chosen), vocabulary) == chosen
    assert ChannelSet.parse(chosen, vocabulary) == chosen
    assert ChannelSet.parse(names, vocabulary) == chosen
    assert chosen.mask(vocabulary) == ChannelSet(tuple(reversed(names))).mask(vocabulary)


def test_masks_number_the_sets():
    assert sorted(chosen.mask(RGB) for chosen in ChannelSet.all_of(RGB)) == list(range(1, 8))


def test_indices_follow_the_order_of_the_set():
    assert ChannelSet.parse("BR", RGB).indices(RGB) == [2, 0]


@pytest.mark.parametrize(
    ("text", "reason"), [("", "empty"), ("RR", "twice"), ("RX", "unknown channel 'X'"), ("R+", "empty")]
)
def test_bad_sets_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        ChannelSet.parse(text, RGB)


@pytest.mark.parametrize("text", ["green", "nir2", "475"])
def test_an_unknown_channel_with_a_long_name_is_told_by_it(text):
    with pytest.raises(ValueError, match=f"unknown channel '{text}' in {text}; the model knows R\\+nir"):
        ChannelSet.parse(text, ("R", "nir"))


def test_a_set_may_name_channels_that_are_not_known():
    assert ChannelSet.read("475", ("R", "G", "B")).names == ("475",)
    assert ChannelSet.read("475", ("4", "5", "7")).names == ("4", "7", "5")
    assert ChannelSet.read("R+nir", ("R", "G", "B")).names == ("R", "nir")
    with pytest.raises(ValueError, match="twice"):
        ChannelSet.read("RR", ("G", "B"))


@pytest.mark.parametrize("names", [{"R", "B"}, frozenset("RB"), [0, 1], 3, None])
def test_what_is_no_list_of_names_is_refused(names):
    with pytest.raises(ValueError, match="names in the order in which they are stacked"):
        ChannelSet.parse(names, RGB)


def test_hierarchical_sampling_is_even_over_sizes_then_sets():
    rng, counts, n = Random(0), {}, 9000
    for _ in range(n):
        chosen = str(ChannelSet.sample(RGB, rng))
        counts[chosen] = counts.get(chosen, 0) + 1
    assert abs(counts["RGB"] / n - 1 / 3) < 0.02
    for name in ("RG", "RB", "GB", "R", "G", "B"):
        assert abs(counts[name] / n - 1 / 9) < 0.02, name


def test_names_from_text():
    assert parse_names("RGB") == parse_names(["R", "G", "B"]) == parse_names("R,G,B") == RGB
    assert parse_names("red + nir") == ("red", "nir")
