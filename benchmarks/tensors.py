"""What a computation allocates and launches, on any device, read off its operations."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary


class Tensors(TorchDispatchMode):
    """Counts, inside a `with`, the tensors that operations make and the operations that are not mere views.

    Attributes:
        peak: bytes that were alive together, of those made inside.
        largest: bytes of the largest one.
        launches: operations that compute or copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self.launches = 0
        self._alive = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        out = func(*args, **(kwargs or {}))
        self.launches += not func.is_view
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage] = storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self._alive.values()))
        return out
