"""Index sets of the 478-point face mesh (MediaPipe Face Landmarker topology). "Left" is the subject's left.

The contours run in order, so that consecutive points are neighbours on the face.
"""

from __future__ import annotations

# Lips. Both contours are closed polygons that start at the subject's right mouth corner and go along the upper lip.
OUTER_LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
LIPS = tuple(
    sorted(
        {
            *OUTER_LIPS,
            *INNER_LIPS,
            62,
            76,
            77,
            90,
            180,
            85,
            16,
            315,
            404,
            320,
            307,
            306,
            292,
            408,
            304,
            303,
            302,
            11,
            72,
            73,
            74,
            184,
            183,
            42,
            41,
            38,
            12,
            268,
            271,
            272,
            407,
            96,
            89,
            179,
            86,
            15,
            316,
            403,
            319,
            325,
        }
    )
)
UPPER_LIP = (40, 39, 37, 0, 267, 269, 270, 80, 81, 82, 13, 312, 311, 310)
LOWER_LIP = (321, 405, 314, 17, 84, 181, 91, 318, 402, 317, 14, 87, 178, 88)
RIGHT_MOUTH_CORNER = (61, 185, 146, 78, 191, 95, 57, 43, 186, 190)
LEFT_MOUTH_CORNER = (291, 409, 375, 308, 415, 324, 287, 273, 410, 414)
INNER_LIP_PAIRS = ((82, 87), (13, 14), (312, 317))
ALL_INNER_LIP_PAIRS = (
    (191, 95),
    (80, 88),
    (81, 178),
    (82, 87),
    (13, 14),
    (312, 317),
    (311, 402),
    (310, 318),
    (415, 324),
)

# Eyes: closed polygons from the outer corner along the upper lid and back along the lower lid.
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
RIGHT_UPPER_LID, RIGHT_LOWER_LID = RIGHT_EYE[1:8], RIGHT_EYE[9:]
LEFT_UPPER_LID, LEFT_LOWER_LID = LEFT_EYE[1:8], LEFT_EYE[9:]
RIGHT_IRIS, LEFT_IRIS = tuple(range(468, 473)), tuple(range(473, 478))
# (outer corner, inner corner, (upper, lower), (upper, lower)) for the eye aspect ratio.
RIGHT_EAR_POINTS = (33, 133, (160, 144), (158, 153))
LEFT_EAR_POINTS = (263, 362, (387, 373), (385, 380))

# Two rings of skin around each eye: where the motion of the lids ends.
EYE_SURROUNDINGS = (
    247,
    30,
    29,
    27,
    28,
    56,
    190,
    130,
    25,
    110,
    24,
    23,
    22,
    26,
    112,
    243,
    467,
    260,
    259,
    257,
    258,
    286,
    414,
    359,
    255,
    339,
    254,
    253,
    252,
    256,
    341,
    463,
)

RIGHT_BROW = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107)
LEFT_BROW = (276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 129, 358, 64, 294, 48, 278)
RIGHT_CHEEK = (50, 205, 187, 147, 123, 117, 118, 101, 36, 207, 216)
LEFT_CHEEK = (280, 425, 411, 376, 352, 346, 347, 330, 266, 427, 436)
FOREHEAD = (10, 151, 9, 108, 69, 104, 337, 299, 333, 109, 338, 67, 297)
CHIN = (152, 148, 176, 149, 377, 400, 378, 199, 175, 200, 18, 83, 313)
RIGHT_JAW = (150, 136, 172, 58, 132, 138, 135, 169)
LEFT_JAW = (379, 365, 397, 288, 361, 367, 364, 394)
FACE_OVAL = (
    10,
    338,
    297,
    332,
    284,
    251,
    389,
    356,
    454,
    323,
    361,
    288,
    397,
    365,
    379,
    378,
    400,
    377,
    152,
    148,
    176,
    149,
    150,
    136,
    172,
    58,
    132,
    93,
    234,
    127,
    162,
    21,
    54,
    103,
    67,
    109,
)

# Landmarks that expression hardly moves: nose bridge, eye corners, forehead, temples.
RIGID = (
    168,
    6,
    197,
    195,
    5,
    33,
    133,
    362,
    263,
    10,
    151,
    9,
    8,
    108,
    337,
    69,
    299,
    109,
    338,
    67,
    297,
    127,
    356,
    162,
    389,
    21,
)

REGION_GROUPS: dict[str, tuple[int, ...]] = {
    "upper_lip": UPPER_LIP,
    "lower_lip": LOWER_LIP,
    "right_mouth_corner": RIGHT_MOUTH_CORNER,
    "left_mouth_corner": LEFT_MOUTH_CORNER,
    "chin": CHIN,
    "right_jaw": RIGHT_JAW,
    "left_jaw": LEFT_JAW,
    "right_upper_lid": (*RIGHT_UPPER_LID, 33, 133),
    "right_lower_lid": (*RIGHT_LOWER_LID, 33, 133),
    "left_upper_lid": (*LEFT_UPPER_LID, 263, 362),
    "left_lower_lid": (*LEFT_LOWER_LID, 263, 362),
    "right_brow": RIGHT_BROW,
    "left_brow": LEFT_BROW,
    "nose": NOSE,
    "right_cheek": RIGHT_CHEEK,
    "left_cheek": LEFT_CHEEK,
    "forehead": FOREHEAD,
    "head": FACE_OVAL,
}
"""The landmark groups whose affine motion drives the flow (``models.lite.regions``)."""

EYE_OUTER_CORNERS = (33, 263)
LIP_CORNERS = (61, 291)
