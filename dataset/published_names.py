"""Further published sets: their classes, real names, domains and folders; no imports, as in demo_names.

AA-CLIP has no real names for them: these are the classes' own names, in words.
"""

FURTHER_REAL_NAMES: dict[str, dict[str, str]] = {
    "MVTecAD2": {
        "can": "can",
        "fabric": "fabric",
        "fruit_jelly": "fruit jelly",
        "rice": "rice",
        "sheet_metal": "sheet metal",
        "vial": "vial",
        "wallplugs": "wall plugs",
        "walnuts": "walnuts",
    },
    "MVTecLOCO": {
        "breakfast_box": "breakfast box",
        "juice_bottle": "juice bottle",
        "pushpins": "box of pushpins",
        "screw_bag": "bag of screws",
        "splicing_connectors": "splicing connectors joined by a cable",
    },
    "RealIAD": {
        "audiojack": "audio jack",
        "bottle_cap": "bottle cap",
        "button_battery": "button battery",
        "end_cap": "end cap",
        "eraser": "eraser",
        "fire_hood": "fire hood",
        "mint": "mint",
        "mounts": "mount",
        "pcb": "printed circuit board",
        "phone_battery": "phone battery",
        "plastic_nut": "plastic nut",
        "plastic_plug": "plastic plug",
        "porcelain_doll": "porcelain doll",
        "regulator": "regulator",
        "rolled_strip_base": "rolled strip base",
        "sim_card_set": "SIM card set",
        "switch": "switch",
        "tape": "tape",
        "terminalblock": "terminal block",
        "toothbrush": "toothbrush",
        "toy": "toy",
        "toy_brick": "toy brick",
        "transistor1": "transistor",
        "u_block": "U-shaped block",
        "usb": "USB connector",
        "usb_adaptor": "USB adaptor",
        "vcpill": "pill",
        "wooden_beads": "wooden bead",
        "woodstick": "wooden stick",
        "zipper": "zipper",
    },
    "DAGM": {f"Class{number}": "textured surface" for number in range(1, 11)},
    "DTDSynthetic": {
        "Blotchy_099": "blotchy texture",
        "Fibrous_183": "fibrous texture",
        "Marbled_078": "marbled texture",
        "Matted_069": "matted texture",
        "Mesh_114": "mesh texture",
        "Perforated_037": "perforated texture",
        "Stratified_154": "stratified texture",
        "Woven_001": "woven texture",
        "Woven_068": "woven texture",
        "Woven_104": "woven texture",
        "Woven_125": "woven texture",
        "Woven_127": "woven texture",
    },
    "KolektorSDD": {"commutator": "electrical commutator"},
    "Br35H": {"Br35H": "brain scan"},
    "BrainMRI": {"BrainMRI": "brain scan"},
    "HeadCT": {"HeadCT": "head scan"},
}

FURTHER_DOMAINS = {
    **dict.fromkeys(
        ("MVTecAD2", "MVTecLOCO", "RealIAD", "DAGM", "DTDSynthetic", "KolektorSDD"), "Industrial"
    ),
    **dict.fromkeys(("Br35H", "BrainMRI", "HeadCT"), "Medical"),
}

FURTHER_FOLDERS = {
    "MVTecAD2": "mvtec_ad_2",
    "MVTecLOCO": "mvtec_loco_anomaly_detection",
    "RealIAD": "Real-IAD",
    "DAGM": "DAGM",
    "DTDSynthetic": "DTD-Synthetic",
    "KolektorSDD": "KolektorSDD",
    "Br35H": "Br35H",
    "BrainMRI": "BrainMRI",
    "HeadCT": "HeadCT",
}
