"""Structured models with huge state spaces: chains, trees, segments, grammars with low-rank weights."""

from bochner.structured.chains.chain import Chain
from bochner.structured.chains.decoding import Decoding
from bochner.structured.chains.exact import ExactChain
from bochner.structured.chains.homogeneous import repeated_log_partition, scan_log_partition
from bochner.structured.chains.hybrid_chain import HybridChain
from bochner.structured.chains.information import Bracket, Estimate
from bochner.structured.chains.low_rank_chain import LowRankChain
from bochner.structured.chains.pairwise import Pairwise
from bochner.structured.chains.signed import SignedChain, SignedFeatures
from bochner.structured.edges.edge_fit import fit_to_edges
from bochner.structured.edges.hybrid import Hybrid
from bochner.structured.edges.log_bilinear import LogBilinear
from bochner.structured.edges.low_rank import LowRank
from bochner.structured.edges.source import EmbeddingSource
from bochner.structured.edges.transitions import Dense, Transitions
from bochner.structured.errors.alternatives import Alternative
from bochner.structured.errors.diagnose import Diagnosis, diagnose
from bochner.structured.errors.edge_laws import EdgeLaw, edge_law
from bochner.structured.errors.error_laws import (
    EdgeRatios,
    RatioError,
    attention_ratio_error,
    exact_ratios,
    sampled_ratios,
)
from bochner.structured.errors.noise_growth import noise_ratio
from bochner.structured.errors.path_law import PathLaw
from bochner.structured.errors.redrawn_law import RedrawnLaw
from bochner.structured.grammars.factors import Factor, log_pairwise
from bochner.structured.grammars.grammar import Grammar
from bochner.structured.grammars.parses import brackets
from bochner.structured.grammars.pcfg import PCFG
from bochner.structured.grammars.rules import LowRankRules, RankSpaceRules, Rules
from bochner.structured.graphs.edge_marginal import EdgeMarginal
from bochner.structured.graphs.forest import Forest
from bochner.structured.graphs.loopy import Beliefs, belief_propagation
from bochner.structured.graphs.naive_mean_field import MeanField, mean_field
from bochner.structured.graphs.pairwise_graph import PairwiseGraph
from bochner.structured.graphs.semi_markov import Segmentation, SemiMarkov
from bochner.structured.graphs.sweeps import NotConvergedWarning, Sweeps
from bochner.structured.graphs.tree import Tree
from bochner.structured.matrix import Matrix
from bochner.structured.models.crf import CRF
from bochner.structured.models.emissions import CategoricalEmissions, Emissions
from bochner.structured.models.hmm import HMM
from bochner.structured.models.learned import (
    FeatureTransitions,
    LearnedTransitions,
    LowRankTransitions,
    SoftmaxTransitions,
)
from bochner.structured.models.learned_embeddings import (
    EmbeddingTransitions,
    HybridTransitions,
    RandomFeatureTransitions,
)
from bochner.structured.models.rank_hmm import RankHMM, RankTransitions
from bochner.structured.semirings import LogSum, Max, Message, Semiring, Sum

__all__ = [
    "Alternative",
    "Beliefs",
    "Bracket",
    "CRF",
    "CategoricalEmissions",
    "Chain",
    "Decoding",
    "Dense",
    "Diagnosis",
    "EdgeLaw",
    "EdgeMarginal",
    "EdgeRatios",
    "EmbeddingSource",
    "EmbeddingTransitions",
    "Emissions",
    "Estimate",
    "ExactChain",
    "Factor",
    "FeatureTransitions",
    "Forest",
    "Grammar",
    "HMM",
    "Hybrid",
    "HybridChain",
    "HybridTransitions",
    "LearnedTransitions",
    "LogBilinear",
    "LogSum",
    "LowRank",
    "LowRankChain",
    "LowRankRules",
    "LowRankTransitions",
    "Matrix",
    "Max",
    "MeanField",
    "Message",
    "NotConvergedWarning",
    "PCFG",
    "Pairwise",
    "PairwiseGraph",
    "PathLaw",
    "RandomFeatureTransitions",
    "RankHMM",
    "RankSpaceRules",
    "RankTransitions",
    "RatioError",
    "RedrawnLaw",
    "Rules",
    "Segmentation",
    "SemiMarkov",
    "Semiring",
    "SignedChain",
    "SignedFeatures",
    "SoftmaxTransitions",
    "Sum",
    "Sweeps",
    "Transitions",
    "Tree",
    "attention_ratio_error",
    "belief_propagation",
    "brackets",
    "diagnose",
    "edge_law",
    "exact_ratios",
    "fit_to_edges",
    "log_pairwise",
    "mean_field",
    "noise_ratio",
    "repeated_log_partition",
    "sampled_ratios",
    "scan_log_partition",
]
