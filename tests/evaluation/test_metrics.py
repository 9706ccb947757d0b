"""Metrics against published values, cases computed by hand, and brute force on small maps."""

import json
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pffnet_d2.errors import InputError
from pffnet_d2.evaluation import metrics
from pffnet_d2.evaluation.contingency import ContingencyTable
from pffnet_d2.masks.instance_mask import InstanceMask

Metric = Callable[..., float]
Objects = list[frozenset[int]]


def pq(gt: np.ndarray, pred: np.ndarray | None = None) -> float:
    return metrics.panoptic_quality(gt, pred).pq


def dq(gt: np.ndarray, pred: np.ndarray | None = None) -> float:
    return metrics.panoptic_quality(gt, pred).dq


def sq(gt: np.ndarray, pred: np.ndarray | None = None) -> float:
    return metrics.panoptic_quality(gt, pred).sq


def dsb_strict(gt: np.ndarray, pred: np.ndarray | None = None) -> float:
    return metrics.dsb_average_precision(gt, pred, strict=True)


# Metrics that choose among equally good candidates by id, and metrics that do not change with renumbering.
BY_ID: list[Metric] = [metrics.aji, metrics.aji_reuse, metrics.aji_pffnet]
ID_FREE: list[Metric] = [
    metrics.aji_plus,
    pq,
    dq,
    sq,
    metrics.object_f1,
    metrics.dsb_average_precision,
    dsb_strict,
    metrics.dice,
    metrics.best_dice,
    metrics.symmetric_best_dice,
    metrics.object_dice,
]
ALL = BY_ID + ID_FREE


# --- Published values -----------------------------------------------------------------------------------------------


def oracles() -> tuple[dict, dict[str, np.ndarray]]:
    folder = os.environ.get("PFFNET_ORACLES")
    if not folder:
        pytest.skip("PFFNET_ORACLES does not name the folder of reference values")
    values = json.loads((Path(folder) / "reference_values.json").read_text())
    with np.load(Path(folder) / "label_pairs.npz") as pairs:
        return values, dict(pairs)


def test_real_pairs_score_as_independent_implementations_say() -> None:
    values, pairs = oracles()
    names: dict[str, Metric] = {
        "dice": metrics.dice,
        "aji_hovernet": metrics.aji_reuse,
        "aji_plus_hovernet": metrics.aji_plus,
        "aji_pffnet": metrics.aji_pffnet,
        "dq": dq,
        "sq": sq,
        "pq": pq,
        "dsb_ap": metrics.dsb_average_precision,
    }
    assert len(values["pairs"]) >= 7
    for entry in values["pairs"]:
        key = f"{entry['dataset']}__{entry['id']}__"
        table = ContingencyTable.from_labels(pairs[key + "gt"], pairs[key + "pred"])
        for name, metric in names.items():
            if name in entry:
                assert metric(table) == pytest.approx(entry[name], abs=1e-6), (entry["id"], name)
        quality = metrics.panoptic_quality(table)
        assert (quality.tp, quality.fp, quality.fn) == (entry["tp"], entry["fp"], entry["fn"])


def test_the_sample_of_hover_net_scores_as_its_authors_print() -> None:
    values, pairs = oracles()
    names: dict[str, Metric] = {
        "dice": metrics.dice,
        "aji_reuse": metrics.aji_reuse,
        "aji_plus": metrics.aji_plus,
        "pq": pq,
        "dq": dq,
        "sq": sq,
    }
    for prediction, printed in values["hovernet_sample"].items():
        assert printed.keys() == names.keys() | {"dice2"}  # which this package does not report
        for name, metric in names.items():
            value = metric(pairs["hovernet_sample__true"], pairs[f"hovernet_sample__{prediction}"])
            assert value == pytest.approx(printed[name], abs=5.1e-5), (prediction, name)


# --- By hand --------------------------------------------------------------------------------------------------------


def strip(*labels: int) -> np.ndarray:
    return np.array([labels])


def test_a_missed_truth_does_not_cost_the_next_ones_prediction() -> None:
    gt, pred = strip(1, 1, 0, 2, 2), strip(0, 0, 0, 1, 1)
    assert metrics.aji(gt, pred) == 0.5
    assert metrics.aji_pffnet(gt, pred) == 0.0  # the error of the release
    swapped = strip(2, 2, 0, 1, 1)
    assert metrics.aji(swapped, pred) == metrics.aji_pffnet(swapped, pred) == 0.5


def test_three_truths_two_perfect_predictions() -> None:
    gt, pred = strip(1, 1, 0, 2, 2, 0, 3, 3), strip(1, 1, 0, 2, 2, 0, 0, 0)
    assert metrics.panoptic_quality(gt, pred) == (0.8, 0.8, 1.0, 2, 0, 1)
    assert metrics.best_dice(pred, gt) == 1.0
    assert metrics.best_dice(gt, pred) == pytest.approx(2 / 3)
    assert metrics.symmetric_best_dice(gt, pred) == metrics.symmetric_best_dice(pred, gt) == pytest.approx(2 / 3)
    assert metrics.object_f1(gt, pred) == pytest.approx(0.8)
    assert metrics.dsb_average_precision(gt, pred) == pytest.approx(2 / 3)
    assert metrics.dice(gt, pred) == pytest.approx(0.8)
    assert metrics.difference_in_count(gt, pred) == -1
    assert metrics.object_dice(gt, pred) == pytest.approx(0.5 * (2 / 3 + 1))


def test_the_four_aggregated_jaccards_differ() -> None:
    # One prediction covers two equal truths: it counts twice if reused, once if paired.
    gt, pred = strip(1, 1, 2, 2), strip(1, 1, 1, 1)
    assert metrics.aji_reuse(gt, pred) == 4 / 8
    assert metrics.aji(gt, pred) == metrics.aji_plus(gt, pred) == 2 / 6
    # Greedy gives truth 1 the prediction that truth 2 needs: 3 pixels shared. The best pairing shares 2 + 3.
    gt, pred = strip(0, 0, 1, 1, 1, 1, 1, 2, 2, 2), strip(2, 2, 2, 2, 1, 1, 1, 1, 1, 1)
    assert metrics.aji(gt, pred) == 3 / 15
    assert metrics.aji_plus(gt, pred) == 5 / 13


def test_of_equally_good_candidates() -> None:
    # IoU 1/4 either way: 1 pixel of 4 + 1, or 2 pixels of 4 + 6.
    gt, pred = strip(1, 1, 1, 1, 0, 0, 0, 0), strip(1, 2, 2, 0, 2, 2, 2, 2)
    renumbered = strip(2, 1, 1, 0, 1, 1, 1, 1)
    # AJI takes the lowest id, AJI+ the pairing that shares most pixels.
    assert (metrics.aji(gt, pred), metrics.aji(gt, renumbered)) == (1 / 10, 2 / 9)
    assert metrics.aji_plus(gt, pred) == metrics.aji_plus(gt, renumbered) == 2 / 9


def test_a_hit_covers_more_than_half_of_the_truth_it_belongs_to() -> None:
    gt = strip(1, 1, 1, 1, 0, 0, 0, 0)
    assert metrics.object_f1(gt, strip(1, 1, 0, 0, 0, 0, 0, 0)) == 0.0  # exactly half is not a hit
    assert metrics.object_f1(gt, strip(1, 1, 1, 1, 1, 1, 1, 1)) == 1.0  # even if it extends far beyond
    # It belongs to the truth with which it shares most pixels, and can hit only that one.
    gt, pred = strip(1, 1, 1, 1, 1, 1, 2, 2), strip(0, 0, 0, 1, 1, 1, 1, 1)
    assert metrics.object_f1(gt, pred) == 0.0
    # Of equal shares, it belongs to the truth of which it covers the larger part.
    gt, pred = strip(1, 1, 1, 1, 1, 2, 2), strip(0, 0, 0, 1, 1, 1, 1)
    assert metrics.object_f1(gt, pred) == pytest.approx(2 / 3)


def test_an_iou_of_exactly_the_threshold() -> None:
    gt, pred = strip(1, 1), strip(1, 0)
    assert metrics.panoptic_quality(gt, pred).tp == 0  # PQ requires more than 0.5
    assert metrics.true_positives(gt, pred) == 1
    assert metrics.true_positives(gt, pred, strict=True) == 0
    assert metrics.dsb_average_precision(gt, pred) == pytest.approx(0.1)
    assert metrics.dsb_average_precision(gt, pred, strict=True) == 0.0
    # 3/5 is the threshold 0.60, not the float next to it.
    gt, pred = strip(1, 1, 1, 1, 1), strip(1, 1, 1, 0, 0)
    assert metrics.dsb_average_precision(gt, pred) == pytest.approx(0.3)
    # Two halves at exactly 0.5 are one hit, not two.
    gt, pred = strip(1, 1, 1, 1), strip(1, 1, 2, 2)
    assert metrics.true_positives(gt, pred) == 1


def test_splits_and_merges_by_hand() -> None:
    # Truth 1 in two halves; prediction 3 over truths 2 and 3; prediction 4 alone.
    gt, pred = strip(1, 1, 1, 1, 0, 2, 2, 3, 3, 0, 4), strip(1, 1, 2, 2, 0, 3, 3, 3, 3, 0, 4)
    assert metrics.splits_and_merges(gt, pred) == (1, 1)
    assert metrics.splits_and_merges(pred, gt) == (1, 1)
    assert metrics.splits_and_merges(gt, gt) == (0, 0)
    # An IoU of exactly 0.1 does not count as a part.
    assert metrics.splits_and_merges(strip(*[1] * 10), strip(1, *[2] * 9)) == (0, 0)
    nothing = strip(0, 0)
    assert metrics.splits_and_merges(nothing, nothing) == metrics.splits_and_merges(nothing, strip(1, 2)) == (0, 0)


def test_hausdorff_by_hand() -> None:
    gt, pred = np.zeros((20, 30), int), np.zeros((20, 30), int)
    gt[2:6, 2:6] = 5  # 16 pixels
    pred[2:6, 3:7] = 2  # the same, one pixel to the right: distance 1
    gt[10:12, 20:22] = 9  # 4 pixels, predicted 3 rows below without overlap: distance 3
    pred[13:15, 20:22] = 7
    assert metrics.object_hausdorff(gt, pred) == pytest.approx((16 * 1 + 4 * 3) / 20)
    pred[13:15, 20:22] = 0
    # Alone, the small truth goes to the far prediction: from (11, 21) to (5, 6) or from (2, 3) to (10, 20).
    far = max(math.hypot(11 - 5, 21 - 6), math.hypot(10 - 2, 20 - 3))
    assert metrics.object_hausdorff(gt, pred) == pytest.approx(((16 * 1 + 4 * far) / 20 + 1) / 2)
    # Distances are between pixels, not outlines: an enclosed object can be far from the object around it.
    ring = np.ones((9, 9), int)
    ring[1:-1, 1:-1] = 0
    assert metrics.object_hausdorff(np.ones((9, 9), int), ring) == 4


def test_hausdorff_at_the_edges() -> None:
    nothing, pixel, full = np.zeros((3, 4), int), np.zeros((3, 4), int), np.full((3, 4), 2**40)
    pixel[1, 2] = 9
    assert metrics.object_hausdorff(nothing, nothing) == 0
    assert math.isnan(metrics.object_hausdorff(nothing, pixel))
    assert math.isnan(metrics.object_hausdorff(pixel, nothing))
    assert metrics.object_hausdorff(pixel, pixel) == metrics.object_hausdorff(full, full) == 0
    assert metrics.object_hausdorff(pixel, full) == pytest.approx(math.sqrt(5))


Scored = tuple[np.ndarray, list[InstanceMask], list[float]]


def masks_of(*strips: tuple[int, ...]) -> list[InstanceMask]:
    return [InstanceMask(0, 0, np.array([mask], dtype=bool)) for mask in strips]


def test_voc_average_precision_by_hand() -> None:
    gt = strip(1, 1, 0, 2, 2, 0, 3, 3)
    hit_1, hit_2 = (1, 1, 0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 0, 0, 0)
    miss, half = (0, 0, 1, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 1, 0)
    # By score: hit, miss, hit, a second one on truth 1. Precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3.
    image: Scored = gt, masks_of(hit_2, miss, hit_1, hit_1), [0.7, 0.8, 0.9, 0.6]
    assert metrics.voc_average_precision([image]) == pytest.approx((1 + 2 / 3) / 3)
    # Recall 0 .. 0.3: 1; 0.4 .. 0.6: 2/3; above: 0.
    assert metrics.voc_average_precision([image], eleven_point=True) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    # An IoU of exactly the threshold is not a hit.
    assert metrics.voc_average_precision([(gt, masks_of(half), [1.0])]) == 0
    assert metrics.voc_average_precision([(gt, masks_of(half), [1.0])], threshold=0.49) == pytest.approx(1 / 3)
    # Detections of all images are sorted together: the miss of the second image comes first.
    images: list[Scored] = [(strip(1, 1, 0), masks_of((1, 1, 0)), [0.5]), (strip(0, 0, 0), masks_of((0, 0, 1)), [0.9])]
    assert metrics.voc_average_precision(iter(images)) == pytest.approx(1 / 2)


def test_voc_average_precision_at_the_edges() -> None:
    gt, nothing = strip(7, 7, 0), strip(0, 0, 0)
    for eleven_point in (False, True):
        assert metrics.voc_average_precision([], eleven_point=eleven_point) == 1
        assert metrics.voc_average_precision([(nothing, [], [])], eleven_point=eleven_point) == 1
        assert metrics.voc_average_precision([(gt, [], [])], eleven_point=eleven_point) == 0
        assert metrics.voc_average_precision([(nothing, masks_of((1, 0, 0)), [1.0])], eleven_point=eleven_point) == 0
        window = InstanceMask(0, 0, np.ones((1, 2), bool))
        empty = InstanceMask(0, 1, np.zeros((1, 1), bool))
        assert metrics.voc_average_precision([(gt, [window], [0.1])], eleven_point=eleven_point) == 1
        assert metrics.voc_average_precision([(gt, [empty, window], [0.1, 0.2])], eleven_point=eleven_point) == 1
    with pytest.raises(InputError, match="image 0: 1 masks and 2 scores"):
        metrics.voc_average_precision([(gt, [window], [0.1, 0.2])])
    with pytest.raises(InputError, match="image 0: mask 0 does not lie inside"):
        metrics.voc_average_precision([(gt, [InstanceMask(0, 2, np.ones((1, 2), bool))], [0.1])])


@pytest.mark.parametrize("metric", ALL)
def test_edges(metric: Metric) -> None:
    nothing, pixel, full = np.zeros((3, 4), int), np.zeros((3, 4), int), np.full((3, 4), 5)
    pixel[1, 2] = 9
    assert metric(nothing, nothing) == 1.0
    assert metric(np.zeros((0, 0), int), np.zeros((0, 0), int)) == 1.0
    assert metric(nothing, pixel) == metric(pixel, nothing) == 0.0
    assert metric(pixel, pixel) == metric(full, full) == metric(full.astype(np.uint8), full) == 1.0
    assert metric(strip(1, 0), strip(0, 1)) == 0.0


def test_difference_in_count_at_the_edges() -> None:
    nothing, two = strip(0, 0, 0), strip(4, 0, 8)
    assert metrics.difference_in_count(nothing, nothing) == 0
    assert metrics.difference_in_count(nothing, two) == 2
    assert metrics.difference_in_count(two, nothing) == -2


def test_three_thousand_objects() -> None:
    gt = np.zeros((240, 600), np.int32)
    gt[np.ix_(np.arange(240) % 4 < 3, np.arange(600) % 12 < 10)] = 1
    gt *= (np.arange(240)[:, None] // 4) * 50 + np.arange(600) // 12 + 1
    assert len(np.unique(gt)) == 3001
    for metric in ALL:
        assert metric(gt, gt) == 1.0
    half = np.where(np.arange(600) % 12 < 5, gt, 0)
    assert metrics.object_hausdorff(gt, half) == 5
    assert metrics.splits_and_merges(gt, half) == (0, 0)
    assert metrics.aji(gt, half) == metrics.aji_plus(gt, half) == 0.5
    assert metrics.symmetric_best_dice(gt, half) == pytest.approx(2 / 3)


def test_a_table_and_its_label_maps_are_not_mixed() -> None:
    gt = strip(1, 0)
    with pytest.raises(TypeError, match="truth and prediction"):
        metrics.aji(gt)
    with pytest.raises(TypeError, match="pass only the table"):
        metrics.aji(ContingencyTable.from_labels(gt, gt), gt)


# --- Brute force ----------------------------------------------------------------------------------------------------


def objects(labels: np.ndarray) -> Objects:
    return [frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels) if label]


def iou(a: frozenset[int], b: frozenset[int]) -> Fraction:
    return Fraction(len(a & b), len(a | b))


def pairings(gt: Objects, pred: Objects) -> Iterator[list[tuple[frozenset[int], frozenset[int]]]]:
    """Every way of pairing overlapping objects one-to-one."""
    if not gt:
        yield []
        return
    yield from pairings(gt[1:], pred)
    for i, p in enumerate(pred):
        if gt[0] & p:
            for rest in pairings(gt[1:], pred[:i] + pred[i + 1 :]):
                yield [(gt[0], p), *rest]


def jaccard(gt: Objects, pred: Objects, pairs: list[tuple[frozenset[int], frozenset[int]]]) -> Fraction:
    """Intersections over unions of pairs, plus the areas of all unpaired objects."""
    paired_gt, paired_pred = [g for g, _ in pairs], [p for _, p in pairs]
    union = sum(len(g | p) for g, p in pairs)
    union += sum(len(g) for g in gt if g not in paired_gt) + sum(len(p) for p in pred if p not in paired_pred)
    return Fraction(sum(len(g & p) for g, p in pairs), union)


def brute_aji(gt: Objects, pred: Objects, *, reuse: bool = False, flaw: bool = False) -> Fraction:
    pairs, used = [], []
    for g in gt:
        free = [p for p in pred if (reuse or p not in used) and g & p]
        if free:
            best = max(free, key=lambda p: iou(g, p))
            pairs.append((g, best))
            used.append(best)
        elif flaw:
            used.append(pred[0])
    return jaccard(gt, pred, pairs)


def brute_aji_plus(gt: Objects, pred: Objects) -> Fraction:
    best = max(pairings(gt, pred), key=lambda pairs: (sum(iou(*p) for p in pairs), sum(len(g & p) for g, p in pairs)))
    return jaccard(gt, pred, best)


def brute_tp(gt: Objects, pred: Objects, threshold: Fraction, strict: bool) -> int:
    def hit(pair: tuple[frozenset[int], frozenset[int]]) -> bool:
        return iou(*pair) > threshold if strict else iou(*pair) >= threshold

    return max(len(pairs) for pairs in pairings(gt, pred) if all(map(hit, pairs)))


def brute_dsb(gt: Objects, pred: Objects, strict: bool) -> Fraction:
    scores = []
    for percent in range(50, 100, 5):
        tp = brute_tp(gt, pred, Fraction(percent, 100), strict)
        scores.append(Fraction(tp, tp + (len(pred) - tp) + (len(gt) - tp)))
    return sum(scores, Fraction()) / 10


def brute_pq(gt: Objects, pred: Objects) -> tuple[Fraction, Fraction, Fraction]:
    hits = [iou(g, p) for g in gt for p in pred if iou(g, p) > Fraction(1, 2)]
    tp = len(hits)
    quality_d = tp / (tp + Fraction(len(pred) - tp, 2) + Fraction(len(gt) - tp, 2))
    quality_s = sum(hits, Fraction()) / tp if tp else Fraction()
    return quality_d * quality_s, quality_d, quality_s


def brute_object_f1(gt: Objects, pred: Objects) -> Fraction:
    hit = set()
    for p in pred:
        belongs = max(gt, key=lambda g: (len(g & p), Fraction(len(g & p), len(g))))
        if 2 * len(belongs & p) > len(belongs):
            hit.add(belongs)
    return Fraction(2 * len(hit), 2 * len(hit) + len(pred) - len(hit) + len(gt) - len(hit))


def two(a: frozenset[int], b: frozenset[int]) -> Fraction:
    return Fraction(2 * len(a & b), len(a) + len(b))


def brute_best_dice(a: Objects, b: Objects) -> Fraction:
    return sum((max(two(x, y) for y in b) for x in a), Fraction()) / len(a)


def brute_object_dice(gt: Objects, pred: Objects) -> Fraction:
    def side(a: Objects, b: Objects) -> Fraction:
        total = sum(map(len, a))
        # The Dice with the object that shares most pixels; of equal shares, the higher Dice.
        best = [max((len(x & y), two(x, y)) for y in b)[1] for x in a]
        return sum((Fraction(len(x), total) * value for x, value in zip(a, best, strict=True)), Fraction())

    return (side(gt, pred) + side(pred, gt)) / 2


def brute_dice(gt: Objects, pred: Objects) -> Fraction:
    return two(frozenset().union(*gt), frozenset().union(*pred))


def small_pairs(top: int = 4) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    return hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.int64, shape, elements=st.integers(0, top))] * 2)
    )


@given(small_pairs())
def test_table_equals_brute_force(pair: tuple[np.ndarray, np.ndarray]) -> None:
    gt, pred = objects(pair[0]), objects(pair[1])
    assume(gt and pred)
    quality = brute_pq(gt, pred)
    table = ContingencyTable.from_labels(*pair)
    expected: list[tuple[Metric, Fraction]] = [
        (metrics.aji, brute_aji(gt, pred)),
        (metrics.aji_reuse, brute_aji(gt, pred, reuse=True)),
        (metrics.aji_pffnet, brute_aji(gt, pred, flaw=True)),
        (metrics.aji_plus, brute_aji_plus(gt, pred)),
        (pq, quality[0]),
        (dq, quality[1]),
        (sq, quality[2]),
        (metrics.object_f1, brute_object_f1(gt, pred)),
        (metrics.dsb_average_precision, brute_dsb(gt, pred, strict=False)),
        (dsb_strict, brute_dsb(gt, pred, strict=True)),
        (metrics.dice, brute_dice(gt, pred)),
        (metrics.best_dice, brute_best_dice(gt, pred)),
        (metrics.symmetric_best_dice, min(brute_best_dice(gt, pred), brute_best_dice(pred, gt))),
        (metrics.object_dice, brute_object_dice(gt, pred)),
    ]
    assert {metric for metric, _ in expected} == set(ALL)
    for metric, value in expected:
        assert metric(*pair) == pytest.approx(float(value), abs=1e-12), metric.__name__
        assert metric(table) == metric(*pair)
    assert metrics.difference_in_count(table) == len(pred) - len(gt)


def brute_hausdorff(gt: np.ndarray, pred: np.ndarray) -> float:
    def points(labels: np.ndarray) -> list[set[tuple[int, ...]]]:
        return [set(map(tuple, np.argwhere(labels == label).tolist())) for label in np.unique(labels) if label]

    def hausdorff(a: set[tuple[int, ...]], b: set[tuple[int, ...]]) -> float:
        return max(max(min(math.dist(p, q) for q in y) for p in x) for x, y in ((a, b), (b, a)))

    def side(a: list[set[tuple[int, ...]]], b: list[set[tuple[int, ...]]]) -> float:
        total = 0.0
        for x in a:
            most = max(len(x & y) for y in b)
            total += len(x) * min(hausdorff(x, y) for y in b if len(x & y) == most)
        return total / sum(map(len, a))

    return (side(points(gt), points(pred)) + side(points(pred), points(gt))) / 2


def brute_voc(image: tuple[np.ndarray, np.ndarray], threshold: float, eleven_point: bool) -> float:
    """Each object of the second map is a mask, scored by its id."""
    gt, masks = objects(image[0]), objects(image[1])[::-1]
    used: set[frozenset[int]] = set()
    points = []  # (recall, precision)
    for rank, mask in enumerate(masks, start=1):
        best = max(gt, key=lambda g: iou(g, mask))
        if iou(best, mask) > threshold:
            used.add(best)
        points.append((Fraction(len(used), len(gt)), Fraction(len(used), rank)))
    # Precision at a recall: the highest at that recall or a higher one.
    at = [Fraction(k, 10) for k in range(11)] if eleven_point else [Fraction(k + 1, len(gt)) for k in range(len(gt))]
    return float(sum(max([p for r, p in points if r >= recall], default=Fraction()) for recall in at) / len(at))


def brute_splits(parts: Objects, of: Objects) -> int:
    return sum(sum(iou(whole, part) > Fraction(1, 10) for part in parts) > 1 for whole in of)


@given(small_pairs(), st.sampled_from([0.1, 0.25, 0.5]))
def test_metrics_of_data_sets_equal_brute_force(pair: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    gt, pred = objects(pair[0]), objects(pair[1])
    assume(gt and pred)
    assert metrics.object_hausdorff(*pair) == pytest.approx(brute_hausdorff(*pair))
    assert metrics.splits_and_merges(*pair) == (brute_splits(pred, gt), brute_splits(gt, pred))
    ids = [label for label in np.unique(pair[1]).tolist() if label]
    scored = pair[0], [InstanceMask(0, 0, pair[1] == label) for label in ids], [float(label) for label in ids]
    # With several truths of the same IoU, the best one is arbitrary; use only maps where this does not matter.
    assume(all(len({iou(g, p) for g in gt if g & p}) == sum(bool(g & p) for g in gt) for p in pred))
    for eleven_point in (False, True):
        value = metrics.voc_average_precision([scored], threshold=threshold, eleven_point=eleven_point)
        assert value == pytest.approx(brute_voc(pair, threshold, eleven_point))


# --- Properties -----------------------------------------------------------------------------------------------------


@given(small_pairs(6))
def test_geometry_and_gaps_change_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    gt, pred = pair
    for metric in ALL:
        value = metric(gt, pred)
        assert 0 <= value <= 1
        assert metric(gt.T, pred.T) == value
        assert metric(gt[::-1], pred[::-1]) == value
        assert metric(gt[:, ::-1], pred[:, ::-1]) == value
        assert metric(np.pad(gt, 2), np.pad(pred, 2)) == value
        assert metric(gt * 1000, pred.astype(np.uint8) * 7) == value


@given(small_pairs(6), st.permutations(range(1, 7)))
def test_what_changes_neither_distances_nor_errors(pair: tuple[np.ndarray, np.ndarray], order: list[int]) -> None:
    gt, pred = pair
    distance, errors = metrics.object_hausdorff(gt, pred), metrics.splits_and_merges(gt, pred)
    renumbered = np.array([0, *order]) * 1000
    for a, b in (
        (gt.T, pred.T),
        (gt[::-1], pred[::-1]),
        (gt[:, ::-1], pred[:, ::-1]),
        (np.pad(gt, 2), np.pad(pred, 2)),
        (renumbered[gt], renumbered[pred]),
        (gt.astype(np.uint8), pred.astype(np.uint64)),
    ):
        assert metrics.object_hausdorff(a, b) == pytest.approx(distance, nan_ok=True)
        assert metrics.splits_and_merges(a, b) == errors
    assert metrics.object_hausdorff(pred, gt) == pytest.approx(distance, nan_ok=True)
    assert metrics.splits_and_merges(pred, gt) == errors[::-1]
    assert math.isnan(distance) == (bool(gt.any()) != bool(pred.any()))
    assert metrics.object_hausdorff(gt, gt) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64])
@pytest.mark.parametrize("metric", [*ALL, metrics.object_hausdorff])
def test_every_integer_type_gives_the_same_scores(metric: Metric, dtype: type) -> None:
    gt = np.array([[1, 1, 0, 9, 9], [1, 0, 0, 9, 0], [0, 0, 100, 100, 100]])
    pred = np.array([[0, 4, 4, 4, 0], [7, 7, 0, 4, 0], [0, 0, 0, 120, 120]])
    assert metric(gt.astype(dtype), pred.astype(dtype)) == metric(gt, pred)


@given(small_pairs(6), st.permutations(range(1, 7)))
def test_renumbering_predictions_changes_nothing(pair: tuple[np.ndarray, np.ndarray], order: list[int]) -> None:
    gt, pred = pair
    renumbered = np.array([0, *order])[pred]
    for metric in ID_FREE:
        assert metric(gt, renumbered) == pytest.approx(metric(gt, pred), abs=1e-12), metric.__name__
    table = ContingencyTable.from_labels(gt, pred)
    if all(len(set(row)) == len(row) for row in (table.iou[table.gt_index == g].tolist() for g in range(table.n_gt))):
        assert metrics.aji(gt, renumbered) == metrics.aji(gt, pred)
        assert metrics.aji_reuse(gt, renumbered) == metrics.aji_reuse(gt, pred)


@given(small_pairs(6))
def test_relations_between_metrics(pair: tuple[np.ndarray, np.ndarray]) -> None:
    gt, pred = pair
    quality = metrics.panoptic_quality(gt, pred)
    assert quality.pq == quality.dq * quality.sq
    assert quality.tp + quality.fn == len(objects(gt))
    assert quality.tp + quality.fp == len(objects(pred))
    for symmetric in (metrics.symmetric_best_dice, metrics.object_dice, metrics.dice, metrics.aji_plus):
        assert symmetric(gt, pred) == pytest.approx(symmetric(pred, gt), abs=1e-12)
    apart = np.where(gt > 0, 0, pred)
    for metric in ALL:
        assert metric(gt, gt) == 1.0
        assert metric(gt, np.zeros_like(gt)) == (0.0 if gt.any() else 1.0)
        assert metric(gt, apart) == (0.0 if gt.any() or apart.any() else 1.0)
