import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from model.losses import (
    CenterLoss,
    CosineMarginClassifier,
    JointLoss,
    LearnedCenterLoss,
    LinearClassifier,
    center_optimizer,
    class_counts,
)

LABELS = torch.tensor([3, 0, 3, 3, 1])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 4, dtype=dtype)


def learned(dtype: torch.dtype = torch.float32) -> LearnedCenterLoss:
    return LearnedCenterLoss(6, 4).to(dtype)


def papers(dtype: torch.dtype = torch.float32, alpha: float = 0.5) -> CenterLoss:
    loss = CenterLoss(6, 4, alpha=alpha).to(dtype)
    loss.centers.normal_()
    return loss


def test_counts_of_classes() -> None:
    assert class_counts(LABELS, 6).tolist() == [1, 1, 0, 3, 0, 0]


def test_learned_form_is_the_sum_over_classes_of_the_mean_distance() -> None:
    loss, x = learned(), features()
    slow = 0.0
    for label in sorted(set(LABELS.tolist())):
        own = [math.dist(x[row].tolist(), loss.centers[label].tolist()) for row in range(5) if LABELS[row] == label]
        slow += sum(own) / len(own)
    assert loss(x, LABELS).item() == pytest.approx(slow, rel=1e-5)


def test_learned_form_by_hand() -> None:
    loss = LearnedCenterLoss(2, 2)
    loss.centers.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 2.0]])
    # class 0: (5 + 1) / 2; class 1: 1 / 1
    assert loss(x, torch.tensor([0, 0, 1])).item() == pytest.approx(4.0)


def test_papers_form_by_hand() -> None:
    loss = CenterLoss(2, 2, alpha=0.5)
    loss.centers.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    x, labels = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 0])
    assert loss(x, labels).item() == pytest.approx(0.5 * (25 + 1))
    loss.update(x, labels)
    # Δc_0 = ((0-3) + (0-0), (0-4) + (0-1)) / (1 + 2) = (-1, -5/3); c_0 = -0.5 · Δc_0; class 1 is absent
    assert loss.centers.tolist() == [pytest.approx([0.5, 5 / 6]), [1.0, 1.0]]


def test_papers_centers_move_as_a_slow_loop_says() -> None:
    loss, x = papers(torch.float64), features(torch.float64)
    wanted = loss.centers.clone()
    for label in range(6):
        rows = [row for row in range(5) if LABELS[row] == label]
        delta = sum((loss.centers[label] - x[row] for row in rows), torch.zeros(4, dtype=torch.float64)) / (
            1 + len(rows)
        )
        wanted[label] -= loss.alpha * delta
    loss.update(x, LABELS)
    torch.testing.assert_close(loss.centers, wanted)


@pytest.mark.parametrize("make", [learned, papers])
def test_gradients_are_those_of_finite_differences(make: type) -> None:
    loss, x = make(torch.float64), features(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(values, LABELS), x)


def test_gradient_of_learned_centers_is_that_of_finite_differences() -> None:
    loss, x = learned(torch.float64), features(torch.float64)

    def of_centers(centers: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"centers": centers}, (x, LABELS))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(of_centers, loss.centers.detach().clone().requires_grad_())


def test_a_point_on_its_center_has_no_gradient() -> None:
    loss = learned()
    x = loss.centers.detach()[LABELS].clone().requires_grad_()
    loss(x, LABELS).backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() == 0
    assert loss.centers.grad is not None
    assert loss.centers.grad.count_nonzero() == 0


@pytest.mark.parametrize("classifier", [LinearClassifier(4, 6), CosineMarginClassifier(4, 6)])
def test_scores_stay_float32_under_autocast(classifier: torch.nn.Module) -> None:
    drawn = features() * 8
    with torch.autocast("cpu", torch.bfloat16):
        scores = classifier(drawn, LABELS)

    torch.testing.assert_close(scores, classifier(drawn, LABELS), rtol=0, atol=0)


@pytest.mark.parametrize("make", [learned, papers])
def test_sums_stay_float32_under_autocast(make: type) -> None:
    loss, x = make(), 300 * features()
    exact = loss(x.bfloat16().float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(x.bfloat16(), LABELS)
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(exact.item(), rel=1e-6)


def joint(center_loss: CenterLoss | LearnedCenterLoss | None, weight: float, **options: object) -> JointLoss:
    return JointLoss(LinearClassifier(4, 6), center_loss, weight=weight, **options)  # type: ignore[arg-type]


def test_joint_loss_is_softmax_plus_weighted_center_loss() -> None:
    loss, x = joint(papers(), 0.1), features()
    total, softmax, center = loss(x, LABELS, 0)
    assert softmax.item() == pytest.approx(F.cross_entropy(loss.classifier(x), LABELS).item())
    assert total.item() == pytest.approx(softmax.item() + 0.1 * center.item())


def test_weight_scales_the_pull_on_features_but_not_the_centers_step() -> None:
    gradients = {}
    for weight in (0.01, 1.0):
        torch.manual_seed(1)
        center_loss, x = learned(), features().requires_grad_()
        loss = joint(center_loss, weight)
        loss(x, LABELS, 0)[0].backward()
        softmax_alone = torch.autograd.grad(F.cross_entropy(loss.classifier(x), LABELS), x)[0]
        assert x.grad is not None
        gradients[weight] = (x.grad - softmax_alone, center_loss.centers.grad)
    torch.testing.assert_close(gradients[1.0][0], 100 * gradients[0.01][0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients[1.0][1], gradients[0.01][1])


def test_weight_warms_up() -> None:
    loss = joint(papers(), 0.8, warmup_steps=4)
    assert [loss.weight_at(step) for step in (0, 1, 3, 9)] == pytest.approx([0.2, 0.4, 0.8, 0.8])


def test_normalised_features_do_not_feel_their_length() -> None:
    loss, x = joint(papers(), 1.0, normalised=True), features()
    assert loss(x, LABELS, 0)[2].item() == pytest.approx(loss(5 * x, LABELS, 0)[2].item(), rel=1e-5)


def test_absent_classes_stay_where_they_are() -> None:
    center_loss = learned()
    before = center_loss.centers.detach().clone()
    optimizer = center_optimizer(center_loss, rate=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        joint(center_loss, 0.1)(features(), LABELS, 0)[0].backward()
        optimizer.step()
    moved = (center_loss.centers.detach() != before).any(1)
    assert moved.tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_cosine_margin_as_a_slow_loop_says(kind: str) -> None:
    classifier, x = CosineMarginClassifier(4, 6, kind=kind, scale=20, margin=0.3), features()  # type: ignore[arg-type]
    scores = classifier(x, LABELS)
    for row in range(5):
        for column in range(6):
            cosine = F.cosine_similarity(x[row], classifier.weight[column], dim=0).item()
            if column == LABELS[row]:
                angle = math.acos(cosine) + 0.3
                over = cosine - 0.3 * math.sin(0.3)
                cosine = cosine - 0.3 if kind == "cosface" else (math.cos(angle) if angle < math.pi else over)
            assert scores[row, column].item() == pytest.approx(20 * cosine, abs=1e-4)


def test_arcface_has_a_finite_gradient_on_its_own_weight() -> None:
    classifier = CosineMarginClassifier(4, 6, kind="arcface")
    x = classifier.weight.detach()[LABELS].clone().requires_grad_()
    F.cross_entropy(classifier(x, LABELS), LABELS).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.isfinite().all()


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 2) if rank == 0 else slice(2, 5)
    results = {}
    for name, loss in (("learned", learned_seeded()), ("papers", papers_seeded())):
        x = seeded_features()[rows].requires_grad_()
        loss(x, LABELS[rows]).backward()
        loss.update(x, LABELS[rows])
        centers = loss.centers.grad if isinstance(loss, LearnedCenterLoss) else loss.centers
        results[name] = (x.grad, centers)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def seeded_features() -> Tensor:
    torch.manual_seed(7)
    return features()


def learned_seeded() -> LearnedCenterLoss:
    torch.manual_seed(8)
    return learned()


def papers_seeded() -> CenterLoss:
    torch.manual_seed(9)
    return papers()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, loss in (("learned", learned_seeded()), ("papers", papers_seeded())):
        x = seeded_features().requires_grad_()
        loss(x, LABELS).backward()
        loss.update(x, LABELS)
        assert x.grad is not None
        # Each process returns its share times their number, because gradients of parameters are averaged.
        torch.testing.assert_close(torch.cat([part[name][0] for part in parts]) / 2, x.grad)
        if isinstance(loss, LearnedCenterLoss):
            torch.testing.assert_close((parts[0][name][1] + parts[1][name][1]) / 2, loss.centers.grad)
        else:
            torch.testing.assert_close(parts[0][name][1], loss.centers)
            torch.testing.assert_close(parts[1][name][1], loss.centers)
