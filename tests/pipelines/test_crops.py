import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines import crops

SIZE_LISTS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=40)


def inside(windows: crops.Windows, sizes: np.ndarray) -> bool:
    end = windows.anchor + windows.shape
    return bool((windows.anchor >= 0).all() and (windows.shape >= 1).all() and (end <= sizes).all())


@given(SIZE_LISTS, st.integers(0, 5), st.floats(0.01, 1))
def test_windows_stay_inside(sizes, epoch, smallest):
    sizes = np.array(sizes)
    windows = crops.random_resized(sizes, np.arange(len(sizes)), seed=0, epoch=epoch, scale=(smallest, 1.0))
    assert inside(windows, sizes)
    assert inside(crops.central(sizes), sizes)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_draw_depends_on_position_alone(positions):
    positions, count = np.array(positions), len(positions)
    sizes = np.full((count, 2), 500)
    together = crops.random_resized(sizes, positions, seed=2, epoch=1)
    for i in range(0, count, 7):
        alone = crops.random_resized(sizes[i : i + 1], positions[i : i + 1], seed=2, epoch=1)
        assert (alone.anchor == together.anchor[i]).all()
        assert (alone.shape == together.shape[i]).all()
        assert (alone.flip == together.flip[i]).all()


def test_distribution_is_that_of_torchvision():
    """Mean and spread of area, aspect and place against torchvision's own sampler."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    n, width, height = 6000, 400, 300
    windows = crops.random_resized(np.tile([width, height], (n, 1)), np.arange(n), seed=0, epoch=0)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    top, left, h, w = theirs.T
    ours = {
        "area": windows.shape.prod(1),
        "aspect": np.log(windows.shape[:, 0] / windows.shape[:, 1]),
        "left": windows.anchor[:, 0],
        "top": windows.anchor[:, 1],
    }
    reference = {"area": h * w, "aspect": np.log(w / h), "left": left, "top": top}
    for name, values in ours.items():
        spread = reference[name].std()
        assert abs(values.mean() - reference[name].mean()) < 0.06 * spread, name
        assert abs(values.std() - spread) < 0.05 * spread, name
    assert abs(windows.flip.mean() - 0.5) < 0.03


def test_epochs_and_seeds_differ():
    sizes, positions = np.full((64, 2), 300), np.arange(64)
    base = crops.random_resized(sizes, positions, seed=0, epoch=0)
    for other in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        assert (crops.random_resized(sizes, positions, **other).anchor != base.anchor).any()


def test_extreme_shapes_fall_back_to_the_centre():
    windows = crops.random_resized(np.array([[3000, 2]]), np.zeros(1, int), seed=0, epoch=0)
    assert windows.shape.tolist() == [[3, 2]]
    assert windows.anchor.tolist() == [[1498, 0]]
