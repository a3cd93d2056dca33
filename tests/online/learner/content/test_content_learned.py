"""Learned weights of features and of given vectors, and starts of items' vectors, as slow versions have them."""

import numpy as np
import pytest
import torch

from model.items import ItemTable
from online.learner.asking import Answerer, Question
from online.learner.content import kernels
from online.learner.content.bags import BAG_MAX
from online.learner.content.columns import COLUMNS
from online.learner.content.items import LATEST, ItemContent
from online.learner.content.learned import EPSILON, RATE
from online.learner.content.queries import ALIKE, STARTS_FROM
from online.learner.explaining import Explainer
from online.learner.learner import Learner
from online.learner.lookahead import UpcomingBatch
from online.learner.training import score_gradients
from online.lifecycle.shadow import ShadowEvaluation
from stream.events import Click
from stream.items import Item
from tests.online.learner.conftest import learn
from tests.online.learner.test_explaining import check_sums

NOW = 1_000.0
TAGS = ("crime", "space")


def content_of(count, *, given=()):
    """Items of two tags by turns, with numbers as titles; those of some numbers have a vector."""
    content = ItemContent(seed=0, slots=count + 1)
    random = np.random.default_rng(0)
    for slot in range(1, count + 1):
        vector = random.normal(size=8).tolist() if slot in given else None
        content.put(slot, (f"No {slot}", (TAGS[slot % 2],), {}), vector, clicked=False, now=NOW)
    content.compose(range(1, count + 1))
    return content


def situation(count, N=3, K=6, seed=1):
    random = np.random.default_rng(seed)
    latest = np.zeros((N, LATEST), np.int64)
    latest[:, :4] = random.integers(1, count + 1, (N, 4))
    rows = np.stack([random.permutation(count)[:K] + 1 for _ in range(N)])
    rows[0, -1] = 0
    gradients = random.normal(size=(N, K)).astype(np.float32)
    gradients[rows == 0] = 0
    return latest, np.arange(count + 1, dtype=np.int32), rows, gradients


def slow_scores(content, profiles, rows, features, matrix):
    """Both learned columns of candidates (N, K), by autograd's tensors."""
    arrays, N, K = content.arrays, *rows.shape
    scores = []
    for n in range(N):
        for k in range(K):
            slot = rows[n, k]
            if not slot:
                continue
            bag = torch.from_numpy(arrays.bags[slot, : arrays.sizes[slot]].astype(np.int64))
            weights = torch.from_numpy(content.weights).double()[bag]
            by_bag = (weights * features[bag]).sum() / weights.norm()
            vector = torch.from_numpy(arrays.vectors[slot]).double()
            by_vector = profiles[n] @ matrix @ vector if arrays.given[slot] else torch.zeros((), dtype=torch.double)
            scores.append((n, k, by_bag, by_vector))
    return scores


def test_learned_columns_and_their_gradients_are_those_of_autograd():
    count = 20
    content = content_of(count, given={2, 3, 5, 8, 13})
    latest, slots_of, rows, gradients = situation(count)
    _, profile = content._situations(latest, slots_of)
    profiles = torch.from_numpy(profile).double()
    random = torch.Generator().manual_seed(0)
    features = torch.randn(len(content.weights), generator=random, dtype=torch.double, requires_grad=True)
    matrix = torch.randn(*content.learned.matrix[0].shape, generator=random, dtype=torch.double, requires_grad=True)
    scores = slow_scores(content, profiles, rows, features, matrix)
    sum(float(gradients[n, k]) * (a + b) for n, k, a, b in scores).backward()

    of_features, of_vectors = np.zeros_like(content.weights), np.zeros_like(profile)
    touched = np.empty(rows.size * BAG_MAX, np.int32)
    held = kernels.add_gradients(content.arrays, rows, gradients, content.weights, of_features, touched, of_vectors)
    assert set(touched[:held].tolist()) == set(np.flatnonzero(of_features).tolist())
    np.testing.assert_allclose(of_features, features.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(profile.T @ of_vectors, matrix.grad.numpy(), atol=1e-5)

    content.learned.features[0], content.learned.matrix[0] = features.detach().numpy(), matrix.detach().numpy()
    directions = content.learned.directions(profile)
    weighted = content.learned.features[0] * content.weights
    for n, k, by_bag, by_vector in scores:
        slot = rows[n, k]
        assert kernels.bag_mean.py_func(content.arrays, slot, weighted) == pytest.approx(by_bag.item(), abs=1e-4)
        found = float(directions[n] @ content.arrays.vectors[slot]) if content.arrays.given[slot] else 0.0
        assert found == pytest.approx(by_vector.item(), abs=1e-4)


def test_a_step_is_adagrads_and_features_that_few_items_share_have_no_weight():
    content = content_of(20)
    latest, slots_of, rows, gradients = situation(20)
    gradient = np.zeros_like(content.weights)
    touched, no_vectors = np.empty(rows.size * BAG_MAX, np.int32), np.zeros((3, 64), np.float32)
    kernels.add_gradients(content.arrays, rows, gradients, content.weights, gradient, touched, no_vectors)
    content.learn(latest, slots_of, rows, gradients)
    few = content.with_feature < 5
    assert few[gradient != 0].any()
    expected = np.where(few, 0, -RATE * gradient / (np.abs(gradient) + EPSILON))
    np.testing.assert_allclose(content.learned.features[0], expected, atol=1e-6)
    assert not content.learned.matrix.any()  # no item has a vector


def test_gradients_are_those_of_the_losses(small):
    learner = Learner(small(items_held=2_000))
    learn(learner, [Click(user_id=str(n % 5), item_id=f"i{n % 7}", timestamp=60.0 * n) for n in range(64)])
    asked = Answerer(learner, learner.queries).ask([Question(user_id="1"), Question(user_id="2")])
    scored = asked.scored
    positions, weights = np.array([int(scored.kept[0, 1]), -1]), np.array([0.5, 1.0], np.float32)
    scores = scored.scores.detach().clone().requires_grad_(True)
    (0.5 * (scores[0].logsumexp(0) - scores[0, 1])).backward()
    np.testing.assert_allclose(score_gradients(scored, positions, weights), scores.grad.numpy(), atol=1e-6)


# In the learner


def tagged(number, **others):
    return Item(item_id=f"i{number}", tags=(TAGS[number % 2],), **others)


def one_tag_is_clicked(count, seed=0):
    """All users click on items of one tag only, each once."""
    random = np.random.default_rng(seed)
    return [
        Click(user_id=str(random.integers(24)), item_id=f"i{2 * int(random.integers(200))}", timestamp=60.0 * at)
        for at in range(count)
    ]


def test_a_tag_that_matters_gets_a_larger_weight_and_it_survives_a_checkpoint(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items([tagged(number) for number in range(400)])
    learn(learner, one_tag_is_clicked(400))
    content = learner.listable.content
    tags = [int(content.arrays.bags[learner.listable.attributes.slot_of(item), 0]) for item in ("i0", "i1")]
    liked, other = content.learned.features[0, tags]
    assert liked > other
    arrays, state = learner.to_state()
    again = Learner(small(items_held=2_000))
    again.load_state(arrays, state)
    assert (again.listable.content.learned.features == content.learned.features).all()
    assert again.replay.content.shape == learner.replay.content.shape
    assert (again.replay.content == learner.replay.content).all()
    later = one_tag_is_clicked(32, seed=9)
    assert (again.learn(later).ranks == learner.learn(later).ranks).all()


def test_a_checkpoint_without_learned_weights_loads_and_replays_its_own_columns(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items([tagged(number) for number in range(400)])
    learn(learner, one_tag_is_clicked(400))
    arrays, state = learner.to_state()
    old = {name: array for name, array in arrays.items() if "learned_" not in name}
    old["replay.content"] = old["replay.content"][..., : len(COLUMNS)]
    del state["replay"]["added"]
    again = Learner(small(items_held=2_000))
    again.load_state(old, state)
    filled = learner.replay.filled
    assert not again.listable.content.learned.features.any()
    assert (
        again.replay.content[:filled, :, : len(COLUMNS)] == learner.replay.content[:filled, :, : len(COLUMNS)]
    ).all()
    assert not again.replay.content[:, :, len(COLUMNS) :].any()
    again.learn(one_tag_is_clicked(32, seed=9))


def vectors_of_which_few_numbers_matter(count, width=32):
    """Each of two groups of items has its sign in the first number; the others are noise, and larger."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(count, width))
    numbers[:, 0] = 2 * np.where(np.arange(count) % 2, 1, -1)
    return [Item(item_id=f"i{n}", vector=tuple(vector)) for n, vector in enumerate(numbers.tolist())]


def test_a_projection_of_given_vectors_is_learned_and_explained(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items(vectors_of_which_few_numbers_matter(200))
    random = np.random.default_rng(1)
    clicks = []
    for at in range(800):
        user = int(random.integers(24))
        number = 2 * int(random.integers(100)) + user % 2
        clicks.append(Click(user_id=str(user), item_id=f"i{number}", timestamp=60.0 * at))
    learn(learner, clicks)
    content, attributes = learner.listable.content, learner.listable.attributes
    vectors = content.arrays.vectors[attributes.slots_of([f"i{n}" for n in range(200)])]
    same = (np.arange(200)[:, None] - np.arange(200)) % 2 == 0
    products = vectors @ content.learned.matrix[0] @ vectors.T
    np.fill_diagonal(same, False)
    other = ~same
    np.fill_diagonal(other, False)
    assert products[same].mean() > products[other].mean()
    answerer = Answerer(learner, learner.queries)
    question = Question(user_id="1", k=8)
    answer = answerer.answer([question])[0]
    found = Explainer(learner).explain(answerer.ask([question]), 0, answer.items)
    check_sums(found)
    assert any("content_matrix" in one["contributions"] for one in found)


def test_vectors_of_another_width_go_on_with_what_was_learned(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items(vectors_of_which_few_numbers_matter(200))
    learn(learner, one_tag_is_clicked(200))
    learner.put_items(vectors_of_which_few_numbers_matter(200, width=48))
    assert learner.listable.content.learned.matrix.any()
    assert np.isfinite(learner.learn(one_tag_is_clicked(16, seed=3)).ranks).any()


# Starts


def test_rows_start_from_their_own_vectors_and_the_mean_of_others():
    table = ItemTable(16, 8, seed=3)
    table.biases.data[:] = torch.arange(16.0)[:, None]
    first = table.vectors.data.clone()
    shares = torch.tensor([[0.75, 0.25], [0.0, 0.0]])
    table.start(torch.tensor([5, 6]), torch.tensor([[1, 2], [1, 2]]), shares)
    mean = 0.75 * first[1] + 0.25 * first[2]
    expected = first[5] + mean / mean.norm()
    torch.testing.assert_close(table.vectors.data[5], expected / expected.norm())
    assert table.biases.data[5].item() == pytest.approx(1.25)
    torch.testing.assert_close(table.vectors.data[6], first[6])  # none was alike
    assert table.biases.data[6].item() == 0
    torch.testing.assert_close(table.vectors.data[7], first[7])


def test_items_start_from_clicked_ones_like_them_at_their_first_click_only(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items([tagged(number) for number in range(300)])
    clicks = [Click(user_id=str(n % 24), item_id=f"i{n}", timestamp=60.0 * n) for n in range(200)]
    learn(learner, clicks)
    row, known = learner.vocabulary.row_of, learner.added.content
    clicked = np.array([row("i3"), row("i250"), 0])
    starts = known.starts(clicked)
    assert starts.rows.tolist() == [row("i250")]  # of 200 others
    content, slots_of = learner.listable.content, learner.listable.attributes.slots
    cosines = (
        content.arrays.vectors[slots_of[[row(f"i{n}") for n in range(200)]]]
        @ content.arrays.vectors[slots_of[row("i250")]]
    )
    found = content.arrays.vectors[slots_of[starts.like[0]]] @ content.arrays.vectors[slots_of[row("i250")]]
    np.testing.assert_allclose(np.sort(found), np.sort(cosines)[-ALIKE:], atol=1e-6)
    np.testing.assert_allclose(starts.shares.sum(1), 1, rtol=1e-5)
    result = learner.learn([Click(user_id="1", item_id="i250", timestamp=60.0 * 201)])
    assert result.starts.rows.tolist() == [row("i250")]
    assert known.starts(clicked) is None


def test_few_clicked_items_start_none(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items([tagged(number) for number in range(300)])
    learn(learner, [Click(user_id="1", item_id=f"i{n}", timestamp=60.0 * n) for n in range(STARTS_FROM - 8)])
    assert learner.added.content.starts(np.array([learner.vocabulary.row_of("i250")])) is None


def known_items(small):
    learner = Learner(small(items_held=2_000))
    learner.put_items([tagged(number) for number in range(400)])
    return learner


def test_announced_clicks_are_learned_bit_for_bit_as_others(small):
    ahead, in_turn = known_items(small), known_items(small)
    clicks = one_tag_is_clicked(320)
    batches = [clicks[start : start + 16] for start in range(0, 320, 16)]
    nexts = [*(lambda following=following: UpcomingBatch(following) for following in batches[1:]), None]
    for batch, following in zip(batches, nexts, strict=True):
        one, other = ahead.learn(batch, following=following), in_turn.learn(batch)
        assert one.rankings == other.rankings
        np.testing.assert_array_equal(one.ranks, other.ranks)
    arrays, others = ahead.to_state()[0], in_turn.to_state()[0]
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_clicks_that_do_not_train_move_no_learned_weight(small):
    learner = known_items(small)
    learn(learner, one_tag_is_clicked(64))
    before = learner.listable.content.learned.features.copy()
    learner.learn(one_tag_is_clicked(16, seed=2), train=False)
    assert (learner.listable.content.learned.features == before).all()
    learner.learn(one_tag_is_clicked(16, seed=3))
    assert (learner.listable.content.learned.features != before).any()


def test_shadow_weights_start_items_as_the_live_ones_do(small):
    learner = known_items(small)
    learn(learner, one_tag_is_clicked(200))
    shadow = ShadowEvaluation(learner, learner.weights.copy(), learner.settings.candidate_gate, facts={})
    shadow.paused = True  # its rows follow all the same
    learned = learner.learn(one_tag_is_clicked(16, seed=5), train=False)
    assert learned.starts is not None
    shadow.update(learned)
    mine, live = shadow.weights.network.items, learner.weights.network.items
    torch.testing.assert_close(mine.vectors.data, live.vectors.data)
    torch.testing.assert_close(mine.biases.data, live.biases.data)
