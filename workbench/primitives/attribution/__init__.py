"""Gradient-based attribution of heads, MLPs and edges, and the exact values it approximates.

    scores = node_scores(model, clean, corrupted, Readout("logit_diff", answer, wrong))      # attribution patching
    scores = edge_scores(model, clean, corrupted, metric, path=integration_path(10))         # EAP-IG
    exact  = exact_nodes(model, clean, corrupted, [Node("head", 3, 1)], metric)

The first run is the base, where gradients are taken (clean: noising; corrupted: denoising); the second gives what is
put into it. Read in this order: `graph` (names), `passes` (forward and backward), `nodes`, `wiring`, `edges`, `spot`.
"""

from workbench.primitives.attribution.edges import EdgeScores, bytes_per_example, edge_scores
from workbench.primitives.attribution.graph import Graph, Node, Receiver
from workbench.primitives.attribution.nodes import NodeScores, node_scores
from workbench.primitives.attribution.passes import AT_BASE, NOT_DIFFERENTIABLE, integration_path
from workbench.primitives.attribution.spot import exact_edges, exact_nodes
from workbench.primitives.attribution.wiring import Wiring, wiring

__all__ = [
    "AT_BASE",
    "NOT_DIFFERENTIABLE",
    "EdgeScores",
    "Graph",
    "Node",
    "NodeScores",
    "Receiver",
    "Wiring",
    "bytes_per_example",
    "edge_scores",
    "exact_edges",
    "exact_nodes",
    "integration_path",
    "node_scores",
    "wiring",
]
