"""How far a training is: in its steps, and in its stream of samples.

The one does not follow from the other: a run may go on with another batch size, and leaves samples out that made its
gradients not finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Place:
    """After `step` optimizer steps; the next one begins at `position` of the stream."""

    step: int
    position: int
    left_out: dict[int, int] = field(default_factory=dict)  # parts of the stream: first position -> position after it

    def advance(self, global_batch: int) -> None:
        """One more step is done."""
        self.step += 1
        self.position = self._after(self.position + global_batch)

    def starts(self, global_batch: int, steps: int) -> Sequence[int]:
        """The positions at which the steps from here to step `steps` of the run begin."""
        if not self.left_out:
            return range(self.position, self.position + (steps - self.step) * global_batch, global_batch)
        found = [self.position] if self.step < steps else []
        for _ in range(steps - self.step - 1):
            found.append(self._after(found[-1] + global_batch))
        return found

    def gone_back(self, step: int, position: int, bad: int) -> "Place":
        """The place of a checkpoint in whose stream what was read from position `bad` up to here is left out."""
        left_out = {**self.left_out, bad: self.position}
        place = Place(step, position, left_out)
        place.position = place._after(position)
        return place

    def _after(self, position: int) -> int:
        while position in self.left_out:
            position = self.left_out[position]
        return position
