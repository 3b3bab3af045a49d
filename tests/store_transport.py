"""Weights from TRL to a vLLM server without NCCL, which CPUs do not have: through the TCP store by which both meet.

This takes the place of the transport alone. The rest is TRL's and vLLM's own: the requests, the rendezvous, the
beginning and end of an update, and how the server loads the weights. The server calls `register` (as a plugin), the
trainer `send`.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from vllm.distributed.utils import StatelessProcessGroup


def meet(address: str, port: int, rank: int, world_size: int) -> SimpleNamespace:
    """What stands for NCCL's communicator, with the group that TRL looks for in it."""
    return SimpleNamespace(group=StatelessProcessGroup.create(address, port, rank, world_size))


def register() -> None:
    """Make the engine `store` known to vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "store" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("store", engine())


def engine() -> type:
    """vLLM's NCCL engine with another way to receive. Imported late: plugins are loaded before much of vLLM."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    class StoreEngine(NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info):
            rank = init_info.rank_offset + self.parallel_config.rank
            self.model_update_group = meet(init_info.master_address, init_info.master_port, rank, init_info.world_size)

        def update_weights(self, update_info):
            # As the base class does, without its wait for an accelerator.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info):
            self.model.load_weights(self.received(update_info))

        def received(self, update_info):
            announced = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
            for name, dtype, shape in announced:
                weight = self.model_update_group.group.broadcast(None, src=0)
                assert weight.dtype == getattr(torch, dtype) and list(weight.shape) == shape, name
                yield name, weight

    return StoreEngine


def send() -> None:
    """Have TRL's client send over the store."""
    import trl.generation.vllm_client as client

    connect = client.VLLMClient.init_communicator

    def connect_on_a_cpu(self, device):
        connect(self, torch.device("cuda"))  # TRL refuses others, because of NCCL; nothing is done with it

    def open_endpoint(init_info):
        return meet(init_info["master_address"], init_info["master_port"], 0, init_info["world_size"])

    def broadcast(iterator, group, src, post_iter_func):
        for item in iterator:
            group.group.broadcast(post_iter_func(item), src)

    client.VLLMClient.init_communicator = connect_on_a_cpu
    client.open_trainer_endpoint = open_endpoint
    client.packed_nccl_broadcast_producer = broadcast
