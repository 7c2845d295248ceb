"""Transfers to a CUDA device that neither wait for it nor keep it waiting."""

import sys
from typing import Any, NamedTuple

from ...batchers.forward import Collated, move

#: Batches whose inputs may be in pinned memory at once: the running one, and the next.
_IN_FLIGHT = 2


class Sent(NamedTuple):
    """A batch on its way to the device."""

    batch: Collated
    #: The CUDA event of its arrival.
    arrived: Any

    def receive(self) -> Collated:
        """Return the batch, to be used on the calling thread's current stream, which waits for it."""
        current = sys.modules["torch"].cuda.current_stream()
        current.wait_event(self.arrived)

        def keep(tensor: Any) -> Any:
            if tensor.device.type != "cpu":
                tensor.record_stream(current)  # its memory goes to no other copy before this stream is done with it
            return tensor

        move(self.batch.inputs, keep)
        return self.batch


class Staging:
    """Copies inputs through reused pinned buffers, on a stream of its own, while another batch runs.

    Pinning memory anew for each batch would cost more than it saves, and copying from memory that is not pinned waits
    for the device. One thread sends; another one receives, batch by batch in the same order.
    """

    def __init__(self, device: str) -> None:
        """Send to `device`, a CUDA device's torch name. torch has been imported: a model was loaded there."""
        self._torch = sys.modules["torch"]
        self._device = device
        self._stream = self._torch.cuda.Stream(device)
        self._buffers: list[list[Any]] = [[] for _ in range(_IN_FLIGHT)]
        #: The arrival of the batch that was last copied from each set of buffers.
        self._arrived: list[Any] = [None] * _IN_FLIGHT
        self._turn = 0

    def send(self, batch: Collated) -> Sent:
        """Start moving a batch's CPU tensors to the device."""
        self._turn = (self._turn + 1) % _IN_FLIGHT
        if (last := self._arrived[self._turn]) is not None:
            last.synchronize()  # a batch that was opened again may still be on its way out of these buffers
        buffers, used = self._buffers[self._turn], 0

        def to_device(tensor: Any) -> Any:
            nonlocal used
            if tensor.device.type != "cpu":
                return tensor
            if used == len(buffers):
                buffers.append(self._torch.empty(0, dtype=self._torch.uint8))
            size = tensor.numel() * tensor.element_size()
            if buffers[used].numel() < size:
                buffers[used] = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
            staged = buffers[used][:size].view(tensor.dtype).view(tensor.shape)
            used += 1
            staged.copy_(tensor)
            return staged.to(self._device, non_blocking=True)

        with self._torch.cuda.stream(self._stream):
            inputs = move(batch.inputs, to_device)
            arrived = self._arrived[self._turn] = self._torch.cuda.Event()
            arrived.record(self._stream)
        return Sent(batch._replace(inputs=inputs), arrived)
