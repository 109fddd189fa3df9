"""Countdown and the reasoning-gym puzzles: what is right, what counts as another solution, what never runs."""

import itertools
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngrpo.tasks.arithmetic import Tree, normal_form, numbers_of, read_expression, value
from ngrpo.tasks.countdown import Countdown
from ngrpo.tasks.gym_puzzles import ALLOWED, ReasoningGym

TREES = st.recursive(st.integers(1, 20), lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner), max_leaves=6)


def written(tree):
    return str(tree) if isinstance(tree, int) else f"({written(tree[1])}{tree[0]}{written(tree[2])})"


def by_python(tree):
    """The value by Python's own arithmetic; None where it divides by zero."""
    text = "".join(f"Fraction({part})" if part.isdigit() else part for part in tokens(written(tree)))
    try:
        return eval(text, {"Fraction": Fraction})  # of a text made here
    except ZeroDivisionError:
        return None


def tokens(text):
    return [
        "".join(group) for _, group in itertools.groupby(text, key=lambda sign: sign if not sign.isdigit() else "9")
    ]


@given(TREES)
def test_values_are_exact(tree):
    assert value(tree) == by_python(tree)
    if len(written(tree)) <= 200:
        assert read_expression(written(tree)) == tree


def solutions(numbers: tuple[int, ...], target: int) -> set[str]:
    """The normal forms of all ways to make `target` from every number once; for four numbers it takes a moment."""
    trees = combined([(Fraction(number), number) for number in numbers])
    return {normal_form(tree) for number, tree in trees if number == target}


def combined(parts: Sequence[tuple[Fraction, Tree]]) -> Iterator[tuple[Fraction, Tree]]:
    if len(parts) == 1:
        yield parts[0]
        return
    for i, j in itertools.combinations(range(len(parts)), 2):
        rest = [part for at, part in enumerate(parts) if at not in (i, j)]
        (a, left), (b, right) = parts[i], parts[j]
        results = [(a + b, ("+", left, right)), (a * b, ("*", left, right))]
        results += [(a - b, ("-", left, right)), (b - a, ("-", right, left))]
        results += [(a / b, ("/", left, right))] if b else []
        results += [(b / a, ("/", right, left))] if a else []
        for result in results:
            yield from combined([*rest, result])


def swapped(tree, rng):
    """The same solution written another way: turned around and re-bracketed where that changes nothing."""
    if isinstance(tree, int):
        return tree
    sign, left, right = tree[0], swapped(tree[1], rng), swapped(tree[2], rng)
    if sign in "+*" and rng.random() < 0.5:
        return (sign, right, left)
    if sign in "+*" and isinstance(left, tuple) and left[0] == sign and rng.random() < 0.5:
        return (sign, left[1], (sign, left[2], right))
    if sign == "-" and isinstance(right, tuple) and right[0] == "-" and rng.random() < 0.5:
        return ("+", ("-", left, right[1]), right[2])
    if sign == "/" and isinstance(right, tuple) and right[0] == "/" and rng.random() < 0.5:
        return ("/", ("*", left, right[2]), right[1])
    return (sign, left, right)


@given(TREES, st.integers(0, 2**32))
def test_the_normal_form_does_not_see_order_and_brackets(tree, seed):
    assert normal_form(swapped(tree, random.Random(seed))) == normal_form(tree)


@pytest.mark.parametrize(
    "left, right, same",
    [
        ("1+2*3", "3*2+1", True),
        ("(1-2)*(3-4)", "(2-1)*(4-3)", True),
        ("5-(2-1)*3", "(1-2)*3+5", True),
        ("8/(4/2)", "2*8/4", True),
        ("1+2+3", "1*2*3", False),
        ("2*3+2*4", "2*(3+4)", False),
        ("6/3", "3/6", False),
    ],
)
def test_which_solutions_are_one(left, right, same):
    forms = [normal_form(tree) for tree in map(read_expression, (left, right)) if tree is not None]
    assert (forms[0] == forms[1]) is same


@pytest.mark.parametrize("numbers, target", [((1, 2, 3), 6), ((2, 3, 4), 24), ((5, 5, 5), 5)])
def test_all_solutions_are_found(numbers, target):
    """Against every tree of three leaves in every order."""
    found = set()
    for a, b, c in itertools.permutations(numbers):
        for one, two in itertools.product("+-*/", repeat=2):
            for tree in ((two, (one, a, b), c), (two, a, (one, b, c))):
                if by_python(tree) == target:
                    found.add(normal_form(tree))
    assert solutions(numbers, target) == found


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "1+", "(1", "1)", "1 2", "-3", "2**3", "2^3", "1//2", "1.5", "x", "1e5", "0x10", "\uff11+1", "1+\0",
        "__import__('os').system('x')", "9" * 300, "(" * 100_000 + "1", "1+" * 100_000 + "1", "1,2", "1=1", "99999999999+1",
    ],
)  # fmt: skip
def test_nothing_but_small_arithmetic_is_read(text):
    assert read_expression(text) is None


def test_signs_of_latex_are_read():
    assert read_expression(r"\left(3 + 5\right) \times 2 \div 4") == ("/", ("*", ("+", 3, 5), 2), 4)


def test_every_puzzle_has_a_solution_and_any_of_them_is_right():
    task = Countdown(split="train", size=40)
    counts = []
    for problem in task.problems:
        expression, _, target = problem.gold.partition("=")
        ways = solutions(tuple(numbers_of(read_expression(expression) or 0)), int(target))
        counts.append(len(ways))
        answers = [f"\\boxed{{{way}}}" for way in ways if not way.startswith("-")]  # a sign alone is no expression
        scores = task.score([problem] * len(answers), answers)
        assert all(score.outcome == "correct" for score in scores)
        assert {f"\\boxed{{{score.solution_path}}}" for score in scores} == set(answers)
        assert task.score([problem], [f"\\boxed{{{problem.gold}}}"])[0].solution_path in ways
    assert sum(count > 1 for count in counts) > 20


def test_wrong_answers_are_wrong():
    task = Countdown(split="train", size=200)
    problem = next(p for p in task.problems if p.gold.endswith("= 24"))
    numbers = numbers_of(read_expression(problem.gold.partition("=")[0]) or 0)
    cases = {
        "24": "wrong", "+".join(["1"] * 24): "wrong", f"{problem.gold}0": "wrong", "+".join(map(str, numbers)): "wrong",
        f"({problem.gold.partition('=')[0]})+0": "wrong", f"{numbers[0]}/0": "wrong", "eval('24')": "unparsed", "": "unparsed",
    }  # fmt: skip
    for answer, outcome in cases.items():
        score = task.score([problem], [f"\\boxed{{{answer}}}"])[0]
        assert (score.outcome, score.reward) == (outcome, 0.0), answer


def test_splits_share_no_puzzle_and_sizes_only_add():
    train, test = Countdown(split="train", size=3000), Countdown(split="test", size=300)
    sets = [
        {
            (tuple(numbers_of(read_expression(p.gold.partition("=")[0]) or 0)), p.gold.partition("=")[2])
            for p in t.problems
        }
        for t in (train, test)
    ]
    assert not sets[0] & sets[1]
    assert Countdown(split="train", size=50).problems == list(train.problems)[:50]
    with pytest.raises(ValueError, match=r"set task\.split"):
        Countdown(split="val", size=1)


HOSTILE = [
    "", "{}", "[]", "null", "[[[[", "1", "-1", "0", "true", "__import__('os').system('touch PATH')", "{}", '{"0": 1}',
    "infeasible", "up", "fill A", "A,B", "9**9**9", '["fill A"]', "[null]", '[{}]', "1e999", "NaN", '{"x": []}',
]  # fmt: skip


@pytest.mark.parametrize("puzzle", ALLOWED)
def test_a_puzzle_takes_its_own_answer_and_no_other(puzzle, tmp_path):
    pytest.importorskip("reasoning_gym")
    task = ReasoningGym(puzzle=puzzle, size=10, seed=3)
    assert task.problems == ReasoningGym(puzzle=puzzle, size=10, seed=3).problems
    assert len({problem.id for problem in task.problems}) == 10
    trap = tmp_path / "executed"
    for problem in task.problems:
        if problem.gold:
            assert task.score([problem], [f"\\boxed{{{problem.gold}}}"])[0].reward == 1.0
        for hostile in HOSTILE:
            answer = hostile.replace("PATH", str(trap))
            score = task.score([problem], [f"\\boxed{{{answer}}}"])[0]
            known_right = problem.gold == answer or (puzzle == "shortest_path" and len(problem.gold.split()) == 1)
            assert score.outcome in ("wrong", "unparsed") or known_right, (answer, problem, score)
    assert not trap.exists()


def test_a_graph_coloring_is_right_only_where_no_edge_joins_equal_colors():
    pytest.importorskip("reasoning_gym")
    import json

    task = ReasoningGym(puzzle="graph_color", size=8, seed=0)
    for problem in task.problems:
        puzzle = task._entries[problem.id]["metadata"]["puzzle"]
        vertices, edges, colors = puzzle["vertices"], puzzle["edges"], puzzle["color_options"]
        for drawn in itertools.islice(itertools.product(colors, repeat=len(vertices)), 0, 3000, 7):
            coloring = dict(zip(vertices, drawn, strict=True))
            proper = all(coloring[a] != coloring[b] for a, b in edges)
            answer = json.dumps({str(vertex): color for vertex, color in coloring.items()})
            assert (task.score([problem], [f"\\boxed{{{answer}}}"])[0].reward == 1.0) is proper


def test_puzzles_off_the_list_are_refused():
    with pytest.raises(ValueError, match=r"puzzle24.*set task\.puzzle"):
        ReasoningGym(puzzle="puzzle24", size=1)
