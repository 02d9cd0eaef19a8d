"""Which faults come, and when."""

from __future__ import annotations

import random
from collections import Counter

from tests.chaos.faults import Deck
from tests.chaos.kinds import KINDS, kinds_of, setup_of

CARDS = sum(kind.cards for kind in KINDS)


def test_every_kind_comes_as_often_as_it_has_cards() -> None:
    """In each round of the deck, in an order of the seed."""
    deck = Deck(KINDS, random.Random(1))
    rounds = [[deck.deal(frozenset()) for _ in range(CARDS)] for _ in range(2)]
    for dealt in rounds:
        assert Counter(kind.name for kind in dealt if kind) == {kind.name: kind.cards for kind in KINDS}
    assert rounds[0] != rounds[1]
    again = Deck(KINDS, random.Random(1))
    assert rounds[0] == [again.deal(frozenset()) for _ in range(CARDS)]


def test_what_is_not_healed_is_not_hit_again() -> None:
    """Its cards come later; when nothing else is left, none is dealt."""
    deck = Deck(KINDS, random.Random(1))
    others = CARDS - sum(kind.cards for kind in KINDS if kind.target == "Redis")
    dealt = [deck.deal({"Redis"}) for _ in range(others)]
    assert all(kind is not None and kind.target != "Redis" for kind in dealt)
    assert deck.deal({"Redis"}) is None
    last = deck.deal(frozenset())
    assert last is not None
    assert last.target == "Redis"


def test_brokers_are_hit_where_others_can_stand_in() -> None:
    """A single one of Kafka is killed, of several one at a time; the embedded one keeps its data in memory."""
    hit = {
        setup: {kind.name for kind in kinds_of(setup) if kind.target == "broker"}
        for setup in (setup_of("embedded", 1), setup_of("kafka", 1), setup_of("kafka", 3))
    }
    assert hit == {
        "embedded": set(),
        "kafka": {"broker killed"},
        "cluster": {"leader killed", "broker restarted", "broker cut off", "broker paused"},
    }
