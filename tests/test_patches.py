"""Law 4: gathering and scattering move pixels and change none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskguided import ArgumentError
from maskguided.patches import Chosen, Grid, gather, scatter, select

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@st.composite
def cases(draw: st.DrawFn):
    """(grid, maps at their ratio, index) with an own choice of patches per image, in any order."""
    grid = Grid(
        draw(st.integers(1, 30), label="height"),
        draw(st.integers(1, 30), label="width"),
        draw(st.integers(1, 12), label="patch_size"),
        draw(st.integers(0, 5), label="halo"),
    )
    batch, channels, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from((1, 2, 3)))
    k = draw(st.sampled_from(sorted({0, 1, grid.count // 2, grid.count} & set(range(grid.count + 1)))))
    orders = [draw(st.permutations(range(grid.count)))[:k] for _ in range(batch)]
    x = torch.arange(batch * channels * grid.height * grid.width * ratio**2, dtype=torch.float32)
    x = (x % 251).view(batch, channels, grid.height * ratio, grid.width * ratio).to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans(), label="channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
    return grid, x, torch.tensor(orders, dtype=torch.long).view(batch, k), ratio


def cell(grid: Grid, number: int, ratio: int) -> tuple[slice, slice]:
    """Rows and columns of a patch, by counting."""
    row, col = number // grid.cols * grid.patch_size, number % grid.cols * grid.patch_size
    end_row, end_col = min(row + grid.patch_size, grid.height), min(col + grid.patch_size, grid.width)
    return slice(row * ratio, end_row * ratio), slice(col * ratio, end_col * ratio)


@given(cases())
def test_scattering_what_was_gathered_changes_nothing(case):
    grid, x, index, _ = case
    assert torch.equal(scatter(gather(x, index, grid), index, grid, onto=x), x)


@given(cases())
def test_all_patches_together_are_the_whole_map(case):
    grid, x, _, _ = case
    every = torch.arange(grid.count).flip(0).expand(x.shape[0], -1)
    restored = scatter(gather(x, every, grid), every, grid, onto=torch.full_like(x, 7))
    assert torch.equal(restored, x)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert restored.is_contiguous(memory_format=layout) == x.is_contiguous(memory_format=layout)


@given(cases())
def test_a_window_is_the_plain_slice_moved_inward(case):
    grid, x, index, ratio = case
    windows = gather(x, index, grid)
    height, width = grid.window
    assert windows.shape == (index.numel(), x.shape[1], height * ratio, width * ratio)
    places = [(b, number) for b, row in enumerate(index.tolist()) for number in row]
    for window, (b, number) in zip(windows, places, strict=True):
        top = min(max(number // grid.cols * grid.patch_size - grid.halo, 0), grid.height - height)
        left = min(max(number % grid.cols * grid.patch_size - grid.halo, 0), grid.width - width)
        plain = x[b, :, top * ratio : (top + height) * ratio, left * ratio : (left + width) * ratio]
        assert torch.equal(window, plain)


@given(cases())
def test_scatter_changes_the_chosen_patches_and_nothing_else(case):
    grid, x, index, ratio = case
    changed = scatter(gather(x + 1, index, grid), index, grid, onto=x)
    expected, before = x.clone(), x.clone()
    for b in range(len(x)):
        for number in index[b].tolist():
            rows, cols = cell(grid, number, ratio)
            expected[b, :, rows, cols] = (x + 1)[b, :, rows, cols]
    assert torch.equal(changed, expected)
    assert torch.equal(x, before)


@given(cases())
def test_maps_of_two_ratios_follow_one_index(case):
    grid, x, index, _ = case
    double = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    windows = gather(x, index, grid).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(gather(double, index, grid), windows)


@given(cases())
def test_gradients_count_every_pixel_as_often_as_it_is_used(case):
    grid, x, index, ratio = case
    with torch.enable_grad():
        x = x.double().requires_grad_()
        gather(x, index, grid).sum().backward()
        used = torch.zeros_like(x)
        height, width = grid.window
        for b in range(len(x)):
            tops, lefts = grid.corners(index[b])
            for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
                used[b, :, top * ratio : (top + height) * ratio, left * ratio : (left + width) * ratio] += 1
        assert torch.equal(x.grad, used)

        windows = gather(x, index, grid).detach().requires_grad_()
        onto = x.detach().clone().requires_grad_()
        scatter(windows, index, grid, onto=onto).sum().backward()
    chosen = torch.zeros_like(x)
    for b in range(len(x)):
        for number in index[b].tolist():
            rows, cols = cell(grid, number, ratio)
            chosen[b, :, rows, cols] = 1
    assert torch.equal(onto.grad, 1 - chosen)
    assert float(windows.grad.sum()) == float(chosen.sum())


@given(cases())
def test_patches_once_chosen_are_found_in_maps_of_any_size(case):
    grid, x, index, _ = case
    chosen = Chosen(index, grid)
    for maps in (x, x.repeat_interleave(2, 2).repeat_interleave(2, 3), x[:, :1].flip(2), x):
        windows = gather(maps, index, grid)
        assert torch.equal(chosen.gather(maps), windows)
        assert torch.equal(chosen.scatter(3 - windows, onto=maps), scatter(3 - windows, index, grid, onto=maps))


def test_where_pixels_are_is_worked_out_once_for_maps_of_a_size():
    """On a GPU each step of it would be a launch, for each map and each detour."""
    done = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            done.append(func.overloadpacket._qualified_op_name)
            return func(*args, **(kwargs or {}))

    grid, x = Grid(20, 33, 8, 2), torch.rand(2, 3, 20, 33)
    chosen = Chosen(torch.tensor([[0, 14], [7, 2]]), grid)
    chosen.scatter(chosen.gather(x), onto=x)
    with Recorded():
        chosen.scatter(chosen.gather(x + 1), onto=x)
    assert "aten::index_select" in done
    assert "aten::index_put_" in done
    assert not {"aten::arange", "aten::floor_divide", "aten::remainder", "aten::clamp"} & set(done)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_select_takes_the_largest_and_the_first_of_equals(scores, data):
    k = data.draw(st.integers(0, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert select(torch.tensor([scores], dtype=torch.float32), k).tolist() == [expected]


def put(windows: Tensor, patches: list[int]) -> Tensor:
    return scatter(windows, torch.tensor([patches]), Grid(8, 8, 4), torch.zeros(1, 1, 8, 8))


def test_a_window_may_be_cut_twice_and_images_may_choose_the_same_patch():
    x, same = torch.rand(2, 1, 8, 8), torch.tensor([[3], [3]])
    assert torch.equal(*gather(x[:1], torch.tensor([[3, 3]]), Grid(8, 8, 4)))
    assert torch.equal(scatter(gather(x, same, Grid(8, 8, 4)), same, Grid(8, 8, 4), x), x)


def test_keep_is_rounded_to_whole_patches():
    grid = Grid(24, 24, patch_size=8)
    assert [grid.k(keep) for keep in (0, 0.05, 0.06, 0.5, 0.99, 1)] == [0, 0, 1, 5, 9, 9]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Grid(0, 5, 4), "0x5"),
        (lambda: Grid(5, 5, 0), "patch_size=0"),
        (lambda: Grid(5, 5, 4, -1), "halo=-1"),
        (lambda: Grid(5.5, 5, 4), "height=5.5"),
        (lambda: Grid(5, True, 4), "width=True"),
        (lambda: Grid(5, 5, None), "patch_size=None"),
        (lambda: Grid(5, 5, 4).k(1.1), "keep=1.1"),
        (lambda: Grid(5, 5, 4).k(float("nan")), "keep=nan"),
        (lambda: select(torch.zeros(1, 4), 5), "k=5 of 4"),
        (lambda: select(torch.zeros(1, 4), 1.5), "k=1.5 of 4"),
        (lambda: gather(torch.zeros(1, 8, 8), torch.tensor([[0]]), Grid(8, 8, 4)), "x of shape (1, 8, 8)"),
        (lambda: gather(torch.zeros(1, 1, 8, 8), [[0]], Grid(8, 8, 4)), "index of type list"),
        (lambda: gather(torch.zeros(1, 1, 8, 8), torch.tensor([[1, -1]]), Grid(8, 8, 4)), "-1 to 1;"),
        (
            lambda: put(torch.zeros(1, 1, 4, 4), [4]),
            "patches 4 to 4; a 8x8 image with patch_size=4 has the patches 0 to 3",
        ),
        (lambda: put(torch.zeros(2, 1, 4, 4), [1, 1]), "a patch of an image twice"),
        (lambda: gather(torch.zeros(1, 1, 8, 9), torch.zeros(1, 1, dtype=torch.long), Grid(8, 8, 4)), "8x9"),
        (lambda: gather(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, dtype=torch.long), Grid(8, 8, 3)), "whole number"),
        (lambda: gather(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1), Grid(8, 8, 4)), "torch.int64"),
        (
            lambda: scatter(
                torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, dtype=torch.long), Grid(8, 8, 4), torch.zeros(1, 1, 8, 8)
            ),
            "(1, 1, 4, 4)",
        ),
    ],
)
def test_errors_name_the_value(call, text):
    with pytest.raises(ArgumentError) as raised:
        call()
    assert text in str(raised.value)


def test_the_laws_notice_a_broken_engine(monkeypatch):
    """Each law fails once on purpose: windows off by one, a halo written back, patches in the wrong order."""
    honest = Grid.corners

    def shifted(self, index):
        top, left = honest(self, index)
        return (top + 1).clamp(max=self.height - self.window[0]), left

    def all_patches_together_are_the_whole_map():
        grid, every, x = Grid(12, 12, 4, 1), torch.arange(9)[None], torch.rand(1, 2, 12, 12)
        assert torch.equal(scatter(gather(x, every, grid), every, grid, onto=torch.zeros_like(x)), x)

    def corner_of_the_window(chosen, onto, patch, window):
        number, offset = torch.arange(chosen.index.numel())[:, None, None], torch.arange(patch)
        return ((number * window[0] + offset[:, None]) * window[1] + offset).flatten()

    all_patches_together_are_the_whole_map()
    for owner, name, broken, law in [
        (Grid, "corners", shifted, test_a_window_is_the_plain_slice_moved_inward),
        (Chosen, "_find_patches", corner_of_the_window, all_patches_together_are_the_whole_map),
        (
            torch,
            "sort",
            lambda x, **_: torch.topk(-x, x.shape[1]),
            test_select_takes_the_largest_and_the_first_of_equals,
        ),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, broken)
            with pytest.raises(AssertionError):
                law()
