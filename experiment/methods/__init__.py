"""The registry of compression methods, torch-free: what a method is lies behind its entry's `target`."""

from __future__ import annotations

from experiment.methods import settings as s
from experiment.registry import MethodEntry

METHODS: dict[str, MethodEntry] = {
    entry.label: entry
    for entry in (
        MethodEntry("Reference", s.ReferenceSettings, "experiment.methods.unchanged:Unchanged", "none"),
        MethodEntry("Fake", s.FakeSettings, "experiment.methods.unchanged:Unchanged", "none"),
        MethodEntry("ALDS", s.ALDSSettings, "experiment.methods.lowrank.alds:ALDS", "lowrank"),
        MethodEntry("ALDS+", s.ALDSPlusSettings, "experiment.methods.lowrank.alds:ALDS", "lowrank"),
        MethodEntry(
            "ALDS (One-shot)", s.ALDSSettings, "experiment.methods.lowrank.alds:ALDS", "lowrank", restarts=True
        ),
        MethodEntry("ALDS-K", s.ALDSKSettings, "experiment.methods.lowrank.alds:ALDSK", "lowrank"),
        MethodEntry("ALDS-Error3", s.ALDSError3Settings, "experiment.methods.lowrank.svd:svd_error", "lowrank"),
        MethodEntry("ALDS-Simple3", s.ALDSSimple3Settings, "experiment.methods.lowrank.svd:svd", "lowrank"),
        MethodEntry("ALDS-Simple5", s.ALDSSimple5Settings, "experiment.methods.lowrank.svd:svd", "lowrank"),
        MethodEntry("SVD", s.SVDSettings, "experiment.methods.lowrank.svd:svd", "lowrank"),
        MethodEntry("SVD-Energy", s.SVDEnergySettings, "experiment.methods.lowrank.svd:svd_energy", "lowrank"),
        MethodEntry("SVD-Nuclear", s.SVDNuclearSettings, "experiment.methods.lowrank.svd:svd_nuclear", "lowrank"),
        MethodEntry("SVD-Error", s.SVDErrorSettings, "experiment.methods.lowrank.svd:svd_error", "lowrank"),
        MethodEntry("KLDS", s.KLDSSettings, "experiment.methods.lowrank.klds:KLDS", "lowrank"),
        MethodEntry("L-Rank", s.LRankSettings, "experiment.methods.lowrank.svd:l_rank", "lowrank"),
        MethodEntry("L-Rank-Scheme1", s.LRankScheme1Settings, "experiment.methods.lowrank.svd:l_rank", "lowrank"),
        MethodEntry("RSVD", s.RSVDSettings, "experiment.methods.lowrank.rsvd:RSVD", "lowrank"),
        MethodEntry("PCA", s.PCASettings, "experiment.methods.lowrank.pca:PCA", "lowrank"),
        MethodEntry("Messi3", s.Messi3Settings, "experiment.methods.lowrank.messi:Messi", "lowrank"),
        MethodEntry("Messi5", s.Messi5Settings, "experiment.methods.lowrank.messi:Messi", "lowrank"),
        MethodEntry("WT", s.WTSettings, "experiment.methods.masks.magnitude:wt", "weight"),
        MethodEntry("WT (layer)", s.WTLayerSettings, "experiment.methods.masks.magnitude:wt_layer", "weight"),
        MethodEntry("Random", s.RandomSettings, "experiment.methods.masks.magnitude:random_weights", "weight"),
        MethodEntry(
            "Random (layer)", s.RandomLayerSettings, "experiment.methods.masks.magnitude:random_layer", "weight"
        ),
        MethodEntry("SNIP", s.SNIPSettings, "experiment.methods.masks.snip:snip", "weight"),
        MethodEntry("Uniform", s.UniformSettings, "experiment.methods.masks.uniform:uniform", "weight"),
        MethodEntry("l1", s.L1Settings, "experiment.methods.masks.uniform:l1", "weight"),
        MethodEntry("l2", s.L2Settings, "experiment.methods.masks.uniform:l2", "weight"),
        MethodEntry("(l1+l2)/2", s.L1L2Settings, "experiment.methods.masks.uniform:l1_l2", "weight"),
        MethodEntry("SiPP", s.SiPPSettings, "experiment.methods.masks.sipp:sipp", "weight"),
        MethodEntry("SiPPRand", s.SiPPSettings, "experiment.methods.masks.sipp:sipp_rand", "weight"),
        MethodEntry("SiPPHybrid", s.SiPPSettings, "experiment.methods.masks.sipp:sipp_hybrid", "weight"),
        MethodEntry("TorchPrune", s.TorchPruneSettings, "experiment.methods.masks.torch_prune:torch_prune", "weight"),
        MethodEntry("FT", s.FTSettings, "experiment.methods.filters.ft:ft", "filter"),
        MethodEntry("SoftNet", s.SoftNetSettings, "experiment.methods.filters.ft:soft_net", "filter"),
        MethodEntry(
            "Uniform Filters", s.UniformFiltersSettings, "experiment.methods.filters.ft:uniform_filters", "filter"
        ),
        MethodEntry("ThiNet", s.ThiNetSettings, "experiment.methods.filters.thinet:thinet", "filter"),
        MethodEntry("PFP", s.PFPSettings, "experiment.methods.filters.pfp:pfp", "filter"),
        MethodEntry("PFP (rand)", s.PFPSettings, "experiment.methods.filters.pfp:pfp_rand", "filter"),
        MethodEntry("PFP (partial)", s.PFPSettings, "experiment.methods.filters.pfp:pfp_partial", "filter"),
        MethodEntry(
            "Global Filters",
            s.GlobalFiltersSettings,
            "experiment.methods.filters.global_ranking:global_filters",
            "filter",
        ),
        MethodEntry("Blocks", s.BlocksSettings, "experiment.methods.filters.blocks:Blocks", "filter"),
        MethodEntry("Prune", s.PruneSettings, "experiment.methods.masks.condensa:prune", "weight"),
        MethodEntry("BlockPrune", s.BlockPruneSettings, "experiment.methods.masks.condensa:block_prune", "weight"),
        MethodEntry(
            "NeuronPrune", s.StructurePruneSettings, "experiment.methods.filters.condensa:neuron_prune", "filter"
        ),
        MethodEntry(
            "FilterPrune", s.StructurePruneSettings, "experiment.methods.filters.condensa:filter_prune", "filter"
        ),
        MethodEntry(
            "StructurePrune", s.StructurePruneSettings, "experiment.methods.filters.condensa:structure_prune", "filter"
        ),
        MethodEntry("Compose", s.ComposeSettings, "experiment.methods.compose:compose", "compose"),
        MethodEntry("Slimming", s.SlimmingSettings, "experiment.methods.filters.global_ranking:slimming", "filter"),
        MethodEntry("Quantize", s.QuantizeSettings, "experiment.methods.quantize:Quantize", "quantization"),
    )
}

# torchprune's class names -> the labels of the papers. A label that METHODS does not have is known but not available.
TORCHPRUNE_NAMES: dict[str, str] = {
    "ReferenceNet": "Reference",
    "FakeNet": "Fake",
    "ALDSNet": "ALDS",
    "ALDSNetPlus": "ALDS+",
    "ALDSNetOptK": "ALDS-K",
    "ALDSNetErrorOnly": "ALDS-Error3",
    "ALDSNetSimple": "ALDS-Simple3",
    "ALDSNetSimple5": "ALDS-Simple5",
    "ALDSNetOne": "ALDS (One-shot)",
    "PCANet": "PCA",
    "SVDNet": "SVD",
    "SVDErrorNet": "SVD-Error",
    "SVDFrobeniusNet": "SVD-Energy",
    "SVDNuclearNet": "SVD-Nuclear",
    "LearnedRankNet": "L-Rank-Scheme1",
    "LearnedRankNetScheme0": "L-Rank",
    "MessiNet": "Messi3",
    "MessiNet5": "Messi5",
    "FilterThresNet": "FT",
    "SoftNet": "SoftNet",
    "FilterUniNet": "Uniform Filters",
    "ThiNet": "ThiNet",
    "PFPNet": "PFP",
    "PFPNetRand": "PFP (rand)",
    "PFPNetTop": "PFP (partial)",
    "ThresNet": "WT",
    "UniNet": "Uniform",
    "SnipNet": "SNIP",
    "SiPPNet": "SiPP",
    "SiPPNetRand": "SiPPRand",
    "SiPPNetHybrid": "SiPPHybrid",
    "EllOneNet": "l1",
    "EllTwoNet": "l2",
    "EllOneAndTwoNet": "(l1+l2)/2",
}
