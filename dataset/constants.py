"""What the datasets are called: classes, the words that describe them, domains and folders.

Checkpoints and published numbers depend on `REAL_NAMES` and `PROMPTS` (the text anchors are encoded from them), so
the entries of AA-CLIP's eleven sets are its own, to the letter; `dataset.custom.load_real_names` overrides them for
one run and `dataset.custom.register_dataset` adds entries to these same dictionaries. The names of the registries and
their keys are AA-CLIP's public ones.
"""

from dataset.demo_names import DEMO_DOMAINS, DEMO_REAL_NAMES
from dataset.published_names import FURTHER_DOMAINS, FURTHER_FOLDERS, FURTHER_REAL_NAMES

# The data root when neither an argument nor the environment variable AACLIP_DATA names one.
BASE_PATH = "./data"

# {dataset: {class: what the class is called in a prompt}}; the order of the classes is the order of every table.
REAL_NAMES: dict[str, dict[str, str]] = {
    "MVTec": {
        "bottle": "dark bottle",
        "cable": "top view of three cables",
        "capsule": "black and orange capsule",
        "carpet": "gray carpet",
        "grid": "metal or plastic mesh",
        "hazelnut": "single brown hazelnut",
        "leather": "brown leather",
        "metal_nut": "metal nut which has four notched edges",
        "pill": "oval white pill with small red speckles and the letters 'FF' engraved",
        "screw": "screw",
        "tile": "speckled tile surface",
        "transistor": "a three-legged transistor placed vertically",
        "toothbrush": "toothbrush head",
        "wood": "wood surface",
        "zipper": "a black zipper",
    },
    "VisA": {
        "candle": "candle",
        "pcb3": "infrared sensor pcb module",
        "capsules": "capsules",
        "pipe_fryum": "pipe-shaped fryum",
        "pcb4": "battery charging pcb module",
        "macaroni2": "scattered yellow macaroni",
        "pcb2": "integrated circuits board",
        "chewinggum": "chewing gum",
        "macaroni1": "orange macaroni",
        "cashew": "cashew nut",
        "fryum": "wheel-shaped fryum snack",
        "pcb1": "dual ultrasonic distance sensor pcb module",
    },
    "BTAD": {
        "01": "Bright concentric rings in neon yellow and blue tones against a dark blue background, "
        "resembling a stylized wave or energy field radiating outward.",
        "02": "vertical fabric lines in warm, dusty pink and beige tones",
        "03": "oval concentric circular rings in gradient shades of blue and white",
    },
    "MPDD": {
        "connector": "metal clamps with black adjustment knobs",
        "tubes": "scattered metal objects",
        "metal_plate": "blue rectangular metal plate with a notch on one side",
        "bracket_white": "white, elongated triangular metal bracket with a smooth, matte finish",
        "bracket_brown": "brown L-shaped metal bracket with smooth, glossy finish and multiple mounting holes "
        "along its arms",
        "bracket_black": "black ornamental metal bracket with spiral design attached to a rectangular frame",
    },
    "Brain": {"Brain": "scan"},
    "Liver": {"Liver": "scan"},
    "Retina": {"Retina": "scan"},
    "Colon_clinicDB": {"Colon_clinicDB": "colon endoscopy image"},
    "Colon_colonDB": {"Colon_colonDB": "colon endoscopy image"},
    "Colon_Kvasir": {"Kvasir": "colon endoscopy image"},
    "Colon_cvc300": {"CVC-300": "colon endoscopy image"},
    "ELPV": {
        "monocrystalline": "monocrystalline solar cell",
        "polycrystalline": "polycrystalline solar cell",
    },
    "Textile": {"textile": "woven textile"},
    **FURTHER_REAL_NAMES,
    **{name: dict(classes) for name, classes in DEMO_REAL_NAMES.items()},
}

# {dataset: [class, ...]}
CLASS_NAMES: dict[str, list[str]] = {name: list(classes) for name, classes in REAL_NAMES.items()}

# {dataset: "Industrial" or "Medical"}: decides the test map's blur and upstream's fused image score.
DOMAINS: dict[str, str] = {
    **dict.fromkeys(("MVTec", "VisA", "BTAD", "MPDD"), "Industrial"),
    **dict.fromkeys(("ELPV", "Textile"), "Industrial"),
    **dict.fromkeys(
        ("Brain", "Liver", "Retina", "Colon_clinicDB", "Colon_colonDB", "Colon_Kvasir", "Colon_cvc300"),
        "Medical",
    ),
    **FURTHER_DOMAINS,
    **DEMO_DOMAINS,
}

# {dataset: its folder under the data root}
DATA_PATH: dict[str, str] = {
    "MVTec": "mvtec_ad",
    "VisA": "VisA_20220922",
    "BTAD": "BTech_Dataset_transformed",
    "MPDD": "MPDD",
    "Brain": "MedAD/Brain_AD",
    "Liver": "MedAD/Liver_AD",
    "Retina": "MedAD/Retina_RESC_AD",
    "Colon_clinicDB": "Colon/CVC-ClinicDB",
    "Colon_colonDB": "Colon/CVC-ColonDB",
    "Colon_Kvasir": "Colon/Kvasir",
    "Colon_cvc300": "Colon/CVC-300",
    "ELPV": "ELPV",
    "Textile": "Textile",
    **FURTHER_FOLDERS,
    **{name: name for name in DEMO_REAL_NAMES},
}

PACKAGED = ("ELPV", "Textile")  # come inside pip packages
# Published with image labels and without masks; every other dataset named here has a mask for each defect.
LABELS_ONLY = (*PACKAGED, "Br35H", "BrainMRI", "HeadCT")

# {dataset: its full-shot jsonl}: only datasets registered by the user with a jsonl of their own.
METADATA_FILES: dict[str, str] = {}

# Every state is put into every template: 3 x 2 = 6 normal and 5 x 2 = 10 abnormal prompts per class.
PROMPTS: dict[str, list[str]] = {
    "prompt_normal": ["{}", "a {}", "the {}"],
    "prompt_abnormal": [
        "a damaged {}",
        "a broken {}",
        "a {} with flaw",
        "a {} with defect",
        "a {} with damage",
    ],
    "prompt_templates": ["{}.", "a photo of {}."],
}
