"""A recurrent layer for still images: one tied cell, applied again and again.

Source: convolutional GRU, Ballas et al., "Delving Deeper into Convolutional Networks for Learning Video
Representations", arXiv 1511.06432.
"""

from torch import Tensor, nn


class ConvGRU(nn.Module):
    """A gated recurrent unit of convolutions that sees the same input at every step.

    With r, z, n of the input made once, U a convolution of the state, and σ the sigmoid:

        r = σ(r_x + U_r h)     z = σ(z_x + U_z h)     n = tanh(n_x + r · U_n h)     h ← (1 - z) · n + z · h

    Every step lets what is known at a position travel by one kernel, with no further weights. A gated cell and not
    a tied residual one: its state stays within (-1, 1) however often it is applied, so that the loop needs no
    norm, which would have statistics of its own at each step and untie the steps.

    Three deviations from the paper. The reset gate multiplies U_n h, not h, as in `nn.GRUCell`, so that one
    convolution serves all gates. The state starts as tanh(n_x), not as zero, on which a step would be wasted. And
    there is a norm behind the input's convolution.

    Args:
        features: C.
        hidden: O, width of the state.
        steps: T, how often the cell is applied; 0 or more.
        kernel_size: of both convolutions, odd.

    Shape:
        N×C×H×W → N×O×H×W.
    """

    def __init__(self, features: int, hidden: int, steps: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.steps = steps
        padding = kernel_size // 2
        self.input = nn.Sequential(
            nn.Conv2d(features, 3 * hidden, kernel_size, padding=padding, bias=False), nn.BatchNorm2d(3 * hidden)
        )
        self.state = nn.Conv2d(hidden, 3 * hidden, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """The state after T steps."""
        seen = self.input(x)
        state = seen.chunk(3, 1)[2].tanh()
        for _ in range(self.steps):
            state = self.step(seen, state)
        return state

    def step(self, seen: Tensor, state: Tensor) -> Tensor:
        """The next state, N×O×H×W, from what the gates saw of the input, N×3O×H×W, and the last state."""
        (r_x, z_x, n_x), (r_h, z_h, n_h) = seen.chunk(3, 1), self.state(state).chunk(3, 1)
        reset, update = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        new = (n_x + reset * n_h).tanh()
        return new + update * (state - new)
