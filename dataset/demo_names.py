"""Class names, real names and domains of the demo datasets; no imports, so that constants.py can read it cheaply."""

DEMO_REAL_NAMES = {
    "DemoA": {
        "button": "blue plastic button",
        "capsule": "red and white capsule",
        "carpet": "striped beige and gray carpet",
        "circuit_board": "green circuit board",
        "hex_nut": "gray metal hex nut",
        "leather": "brown leather",
        "tiles": "white tiles",
        "wood": "brown wood",
    },
    "DemoB": {
        "bottle_cap": "yellow metal bottle cap",
        "brushed_metal": "gray brushed metal",
        "candle": "white candle",
        "cracker": "beige cracker",
        "gear": "blue plastic gear",
        "key": "gray metal key",
        "marble": "white marble",
        "woven_fabric": "striped white and blue woven fabric",
    },
    "DemoC": {
        "battery": "purple battery",
        "bracket": "black metal bracket",
        "cardboard": "brown cardboard",
        "coin": "orange metal coin",
        "concrete": "gray concrete",
        "connector": "white plastic connector",
        "cookie": "brown cookie",
        "cork": "beige cork",
        "egg": "pink egg",
        "knitted_wool": "red knitted wool",
        "leaf": "green leaf",
        "spoon": "turquoise ceramic spoon",
        "tablet": "white tablet",
        "terrazzo": "beige terrazzo",
        "washer": "gray metal washer",
        "wire_mesh": "gray wire mesh",
    },
    "DemoPhoto": {
        "brick": "brick wall",
        "coins": "old coins",
        "grass": "grass",
        "gravel": "gravel",
        "moon": "moon surface",
        "page": "page of printed text",
    },
    "DemoPhotoMed": {
        "ihc": "stained tissue under the microscope",
        "retina": "retina of an eye",
    },
}

DEMO_DOMAINS = {
    "DemoA": "Industrial",
    "DemoB": "Industrial",
    "DemoC": "Industrial",
    "DemoPhoto": "Industrial",
    "DemoPhotoMed": "Medical",
}
