from __future__ import annotations

import math

import numpy as np
import pytest

import dsv2


def test_the_counts_are_those_of_the_tokens(session: dsv2.Session) -> None:
    session.feed([0, 5, 9, 200, 201])
    session.feed(7)
    for tokens, n in [(dsv2.RoutingTokens.ALL, 6), (dsv2.RoutingTokens.PROMPT, 5), (dsv2.RoutingTokens.GENERATED, 1)]:
        routing = session.routing(tokens)
        assert routing.info.n_tokens == n
        assert routing.layers == [1, 2, 3]
        assert routing.chosen.shape == routing.gate_sum.shape == routing.affinity_sum.shape == (3, 8)
        assert (routing.chosen.sum(axis=1) == n * 3).all()
        np.testing.assert_allclose(routing.affinity_sum.sum(axis=1), n, rtol=1e-5)


def test_balance_is_that_of_the_counts(session: dsv2.Session) -> None:
    session.feed(list(range(100)))
    routing = session.routing()
    for row, layer in enumerate(routing.layers):
        load, balance = routing.chosen[row].astype(float), routing.balance(layer)
        assert balance.max_over_mean == pytest.approx(load.max() / load.mean())
        assert balance.jain_index == pytest.approx(load.sum() ** 2 / (8 * (load**2).sum()))
        assert 0 <= balance.entropy <= math.log(8) + 1e-9
        assert balance.never_used == (load == 0).sum()
    with pytest.raises(dsv2.ArgumentError):
        routing.balance(0)


def test_merging_adds_and_reset_clears(model: dsv2.Model, session: dsv2.Session) -> None:
    session.feed([0, 5, 9])
    routing = session.routing()
    alone = routing.chosen.copy()
    routing.merge(session.routing())
    np.testing.assert_array_equal(routing.chosen, 2 * alone)
    with pytest.raises(ValueError, match="themselves"):
        routing.merge(routing)
    session.reset_routing()
    assert session.routing().info.n_tokens == 0
    model.reset_routing()
    assert model.routing().info.n_tokens == 0


def test_the_heat_map_has_a_row_per_layer(session: dsv2.Session) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the extra `plot` is not installed")
    session.feed(list(range(50)))
    axes = session.routing().heat_map()
    (image,) = axes.get_images()
    shown = image.get_array()
    assert shown is not None
    assert shown.shape == (3, 8)
    pyplot.close("all")
