"""What a label text means."""

import time

import pytest

from stepvar_core.errors import ConditionMismatch
from stepvar_core.families.var.model import VARConfig
from stepvar_core.labels import class_names, parse_labels

NAMES = ("cat face;kitty", "lion", "red apple", "red panda", "green apple;granny smith")


@pytest.mark.parametrize(
    "text, ids",
    [
        ("lion", [1]),
        (" LION ; 3 ", [1, 3]),
        ("Red_Apple", [2]),
        ("kitty", [0]),
        ("cat", [0]),
        ("-1; 4", [-1, 4]),
        ("granny   smith;", [4]),
    ],
)
def test_names_numbers_and_aliases(text, ids):
    assert parse_labels(text, NAMES, len(NAMES)) == ids


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        (" ; ; ", "empty"),
        ("5", "5 classes"),
        ("-2", "5 classes"),
        ("red", "No class is called 'red'"),
        ("lian", "Nearest: lion"),
        ("zzz", "Use a number from 0 to 4"),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(ConditionMismatch, match=words):
        parse_labels(text, NAMES, len(NAMES))


def test_imagenet_names_are_there_for_the_public_models():
    names = class_names(VARConfig())
    assert len(names) == 1000
    assert parse_labels("golden retriever; volcano; panda; crane", names, 1000) == [207, 980, 388, 134]
    assert class_names(VARConfig(num_classes=7)) == ()
    assert class_names(VARConfig(num_classes=2, labels=("a", "b"))) == ("a", "b")


def test_commas_separate_labels_but_not_a_name_that_holds_one():
    names = ("panda", "fox", "crane, bird")
    assert parse_labels("panda, fox", names, 3) == [0, 1]
    assert parse_labels("Crane, Bird; fox,1", names, 3) == [2, 1, 1]


@pytest.mark.parametrize("text", ["x" * 1_000_000, ";".join("x" * 500_000), "lion;" * 200_000])
def test_an_endless_label_is_refused_by_its_length(text):
    with pytest.raises(ConditionMismatch, match=f"The label has {len(text)} characters; at most 10000 are read"):
        parse_labels(text, NAMES, len(NAMES))


def test_a_long_label_costs_little():
    names = class_names(VARConfig(num_classes=1000))
    began = time.process_time()
    assert parse_labels("lion;" * 2000, names, 1000) == [291] * 2000
    with pytest.raises(ConditionMismatch) as caught:
        parse_labels("x" * 10_000, names, 1000)
    assert len(str(caught.value)) <= 2000 and time.process_time() - began < 1
