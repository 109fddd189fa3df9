"""The neighbor table against brute force in float64, and when it is made anew."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ngrpo.exploration import nearest as room
from ngrpo.exploration import neighbors
from ngrpo.exploration.nearest import SIMILARITIES, Search, nearest
from ngrpo.exploration.neighbors import NeighborTable, fingerprint

METRICS = ("cosine", "dot", "l2", "l1")


def similarity(table: np.ndarray, anchor: int, metric: str) -> np.ndarray:
    """(V,) similarities of every row to one, in float64, from the definitions."""
    u = table[anchor]
    if metric == "dot":
        return table @ u
    if metric == "cosine":
        lengths = np.maximum(np.sqrt((table**2).sum(1)), 1e-12)
        return (table / lengths[:, None]) @ (u / lengths[anchor])
    return -(((table - u) ** 2).sum(1)) if metric == "l2" else -np.abs(table - u).sum(1)


def agrees(
    found: torch.Tensor, table: torch.Tensor, count: int, metric: str, ordinary: torch.Tensor, tight=1e-9
) -> None:
    """The rows found are as similar as the best ones, in order; where the order is certain, they are the same rows."""
    points, allowed = table.double().numpy(), ordinary.numpy()
    for anchor, ids in enumerate(found.numpy()):
        if not allowed[anchor]:
            assert (ids == anchor).all()
            continue
        scores = similarity(points, anchor, metric)
        others = np.flatnonzero(allowed & (np.arange(len(points)) != anchor))
        best = others[np.lexsort((others, -scores[others]))]
        tolerance = tight * max(1.0, np.abs(scores[others]).max())
        assert anchor not in ids and len(set(ids)) == count and allowed[ids].all()
        np.testing.assert_allclose(scores[ids], scores[best[:count]], rtol=0, atol=tolerance)
        gaps = np.concatenate(([np.inf], -np.diff(scores[best]), [np.inf]))
        certain = (np.minimum(gaps[:-1], gaps[1:]) > tolerance)[:count]
        assert (ids == best[:count])[certain].all()


def everyone(table: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(table), dtype=torch.bool)


def random_table(rows: int = 200, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[*METRICS, "l1 by torch"])
def metric(request, monkeypatch) -> str:
    """A metric, searched as a CPU does or, where a GPU does it differently, as that does."""
    metric, _, by_torch = request.param.partition(" ")
    if by_torch:
        monkeypatch.setattr(Search, "_best_by_faiss", Search._best_by_torch)
    return metric


@pytest.mark.parametrize("count", [1, 2, 7, 199])
def test_nearest_is_brute_force(metric, count):
    table = random_table()
    agrees(nearest(table, count, metric, everyone(table)), table, count, metric, everyone(table))


def test_rows_that_are_not_ordinary_neither_have_nor_are_neighbors(metric):
    table = random_table()
    ordinary = everyone(table)
    traps = torch.tensor([0, 3, 77, 150, 198, 199])
    ordinary[traps] = False
    table[traps] = table[[5, 6, 7, 8, 9, 10]]  # the nearest rows there could be
    found = nearest(table, 4, metric, ordinary)
    assert not torch.isin(found[ordinary], traps).any()
    assert torch.equal(found[traps], traps[:, None].expand(-1, 4))
    agrees(found, table, 4, metric, ordinary)


@pytest.mark.parametrize("copies", [2, 6, 40])
def test_duplicate_rows_stand_by_id(metric, copies):
    table = random_table(120, 16)
    twins = torch.randperm(120, generator=torch.Generator().manual_seed(copies))[:copies].sort().values
    table[twins] = table[twins[0]] * 3  # long, so that `dot` prefers them too
    found = nearest(table, 5, metric, everyone(table))
    agrees(found, table, 5, metric, everyone(table))
    for row in twins.tolist():
        same = [i for i in twins.tolist() if i != row][:5]
        assert found[row, : len(same)].tolist() == same


def test_zero_rows_are_rows_like_others(metric):
    table = random_table(60, 8)
    table[[4, 30, 59]] = 0
    agrees(nearest(table, 6, metric, everyone(table)), table, 6, metric, everyone(table))


def test_a_table_full_of_ties_is_settled_by_id(metric):
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 4)  # every distance is shared by many
    found = nearest(grid, 5, metric, everyone(grid))
    agrees(found, grid, 5, metric, everyone(grid))
    if metric in ("l2", "l1", "dot"):  # exact in floating point, so the order is certain
        for anchor in range(len(grid)):
            scores = similarity(grid.double().numpy(), anchor, metric)
            others = [i for i in range(len(grid)) if i != anchor]
            assert found[anchor].tolist() == sorted(others, key=lambda i: (-scores[i], i))[:5]


def test_a_table_with_a_large_common_part_is_searched_exactly(metric):
    """Rows of one direction and little else: float32 products can hardly tell them apart."""
    table = random_table(300, 16) * 0.1 + 30
    agrees(nearest(table, 3, metric, everyone(table)), table, 3, metric, everyone(table))


def test_rows_nearer_to_each_other_than_float32_tells_are_ordered_exactly(metric):
    """Clusters whose members differ by 1e-6 of their length: products in float32 are noise there."""
    centers = random_table(6, 32).double().repeat_interleave(20, dim=0)
    table = centers + 1e-6 * random_table(120, 32, seed=1).double()
    agrees(nearest(table, 4, metric, everyone(table)), table, 4, metric, everyone(table), tight=1e-14)


@pytest.mark.parametrize("metric", ["dot", "l2", "l1"], indirect=True)
def test_float32_rows_that_differ_in_their_last_digits_are_ordered_exactly(metric):
    """Whole numbers: float64 has every sum exactly, float32 has not."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(4_000_000, 4_000_016, (90, 24), generator=generator).float()
    found, points = nearest(table, 5, metric, everyone(table)), table.double().numpy()
    for anchor in range(len(table)):
        scores = similarity(points, anchor, metric)
        others = [i for i in range(len(table)) if i != anchor]
        assert found[anchor].tolist() == sorted(others, key=lambda i: (-scores[i], i))[:5]


def test_copies_beyond_every_candidate_stand_by_id_across_blocks(metric, monkeypatch):
    monkeypatch.setattr(room, "ANCHORS", 16)
    monkeypatch.setattr(room, "_BLOCK_BYTES", 4 * 100 * 3)
    table = random_table(100, 16)
    table[20:80] = table[7] = table[95] = 2 * table[20]
    found = nearest(table, 3, metric, everyone(table))
    assert found[7].tolist() == [20, 21, 22]
    assert found[21].tolist() == [7, 20, 22]
    assert found[50].tolist() == found[95].tolist() == [7, 20, 21]
    agrees(found, table, 3, metric, everyone(table))


def test_products_too_large_for_float32_are_settled_in_float64(metric):
    table = random_table(60, 8) * 1e25
    agrees(nearest(table, 3, metric, everyone(table)), table, 3, metric, everyone(table))


@pytest.mark.parametrize("part", [0.0, 30.0])
def test_no_score_is_further_off_than_the_error_told(metric, part):
    """Differences of scores against differences of similarities: a constant for each anchor does not matter."""
    table = random_table(150, 200) * torch.logspace(-3, 3, 150)[:, None] + part
    made, points = Search(table, torch.arange(150), 1, metric), table.double().numpy()
    queries = made._queries(torch.arange(150))
    best = made._best_by_faiss if metric == "l1" else made._best_by_torch
    scores, places = best(queries, 150)
    scores = torch.empty_like(scores).scatter(1, places, scores).double().numpy()
    for anchor in range(150):
        exact = similarity(points, anchor, metric) / (2 if metric == "l2" else 1)
        off = scores[anchor] - exact
        assert np.ptp(off) <= 2 * made.error[anchor].item() + 1e-13 * np.abs(exact).max()


@pytest.mark.parametrize("metric", METRICS)
def test_a_common_part_does_not_make_rows_alike(metric, monkeypatch):
    """Few rows need a second look, with a common part a hundred times their own or without."""
    again, among_all = [], Search._among_all
    monkeypatch.setattr(Search, "_among_all", lambda *given: (again.append(len(given[1])), among_all(*given))[1])
    table = random_table(1000, 64)
    nearest(table, 2, metric, everyone(table))
    alone = sum(again)
    again.clear()
    nearest(table + 100, 2, metric, everyone(table))
    assert alone < 20 and sum(again) < (100 if metric == "dot" else 20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tables_of_any_precision(dtype):
    table = random_table(80, 8).to(dtype)
    agrees(nearest(table, 3, "cosine", everyone(table)), table, 3, "cosine", everyone(table))


def test_both_searches_give_one_table(monkeypatch):
    table = random_table(150, 8)
    table[[20, 90]] = table[[21, 22]]
    ours = nearest(table, 6, "l1", everyone(table))
    monkeypatch.setattr(Search, "_best_by_faiss", Search._best_by_torch)
    assert torch.equal(nearest(table, 6, "l1", everyone(table)), ours)


def test_chunks_of_any_size_give_one_table(monkeypatch):
    table = random_table(90, 8)
    whole = nearest(table, 4, "l1", everyone(table))
    for name, size in {"_BLOCK_BYTES": 4000, "_PASS_BYTES": 1500, "ANCHORS": 7}.items():
        monkeypatch.setattr(room, name, size)
    assert torch.equal(nearest(table, 4, "l1", everyone(table)), whole)
    monkeypatch.setattr(Search, "_best_by_faiss", Search._best_by_torch)
    assert torch.equal(nearest(table, 4, "l1", everyone(table)), whole)


def test_asking_for_everything_else_gives_everything_else():
    table = random_table(9, 4)
    found = nearest(table, 8, "cosine", everyone(table))
    for row in range(9):
        assert sorted(found[row].tolist()) == [i for i in range(9) if i != row]


def test_no_neighbors_asked_for_is_an_empty_table():
    assert nearest(random_table(9, 4), 0, "l2", torch.ones(9).bool()).shape == (9, 0)


@pytest.mark.parametrize(("rows", "count"), [(9, 9), (9, 20), (1, 1), (0, 1)])
def test_more_neighbors_than_there_are_is_refused(rows, count):
    ordinary = torch.arange(12) < rows
    with pytest.raises(ValueError, match=rf"{count} neighbors .* {rows} ordinary rows .*lower k"):
        nearest(random_table(12, 4), count, "cosine", ordinary)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_table_that_is_not_finite_is_refused(value):
    table = random_table(12, 4)
    table[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        nearest(table, 2, "cosine", everyone(table))


def test_cosine_dot_and_l2_agree_on_the_unit_sphere():
    table = torch.nn.functional.normalize(random_table().double(), dim=-1)
    orders = [nearest(table, 5, metric, everyone(table)) for metric in ("cosine", "dot", "l2")]
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], nearest(table, 5, "l1", everyone(table)))


def test_scaling_one_row_matters_to_all_metrics_but_cosine():
    table = random_table(40, 8).double()
    longer = table.clone()
    longer[7] *= 4  # a power of two: the direction stays the same to the last bit
    for metric in METRICS:
        same = torch.equal(nearest(table, 3, metric, everyone(table)), nearest(longer, 3, metric, everyone(table)))
        assert same == (metric == "cosine"), metric


@pytest.mark.parametrize("metric", METRICS)
def test_similarities_are_their_definitions_and_symmetric(metric):
    table = random_table(20, 6).double()
    for anchor in range(20):
        ours = SIMILARITIES[metric](table[anchor], table)
        np.testing.assert_allclose(ours.numpy(), similarity(table.numpy(), anchor, metric), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(SIMILARITIES[metric](table, table[anchor]), ours, rtol=1e-12, atol=1e-12)


def test_fingerprints_are_equal_for_equal_tables_only():
    table = random_table()
    other = table.clone()
    assert fingerprint(table) == fingerprint(other.requires_grad_())
    with torch.no_grad():
        other[199, 23] = torch.nextafter(other[199, 23], torch.tensor(10.0))
    assert fingerprint(table) != fingerprint(other)


def made(k: int = 3, metric: str = "cosine", every: int = 2, rows: int = 50) -> NeighborTable:
    table = NeighborTable(k, metric, every)
    ordinary = torch.ones(rows, dtype=torch.bool)
    ordinary[:2] = False
    table.bind(ordinary)
    return table


def test_candidates_are_the_anchor_and_then_its_neighbors():
    table, embedding = made(), random_table(50, 8)
    table.refresh(embedding, 0)
    anchors = torch.tensor([7, 2, 7, 0])
    found = table.ids[anchors]
    assert torch.equal(found[:, 0], anchors)
    assert torch.equal(found[:, 1:], nearest(embedding, 2, "cosine", table.ordinary)[anchors])


def counted(monkeypatch) -> list[torch.Tensor]:
    searched, search = [], neighbors.nearest

    def counting(table, *others):
        searched.append(table)
        return search(table, *others)

    monkeypatch.setattr(neighbors, "nearest", counting)
    return searched


def test_the_search_is_repeated_every_so_many_steps(monkeypatch):
    searched, table = counted(monkeypatch), made(every=3)
    for step in range(8):
        table.refresh(random_table(50, 8, seed=step), step)
        assert torch.equal(
            table.ids[:, 1:], nearest(random_table(50, 8, seed=step - step % 3), 2, "cosine", table.ordinary)
        )
    assert len(searched) == 3


def test_an_embedding_that_has_not_changed_is_not_searched_again(monkeypatch):
    searched, table, embedding = counted(monkeypatch), made(every=1), random_table(50, 8)
    figures = [table.refresh(embedding, step) for step in range(4)]
    assert len(searched) == 1
    assert figures == [{}, *[{"neighbor_drift": 0.0}] * 3]


def test_drift_is_the_share_of_entries_that_are_new():
    line = torch.tensor([[9.0], [9.5], [0.0], [1.0], [3.0], [7.0]])  # rows 0 and 1 are reserved
    table = made(k=3, metric="l2", every=1, rows=6)
    assert table.refresh(line, 0) == {}
    assert table.ids[2:, 1:].tolist() == [[3, 4], [2, 4], [3, 2], [4, 3]]
    line = torch.tensor([[9.0], [9.5], [0.0], [1.0], [3.5], [2.0]])
    drift = table.refresh(line, 1)
    assert table.ids[2:, 1:].tolist() == [[3, 5], [2, 5], [5, 3], [3, 4]]
    assert drift == {"neighbor_drift": pytest.approx(3 / 8)}  # 5 in row 2, 5 in row 3, 5 in row 4; order does not count


def test_one_candidate_needs_no_search(monkeypatch):
    searched, table = counted(monkeypatch), made(k=1)
    assert table.refresh(random_table(50, 8), 0) == {} and not searched
    assert table.ids[[9]].tolist() == [[9]]


def test_a_checkpoint_carries_the_table_and_when_it_was_made(monkeypatch):
    table = made(every=4)
    table.refresh(random_table(50, 8), 5)
    state = {name: value.clone() for name, value in table.state_dict().items()}
    searched, resumed = counted(monkeypatch), made(every=4)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.ids, table.ids)
    assert resumed.refresh(random_table(50, 8, seed=1), 8) == {} and not searched
    both = [part.refresh(random_table(50, 8, seed=1), 9) for part in (table, resumed)]
    assert both[0] == both[1] and both[0]["neighbor_drift"] > 0.5
    assert torch.equal(resumed.ids, table.ids)


def test_large_tables_are_kept_on_disk_by_content(monkeypatch, tmp_path):
    monkeypatch.setenv("NGRPO_CACHE", str(tmp_path))
    monkeypatch.setattr(neighbors, "CACHED_FROM", 50)
    searched, embedding = counted(monkeypatch), random_table(50, 8)
    first, again = made(), made()
    first.refresh(embedding, 0)
    again.refresh(embedding, 0)
    assert len(searched) == 1 and torch.equal(first.ids, again.ids)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 1 and fingerprint(embedding) in files[0].name
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == files, "no partial file is left"
    made(k=4).refresh(embedding, 0)
    made(metric="l2").refresh(embedding, 0)
    made().refresh(random_table(50, 8, seed=1), 0)
    other = made()
    other.ordinary[5] = False
    other.refresh(embedding, 0)
    assert len(searched) == 5 and len(list(tmp_path.rglob("*.safetensors"))) == 5
    assert 5 not in other.ids[torch.arange(50) != 5, 1:][2:]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "unsigned"])
def test_a_damaged_file_of_neighbors_is_told_and_searched_anew(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("NGRPO_CACHE", str(tmp_path))
    monkeypatch.setattr(neighbors, "CACHED_FROM", 50)
    searched, embedding, first, again = counted(monkeypatch), random_table(50, 8), made(), made()
    first.refresh(embedding, 0)
    (path,) = tmp_path.rglob("*.safetensors")
    good = path.read_bytes()
    if damage == "other":
        save_file({"neighbors": torch.zeros(3, 3)}, path)
    elif damage == "unsigned":
        save_file({"neighbors": first.ids[:, 1:].contiguous()}, path)
    else:
        path.write_bytes(
            {"flip": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "cut": good[:-9], "empty": b""}[damage]
        )
    with pytest.warns(RuntimeWarning, match=f"{path.name} is damaged: the neighbors are searched anew"):
        again.refresh(embedding, 0)
    assert len(searched) == 2 and torch.equal(first.ids, again.ids) and path.read_bytes() == good


def test_small_tables_are_not_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("NGRPO_CACHE", str(tmp_path))
    made().refresh(random_table(50, 8), 0)
    assert not list(tmp_path.iterdir())
