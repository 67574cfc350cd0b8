"""The largest number of bytes that tensors take at once."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, counts the storages of new tensors until they are freed.

    Attributes:
        now: bytes of those that live.
        peak: the most at once.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            self._storage(each).data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and self._storage(each).data_ptr() not in given:
                self._count(self._storage(each))
        return found

    @staticmethod
    def _storage(tensor):
        return tensor.untyped_storage()

    def _count(self, storage):
        if storage in self._known:
            return
        self._known[storage] = n_bytes = storage.nbytes()
        self.now += n_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, n_bytes)

    def _free(self, n_bytes):
        self.now -= n_bytes
