"""What requests' LoRAs make of a prior, kept by bytes: the least recently used goes first, and none that is at work."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

from diffusion.checkpoints.errors import PriorError

Model = TypeVar("Model")
LEAST_BYTES = 64 * 2**20
SHARE_OF_WEIGHTS = 4


def adapter_bytes(weights: int) -> int:
    """Most bytes that adapters take beside the weights of a prior: a quarter of these, and at least 64 MiB."""
    return max(LEAST_BYTES, weights // SHARE_OF_WEIGHTS)


class AdapterCache(Generic[Model]):
    """Adapted models by their LoRAs, at most `max_bytes` beside what they share with the prior."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._models: OrderedDict[Hashable, Model] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._models

    def get(self, key: Hashable, make: Callable[[], tuple[Model, int]], *, in_use: Collection[Hashable] = ()) -> Model | None:
        """The model of that key, made unless it is here; None while those in use leave no room for it.

        Args:
            make: the model and its bytes. in_use: keys that must stay.

        Raises:
            PriorError: it alone takes more than `max_bytes`. What `make` raises, too.
        """
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        busy = sum(self._sizes[other] for other in set(in_use) & self._models.keys())
        if busy and busy + self._sizes.get(key, 0) > self.max_bytes:
            return None
        model, self._sizes[key] = make()
        if self._sizes[key] > self.max_bytes:
            raise PriorError(
                f"the request's LoRAs take {self._sizes[key] / 1e6:,.0f} MB beside the prior, and those of all requests have "
                f"{self.max_bytes / 1e6:,.0f} MB; give them with the prior, '?lora=FILE:SCALE', which adds them to its weights"
            )
        if busy + self._sizes[key] > self.max_bytes:
            return None
        while self.num_bytes + self._sizes[key] > self.max_bytes:
            self._evict(next(other for other in self._models if other not in in_use))
        self._models[key] = model
        self.num_bytes += self._sizes[key]
        return model

    def _evict(self, key: Hashable) -> None:
        del self._models[key]
        self.num_bytes -= self._sizes[key]
