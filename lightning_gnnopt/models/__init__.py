"""Networks for sampled and full graphs, and the LightningModule that trains them."""

from lightning_gnnopt.models.base import SampledGNN
from lightning_gnnopt.models.gaan import GaAN
from lightning_gnnopt.models.gaan_conv import GaANConv
from lightning_gnnopt.models.gat import GAT
from lightning_gnnopt.models.gcn import GCN
from lightning_gnnopt.models.ggnn import GGNN
from lightning_gnnopt.models.node_classifier import NodeClassifier
from lightning_gnnopt.models.registry import MODELS, build_model
from lightning_gnnopt.models.sage import GraphSAGE

__all__ = [
    "GAT",
    "GCN",
    "GGNN",
    "MODELS",
    "GaAN",
    "GaANConv",
    "GraphSAGE",
    "NodeClassifier",
    "SampledGNN",
    "build_model",
]
