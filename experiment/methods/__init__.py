"""The registry of compression methods, without torch: an entry's code is imported when `target` is resolved."""

from experiment.methods.filters.settings import (
    BlocksSettings,
    GlobalFiltersSettings,
    PFPSettings,
    RankedFilterSettings,
    ScoredFilterSettings,
    StructurePruneSettings,
    ThiNetSettings,
    TorchPruningSettings,
)
from experiment.methods.lowrank.settings import (
    ALDSKSettings,
    ALDSSettings,
    KLDSSettings,
    LRankSettings,
    MessiSettings,
    PCASettings,
    RSVDSettings,
    SlicedSettings,
    SVDSettings,
    TuckerSettings,
)
from experiment.methods.masks.settings import (
    BlockPruneSettings,
    PruneSettings,
    SampledSiPPSettings,
    SiPPSettings,
    TorchPruneSettings,
    WeightSettings,
)
from experiment.methods.mixed.settings import MixSettings
from experiment.methods.settings import ComposeSettings, FakeSettings, NoSettings, QuantizeSettings, ReferenceSettings
from experiment.registry import MethodEntry

ROOT = "experiment.methods"
LOWRANK, MASKS, FILTERS = f"{ROOT}.lowrank", f"{ROOT}.masks", f"{ROOT}.filters"

METHODS: dict[str, MethodEntry] = {
    entry.label: entry
    for entry in (
        # label, settings, target, kind, torchprune's names, preset
        MethodEntry("Reference", ReferenceSettings, f"{ROOT}.unchanged:Unchanged", "none", ("ReferenceNet",)),
        MethodEntry("Fake", FakeSettings, f"{ROOT}.unchanged:Unchanged", "none", ("FakeNet",)),
        MethodEntry("ALDS", ALDSSettings, f"{LOWRANK}.alds:ALDS", "lowrank", ("ALDSNet",)),
        MethodEntry(
            "ALDS+", ALDSSettings, f"{LOWRANK}.alds:ALDS", "lowrank", ("ALDSNetPlus",), {"foldings": (0, 1, 2, 3)}
        ),
        MethodEntry("ALDS (One-shot)", ALDSSettings, f"{LOWRANK}.alds:ALDS", "lowrank", ("ALDSNetOne",), restarts=True),
        MethodEntry("ALDS-K", ALDSKSettings, f"{LOWRANK}.alds:ALDSK", "lowrank", ("ALDSNetOptK",)),
        MethodEntry(
            "ALDS-Error3", SVDSettings, f"{LOWRANK}.svd:svd_error", "lowrank", ("ALDSNetErrorOnly",), {"groups": 3}
        ),
        MethodEntry("ALDS-Simple3", SVDSettings, f"{LOWRANK}.svd:svd", "lowrank", ("ALDSNetSimple",), {"groups": 3}),
        MethodEntry("ALDS-Simple5", SVDSettings, f"{LOWRANK}.svd:svd", "lowrank", ("ALDSNetSimple5",), {"groups": 5}),
        MethodEntry("SVD", SVDSettings, f"{LOWRANK}.svd:svd", "lowrank", ("SVDNet",)),
        MethodEntry("SVD-Energy", SVDSettings, f"{LOWRANK}.svd:svd_energy", "lowrank", ("SVDFrobeniusNet",)),
        MethodEntry("SVD-Nuclear", SlicedSettings, f"{LOWRANK}.svd:svd_nuclear", "lowrank", ("SVDNuclearNet",)),
        MethodEntry("SVD-Error", SVDSettings, f"{LOWRANK}.svd:svd_error", "lowrank", ("SVDErrorNet",)),
        MethodEntry("Spatial SVD", SVDSettings, f"{LOWRANK}.svd:svd", "lowrank", preset={"folding": 1}),
        MethodEntry("KLDS", KLDSSettings, f"{LOWRANK}.klds:KLDS", "lowrank"),
        MethodEntry("L-Rank", LRankSettings, f"{LOWRANK}.svd:l_rank", "lowrank", ("LearnedRankNetScheme0",)),
        MethodEntry(
            "L-Rank-Scheme1", LRankSettings, f"{LOWRANK}.svd:l_rank", "lowrank", ("LearnedRankNet",), {"folding": 1}
        ),
        MethodEntry("RSVD", RSVDSettings, f"{LOWRANK}.rsvd:RSVD", "lowrank"),
        MethodEntry("PCA", PCASettings, f"{LOWRANK}.pca:PCA", "lowrank", ("PCANet",)),
        MethodEntry("BALF", PCASettings, f"{LOWRANK}.pca:PCA", "lowrank", preset={"allocation": "sum"}),
        MethodEntry("SVD-LLM", PCASettings, f"{LOWRANK}.pca:PCA", "lowrank", preset={"allocation": "uniform"}),
        MethodEntry("Tucker", TuckerSettings, f"{LOWRANK}.tucker:Tucker", "lowrank"),
        MethodEntry("Messi3", MessiSettings, f"{LOWRANK}.messi:Messi", "lowrank", ("MessiNet",)),
        MethodEntry("Messi5", MessiSettings, f"{LOWRANK}.messi:Messi", "lowrank", ("MessiNet5",), {"groups": 5}),
        MethodEntry("WT", WeightSettings, f"{MASKS}.magnitude:wt", "weight", ("ThresNet",)),
        MethodEntry("WT (layer)", WeightSettings, f"{MASKS}.magnitude:wt", "weight", preset={"allocation": "uniform"}),
        MethodEntry("Random", WeightSettings, f"{MASKS}.magnitude:random_weights", "weight"),
        MethodEntry(
            "Random (layer)",
            WeightSettings,
            f"{MASKS}.magnitude:random_weights",
            "weight",
            preset={"allocation": "uniform"},
        ),
        MethodEntry("SNIP", WeightSettings, f"{MASKS}.gradients:snip", "weight", ("SnipNet",), needs_classes=True),
        MethodEntry("Taylor", WeightSettings, f"{MASKS}.gradients:taylor", "weight", needs_classes=True),
        MethodEntry("GraSP", WeightSettings, f"{MASKS}.gradients:grasp", "weight", needs_classes=True),
        MethodEntry("SynFlow", WeightSettings, f"{MASKS}.gradients:synflow", "weight"),
        MethodEntry("LAMP", WeightSettings, f"{MASKS}.magnitude:wt", "weight", preset={"allocation": "lamp"}),
        MethodEntry("ERK", WeightSettings, f"{MASKS}.magnitude:wt", "weight", preset={"allocation": "erk"}),
        MethodEntry(
            "Wanda",
            WeightSettings,
            f"{MASKS}.activations:wanda",
            "weight",
            preset={"allocation": "uniform", "within_filters": True},
        ),
        MethodEntry(
            "SparseGPT",
            WeightSettings,
            f"{MASKS}.activations:obs",
            "weight",
            preset={"allocation": "uniform", "refit": True},
        ),
        MethodEntry("Uniform", NoSettings, f"{MASKS}.uniform:uniform", "weight", ("UniNet",)),
        MethodEntry("l1", NoSettings, f"{MASKS}.uniform:l1", "weight", ("EllOneNet",)),
        MethodEntry("l2", NoSettings, f"{MASKS}.uniform:l2", "weight", ("EllTwoNet",)),
        MethodEntry("(l1+l2)/2", NoSettings, f"{MASKS}.uniform:l1_l2", "weight", ("EllOneAndTwoNet",)),
        MethodEntry("SiPP", SiPPSettings, f"{MASKS}.sipp:sipp", "weight", ("SiPPNet",)),
        MethodEntry("SiPPRand", SampledSiPPSettings, f"{MASKS}.sipp:sipp_rand", "weight", ("SiPPNetRand",)),
        MethodEntry("SiPPHybrid", SampledSiPPSettings, f"{MASKS}.sipp:sipp_hybrid", "weight", ("SiPPNetHybrid",)),
        MethodEntry("TorchPrune", TorchPruneSettings, f"{MASKS}.torch_prune:torch_prune", "weight"),
        MethodEntry("FT", ScoredFilterSettings, f"{FILTERS}.ft:ft", "filter", ("FilterThresNet",)),
        MethodEntry("SoftNet", ScoredFilterSettings, f"{FILTERS}.ft:soft_net", "filter", ("SoftNet",)),
        MethodEntry(
            "Uniform Filters", ScoredFilterSettings, f"{FILTERS}.ft:uniform_filters", "filter", ("FilterUniNet",)
        ),
        MethodEntry("ThiNet", ThiNetSettings, f"{FILTERS}.thinet:thinet", "filter", ("ThiNet",)),
        MethodEntry("PFP", PFPSettings, f"{FILTERS}.pfp:pfp", "filter", ("PFPNet",)),
        MethodEntry("PFP (rand)", PFPSettings, f"{FILTERS}.pfp:pfp_rand", "filter", ("PFPNetRand",)),
        MethodEntry("PFP (partial)", PFPSettings, f"{FILTERS}.pfp:pfp_partial", "filter", ("PFPNetTop",)),
        MethodEntry("Global Filters", GlobalFiltersSettings, f"{FILTERS}.global_ranking:global_filters", "filter"),
        MethodEntry("TorchPruning", TorchPruningSettings, f"{FILTERS}.torch_pruning:torch_pruning", "filter"),
        MethodEntry("Blocks", BlocksSettings, f"{FILTERS}.blocks:Blocks", "filter"),
        MethodEntry("Prune", PruneSettings, f"{MASKS}.condensa:prune", "weight"),
        MethodEntry("BlockPrune", BlockPruneSettings, f"{MASKS}.condensa:block_prune", "weight"),
        MethodEntry("NeuronPrune", StructurePruneSettings, f"{FILTERS}.condensa:neuron_prune", "filter"),
        MethodEntry("FilterPrune", StructurePruneSettings, f"{FILTERS}.condensa:filter_prune", "filter"),
        MethodEntry("StructurePrune", StructurePruneSettings, f"{FILTERS}.condensa:structure_prune", "filter"),
        MethodEntry("Compose", ComposeSettings, f"{ROOT}.compose:compose", "compose"),
        MethodEntry("Mix", MixSettings, f"{ROOT}.mixed.mix:Mix", "mixed", version=2),
        MethodEntry("Slimming", RankedFilterSettings, f"{FILTERS}.global_ranking:slimming", "filter"),
        MethodEntry("Quantize", QuantizeSettings, f"{ROOT}.quantize:Quantize", "quantization"),
    )
}

# torchprune's class names -> labels
TORCHPRUNE_NAMES = {alias: entry.label for entry in METHODS.values() for alias in entry.aliases}
