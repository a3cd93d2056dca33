"""The mixer against a softmax written out, and on clicks whose cause is known."""

import numpy as np

from online.candidates import FEATURES, Candidates
from online.mixer import MISS_LOSS, Mixer


def made_up(seed, users=6, width=4):
    """Candidates of some users, user 2 without any; rows 1, 2, ... each."""
    random = np.random.default_rng(seed)
    sizes = [0 if user == 2 else width for user in range(users)]
    owners = np.repeat(np.arange(users), sizes)
    rows = np.concatenate([np.arange(1, size + 1) for size in sizes])
    features = random.normal(size=(len(rows), len(FEATURES))).astype(np.float32)
    return Candidates(owners, rows, features, np.searchsorted(owners, np.arange(users + 1)))


def losses_of(weights, found, targets):
    """Written out: minus the log of the softmax over one's own candidates."""
    losses = []
    for user, target in enumerate(targets):
        mine = slice(found.starts[user], found.starts[user + 1])
        rows, scores = found.rows[mine].tolist(), found.features[mine].astype(np.float64) @ weights
        if target in rows:
            losses.append(min(MISS_LOSS, np.log(np.exp(scores).sum()) - scores[rows.index(target)]))
        else:
            losses.append(MISS_LOSS)
    return losses


def test_losses_are_those_of_the_softmax_before_the_step_and_misses_cost_a_fixed_price():
    mixer, found = Mixer(0.01), made_up(0)
    targets = np.array([1, 4, 1, 9, 0, 2])  # user 2 has no candidates; 9 and 0 are none
    weights = mixer.weights.copy()
    np.testing.assert_allclose(mixer.learn(found, targets), losses_of(weights, found, targets), rtol=1e-6)
    assert not np.array_equal(mixer.weights, weights)


def test_the_step_follows_the_gradient_of_the_mean_loss_of_what_was_among_the_candidates():
    mixer, found, targets = Mixer(0.01), made_up(1), np.array([1, 4, 1, 9, 0, 2])
    hit = [0, 1, 5]
    gradient = []
    for at in range(len(FEATURES)):
        nudge = np.zeros(len(FEATURES))
        nudge[at] = 1e-6
        up, down = (np.array(losses_of(mixer.weights + s * nudge, found, targets))[hit].mean() for s in (1, -1))
        gradient.append((up - down) / 2e-6)
    steps = []
    mixer._step = steps.append
    mixer.learn(found, targets)
    np.testing.assert_allclose(steps[0], gradient, atol=1e-6)


def test_without_a_hit_nothing_is_learned():
    mixer, found = Mixer(0.01), made_up(2)
    before = mixer.to_state()["weights"].copy()
    assert mixer.learn(found, np.array([9, 9, 1, 9, 0, 9])).tolist() == [MISS_LOSS] * 6
    assert mixer.weights.tolist() == before.tolist()


def test_it_finds_out_which_feature_decides():
    mixer = Mixer(0.05)
    for seed in range(300):
        found = made_up(seed)
        own = [found.features[found.owners == user, 6] for user in range(6)]
        targets = np.array([values.argmax() + 1 if len(values) else 0 for values in own])
        losses = mixer.learn(found, targets)
    assert mixer.weights.argmax() == 6
    assert losses[[0, 1, 3, 4, 5]].mean() < 0.5


def test_huge_scores_give_finite_losses_and_weights():
    mixer, found = Mixer(0.01), made_up(3)
    mixer.weights[:] = 1e4
    losses = mixer.learn(found, np.array([1, 1, 1, 1, 1, 1]))
    assert np.isfinite(losses).all()
    assert losses.max() <= MISS_LOSS
    assert np.isfinite(mixer.weights).all()


def test_what_is_restored_goes_on_as_if_nothing_had_happened():
    whole, restored = Mixer(0.01), Mixer(0.01)
    targets = np.array([1, 2, 0, 3, 4, 1])
    for seed in range(5):
        whole.learn(made_up(seed), targets)
    restored.load_state({name: array.copy() for name, array in whole.to_state().items()})
    for seed in range(5, 10):
        whole.learn(made_up(seed), targets)
        restored.learn(made_up(seed), targets)
    for name, array in whole.to_state().items():
        assert restored.to_state()[name].tobytes() == array.tobytes()
