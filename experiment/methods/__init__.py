"""The registry of compression methods, torch-free: what a method is lies behind its entry's `target`."""

from __future__ import annotations

from experiment.methods import settings as s
from experiment.registry import MethodEntry

METHODS: dict[str, MethodEntry] = {
    entry.label: entry
    for entry in (
        MethodEntry("Reference", s.ReferenceSettings, "experiment.methods.unchanged:Unchanged", "none"),
        MethodEntry("Fake", s.FakeSettings, "experiment.methods.unchanged:Unchanged", "none"),
        MethodEntry("ALDS", s.ALDSSettings, "experiment.methods.alds:ALDS", "lowrank"),
        MethodEntry("ALDS+", s.ALDSPlusSettings, "experiment.methods.alds:ALDS", "lowrank"),
        MethodEntry("ALDS (One-shot)", s.ALDSSettings, "experiment.methods.alds:ALDS", "lowrank", restarts=True),
        MethodEntry("ALDS-K", s.ALDSKSettings, "experiment.methods.alds:ALDSK", "lowrank"),
        MethodEntry("ALDS-Error3", s.ALDSError3Settings, "experiment.methods.svd:svd_error", "lowrank"),
        MethodEntry("ALDS-Simple3", s.ALDSSimple3Settings, "experiment.methods.svd:svd", "lowrank"),
        MethodEntry("ALDS-Simple5", s.ALDSSimple5Settings, "experiment.methods.svd:svd", "lowrank"),
        MethodEntry("SVD", s.SVDSettings, "experiment.methods.svd:svd", "lowrank"),
        MethodEntry("SVD-Energy", s.SVDEnergySettings, "experiment.methods.svd:svd_energy", "lowrank"),
        MethodEntry("SVD-Nuclear", s.SVDNuclearSettings, "experiment.methods.svd:svd_nuclear", "lowrank"),
        MethodEntry("SVD-Error", s.SVDErrorSettings, "experiment.methods.svd:svd_error", "lowrank"),
        MethodEntry("KLDS", s.KLDSSettings, "experiment.methods.klds:KLDS", "lowrank", random=True),
        MethodEntry("L-Rank", s.LRankSettings, "experiment.methods.svd:l_rank", "lowrank"),
        MethodEntry("L-Rank-Scheme1", s.LRankScheme1Settings, "experiment.methods.svd:l_rank", "lowrank"),
        MethodEntry("RSVD", s.RSVDSettings, "experiment.methods.rsvd:RSVD", "lowrank", random=True),
        MethodEntry("PCA", s.PCASettings, "experiment.methods.pca:PCA", "lowrank"),
        MethodEntry("Messi3", s.Messi3Settings, "experiment.methods.messi:Messi", "lowrank", random=True),
        MethodEntry("Messi5", s.Messi5Settings, "experiment.methods.messi:Messi", "lowrank", random=True),
        MethodEntry("WT", s.WTSettings, "experiment.methods.wt:wt", "weight"),
        MethodEntry("WT (layer)", s.WTLayerSettings, "experiment.methods.wt:wt_layer", "weight"),
        MethodEntry("Random", s.RandomSettings, "experiment.methods.wt:random_weights", "weight", random=True),
        MethodEntry(
            "Random (layer)", s.RandomLayerSettings, "experiment.methods.wt:random_layer", "weight", random=True
        ),
        MethodEntry("SNIP", s.SNIPSettings, "experiment.methods.snip:snip", "weight"),
        MethodEntry("Uniform", s.UniformSettings, "experiment.methods.uniform:uniform", "weight", random=True),
        MethodEntry("l1", s.L1Settings, "experiment.methods.uniform:l1", "weight", random=True),
        MethodEntry("l2", s.L2Settings, "experiment.methods.uniform:l2", "weight", random=True),
        MethodEntry("(l1+l2)/2", s.L1L2Settings, "experiment.methods.uniform:l1_l2", "weight", random=True),
        MethodEntry("SiPP", s.SiPPSettings, "experiment.methods.sipp:sipp", "weight"),
        MethodEntry("SiPPRand", s.SiPPSettings, "experiment.methods.sipp:sipp_rand", "weight", random=True),
        MethodEntry("SiPPHybrid", s.SiPPSettings, "experiment.methods.sipp:sipp_hybrid", "weight", random=True),
        MethodEntry(
            "TorchPrune", s.TorchPruneSettings, "experiment.methods.torch_method:torch_prune", "weight", random=True
        ),
        MethodEntry("FT", s.FTSettings, "experiment.methods.ft:ft", "filter"),
        MethodEntry("SoftNet", s.SoftNetSettings, "experiment.methods.ft:soft_net", "filter"),
        MethodEntry(
            "Uniform Filters", s.UniformFiltersSettings, "experiment.methods.ft:uniform_filters", "filter", random=True
        ),
        MethodEntry("ThiNet", s.ThiNetSettings, "experiment.methods.thinet:thinet", "filter", random=True),
        MethodEntry("PFP", s.PFPSettings, "experiment.methods.pfp:pfp", "filter"),
        MethodEntry("PFP (rand)", s.PFPSettings, "experiment.methods.pfp:pfp_rand", "filter", random=True),
        MethodEntry("PFP (partial)", s.PFPSettings, "experiment.methods.pfp:pfp_partial", "filter", random=True),
        MethodEntry("Global Filters", s.GlobalFiltersSettings, "experiment.methods.ranking:global_filters", "filter"),
        MethodEntry("Blocks", s.BlocksSettings, "experiment.methods.blocks:Blocks", "filter"),
        MethodEntry("Prune", s.PruneSettings, "experiment.methods.prune:prune", "weight"),
        MethodEntry("BlockPrune", s.BlockPruneSettings, "experiment.methods.prune:block_prune", "weight"),
        MethodEntry("NeuronPrune", s.StructurePruneSettings, "experiment.methods.structure:neuron_prune", "filter"),
        MethodEntry("FilterPrune", s.StructurePruneSettings, "experiment.methods.structure:filter_prune", "filter"),
        MethodEntry(
            "StructurePrune", s.StructurePruneSettings, "experiment.methods.structure:structure_prune", "filter"
        ),
        MethodEntry("Compose", s.ComposeSettings, "experiment.methods.compose:compose", "compose", random=True),
        MethodEntry("Slimming", s.SlimmingSettings, "experiment.methods.ranking:slimming", "filter"),
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
