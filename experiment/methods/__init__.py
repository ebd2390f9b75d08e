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
        MethodEntry("WT", s.WTSettings, "experiment.methods.wt:WT", "weight"),
        MethodEntry("FT", s.FTSettings, "experiment.methods.ft:ft", "filter"),
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
