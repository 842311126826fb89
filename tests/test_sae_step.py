import numpy as np
import pytest
import torch

from helpers.sae import SAEConfig
from helpers.sae._products import Prefixes
from helpers.sae._selection import batch_top_k, sort_by_feature
from helpers.sae._step import Trainer
from sae_rows import planted_rows, small_config

CPU = torch.device("cpu")


def dense(code, shape):
    found = torch.zeros(shape)
    found[code.rows.long(), code.features.long()] = code.acts.float()
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut_share", [None, 0.0, 0.5, 1.0, 2.0, 100.0])
def test_batch_top_k_is_exact_whatever_the_guess(cut_share, dtype):
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(64, 40, generator=generator).to(dtype)
    expected, _ = pre.view(-1).sort(descending=True)
    expected = expected[: 64 * 3]
    cut = None if cut_share is None else cut_share * float(expected[-1])
    code = batch_top_k(pre, 3, cut)
    assert torch.equal(code.acts.sort(descending=True).values, expected.to(code.acts))
    assert torch.equal(code.acts, pre.view(-1)[code.flat].to(code.acts))
    assert torch.equal(code.flat, code.rows.long() * 40 + code.features)
    assert (code.flat.diff() > 0).all()


def test_batch_top_k_scans_block_by_block(monkeypatch):
    pre = torch.randn(300, 40, generator=torch.Generator().manual_seed(1))
    whole = batch_top_k(pre, 5)
    monkeypatch.setattr("helpers.sae._selection._SCAN_ENTRIES", 77)
    assert torch.equal(batch_top_k(pre, 5).flat, whole.flat)


def test_batch_top_k_keeps_the_count_among_ties_and_drops_negatives():
    code = batch_top_k(torch.ones(10, 8), 3)
    assert len(code.acts) == 30
    assert torch.bincount(code.rows).tolist() == [3] * 10  # no row loses to another
    pre = torch.full((10, 8), -1.0)
    pre[2, 3] = 0.5
    assert batch_top_k(pre, 3, 0.1).acts.tolist() == [0.5]
    assert len(batch_top_k(-pre.abs(), 3).acts) == 0


@pytest.mark.parametrize("d_sae", [40, 2**16 + 1])
def test_sort_by_feature_keeps_rows_ascending(d_sae):
    code = batch_top_k(
        torch.rand(6, d_sae, generator=torch.Generator().manual_seed(2)), 9
    )
    order = sort_by_feature(code, d_sae)
    key = code.features[order].long() * 6 + code.rows[order]
    assert (key.diff() > 0).all()


def test_prefixes_number_the_parts():
    prefixes = Prefixes.of((2, 3, 7), CPU)
    assert prefixes.part.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert prefixes.columns() == [slice(0, 2), slice(2, 3), slice(3, 7)]


class AutogradTrainer:
    """The training step written out densely, with autograd and the plain optimizer."""

    def __init__(self, weights, config, n_steps, dead_after_rows):
        self.weights = [weight.clone().requires_grad_() for weight in weights]
        self.config, self.n_steps = config, n_steps
        self.dead_after_rows, self.n_done = dead_after_rows, 0
        self.since_fired = torch.zeros(config.d_sae)
        self.optimizer = torch.optim.Adam(self.weights)

    def step(self, x):
        encoder, b_enc, decoder, b_dec = self.weights
        config = self.config
        h = torch.relu((x - b_dec) @ encoder.T + b_enc)
        top = h.flatten().topk(len(x) * config.k)
        z = torch.zeros_like(h).flatten().scatter(0, top.indices, top.values)
        z = z.view_as(h)
        errors = [
            z[:, :size] @ decoder[:size] + b_dec - x
            for size in config.matryoshka or [config.d_sae]
        ]
        loss = torch.stack([e.square().mean() for e in errors]).mean()
        objective, found = loss.log(), float(loss.detach())
        error = errors[-1]
        dead = self.since_fired > self.dead_after_rows
        if dead.any():
            rows = slice(None, None, max(1, len(x) // config.aux_rows))
            masked = h[rows].masked_fill(~dead, -1.0)
            aux = masked.topk(min(config.aux_k, int(dead.sum())), dim=1)
            z_aux = torch.zeros_like(masked).scatter(1, aux.indices, aux.values)
            target = -error[rows].detach()
            aux_error = (z_aux @ decoder - target).square().sum()
            aux_loss = config.aux_coefficient * aux_error / target.square().sum()
            objective, found = objective + aux_loss, found + float(aux_loss.detach())
        self.since_fired += len(x)
        self.since_fired[(z > 0).any(0)] = 0
        self.optimizer.zero_grad()
        objective.backward()
        with torch.no_grad():
            unit = decoder.detach()
            decoder.grad -= (decoder.grad * unit).sum(1, keepdim=True) * unit
            rise = (self.n_done + 1) / (config.warmup * self.n_steps)
            fall = (self.n_steps - self.n_done) / (config.decay * self.n_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1, rise, fall)
            self.optimizer.step()
            decoder /= decoder.norm(dim=1, keepdim=True)
        self.n_done += 1
        return found, int(dead.sum())


@pytest.mark.parametrize("matryoshka", [(), (8, 24, 96)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)]
)
def test_sparse_step_equals_dense_autograd(dtype, tolerance, matryoshka):
    config = SAEConfig(
        d_sae=96,
        k=4,
        batch_size=128,
        warmup=0.2,
        aux_k=5,
        aux_rows=50,
        revive_until=0.0,
        matryoshka=matryoshka,
        precision="float32",
        random_state=3,
    )
    schedule = {"n_steps": 20, "dead_after_rows": 0}
    fast = Trainer(32, config, device=CPU, dtype=dtype, **schedule)
    batches = planted_rows(20 * 128, n_directions=60)[0].to(dtype).view(20, 128, 32)
    fast._initialize(batches[0])
    slow = AutogradTrainer(fast.weights, config, **schedule)
    n_dead = []
    for batch in batches:
        record = fast.step(batch)
        loss, dead = slow.step(batch)
        n_dead.append(dead)
        assert record["loss"] + record["aux_loss"] == pytest.approx(loss, rel=1e-4)
        assert record["dead"] == pytest.approx(dead / 96)
        assert record["l0"] == 4
    assert min(n_dead[1:]) > 0  # the auxiliary loss took part
    for found, expected in zip(fast.weights, slow.weights, strict=True):
        torch.testing.assert_close(found, expected.detach(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("matryoshka", [(), (16, 96)])
def test_bfloat16_step_follows_float32(matryoshka):
    batches = planted_rows(60 * 256, n_directions=60)[0].view(60, 256, 32)
    curves = []
    for precision in ("float32", "bfloat16"):
        config = SAEConfig(
            d_sae=96,
            k=4,
            precision=precision,
            matryoshka=matryoshka,
            aux_coefficient=0.0,
            revive_until=0.0,
        )
        trainer = Trainer(32, config, n_steps=60, dead_after_rows=2000, device=CPU)
        curves.append([trainer.step(batch)["loss"] for batch in batches])
        assert str(trainer.precision) == f"torch.{precision}"
        assert all(weight.dtype == torch.float32 for weight in trainer.weights)
    np.testing.assert_allclose(*curves, rtol=0.02)


def test_low_precision_that_disagrees_is_given_up(monkeypatch):
    monkeypatch.setattr("helpers.sae._step._LOSS_TOLERANCE", 1e-9)
    config = small_config(precision="bfloat16")
    trainer = Trainer(32, config, n_steps=9, dead_after_rows=9, device=CPU)
    with pytest.warns(UserWarning, match="training in float32"):
        trainer.step(planted_rows(256)[0])
    assert trainer.precision == torch.float32


def weakened(n_steps, **changes):
    """Train with half of the features too weak to be among the top k at the start."""
    batches = planted_rows(n_steps * 256)[0].view(n_steps, 256, 32)
    trainer = Trainer(
        32, small_config(**changes), n_steps=n_steps, dead_after_rows=512, device=CPU
    )
    trainer.step(batches[0])
    trainer.weights.encoder[:16] *= 0.01
    return [trainer.step(batch) for batch in batches[1:]], trainer


@pytest.mark.parametrize(("aux_coefficient", "revived"), [(1 / 32, True), (0.0, False)])
def test_auxiliary_loss_revives_dead_features(aux_coefficient, revived):
    records, _ = weakened(60, aux_coefficient=aux_coefficient, revive_until=0.0)
    dead = [record["dead"] for record in records]
    assert max(dead[:10]) >= 0.5
    assert (dead[-1] < 0.25) is revived


def test_dead_features_start_anew_with_time_to_settle():
    records, trainer = weakened(300, aux_coefficient=0.0)
    dead = [record["dead"] for record in records]
    assert dead[60] >= 0.4
    assert dead[-1] < 0.25  # 24 directions are planted for 32 features
    restarts = [n for n, record in enumerate(records, 2) if record["revived"]]
    assert set(restarts) <= {70, 140, 210}  # none in the last 45 of 300 steps
    assert sum(record["revived"] for record in records) == trainer.n_revived >= 13
    norms = trainer.weights.decoder.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(32))


def about_to_revive(batch, n_dead):
    """Return a trainer whose step number allows restarts of its first features."""
    trainer = Trainer(32, small_config(), n_steps=100, dead_after_rows=512, device=CPU)
    trainer.step(batch)
    trainer.n_done = 70
    trainer.rows_since_fired[:n_dead] = 10_000
    return trainer


def test_dead_features_point_where_reconstructions_fall_short():
    batch = planted_rows(256)[0]
    missing = torch.nn.functional.normalize(batch[:3], dim=1)
    error = torch.zeros_like(batch)
    error[5:8] = -missing  # the reconstructions of three rows lack one direction each
    trainer = about_to_revive(batch, 5)
    assert trainer._revive(batch, error) == 3  # no row serves twice
    revived = (trainer.rows_since_fired[:5] == 0).nonzero().squeeze(1)
    cosines = trainer.weights.decoder[revived] @ missing.T
    assert cosines.amax(0).min() > 0.999
    assert cosines.argmax(1).unique().numel() == 3
    reads = (trainer.weights.encoder[revived] * trainer.weights.decoder[revived]).sum(1)
    assert reads.min() > 0


def test_new_features_do_not_answer_to_what_others_explain():
    batch = planted_rows(256)[0]
    strong = torch.eye(32)[0]
    batch += (
        30 * torch.randn(256, 1, generator=torch.Generator().manual_seed(5)) * strong
    )
    missing = torch.nn.functional.normalize(torch.eye(32)[1] + strong, dim=0)
    error = torch.zeros_like(batch)
    error[7] = -missing
    trainer = about_to_revive(batch, 1)
    assert trainer._revive(batch, error) == 1
    torch.testing.assert_close(trainer.weights.decoder[0], missing)
    encoder = torch.nn.functional.normalize(trainer.weights.encoder[0], dim=0)
    assert abs(float(encoder @ strong)) < 0.1
    assert float(encoder @ missing) > 0.3


def test_a_frozen_decoder_stays_random():
    batches = planted_rows(5 * 256)[0].view(5, 256, 32)
    config = small_config(frozen_decoder=True)
    trainer = Trainer(32, config, n_steps=5, dead_after_rows=1, device=CPU)
    trainer.step(batches[0])
    before, encoder = trainer.weights.decoder.clone(), trainer.weights.encoder.clone()
    for batch in batches[1:]:
        trainer.step(batch)
    torch.testing.assert_close(trainer.weights.decoder, before)
    assert not torch.allclose(trainer.weights.encoder, encoder)
